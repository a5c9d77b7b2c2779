"""Exact allocators against cvxpylayers: value and gradient, `python -m tests.benchmarks.allocators`.

Medians of interleaved repetitions on one thread, with the largest difference between the two answers:
cvxpylayers solves to its default tolerance, the allocators to rounding.
"""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from funcexplain.networks.convex import CappedSoftmax, Markowitz, RiskBudgeting, Sparsemax

ASSETS, MAX_WEIGHT = 20, 0.2
REPETITIONS = {64: (5, 25), 1024: (3, 9)}  # problems -> repetitions of theirs and of ours
DTYPE = torch.float32

Call = Callable[[], Tensor]


def make_pairs(num_problems: int) -> dict[str, tuple[list[Tensor], nn.Module, nn.Module]]:
    """Arguments, deepdow's layer and ours, by name."""
    from deepdow.layers import (
        NumericalMarkowitz,
        NumericalRiskBudgeting,
        SoftmaxAllocator,
        SparsemaxAllocator,
    )

    generator = torch.Generator().manual_seed(0)
    returns = torch.randn(num_problems, ASSETS, generator=generator, dtype=DTYPE)
    root = torch.randn(num_problems, ASSETS, ASSETS, generator=generator, dtype=DTYPE) / ASSETS**0.5
    gamma, alpha = torch.ones(num_problems, dtype=DTYPE), torch.full((num_problems,), 0.1, dtype=DTYPE)
    budgets = torch.full((num_problems, ASSETS), 1.0 / ASSETS, dtype=DTYPE)
    return {
        "Markowitz": (
            [returns, root, gamma, alpha],
            NumericalMarkowitz(ASSETS, MAX_WEIGHT),
            Markowitz(ASSETS, max_weight=MAX_WEIGHT),
        ),
        "sparsemax": (
            [returns],
            SparsemaxAllocator(ASSETS, max_weight=MAX_WEIGHT),
            Sparsemax(ASSETS, max_weight=MAX_WEIGHT),
        ),
        "capped softmax": (
            [returns],
            SoftmaxAllocator(1, "variational", ASSETS, MAX_WEIGHT),
            CappedSoftmax(ASSETS, max_weight=MAX_WEIGHT),
        ),
        "risk budgeting": (
            [root, budgets],
            NumericalRiskBudgeting(ASSETS, MAX_WEIGHT),
            RiskBudgeting(ASSETS, max_weight=MAX_WEIGHT),
        ),
    }


def make_call(layer: nn.Module, arguments: list[Tensor], target: Tensor) -> Call:
    """A function that returns the weights after one value and gradient."""
    leaves = [argument.clone().requires_grad_() for argument in arguments]

    def call() -> Tensor:
        weights = layer(*leaves)
        torch.autograd.grad(((weights - target) ** 2).sum(), leaves)
        return weights.detach()

    return call


def measure(theirs: Call, ours: Call, repetitions: tuple[int, int]) -> tuple[float, float]:
    """Median seconds of both, repetitions interleaved."""
    times: tuple[list[float], list[float]] = ([], [])
    ours()  # the first call pays for lazy initialisation
    per_round = repetitions[1] // repetitions[0]
    for _ in range(repetitions[0]):
        for call, count, into in ((theirs, 1, times[0]), (ours, per_round, times[1])):
            for _ in range(count):
                start = time.perf_counter()
                call()
                into.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Print one line per allocator and number of problems."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {DTYPE}, one thread"
    )
    print(f"{'value + gradient, ' + str(ASSETS) + ' assets':28}{'problems':>9}", end="")
    print(f"{'cvxpylayers':>14}{'exact':>11}{'ratio':>8}{'difference':>12}")
    target = torch.softmax(torch.arange(ASSETS, dtype=DTYPE) / ASSETS, 0)
    for num_problems, repetitions in REPETITIONS.items():
        for name, (arguments, layer, exact) in make_pairs(num_problems).items():
            theirs, ours = make_call(layer, arguments, target), make_call(exact, arguments, target)
            slow, fast = measure(theirs, ours, repetitions)
            difference = float((theirs() - ours()).abs().max())
            print(f"{name:28}{num_problems:9}{1e3 * slow:11.0f} ms{1e3 * fast:8.2f} ms", end="")
            print(f"{slow / fast:8.0f}{difference:12.1e}", flush=True)


if __name__ == "__main__":
    main()
