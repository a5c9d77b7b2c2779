"""The cost and the distance of closest answers: ``python -m tests.benchmarks.closest``.

The first table measures pairs of dates as `twins` does: Jacobians after the hit, and the processor time
of `closest` as a multiple of that of a plain search for a hit. The second asks networks trained on the
currencies for portfolios, and compares ``|z|`` with the smallest of ``--starts`` longer searches, from
the reference, precedents and noise of one sigma.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

import funcexplain as fe
from funcexplain.commands.question import build_query
from tests.benchmarks import answers, twins

ATOL, MAX_STEPS, LONG = 1e-3, 60, 300


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call, and its result."""
    began = time.process_time()
    result = call()
    return time.process_time() - began, result


def measure_time(network: str, data: str, pairs: int, repetitions: int) -> list[str]:
    """A row of the first table."""
    question = twins.ask(twins.make_twins(network, data, pairs, 0), sigmas=True)
    method, ratios = fe.levenberg_marquardt(), []
    for _ in range(repetitions):
        plain, found = seconds(lambda: fe.solve(question, method, max_steps=MAX_STEPS, atol=ATOL))
        whole, near = seconds(lambda: fe.closest(question, method, max_steps=MAX_STEPS, atol=ATOL))
        ratios.append(whole / plain)
    steps = (near.num_steps - found.num_steps)[found.hit].tolist()
    settled = int((near.codes == int(fe.Status.CLOSEST)).sum())
    counts = f"{statistics.median(steps):g}, {max(steps)}", f"{settled} of {pairs}"
    return [f"{network}, {data}", *counts, f"{statistics.median(ratios):.1f}"]


def measure_distance(network: str, starts: int) -> Iterator[list[str]]:
    """Rows of the second table; the third cell is the ratio."""
    for name, model, history in answers.networks([network]):
        with torch.no_grad():
            today = model(history.windows[-1:])[0]
        for goal in answers.goals(today, history.prices.assets):
            query = build_query(answers.config_of(goal, 0, None), model, history)
            question = query.from_reference
            found = fe.solve(question, fe.levenberg_marquardt(), max_steps=100, atol=ATOL)
            near = fe.closest(question, atol=ATOL)
            more = build_query(answers.config_of(goal, 0, starts), model, history).problem
            others = fe.closest(more, atol=ATOL, refinements=LONG)
            size = near.z.norm()
            best = others.z[others.hit].view(-1, near.z.numel()).norm(dim=1).amin()
            ratio = float(size / torch.minimum(size, best))
            cells = f"{float(size):.3f}", f"{ratio:.4f}", f"{int(near.num_steps - found.num_steps)}"
            yield [f"{name}: {goal}", *cells, fe.Status(int(near.codes)).name]


def main(words: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.closest", description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--networks", nargs="*", default=("demo", "LinearNet"), choices=twins.NETWORKS)
    parser.add_argument("--asked", nargs="*", default=answers.NETWORKS, choices=answers.NETWORKS)
    parser.add_argument("--starts", type=int, default=8)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    print("| pairs | Jacobians: median, max | CLOSEST | time / plain hit |\n|---|---|---|---|")
    for network in given.networks:
        cells = measure_time(network, "ecb", given.pairs, given.repetitions)
        print(f"| {' | '.join(cells)} |", flush=True)
    print("\n| question | size of z | / smallest known | Jacobians | status |\n|---|---|---|---|---|")
    ratios = []
    for network in given.asked:
        for cells in measure_distance(network, given.starts):
            print(f"| {' | '.join(cells)} |", flush=True)
            ratios.append(float(cells[2]))
    if ratios:
        print(f"\nmedian ratio {statistics.median(ratios):.4f}, largest {max(ratios):.4f}")


if __name__ == "__main__":
    main()
