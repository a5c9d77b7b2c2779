"""Grids of rows: against the original's loop, from 1 000 to 100 000 rows, with and without compaction.

Run with ``python -m tests.benchmarks.rows [PART ...]``; the first needs
deepdow. Prints Markdown tables: medians of interleaved repetitions in one process, one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.engine import pool as pool_module
from funcexplain.engine import rows as rows_module
from funcexplain.engine.batching import make_batched
from funcexplain.engine.trial import try_rows
from funcexplain.problems.grid import take_rows
from funcexplain.solvers.state import Stopping
from tests.benchmarks.networks import ASSETS, CHANNELS, LOOKBACK

SHAPE = (CHANNELS, LOOKBACK, ASSETS)
ADAM = fe.adam(lr=1e-2)
NO_GRADIENT = ("MinimalNet", "ThorpNet")
SOLVED = ("ThorpNet", "BachelierNet")  # by a convex solver


def mlp() -> nn.Module:
    """A dense allocator, 400-128-128-10."""
    width = CHANNELS * LOOKBACK * ASSETS
    hidden = [nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, ASSETS), nn.Softmax(-1))


def of_deepdow() -> dict[str, Callable[[], nn.Module]]:
    """deepdow's seven networks."""
    from deepdow import nn as nets

    return {
        "DummyNet": lambda: nets.DummyNet(CHANNELS),
        "MinimalNet": lambda: nets.MinimalNet(ASSETS),
        "LinearNet": lambda: nets.LinearNet(CHANNELS, LOOKBACK, ASSETS),
        'KeynesNet("Conv")': lambda: nets.KeynesNet(CHANNELS, transform_type="Conv"),
        'KeynesNet("RNN")': lambda: nets.KeynesNet(CHANNELS),
        "ThorpNet": lambda: nets.ThorpNet(ASSETS),
        "BachelierNet": lambda: nets.BachelierNet(CHANNELS, ASSETS),
    }


