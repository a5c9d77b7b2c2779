"""A file that is damaged, made up or of another kind is refused with one line, and never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from contextlib import suppress
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
from tests.solutions.test_files import answers, bits

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
