"""The lazy solution answers as one in memory does, and reads no more than it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optree
import pytest
import torch

import funcexplain as fe
from funcexplain.clusters.answers import _Best
from funcexplain.clusters.folder import Folder
from funcexplain.problems.grid import RowDim, row_numbers
from tests.clusters import builds
from tests.clusters.conftest import assert_same
from tests.helpers import assert_close

Solve = Callable[..., fe.clusters.ChunkedSolution]
INDICES: list[Any] = [
    0, (1, 2), (-1, -1), slice(1, 3), (slice(None), 4), ..., (..., 2), torch.tensor([2, 0]),
    (torch.tensor([True, False, True, True]), slice(0, 6, 2)), slice(3, 1),
]  # fmt: skip


@pytest.fixture
def run(here: Solve) -> fe.clusters.ChunkedSolution:
    return here()


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_rows_are_picked_as_of_a_tensor(
    run: fe.clusters.ChunkedSolution, expected: fe.Solution, index: Any
) -> None:
    assert_same(run[index], expected[index])
    assert type(run[index]) is fe.Solution


def test_wrong_indices_raise(run: fe.clusters.ChunkedSolution) -> None:
    with pytest.raises(IndexError):
        run[4]
    with pytest.raises(IndexError, match="got the index"):
        run[0, 0, 0]
    with pytest.raises(TypeError, match="picked by int"):
        run["a"]
    with pytest.raises(IndexError, match=r"within 0 ... 23"):
        run.flat(torch.tensor([24]))
    with pytest.raises(AttributeError, match="no attribute 'losses'"):
        run.losses  # noqa: B018


@pytest.mark.parametrize("dims", [(), ("start",), ("target",), (0, 1)])
def test_best_rows(
    run: fe.clusters.ChunkedSolution, expected: fe.Solution, dims: tuple[Any, ...]
) -> None:
    assert_same(run.best(*dims), expected.best(*dims))
    by = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    assert_same(run.best(*dims, by=by), expected.best(*dims, by=by))


@pytest.mark.parametrize("seed", range(8))
def test_best_rows_of_any_answers(seed: int) -> None:
    """Ranks with ties, NaN and every status, in chunks of every size, as in memory."""
    noise = torch.Generator().manual_seed(seed)
    shape = [(4, 3, 5), (12,), (2, 9)][seed % 3]
    rank = torch.randint(0, 6, shape, generator=noise).double()
    rank[rank == 5.0] = torch.nan
    status = torch.randint(0, len(fe.Status), shape, generator=noise)
    numbers = torch.arange(rank.numel()).reshape(shape)
    dims = ("a", "b", "c")[: len(shape)]
    leaves: Any = dict.fromkeys(("x", "z", "weights", "history", "num_steps", "error"), numbers)
    whole = fe.Solution(**leaves, loss=rank, status=status, dims=dims)
    for chunk_size in (1, 2, 7, 100):
        for kept in [()] if len(shape) == 1 else [(), (0,), (len(shape) - 1,)]:
            grid = [RowDim(n, size, frozenset()) for n, size in zip(dims, shape, strict=True)]
            best = _Best.empty(int(torch.Size([shape[place] for place in kept]).numel()))
            for rows in numbers.flatten().split(chunk_size):
                flat = (status.flatten()[rows], rank.flatten()[rows])
                best.update(row_numbers(grid, [*kept], rows), rows, *flat)
            picked = [place for place in range(len(shape)) if place not in kept]
            assert best.row.tolist() == whole.best(*picked).num_steps.flatten().tolist()


def test_best_counts_no_row_that_is_nan_before_others(here: Solve, faults: Path) -> None:
    (faults / "raise-0").touch()
    builds.arrange(faults)
    partial = here(retries=0)
    assert partial.hit.any()
    assert_same(partial.best(), partial[...].best())
    assert_same(partial.best("start"), partial[...].best("start"))


def test_best_reads_ranks_alone(
    run: fe.clusters.ChunkedSolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, whole = Folder.read, []

    def read(self: Folder, number: int, *rest: Any) -> Any:
        tensors = inner(self, number, *rest)
        whole.extend([number] if "x" in tensors else [])
        return tensors

    monkeypatch.setattr(Folder, "read", read)
    run.best()
    assert len(whole) == 1


def test_it_is_a_solution(run: fe.clusters.ChunkedSolution, expected: fe.Solution) -> None:
    assert isinstance(run, fe.Solution)
    assert run.message == expected.message
    assert torch.equal(run.hit, expected.hit)
    assert_same(run.isel(start=2), expected.isel(start=2))
    for row, wanted in zip(run, expected, strict=True):
        assert_same(row, wanted)
    tree: Any = run
    mapped: Any = optree.tree_map(lambda leaf: leaf, tree)
    assert_same(mapped, expected)
    assert run.to_pandas().equals(run[...].to_pandas())
    assert "chunks=5" in repr(run)
    assert [len(part.num_steps) for part in run.chunks()] == [5, 5, 5, 5, 4]


def test_measures_work_chunk_by_chunk(run: fe.clusters.ChunkedSolution, expected: fe.Solution) -> None:
    problem = builds.grid()
    got, wanted = (fe.evaluate(s, problem, scale=1.0, chunk_size=7) for s in (run, expected))
    assert got.names == wanted.names
    for name in wanted:
        assert_close(got[name], wanted[name], rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("rough_pictures")
def test_the_report_reads_single_rows_of_x_and_history(
    run: fe.clusters.ChunkedSolution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    inner = fe.clusters.ChunkedSolution.__getattr__

    def scalars(self: fe.clusters.ChunkedSolution, name: str) -> Any:
        assert name not in ("x", "weights", "history")
        return inner(self, name)

    problem = builds.grid()
    fe.report(run[...], problem, tmp_path / "whole.html", scale=1.0)
    monkeypatch.setattr(fe.clusters.ChunkedSolution, "__getattr__", scalars)
    fe.report(run, problem, tmp_path / "run.html", scale=1.0)
    assert (tmp_path / "run.html").read_text() == (tmp_path / "whole.html").read_text()


def test_answers_that_come_while_a_run_is_read(
    here: Solve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = here()
    path = tmp_path / "run" / "chunks" / "000000" / "000000001.safetensors"
    content = path.read_bytes()
    path.unlink()
    assert run[0, 5].status is fe.Status.INTERRUPTED
    inner = Folder.read

    def read(self: Folder, number: int, *rest: Any) -> Any:
        try:
            return inner(self, number, *rest)
        finally:
            if number == 2:
                path.write_bytes(content)

    monkeypatch.setattr(Folder, "read", read)
    torn = run[...]  # as it was, in all fields
    assert (torn[0, 5].status, bool(torn[0, 5].x.isnan().all())) == (fe.Status.INTERRUPTED, True)
    assert run[0, 5].status is not fe.Status.INTERRUPTED


def test_a_table_without_rows_and_with_columns_of_one_name(here: Solve, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    none = here((builds.grid, {"starts": 0}))
    none.to_parquet(tmp_path / "none.parquet", windows=True)
    assert parquet.read_table(tmp_path / "none.parquet").shape[0] == 0
    twice = here(builds.named_like_a_column, directory=tmp_path / "twice")
    with pytest.raises(ValueError, match="must not be named like columns, got 'loss'"):
        twice.to_parquet(tmp_path / "twice.parquet")


def test_a_table_in_parquet(run: fe.clusters.ChunkedSolution, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("pandas")
    run.to_parquet(tmp_path / "all.parquet", windows=True, assets=["A", "B", "C", "D"])
    file = parquet.ParquetFile(tmp_path / "all.parquet")
    assert file.num_row_groups == 5
    columns = file.read().to_pydict()
    assert list(columns) == [*run.dims, *run[...].to_pandas(assets=["A", "B", "C", "D"]).columns, "x"]
    assert columns["start"][:7] == [0, 1, 2, 3, 4, 5, 0]
    assert columns["status"] == [
        str(fe.Status(code)) for code in torch.as_tensor(run.status).flatten().tolist()
    ]
    assert columns["weight_B"] == run.weights[..., 1].flatten().tolist()
    assert columns["x"] == run.x.flatten(0, 1).flatten(1).tolist()
    with pytest.raises(ValueError, match="to_parquet: assets must be 4"):
        run.to_parquet(tmp_path / "none.parquet", assets=["A"])
    assert not (tmp_path / "none.parquet").exists()
