"""One question: microseconds per iteration, against deepdow's own function in the same process.

Run with ``python -m tests.benchmarks.single [repetitions]``; needs deepdow. Medians of interleaved runs
of 100 iterations (10 where a convex solver is called), one thread, as a Markdown table.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

import funcexplain as fe
from tests.benchmarks.networks import ASSETS, CHANNELS, LOOKBACK

SOLVED = ("ThorpNet", "BachelierNet")


def networks() -> dict[str, Callable[[], nn.Module]]:
    """Networks of deepdow, and a dense one."""
    from deepdow.nn import BachelierNet, DummyNet, KeynesNet, ThorpNet

    width = CHANNELS * LOOKBACK * ASSETS
    return {
        "DummyNet": lambda: DummyNet(CHANNELS),
        'KeynesNet("Conv")': lambda: KeynesNet(CHANNELS, transform_type="Conv"),
        'KeynesNet("RNN")': lambda: KeynesNet(CHANNELS),
        "MLP 400-128-128-10": lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(width, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, ASSETS),
            nn.Softmax(-1),
        ),
        "ThorpNet": lambda: ThorpNet(ASSETS),
        "BachelierNet": lambda: BachelierNet(CHANNELS, ASSETS),
    }


def measure(name: str, make: Callable[[], nn.Module], repetitions: int) -> list[float]:
    """Median microseconds per iteration of deepdow, of the drop-in, and of `explain`."""
    from deepdow.explain import gradient_wrt_input

    torch.manual_seed(0)
    network, steps = make(), 10 if name in SOLVED else 100
    target = torch.softmax(torch.randn(ASSETS), 0)
    x0 = torch.randn(CHANNELS, LOOKBACK, ASSETS)
    ways: list[Callable[[], object]] = [
        lambda: gradient_wrt_input(network, target, x0, n_iter=steps, verbose=False),
        lambda: fe.gradient_wrt_input(network, target, x0, n_iter=steps, verbose=False),
        lambda: fe.explain(network, target, x0, max_steps=steps),
    ]
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repetitions):
        for way, column in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            column.append(1e6 * (time.perf_counter() - start) / steps)
    return [statistics.median(column) for column in times]


def main(repetitions: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| network | deepdow | `gradient_wrt_input` | `explain` |\n|---|---|---|---|")
    for name, make in networks().items():
        print(f"| {name} | " + " | ".join(f"{t:.0f}" for t in measure(name, make, repetitions)) + " |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
