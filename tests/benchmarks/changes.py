"""Few changes and the price of changes: ``python -m tests.benchmarks.changes [QUESTIONS]``.

Networks trained on the currencies are asked for portfolios, in sigmas of their features, float64:

- ``closest(norm="l1")`` against sequential linear programs (scipy, HiGHS) from this answer and from the
  closest one, and its changed entries against those of `sparsify` and `prune`;
- a path of falling strengths of `penalties.l2` against `closest`;
- `prune` of all rows of a grid in one call against row by row.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.question import make_target
from tests.benchmarks.answers import NETWORKS, config_of, goals, networks

ATOL = 1e-3
STRENGTHS = torch.logspace(1, -5, 13, dtype=torch.float64)


def questions() -> Iterator[tuple[str, fe.Problem]]:
    """Goals from near to far, for the windows of three dates."""
    for name, network, history in networks(sys.argv[2:] or NETWORKS):
        network.double().requires_grad_(False)
        stack, assets = history.windows.double(), history.prices.assets
        std, mean = torch.std_mean(stack, dim=(0, 2, 3))
        for place in (-1, len(stack) // 2, len(stack) // 4):
            window = stack[place]
            today = network(window[None])[0]
            for goal in goals(today, assets):
                target = make_target(config_of(goal, 0, None).question, assets, today)
                problem = fe.problem(network, target, window, assets=assets)
                label = f"{name}, {history.last_days[place]}: {goal}"
                yield label, fe.standardize(mean.view(-1, 1, 1), std.view(-1, 1, 1))(problem)


def by_linear_programs(problem: fe.Problem, z: Tensor) -> float:
    """The smallest sum of changes that linear programs in a shrinking trust region find from ``z``."""
    args, criterion, start = problem.args, problem.criterion, problem.start(problem.args).flatten()
    lower, upper, strict = criterion.bounds(args["target"])
    lower, upper = (lower - ATOL).where(~strict, lower), (upper + ATOL).where(~strict, upper)

    def measure(z: Tensor) -> Tensor:
        weights = problem.apply(args["params"], problem.decode(z.view(start_shape), args))
        return criterion.compare(weights, args["target"])[0]

    def merit(z: Tensor, measured: Tensor) -> float:
        broken = (lower - measured).clamp_min(0.0) + (measured - upper).clamp_min(0.0)
        return float((z - start).abs().sum() + 1e5 * broken.sum())

    start_shape, z, trust = z.shape, z.flatten(), 1.0
    best, measured = math.inf, measure(z)
    while trust > 1e-4:
        jacobian = torch.func.jacrev(measure)(z).numpy()
        rows = [(-jacobian, measured - lower, lower), (jacobian, upper - measured, upper)]
        kept = [
            (matrix[ok], room[ok])
            for matrix, room, bound in rows
            if (ok := bound.isfinite().numpy()).any()
        ]
        matrix, room = (np.concatenate(part) for part in zip(*kept, strict=True))
        # z + d = start + rise - fall; |d| <= trust
        change = (z - start).numpy()
        count = len(change)
        within = np.hstack([np.eye(count), -np.eye(count)])
        found = linprog(
            np.ones(2 * count),
            np.vstack([np.hstack([matrix, -matrix]), within, -within]),
            np.concatenate([room + matrix @ change, change + trust, trust - change]),
            bounds=(0, None),
        )
        if found.x is None:
            trust /= 4
            continue
        trial = start + torch.from_numpy(found.x[:count] - found.x[count:])
        there = measure(trial)
        if merit(trial, there) < (1 - 1e-6) * merit(z, measured):
            z, measured = trial, there
            if bool(((measured >= lower - 1e-9) & (measured <= upper + 1e-9)).all()):
                best = min(best, float((z - start).abs().sum()))
        else:
            trust /= 4
    return best


def few_changes(problem: fe.Problem) -> tuple[float, float, int, int] | None:
    """Sum of changes and its optimum, and entries, by `closest` and by `sparsify` and `prune`."""
    near, plain = fe.closest(problem, norm="l1", atol=ATOL), fe.closest(problem, atol=ATOL)
    sparse = fe.sparsify(0.01)(problem)
    found = fe.solve(sparse, fe.levenberg_marquardt(), atol=ATOL)
    if not (near.hit and plain.hit and found.hit):
        return None
    start = problem.start(problem.args)
    size = float((near.z - start).abs().sum())
    optimum = min([size, *(by_linear_programs(problem, z) for z in (near.z, plain.z))])
    pruned = fe.prune(found, sparse, atol=ATOL)
    ours, theirs = (int((s.x != problem.args["x0"]).sum()) for s in (near, pruned))
    return size, optimum, ours, theirs


def path(problem: fe.Problem) -> tuple[float, float] | None:
    """The smallest hit of a path relative to that of `closest`, and its largest fall along the path."""
    nearest, start = fe.closest(problem, atol=ATOL), problem.start(problem.args)
    std = problem.decode(torch.ones_like(start), problem.args)
    std = std - problem.decode(torch.zeros_like(start), problem.args)
    in_sigmas = fe.penalties.scaled(fe.penalties.l2, std)
    priced = fe.vmap(fe.penalize(in_sigmas, strength=1.0, name="price")(problem), price=STRENGTHS)
    found = fe.solve(priced, fe.levenberg_marquardt(), max_steps=100, atol=ATOL)
    if not (nearest.hit and found.hit.any()):
        return None
    size = float((nearest.z - start).norm())
    moved = (found.z - start).flatten(1).norm(dim=1) / size
    return float(moved[found.hit].min()), float((-moved.diff()).max().clamp_min(0.0))


def pruned_together(problem: fe.Problem, rows: int = 32) -> float:
    """Processor time of `prune` of rows one at a time, relative to all in one call."""
    goals = [fe.targets.at_least(number % 16, 0.3) for number in range(rows)]
    grid = fe.vmap(problem, target=goals)
    found = fe.solve(grid, fe.levenberg_marquardt(), atol=ATOL)
    times = list[float]()
    for _ in range(2):
        began = time.process_time()
        fe.prune(found, grid, atol=ATOL)
        middle = time.process_time()
        for row in range(rows):
            fe.prune(found[row], grid[row], atol=ATOL)
        times.append((time.process_time() - middle) / (middle - began))
    return times[-1]


def main(count: int) -> None:
    """Print a line for each question, and the summary."""
    rows, paths = list[tuple[float, float, int, int]](), list[tuple[float, float]]()
    together: float | None = None
    for label, problem in questions():
        if len(rows) >= count:
            break
        if together is None:
            together = pruned_together(problem)
            print(f"prune of 32 rows one by one / in one call: {together:.1f}", flush=True)
        found, ends = few_changes(problem), path(problem)
        if found is None or not found[1]:
            continue
        rows.append(found)
        size, optimum, ours, theirs = found
        line = f"{label[:70]:70} sum {size:8.3f} / {size / optimum:.3f}  entries {ours:4} / {theirs:4}"
        if ends is not None:
            paths.append(ends)
            line += f"  path {ends[0]:.3f}, falls {ends[1]:.3f}"
        print(line, flush=True)
    ratios, fewer = [r[0] / r[1] for r in rows], [r[2] / r[3] for r in rows]
    print(f"sum / optimum: median {statistics.median(ratios):.3f}, largest {max(ratios):.3f}")
    print(
        f"entries / sparsify and prune: median {statistics.median(fewer):.2f}, largest {max(fewer):.2f}"
    )
    print(f"path / closest: median {statistics.median(p[0] for p in paths):.4f}, ", end="")
    print(f"largest {max(p[0] for p in paths):.4f}, largest fall {max(p[1] for p in paths):.4f}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
