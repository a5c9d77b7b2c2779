"""Answers in files: every kind comes back bit for bit, and any other file is refused with one line."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
