"""How many rows at once: chosen, bounded in memory, halved where memory runs out."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.engine import memory
from tests.engine.test_progress import Listener
from tests.grids import F64, targets, without_nan, x0s
from tests.helpers import assert_close, make_network, make_problem

CPU = torch.device("cpu")


# --- chosen ---------------------------------------------------------------------------------------


def wide_grid(rows: int, width: int) -> fe.Problem:
    """A network that writes ``width`` numbers per row, and a few times that on the way back."""

    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.softmax(torch.tanh(x.flatten() @ p["inward"]) @ p["outward"], -1)

    p = {"inward": torch.randn(60, width, dtype=F64), "outward": torch.randn(width, 5, dtype=F64)}
    return fe.vmap(fe.jitter(0.1)(make_problem((apply, p))), seed=torch.arange(rows))


def chosen(grid: fe.Problem, **settings: Any) -> int:
    listener = Listener()
    fe.solve(grid, max_steps=0, callback=listener, **settings)
    assert len({told.chunk_size for told in listener.told}) == 1
    return listener.told[0].chunk_size


def test_few_rows_are_all_in_work_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "funcexplain"):
        assert chosen(wide_grid(memory.MINIMUM_ROWS, 8)) == memory.MINIMUM_ROWS
        assert chosen(wide_grid(40, 8), chunk_size=7) == 7
        assert chosen(wide_grid(4, 8), chunk_size=7) == 4
    assert not caplog.records


def test_wider_rows_make_smaller_chunks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_last_cache", lambda: 1 << 20)
    with caplog.at_level(logging.INFO, "funcexplain"):
        sizes = [chosen(wide_grid(1000, width)) for width in (1, 100, 1000, 10_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] == memory.MINIMUM_ROWS
    assert len(caplog.records) == 4
    said = caplog.records[0].getMessage()
    assert said.startswith(f"chunk_size={sizes[0]} of 1000 rows, 64 if compiled: a step writes")
    assert caplog.records[0].levelno == logging.INFO


def test_a_row_counts_what_a_step_writes() -> None:
    weights = torch.randn(64, 512)  # shared by all rows: none of theirs

    def batch(count: int) -> tuple[Tensor, None]:
        return torch.randn(count, 64), None

    def step(state: Tensor, args: None) -> Tensor:
        hidden = state @ weights
        torch.tanh(hidden, out=hidden)
        return hidden.view(-1, 2, 256).transpose(0, 1).relu_()  # views and in place: nothing new

    assert memory.row_bytes(step, batch) == 512 * 4


def test_a_choice_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(bytes_per_row: int, total: int, jacobian: bool = False) -> memory.ChunkSizes:
        monkeypatch.setattr(memory, "row_bytes", lambda step, batch: bytes_per_row)
        return memory.choose_chunk_size(None, None, total, CPU, jacobian=jacobian)

    monkeypatch.setattr(memory, "_last_cache", lambda: 32 << 20)
    assert choose(1, 10**9) == (memory.MAXIMUM_ROWS, 256)
    assert choose(130 << 10, 10**9) == (756, 64)  # a power of two: 126 would fit
    assert choose(130 << 10, 10**9, jacobian=True) == (1512, 64)
    assert choose(1 << 40, 10**9) == (memory.MINIMUM_ROWS, 64)
    assert choose(1, 100) == (100, 100)
    monkeypatch.setattr(memory, "_last_cache", lambda: 256 << 20)
    assert choose(130 << 10, 10**9) == (1008, 256)  # no more than is used again


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
@pytest.mark.parametrize(
    ("trim", "call", "mebibytes"),
    [
        (None, "pass", 20),
        (None, "memory.reuse_blocks()", 0),
        (None, "fe.solve(fe.vmap(p, seed=torch.arange(2)), max_steps=1)", 0),
        ("65536", "memory.reuse_blocks()", 20),  # whoever sets a threshold ends its adapting
        ("65536", "memory.reuse_blocks_of_dask()", 0),
        ("65537", "memory.reuse_blocks_of_dask()", 20),  # not Dask's
        (None, "memory.reuse_blocks_of_dask()", 20),
    ],
)
def test_blocks_are_used_again(trim: str | None, call: str, mebibytes: int) -> None:
    assert blocks_after(trim)[call] == mebibytes


@cache
def blocks_after(trim: str | None) -> dict[str, int]:
    """What each call makes of a block, each in a process of its own: malloc learns from all before."""
    script = """if True:
        import ctypes, os, sys, torch, funcexplain as fe
        from funcexplain.engine import memory
        NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        class Malloc(ctypes.Structure):
            _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]
        ask = ctypes.CDLL("libc.so.6").mallinfo2
        ask.restype = Malloc
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        p = fe.problem(network, torch.full((2,), 0.5), torch.zeros(1, 1, 2))
        for call in sys.argv[1:]:
            if child := os.fork():
                assert os.waitpid(child, 0)[1] == 0
                continue
            exec(call)
            before = ask().hblkhd  # bytes in blocks that were taken from the system one by one
            block = torch.empty(20 << 20, dtype=torch.uint8)
            print((ask().hblkhd - before) >> 20, flush=True)
            os._exit(0)
    """
    calls = (
        "pass",
        "memory.reuse_blocks()",
        "memory.reuse_blocks_of_dask()",
        "fe.solve(fe.vmap(p, seed=torch.arange(2)), max_steps=1)",
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    env |= {} if trim is None else {"MALLOC_TRIM_THRESHOLD_": trim}
    command = [sys.executable, "-W", "ignore", "-c", script, *calls]
    run = subprocess.run(command, env=env, capture_output=True, check=True)
    return dict(zip(calls, map(int, run.stdout.split()), strict=True))


def test_the_cache_is_read_or_assumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "size"
    monkeypatch.setattr(memory, "_CACHE_FILE", path)
    assert memory._last_cache() == 32 << 20
    for text, size in (("4096K\n", 4 << 20), ("what?", 32 << 20)):
        path.write_text(text)
        assert memory._last_cache() == size


def test_the_answers_of_a_chosen_size_are_those_of_any() -> None:
    grid = fe.vmap(make_problem(), x0=x0s(40), target=targets(40))
    found = fe.solve(grid, fe.sgd(lr=5.0), max_steps=10, atol=0.05)
    assert_close(
        without_nan(found),
        without_nan(fe.solve(grid, fe.sgd(lr=5.0), max_steps=10, atol=0.05, chunk_size=9)),
    )


# --- memory runs out ------------------------------------------------------------------------------

ERRORS = {
    "python": MemoryError(),
    "cpu": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    "cuda": torch.cuda.OutOfMemoryError("CUDA out of memory"),
}


def short_of_memory(fails: Callable[[int, int], bool], error: Exception) -> fe.Problem:
    """Ten rows of a network that raises where ``fails(rows, call)``."""
    network = make_network("mlp_tanh").eval()
    calls: list[int] = []

    def weights(x: Tensor) -> Tensor:
        calls.append(len(x))
        if fails(len(x), len(calls)):
            raise error
        return network(x)

    return fe.vmap(make_problem(fe.opaque(weights)), x0=x0s(10), target=targets(10))


def with_memory(**settings: Any) -> fe.Solution:
    """The same ten rows where nothing fails."""
    return fe.solve(fe.vmap(make_problem(), x0=x0s(10), target=targets(10)), fe.sgd(lr=20.0), **settings)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("most", "halved"), [(1, [5, 3, 2, 1]), (2, [5, 3, 2]), (4, [5, 3]), (9, [5])])
def test_a_chunk_that_does_not_fit_is_halved(
    most: int, halved: list[int], error: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"max_steps": 12, "atol": 0.05, "keep": "best"}
    grid = short_of_memory(lambda rows, call: rows > most, ERRORS[error])
    found = fe.solve(grid, fe.sgd(lr=20.0), **settings)
    assert_close(without_nan(found), without_nan(with_memory(**settings)), rtol=1e-9)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"out of memory: chunk_size is halved to {size}" for size in halved]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.parametrize("call", [2, 7, 13])
def test_memory_may_run_out_on_the_way(call: int) -> None:
    listener = Listener()
    settings: dict[str, Any] = {"max_steps": 12, "atol": 0.05, "chunk_size": 4}
    grid = short_of_memory(lambda rows, number: number == call, MemoryError())
    found = fe.solve(grid, fe.sgd(lr=20.0), **settings, callback=listener)
    assert_close(without_nan(found), without_nan(with_memory(**settings)), rtol=1e-9)
    assert [told.done for told in listener.told] == sorted({told.done for told in listener.told})
    assert listener.told[-1].done == 10


def test_rows_that_have_ended_are_counted_once() -> None:
    # Memory may run out while the next rows are taken in, when rows that have ended are out already.
    failed: list[int] = []

    def encode(x: Tensor) -> Tensor:
        if listener.steps and not failed:  # the rows that come second
            failed.append(1)
            raise MemoryError
        return x

    listener = Listener()
    grid = fe.vmap(fe.reparametrize(encode, lambda z: z)(make_problem()), x0=x0s(10))
    fe.solve(grid, max_steps=3, chunk_size=4, callback=listener)
    assert failed
    assert listener.told[-1].done == 10


def test_a_row_that_does_not_fit_alone_raises() -> None:
    for error in ERRORS.values():
        grid = short_of_memory(lambda rows, call: True, error)
        with pytest.raises(type(error)):
            fe.solve(grid, max_steps=3)
        with pytest.raises(type(error)):
            fe.solve(grid[0], max_steps=3)


def test_other_runtime_errors_are_not_taken_for_it(caplog: pytest.LogCaptureFixture) -> None:
    grid = short_of_memory(lambda rows, call: True, RuntimeError("no idea"))
    with pytest.raises(RuntimeError, match="no idea"):
        fe.solve(grid, max_steps=3)
    assert not caplog.records


# --- memory is bounded ----------------------------------------------------------------------------

PROGRAM = """
import torch, funcexplain as fe
torch.set_num_threads(1)
torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Flatten(), torch.nn.Linear(2, 512), torch.nn.Tanh(),
    torch.nn.Linear(512, 2), torch.nn.Softmax(-1),
)
p = fe.jitter(0.1)(fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2)))

def peak():  # ru_maxrss would be that of the parent at the fork
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10

for rows, chunk_size in ((2_000, 1_000), (100_000, 1_000), (20_000, 20_000)):
    solution = fe.solve(
        fe.vmap(p, seed=torch.arange(rows)), max_steps=2, chunk_size=chunk_size, history=False
    )
    print(peak())
    assert solution.x.isfinite().all()
    print(sum(field.nbytes for field in solution.to_numpy().values()))
    del solution
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_peak_memory_of_many_rows_is_that_of_a_chunk() -> None:
    command = [sys.executable, "-c", PROGRAM]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    few, own_few, many, own_many, at_once, _ = map(int, out.split())
    mib = 1 << 20
    assert many - few - (own_many - own_few) < 16 * mib
    assert at_once - many > 40 * mib  # what the measurement would have seen
