"""Shared fixtures: folders, the answers of one process, and in-process executors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.clusters import chunk
from funcexplain.solutions import archive
from tests.clusters import builds
from tests.grids import without_nan
from tests.helpers import assert_close

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _faults_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the functions that faults replace, and clear the cache of problems."""
    monkeypatch.setattr(chunk, "solve_rows_alone", chunk.solve_rows_alone)
    monkeypatch.setattr(archive, "replaced", archive.replaced)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    chunk._job.cache_clear()
    yield
    chunk._job.cache_clear()


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """A folder for faults."""
    (tmp_path / "faults").mkdir()
    return tmp_path / "faults"


@pytest.fixture
def here(tmp_path: Path) -> Callable[..., fe.clusters.ChunkedSolution]:
    """Solve in a thread of this process, in chunks of 5 rows."""

    def solve(build: Any = builds.grid, method: Any = builds.METHOD, **more: Any) -> Any:
        settings = {"directory": tmp_path / "run", "chunk_size": 5, **builds.SETTINGS, **more}
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return fe.clusters.solve(build, method, executor=pool, **settings)

    return solve


@pytest.fixture(scope="session")
def expected() -> fe.Solution:
    """The answers of one process."""
    return fe.solve(builds.grid(), builds.METHOD, **builds.SETTINGS)


def assert_same(got: fe.Solution, wanted: fe.Solution) -> None:
    """Compare all fields, to rounding."""
    assert got.dims == wanted.dims
    assert_close(without_nan(got[...]), without_nan(wanted[...]), rtol=1e-9, atol=1e-11)
