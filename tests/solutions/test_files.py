"""Answers in files: every kind comes back bit for bit, and any other file is refused with one line."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import pickle
import re
import zipfile
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import funcexplain as fe
from funcexplain.solutions import archive
from funcexplain.solutions.files import describe
from tests.grids import models, targets, x0s
from tests.helpers import assert_same, make_problem

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@cache
def answers() -> dict[str, fe.Solution]:
    """One answer of each form."""
    starts = x0s(3)
    starts[1] = math.nan
    grid = fe.vmap(fe.vmap(make_problem(), x0=starts, name="start"), target=targets(2))
    ensemble = fe.vmap(make_problem(), params=models(2))
    return {
        "one question": fe.solve(make_problem(), max_steps=3),
        "no history": fe.solve(make_problem(), max_steps=3, history=False),
        "grid": fe.solve(grid, fe.sgd(lr=20.0), max_steps=4, atol=0.05),
        "consensus": fe.solve(fe.consensus(ensemble), max_steps=2),
        "no rows": fe.solve(grid, max_steps=2)[:0],
    }


def converted(solution: fe.Solution, dtype: torch.dtype) -> fe.Solution:
    fields: dict[str, Any] = {
        n: t.to(dtype) for n, t in solution._tensors().items() if t.is_floating_point()
    }
    return replace(solution, **fields)


def bits(solution: fe.Solution) -> dict[str, Any]:
    """Shape, dtype and bytes of every field: NaN is compared, too."""
    return {
        name: (t.shape, t.dtype, t.flatten().view(torch.uint8).numpy().tobytes())
        for name, t in solution._tensors().items()
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", answers())
def test_answers_come_back_bit_for_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    solution = converted(answers()[name], dtype)
    solution.save(tmp_path / "answer.safetensors")
    loaded = fe.load(tmp_path / "answer.safetensors")
    assert bits(loaded) == bits(solution)
    assert loaded.dims == solution.dims
    assert type(loaded.status) is type(solution.status)
    assert repr(loaded) == repr(solution)


def test_layout_does_not_matter(tmp_path: Path) -> None:
    solution = answers()["grid"]
    turned = replace(solution, x=solution.x.mT.contiguous().mT, loss=solution.loss.T.clone().T)
    turned.save(tmp_path / "a")
    assert bits(fe.load(tmp_path / "a")) == bits(solution)


def test_what_was_loaded_can_be_written_to(tmp_path: Path) -> None:
    answers()["grid"].save(tmp_path / "a")
    loaded = fe.load(tmp_path / "a")
    loaded.x.zero_()
    assert_same(loaded.loss, answers()["grid"].loss)


def test_equal_answers_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        answers()["grid"].save(tmp_path / name, settings={"lr": 0.1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_labels_settings_and_versions_are_kept(tmp_path: Path) -> None:
    days = np.arange("2024-01-01", "2024-01-07", dtype="datetime64[D]")
    chosen = {"max_steps": 4, "lr": 0.1, "note": "Zürich €", "starts": [1, 2], "seed": None}
    answers()["grid"].save(
        tmp_path / "a", assets=list("ABCDE"), channels=("r", "v"), dates=days, settings=chosen
    )
    about = describe(tmp_path / "a")
    assert about["dims"] == ["target", "start"]
    assert about["labels"] == {
        "channel": ["r", "v"],
        "day": [f"2024-01-0{day}" for day in range(1, 7)],
        "asset": list("ABCDE"),
    }
    assert about["settings"] == chosen
    assert about["versions"].keys() == {"funcexplain", "torch", "python"}
    assert about["versions"]["torch"] == torch.__version__
    assert about["format"] == archive.FORMAT


def test_the_safetensors_library_reads_the_files(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    solution = converted(answers()["grid"], torch.bfloat16)
    solution.save(tmp_path / "a")
    read = library.load_file(str(tmp_path / "a"))
    assert_same(read, solution._tensors())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"assets": ["A"]}, ValueError, "save: assets must be 5 labels, one per asset of x, got 1"),
        ({"assets": list("AABCD")}, ValueError, "save: assets must differ from each other"),
        ({"channels": "rv"}, TypeError, "save: channels must be a sequence of labels, got str"),
        ({"dates": 6}, TypeError, "save: dates must be a sequence of labels, got int"),
        ({"settings": [1]}, TypeError, "save: settings must be a dict, got list"),
        ({"settings": {"lr": len}}, TypeError, "save: settings must be JSON values"),
        ({"settings": {"lr": math.nan}}, ValueError, "save: settings must be finite"),
    ],
    ids=repr,
)
def test_what_cannot_be_kept_is_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        answers()["grid"].save(tmp_path / "a", **arguments)
    assert not list(tmp_path.iterdir())


def test_trees_of_other_leaves_are_refused(tmp_path: Path) -> None:
    other = replace(answers()["grid"], loss=torch.zeros(2, 3, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"save: loss must be of a dtype among .* got torch\.complex64"):
        other.save(tmp_path / "a")


# --- damage ----------------------------------------------------------------------------------------


@cache
def saved() -> bytes:
    """The bytes of a small file."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"funcexplain-test-{os.getpid()}"
    answers()["one question"].save(path, assets=list("ABCDE"), settings={"lr": 0.1})
    data = path.read_bytes()
    path.unlink()
    return data


