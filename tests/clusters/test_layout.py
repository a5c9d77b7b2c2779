"""Answers do not depend on the chunks, their order, or the process."""

from __future__ import annotations

import inspect
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
    inner = Folder.missing

    def shuffled(*args: Any) -> list[int]:
        numbers = list(inner(*args))
        random.Random(0).shuffle(numbers)
        return numbers

    monkeypatch.setattr(Folder, "missing", shuffled)
    assert_same(here(), expected)


@pytest.mark.parametrize("rows", ["vmap", "samples"])
def test_both_ways_to_batch_rows(here: Solve, rows: str) -> None:
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


def test_history_is_recorded_as_requested(here: Solve, tmp_path: Path) -> None:
    wanted = fe.solve(builds.grid(), builds.METHOD, history=3, **builds.SETTINGS)
    assert_same(here(history=3), wanted)
    none = here(history=False, directory=tmp_path / "none")
    assert none.history.shape == (4, 6, 0)


def test_a_grid_without_rows(here: Solve) -> None:
    solution = here((builds.grid, {"targets": 3, "starts": 0}))
    assert solution.shape == (3, 0)
    assert solution.x.shape == (3, 0, 2, 3, 4)
    assert list(solution.chunks()) == []


def test_progress_is_reported_for_every_chunk(here: Solve) -> None:
    reports: list[fe.Progress] = []

    class Listener:
        def __call__(self, state: fe.State, info: fe.Info) -> None:
            raise AssertionError("steps run in workers")

        def report(self, progress: fe.Progress) -> None:
            reports.append(progress)

    solution = here(callback=Listener())
    assert [now.done for now in reports] == [0, 5, 10, 15, 20, 24]
    assert reports[-1].over
    assert reports[-1].hits == int(solution.hit.sum())
    reports.clear()
    here(callback=Listener())
    assert [(now.done, now.known, now.over) for now in reports] == [(24, 24, True)]
    assert reports[0].workers == 1
    lines = io.StringIO()
    here(callback=fe.progress(stream=lines))
    assert lines.getvalue().startswith("24 of 24 rows done")


def test_one_chunk_is_a_file_that_load_reads(here: Solve, tmp_path: Path, expected: fe.Solution) -> None:
    here()
    part = fe.load(tmp_path / "run" / "chunks" / "000000" / "000000001.safetensors")
    assert_same(part, expected.flat(torch.arange(5, 10)))


@pytest.mark.parametrize("name", fe.clusters.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert fe.clusters.__all__ == sorted(fe.clusters.__all__)
    value = getattr(fe.clusters, name)
    doc = inspect.getdoc(value) or ""
    assert not inspect.isfunction(value) or ("Args:" in doc and "Example:" in doc)
    assert doc
    api = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert f"::: {value.__module__}.{name}" in api