def make(network: Callable[[], nn.Module], count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, a target and starts, the same every time."""
    torch.manual_seed(0)
    return network().eval(), torch.softmax(torch.randn(ASSETS), 0), torch.randn(count, *SHAPE)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def loop_over(grid: fe.Problem, size: int, steps: int, atol: float | None = 0.0) -> None:
    """The steps of `solve` alone, chunk after chunk; without ``atol`` no row ends."""
    count = grid.shape[0]
    stopping = Stopping(atol)
    trial = try_rows(grid, ADAM, stopping, torch.arange(count))
    batched = make_batched(grid, ADAM, stopping, trial.kept, samples=False)
    with torch.no_grad():
        for first in range(0, count, size):
            args = take_rows(grid.dims, grid.args, torch.arange(first, min(first + size, count)))
            state = batched.init(args)
            for _ in range(steps + 1):
                state, _ = batched.step(state, args)


def against(count: int = 256, steps: int = 100, repetitions: int = 5) -> None:
    """Rows in one call against the original, which solves a few of them one after the other.

    No gradient reaches the input of MinimalNet and ThorpNet, so that `solve` ends at once; their steps
    are taken in a bare loop.
    """
    from deepdow.explain import gradient_wrt_input

    print(f"| {count} questions, {steps} steps | original, us per step and question | here | faster |")
    print("|---|---|---|---|")
    ratios = []
    for name, network in of_deepdow().items():
        net, target, x0s = make(network, count)
        # The original switches to training mode, in which batch normalisation refuses one sample.
        net.train = lambda mode=True, net=net: net  # type: ignore[method-assign, misc]
        sample = 1 if name in SOLVED else 4

        def original() -> None:
            for x0 in x0s[:sample]:  # noqa: B023
                gradient_wrt_input(net, target, x0, n_iter=steps, lr=1e-2, verbose=False)  # noqa: B023

        grid = fe.vmap(fe.problem(net, target, x0s[0]), x0=x0s)

        def here() -> None:
            if name in NO_GRADIENT:  # noqa: B023
                loop_over(grid, count, steps, atol=None)  # noqa: B023
            else:
                fe.solve(grid, ADAM, max_steps=steps)  # noqa: B023

        here()
        old, new = zip(*[(timed(original), timed(here)) for _ in range(repetitions)], strict=True)
        before = 1e6 * statistics.median(old) / sample / steps
        now = 1e6 * statistics.median(new) / count / steps
        ratios.append(before / now)
        print(f"| {name} | {before:.0f} | {now:.1f} | {before / now:.1f}x |", flush=True)
    print(f"\nGeometric mean {statistics.geometric_mean(ratios):.1f}x, least {min(ratios):.1f}x.")


def scale(repetitions: int = 3) -> None:
    """Cost of a row in grids of growing size."""
    net, target, _ = make(mlp, 1)
    question = fe.pipe(fe.problem(net, target, torch.zeros(SHAPE)), fe.jitter(1.0))
    print("| rows | us per row and step | spread |\n|---|---|---|")
    sizes = (1_000, 10_000, 100_000)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(repetitions):
        for size in sizes:
            grid = fe.vmap(question, seed=torch.arange(size))
            taken = timed(lambda: fe.solve(grid, ADAM, max_steps=20, history=False))  # noqa: B023
            times[size].append(1e6 * taken / size / 21)
    for size, each in times.items():
        print(f"| {size} | {statistics.median(each):.2f} | {min(each):.2f} to {max(each):.2f} |")


def compaction(repetitions: int = 3) -> None:
    """90 % easy rows, which hit within 20 steps of 200, with and without taking ended rows out."""
    net, target, x0s = make(mlp, 2048)
    easy = torch.softmax(0.1 * torch.randn(2048, ASSETS), -1)
    hard = torch.eye(ASSETS)[torch.arange(2048) % ASSETS]
    targets = torch.where((torch.arange(2048) % 10 == 0)[:, None], hard, easy)
    grid = fe.vmap(fe.problem(net, target, x0s[0], loss=fe.losses.kl), x0=0.1 * x0s, target=targets)
    share, times = pool_module._ENDED_FRACTION, []
    for _ in range(repetitions):
        pair = []
        for value in (share, 1.0):
            pool_module._ENDED_FRACTION = value
            pair.append(timed(lambda: fe.solve(grid, ADAM, max_steps=200, atol=0.02, compile=False)))
        times.append(pair)
    pool_module._ENDED_FRACTION = share
    solution = fe.solve(grid, ADAM, max_steps=200, atol=0.02, compile=False)
    quick = (solution.hit & (solution.num_steps <= 20)).double().mean()
    with_it, without = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{100 * quick:.0f} % of rows hit within 20 steps: {with_it:.2f} s with compaction, "
        f"{without:.2f} s without: {without / with_it:.1f}x"
    )


def overhead(count: int = 1024, steps: int = 100, repetitions: int = 7) -> None:
    """What the driver costs beyond its steps: `solve` against a bare loop over the same mapped step."""
    print("| network | bare loop | solve | overhead |\n|---|---|---|---|")
    for name, network in {"MLP": mlp, **of_deepdow()}.items():
        if name in NO_GRADIENT or name in ('KeynesNet("RNN")', "BachelierNet"):
            continue  # the slower a step, the less is left for overhead
        net, target, x0s = make(network, count)
        grid = fe.vmap(fe.problem(net, target, x0s[0]), x0=x0s)
        size, rounds = 256, 20 if "Conv" in name else steps

        def bare() -> None:
            loop_over(grid, size, rounds)  # noqa: B023

        def ours() -> None:
            fe.solve(grid, ADAM, max_steps=rounds, chunk_size=size, rows="vmap", compile=False)  # noqa: B023

        bare()
        pairs = [(timed(bare), timed(ours)) for _ in range(repetitions)]
        plain, full = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"| {name} | {plain:.3f} s | {full:.3f} s | {100 * (ratio - 1):+.1f} % |", flush=True)


def chunks(count: int = 2048, repetitions: int = 3) -> None:
    """Cost of a row by chunk size; the last column is what ``chunk_size=None`` takes."""
    sizes = (32, 64, 128, 256, 512, 1024, 2048, None)
    print("| network, us per row and step | " + " | ".join(str(s or "chosen") for s in sizes) + " |")
    print("|---|" + "---|" * len(sizes))
    for name, network in {"MLP": mlp, **of_deepdow()}.items():
        if name in NO_GRADIENT:
            continue
        net, target, x0s = make(network, count)
        grid = fe.vmap(fe.problem(net, target, x0s[0]), x0=x0s)
        best = [
            min(
                timed(lambda: fe.solve(grid, ADAM, max_steps=4, chunk_size=size))  # noqa: B023
                for _ in range(repetitions)
            )
            for size in sizes
        ]
        print(f"| {name} | " + " | ".join(f"{1e6 * t / count / 5:.1f}" for t in best) + " |", flush=True)


def ensembles(repetitions: int = 3, steps: int = 10) -> None:
    """Rows of mapped models: in one batch of matrices, and in batches of each model's own."""
    print("| models x rows | one batch | a batch per model |\n|---|---|---|")
    least = rows_module.ROWS_PER_MODEL
    for models, count in ((8, 128), (8, 64), (8, 16), (64, 1)):
        net, target, x0s = make(mlp, count)
        stacked = fe.stack([net, *(mlp() for _ in range(models - 1))])[1]
        grid = fe.vmap(fe.vmap(fe.problem(net, target, x0s[0]), x0=x0s), params=stacked)
        times: dict[int, list[float]] = {1_000_000: [], 1: []}
        for _ in range(repetitions):
            for rows_module.ROWS_PER_MODEL, column in times.items():
                column.append(timed(lambda: fe.solve(grid, ADAM, max_steps=steps)))  # noqa: B023
        one, each = (1e6 * statistics.median(t) / models / count / (steps + 1) for t in times.values())
        print(f"| {models} x {count} | {one:.1f} us | {each:.1f} us |", flush=True)
    rows_module.ROWS_PER_MODEL = least


PARTS = {f.__name__: f for f in (against, scale, compaction, overhead, chunks, ensembles)}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for part in sys.argv[1:] or PARTS:
        print(f"\n### {part}\n")
        PARTS[part]()