def assert_refused(path: Path, data: bytes, match: str = "load: ") -> None:
    """Reading ends in one line that names the path and says what to do."""
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        fe.load(path)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert message.startswith("load: ")
    assert str(path) in message
    assert "\n" not in message
    assert re.search("copy it again|solve and save again|solution.save|pip install -U", message)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data = saved()
    for length in [*range(0, len(data), 7), *range(20), len(data) - 1]:
        assert_refused(tmp_path / "a", data[:length])
    assert_refused(tmp_path / "a", data[:-1], match="is cut off")
    assert_refused(tmp_path / "a", data + b"0", match="something was appended")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_do_not_matter(data: st.DataObject) -> None:
    good = saved()
    bad = bytearray(good)
    # The header and the data are far from equally long; either is met half of the time.
    middle = 8 + int.from_bytes(good[:8], "little")
    lower, upper = data.draw(st.sampled_from([(0, middle - 1), (middle, len(good) - 1)]))
    for place in data.draw(st.lists(st.integers(lower, upper), min_size=1, max_size=3)):
        bad[place] ^= data.draw(st.integers(1, 255))
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"funcexplain-flipped-{os.getpid()}"
    try:
        path.write_bytes(bad)
        loaded = None
        with suppress(ValueError):
            loaded = fe.load(path)
        if loaded is None:
            assert_refused(path, bytes(bad))
        else:  # the same numbers, as when a flip is undone or a blank becomes another blank
            assert bits(loaded) == bits(answers()["one question"])
    finally:
        path.unlink()


@settings(max_examples=200, deadline=None)
@given(
    noise=st.binary(max_size=200), lead=st.sampled_from([b"", b"\x02" + bytes(7) + b"{", b"PK\x03\x04"])
)
def test_noise_is_refused(noise: bytes, lead: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"funcexplain-noise-{os.getpid()}"
    try:
        assert_refused(path, lead + noise)
    finally:
        path.unlink()


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["BOMB"],))


def foreign() -> dict[str, bytes]:
    """Files of other programs, some of which would run code in a careless reader."""
    made = {}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "hello")
    made["zip"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Bomb()], dtype=object))
    made["npz with a pickle"] = buffer.getvalue()
    made["pickle"] = pickle.dumps(Bomb())
    buffer = io.BytesIO()
    torch.save({"x": Bomb()}, buffer)
    made["torch"] = buffer.getvalue()
    for name, header in {
        "other safetensors": {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        "other notes": {"__metadata__": {"format": "pt"}},
        "no dict": {"__metadata__": []},
        "deep": {"__metadata__": {"funcexplain": "[" * 100_000, "sha256": ""}},
    }.items():
        text = json.dumps(header).encode()
        made[name] = len(text).to_bytes(8, "little") + text + bytes(4)
    text = b"{" + b'"a":[' * 100_000
    made["deeper"] = len(text).to_bytes(8, "little") + text
    made["csv"] = b"date,EUR\n2024-01-01,1.1\n"
    return made


@pytest.mark.parametrize(
    "name",
    "zip;npz with a pickle;pickle;torch;other safetensors;other notes;no dict;deep;deeper;csv".split(
        ";"
    ),
)
def test_other_files_are_refused_and_never_run(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "bomb"))
    assert_refused(tmp_path / "a", foreign()[name], match="damaged")
    assert not (tmp_path / "bomb").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F8"},
        {"dtype": []},
        {"shape": [-1, -2]},
        {"shape": [2.5]},
        {"shape": "12"},
        {"shape": [1 << 62]},
        {"data_offsets": [-(1 << 60), 96]},
        {"data_offsets": None},
    ],
    ids=repr,
)
def test_a_header_that_was_made_up_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    data = saved()
    middle = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:middle])
    header["x"].update(change)
    header["__metadata__"].pop("sha256")
    header["__metadata__"]["sha256"] = archive._digest(header)
    text = json.dumps(header).encode()
    made = len(text).to_bytes(8, "little") + text + data[middle:]
    assert_refused(tmp_path / "a", made, match="its header contradicts itself")


