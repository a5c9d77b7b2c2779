"""Answers do not depend on chunks, their order, or where they are solved."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.clusters.folder import Folder
from tests.clusters import builds
from tests.clusters.conftest import assert_same

Solve = Callable[..., fe.clusters.ChunkedSolution]


@pytest.mark.parametrize("chunk_size", [1, 5, 7, 24, 1000])
def test_answers_are_those_of_one_process(here: Solve, expected: fe.Solution, chunk_size: int) -> None:
    assert_same(here(chunk_size=chunk_size), expected)


def test_answers_do_not_depend_on_the_order(
    here: Solve, expected: fe.Solution, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Folder.unsound

    def shuffled(*args: Any) -> list[int]:
        numbers = list(inner(*args))
        random.Random(0).shuffle(numbers)
        return numbers

    monkeypatch.setattr(Folder, "unsound", shuffled)
    assert_same(here(), expected)


@pytest.mark.parametrize("rows", ["vmap", "samples"])
def test_both_ways_to_share_a_batch(here: Solve, rows: str) -> None:
    wanted = fe.solve(builds.grid(), builds.METHOD, rows=rows, **builds.SETTINGS)  # type: ignore[arg-type]
    assert_same(here(rows=rows), wanted)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("chunk_size", [50, 150])
def test_models_of_an_ensemble(here: Solve, inside: bool, chunk_size: int) -> None:
    """Chunks with few and with many rows of a model, and with several models."""
    kwargs = {"models": 2, "starts": 90, "models_inside": inside}
    wanted = fe.solve(builds.ensemble(**kwargs), builds.METHOD, **builds.SETTINGS)  # type: ignore[arg-type]
    assert_same(here((builds.ensemble, kwargs), chunk_size=chunk_size), wanted)


def test_levenberg_marquardt_and_recipes_of_methods(here: Solve, tmp_path: Path) -> None:
    wanted = fe.solve(builds.grid(), fe.levenberg_marquardt(), **builds.SETTINGS)
    assert_same(here(method=fe.levenberg_marquardt()), wanted)
    sgd = fe.solve(builds.grid(), fe.sgd(lr=0.3), **builds.SETTINGS)
    assert_same(here(method=(fe.sgd, {"lr": 0.3}), directory=tmp_path / "sgd"), sgd)


def test_history_is_kept_as_it_is_asked_for(here: Solve, tmp_path: Path) -> None:
    wanted = fe.solve(builds.grid(), builds.METHOD, history=3, **builds.SETTINGS)
    assert_same(here(history=3), wanted)
    none = here(history=False, directory=tmp_path / "none")
    assert none.history.shape == (4, 6, 0)


def test_a_grid_without_rows(here: Solve) -> None:
    solution = here((builds.grid, {"targets": 3, "starts": 0}))
    assert solution.shape == (3, 0)
    assert solution.x.shape == (3, 0, 2, 3, 4)
    assert list(solution.chunks()) == []


def test_progress_is_told_for_every_chunk(here: Solve) -> None:
    told: list[fe.Progress] = []

    class Listener:
        def __call__(self, state: fe.State, info: fe.Info) -> None:
            raise AssertionError("steps are taken elsewhere")

        def report(self, progress: fe.Progress) -> None:
            told.append(progress)

    solution = here(callback=Listener())
    assert [now.done for now in told] == [0, 5, 10, 15, 20, 24]
    assert told[-1].over
    assert told[-1].hits == int(solution.hit.sum())
    told.clear()
    here(callback=Listener())
    assert [(now.done, now.known, now.over) for now in told] == [(24, 24, True)]
    assert told[0].workers == 1
    lines = io.StringIO()
    here(callback=fe.progress(stream=lines))
    assert lines.getvalue().startswith("24 of 24 rows done")


def test_one_chunk_is_a_file_that_load_reads(here: Solve, tmp_path: Path, expected: fe.Solution) -> None:
    here()
    part = fe.load(tmp_path / "run" / "chunks" / "000000" / "000000001.safetensors")
    assert_same(part, expected.flat(torch.arange(5, 10)))
