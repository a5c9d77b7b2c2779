"""Value and gradient of 64 questions: mapped here, against the original's way, one after the other.

Run with ``python -m tests.benchmarks.networks``; needs deepdow. Prints a Markdown table: medians of
interleaved repetitions in one process, one thread, and the memory of a row against ordinary batched
autograd (growth of the resident set, each in a process of its own).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import funcexplain as fe

warnings.simplefilter("ignore")
torch.set_num_threads(1)

CHANNELS, LOOKBACK, ASSETS, ROWS = 2, 20, 10, 64
MEMORY_ROWS = 2048


class Scored(nn.Module):
    """Scores of a dense layer, turned into weights by an allocator of deepdow."""

    def __init__(self, allocate: nn.Module) -> None:
        super().__init__()
        self.score, self.allocate = nn.Linear(CHANNELS * LOOKBACK * ASSETS, ASSETS), allocate

    def forward(self, x: Tensor) -> Tensor:
        return self.allocate(self.score(x.flatten(1)))


class Budgeted(nn.Module):
    """Risk budgets from a dense layer, a covariance from the first channel."""

    def __init__(self) -> None:
        super().__init__()
        from deepdow.layers import CovarianceMatrix, NumericalRiskBudgeting

        self.budget = nn.Linear(CHANNELS * LOOKBACK * ASSETS, ASSETS)
        self.covariance = CovarianceMatrix(sqrt=False)
        self.allocate = NumericalRiskBudgeting(ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        budgets = torch.softmax(self.budget(x.flatten(1)), -1)
        return self.allocate(self.covariance(x[:, 0]), budgets)


class Gru(nn.Module):
    """A GRU over each asset's history, all assets of all samples in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(CHANNELS, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        histories = x.permute(0, 3, 2, 1).flatten(0, 1)
        last = self.cell(histories)[0][:, -1]
        return torch.softmax(self.head(last).view(len(x), -1), -1)


def networks() -> dict[str, tuple[Callable[[], nn.Module], float]]:
    """Networks with the speed-up to reach."""
    from deepdow.layers import SparsemaxAllocator
    from deepdow.nn import BachelierNet, KeynesNet, ThorpNet

    return {
        "BachelierNet": (lambda: BachelierNet(CHANNELS, ASSETS), 10),
        "ThorpNet": (lambda: ThorpNet(ASSETS), 60),
        "sparsemax net": (lambda: Scored(SparsemaxAllocator(ASSETS, temperature=1)), 80),
        "risk-budgeting net": (Budgeted, 25),
        "GRU net": (Gru, 10),
        'KeynesNet("RNN")': (lambda: KeynesNet(CHANNELS), 2.5),
    }


def one_by_one(network: nn.Module, target: Tensor) -> Callable[[Tensor], None]:
    """The original's way: a forward and a backward pass for each question."""

    def run(xs: Tensor) -> None:
        for x in xs:
            x = x.clone().requires_grad_()
            ((network(x[None])[0] - target) ** 2).mean().backward()

    return run


def batched(network: nn.Module, target: Tensor) -> Callable[[Tensor], None]:
    """Ordinary autograd on the network's own sample dimension."""

    def run(xs: Tensor) -> None:
        xs = xs.clone().requires_grad_()
        ((network(xs) - target) ** 2).mean(-1).sum().backward()

    return run


def mapped_gradient(network: nn.Module, target: Tensor) -> Callable[[Tensor], None]:
    """The gradient of one question by torch.func, mapped over all."""
    apply, params = fe.functionalize(network)
    slope = torch.func.grad_and_value(lambda x: fe.losses.mse(apply(params, x), target))

    def run(xs: Tensor) -> None:
        torch.func.vmap(slope)(xs)

    return run


def mapped_value(network: nn.Module, target: Tensor) -> Callable[[Tensor], None]:
    """The value of one question, mapped over all, and one ordinary backward pass of their sum."""
    apply, params = fe.functionalize(network)
    values = torch.func.vmap(lambda x: fe.losses.mse(apply(params, x), target))

    def run(xs: Tensor) -> None:
        xs = xs.clone().requires_grad_()
        total = values(xs).sum()
        if total.requires_grad:
            torch.autograd.grad(total, xs, allow_unused=True)

    return run


WAYS = {"batched": batched, "vmap(grad)": mapped_gradient, "grad(vmap)": mapped_value}


def make(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return networks()[name][0]().eval(), torch.softmax(torch.randn(ASSETS), 0)


def growth_of_memory(name: str, way: str) -> float:
    """Bytes by which a batch of questions raises the peak of the resident set, per row."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.networks"]
    command += ["--network", name, "--way", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(name: str, way: str) -> None:
    network, target = make(name)
    run = WAYS[way](network, target)
    run(torch.randn(2, CHANNELS, LOOKBACK, ASSETS))
    before = peak_memory()
    run(torch.randn(MEMORY_ROWS, CHANNELS, LOOKBACK, ASSETS))
    print((peak_memory() - before) / MEMORY_ROWS)


def peak_memory() -> int:
    """Bytes of the largest resident set so far; getrusage would start from that of the parent."""
    (line,) = (t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measure_time(name: str, repetitions: int) -> list[float]:
    """Median seconds of the original's way, and of each of ``WAYS``."""
    network, target = make(name)
    ways = {"original": one_by_one(network, target)}
    ways |= {way: prepared(network, target) for way, prepared in WAYS.items()}
    xs = torch.randn(ROWS, CHANNELS, LOOKBACK, ASSETS)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repetition in range(repetitions + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            run(xs)
            if repetition:
                times[way].append(time.perf_counter() - start)
    return [statistics.median(times[way]) for way in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--network")
    parser.add_argument("--way", choices=WAYS)
    arguments = parser.parse_args()
    if arguments.way:
        measure_memory(arguments.network, arguments.way)
        return
    print(
        "| 64 questions | one by one | batched | vmap(grad) | grad(vmap) | faster | to reach | "
        "memory of a row |\n|---|---|---|---|---|---|---|---|"
    )
    for name, (_, goal) in networks().items():
        original, together, gradient, value = measure_time(name, arguments.repetitions)
        memory = "-"  # the memory of a solver outside of torch cannot be compared
        if name in ("GRU net", 'KeynesNet("RNN")'):
            plain, *ours = (growth_of_memory(name, way) for way in WAYS)
            memory = " and ".join(f"{own / plain:.2f}" for own in ours)
        print(
            f"| {name} | {1e3 * original:.1f} ms | {1e3 * together:.2f} ms | {1e3 * gradient:.2f} ms | "
            f"{1e3 * value:.2f} ms | "
            f"{original / gradient:.1f}x, {original / value:.1f}x | {goal:g}x | {memory} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