def test_files_of_a_later_version_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FORMAT", 2)
    monkeypatch.setattr(fe, "__version__", "9.9")
    answers()["grid"].save(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"saved by funcexplain 9\.9 in format 2, .* pip install -U"):
        fe.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("changed", "dims"),
    [
        ({}, None),
        ({}, []),
        ({}, ["target"]),
        ({}, ["target", 1]),
        ({"loss": torch.zeros(3, 2)}, ["target", "start"]),
        ({"status": torch.full((2, 3), 9)}, ["target", "start"]),
        ({"more": torch.zeros(2, 3)}, ["target", "start"]),
    ],
    ids=repr,
)
def test_an_archive_of_something_else_is_refused(
    tmp_path: Path, changed: dict[str, Any], dims: Any
) -> None:
    tensors = {**answers()["grid"]._tensors(), **changed}
    archive.write_archive("save", tmp_path / "a", tensors, {"dims": dims})
    with pytest.raises(ValueError, match=r"load: .* must hold the fields of a solution"):
        fe.load(tmp_path / "a")


@pytest.mark.parametrize("notes", [{"format": "new"}, {"format": 9, "versions": None}], ids=repr)
def test_notes_that_were_made_up_are_refused(tmp_path: Path, notes: dict[str, Any]) -> None:
    archive.write_archive("save", tmp_path / "a", answers()["grid"]._tensors(), notes)
    assert_refused(tmp_path / "a", (tmp_path / "a").read_bytes(), match="is damaged")


# --- the file system -------------------------------------------------------------------------------


def test_folders_and_missing_files_say_what_they_are(tmp_path: Path) -> None:
    solution = answers()["one question"]
    with pytest.raises(IsADirectoryError, match=r"load: .* is a folder; name the file in it"):
        fe.load(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"save: .* is a folder; name a file in it"):
        solution.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"load: cannot read '.*none'.*check that it exists"):
        fe.load(tmp_path / "none")
    for act in (fe.load, solution.save):
        with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'; create it first"):
            act(tmp_path / "nowhere" / "a")
    for act in (fe.load, solution.save):
        with pytest.raises(TypeError, match="path must be a str or a path, got int"):
            act(1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="path must name a file"):
            act("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"load: .* is not a regular file"):
        fe.load(tmp_path / "pipe")


def trouble(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
def test_a_write_that_fails_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: str
) -> None:
    # Tests may run as root, for whom no folder is read-only: the system's answer is played.
    path = tmp_path / "a"
    answers()["grid"].save(path)
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> Any:
        raise trouble(number)

    monkeypatch.setattr(Path if where == "open" else os, where, fail)
    with pytest.raises(OSError, match=r"save: cannot write '.*': .*; choose another folder") as caught:
        answers()["one question"].save(path)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"save: cannot write '.*': Permission denied"):
        answers()["grid"].save(tmp_path / "a")


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        answers()["grid"].save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_an_earlier_file_is_replaced_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    answers()["one question"].save(tmp_path / "real" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    answers()["grid"].save(str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert fe.load(tmp_path / "real" / "a").dims == ("target", "start")


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    answers()["grid"].save(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
