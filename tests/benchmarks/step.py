"""The eager step of a row, and the start of a grid, against a loop written by hand.

Run with ``python -m tests.benchmarks.step [REPETITIONS [NETWORK ...]]``. The hand-written loop
(`frameworks.batched`) is the loss of all rows, one backward pass and Adam in place. Prints a Markdown
table of medians over interleaved repetitions: CPU time in one process and one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch

from tests.benchmarks.catalogue import OWN, Case
from tests.benchmarks.frameworks import batched, solved

ROWS = (64, 256, 1024)
FEW, MANY = 5, 25


def measure(network: str, rows: int, repetitions: int) -> tuple[list[float], list[float], float]:
    """Seconds per step and seconds to start, here and by hand; and the median ratio of the steps."""
    many, few = Case(network, "float32", rows, MANY), Case(network, "float32", rows, FEW)
    ways = [way.run for case in (many, few) for way in (solved(case, False), batched(case))]
    for way in ways:
        way()
    times = [[cpu_time(way) for way in ways] for _ in range(repetitions)]
    steps = [[(t[i] - t[i + 2]) / (MANY - FEW) for t in times] for i in (0, 1)]
    starts = [[t[i + 2] - FEW * (t[i] - t[i + 2]) / (MANY - FEW) for t in times] for i in (0, 1)]
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*steps, strict=True))
    return [statistics.median(s) for s in steps], [statistics.median(s) for s in starts], ratio


def cpu_time(function: Callable[[], object]) -> float:
    """Seconds of the processor that a call takes."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main(repetitions: int, networks: list[str]) -> None:
    """Print the table."""
    print("| network, rows | us per row and step | by hand | ratio | start, ms | by hand |")
    print("|---|---|---|---|---|---|")
    for network in networks:
        for rows in ROWS:
            (ours, hand), (start, by_hand), ratio = measure(network, rows, repetitions)
            print(
                f"| {network}, {rows} | {1e6 * ours / rows:.2f} | {1e6 * hand / rows:.2f} | "
                f"{ratio:.2f} | {1e3 * start:.1f} | {1e3 * by_hand:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15, sys.argv[2:] or list(OWN))
