"""Is reach as far as a constrained solver with many restarts: ``python -m tests.benchmarks.reach``.

Networks trained on the currencies, on several dates, in markets of the days to come. For two bounds of
each of 20 questions it prints the weight without shocks, that of `reach`, the best of ``--restarts``
searches of scipy's SLSQP from random points within the radius, and the ratio of how far both moved it.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands.config import parse_config
from funcexplain.commands.demo import LOOKBACK, SPAN
from funcexplain.commands.history import History
from funcexplain.commands.question import build_query
from tests.benchmarks.answers import HORIZON, NETWORKS, networks, train

KINKED = "mlp, ReLU"
# Days ahead, radius, and date of a question.
CASES = [
    (5, 1.0, "last"),
    (5, 3.0, "last"),
    (5, 2.0, "2020-03-16"),
    (5, 4.0, "2015-01-30"),
    (10, 2.0, "last"),
]


class Kinked(nn.Module):
    """Two ReLU layers over the whole window."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        std, mean = torch.std_mean(known, dim=(0, 2, 3), keepdim=True)
        self.std, self.mean = nn.Parameter(std, False), nn.Parameter(mean, False)
        size, count = known[0].numel(), known.shape[-1]
        self.score = nn.Sequential(
            *(nn.Flatten(), nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()),
            nn.Linear(64, count),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Weights ``(N, A)``."""
        return torch.softmax(self.score((x - self.mean) / self.std), -1)


def all_networks(names: list[str]) -> Iterator[tuple[str, nn.Module, History]]:
    """Those of `answers`, and one with kinks."""
    yield from networks(names)
    if KINKED in names:
        _, _, history = next(networks(["conv 0"]))
        torch.manual_seed(0)
        yield KINKED, train(Kinked(history.windows[:-HORIZON]), history), history


def ask(network: nn.Module, history: History, ahead: int, day: str) -> fe.Problem:
    """The question, in float64; its target does not matter."""
    table = {
        "network": {"factory": "mine:make"},
        "prices": {"file": "ecb"},
        "question": {"ahead": ahead, "date": day, "at_least": {history.prices.assets[0]: 0.5}},
        "features": {"lookback": LOOKBACK, "span": SPAN},
    }
    problem = build_query(parse_config(table), network, history).from_reference
    return fe.cast(dtype=torch.float64)(problem[(0,) * len(problem.dims)] if problem.dims else problem)


class Together:
    """Calls a function of many points once each of several threads waits for one."""

    def __init__(self, function: Callable[[Tensor], Sequence[Tensor]], count: int) -> None:
        self.function, self.running = function, count
        self.ready, self.points = threading.Condition(), dict[int, np.ndarray]()
        self.found = dict[int, tuple[float, np.ndarray]]()

    def __call__(self, thread: int, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Wait for the value and the gradient at a point."""
        with self.ready:
            self.points[thread] = point.copy()
            self._call()
            self.ready.wait_for(lambda: thread not in self.points)
            return self.found[thread]

    def leave(self) -> None:
        """Wait for this thread no longer."""
        with self.ready:
            self.running -= 1
            self._call()

    def _call(self) -> None:
        if self.points and len(self.points) == self.running:
            slopes, values = self.function(torch.from_numpy(np.stack([*self.points.values()])))
            self.found = dict(
                zip(self.points, zip(values.tolist(), slopes.numpy(), strict=True), strict=True)
            )
            self.points = {}
            self.ready.notify_all()


def best_of_restarts(
    problem: fe.Problem, asset: int, sign: float, radius: float, restarts: int, max_steps: int
) -> float:
    """The highest (sign 1) or lowest (-1) weight of an asset that SLSQP finds within the radius."""
    center, args = problem.start(problem.args), problem.args
    noise = torch.randn(args["x0"].shape, dtype=center.dtype, generator=torch.Generator().manual_seed(0))
    slopes = torch.func.grad(lambda z: (problem.decode(z, args) * noise).sum())(center)
    free = slopes.flatten().nonzero().flatten()

    def value(change: Tensor) -> Tensor:
        z = center.flatten().index_add(0, free, radius * change).view_as(center)
        # On a logarithmic scale, on which a small weight has a slope.
        return -sign * problem.objective(problem.decode(z, args), args)[1][asset].log()

    together = Together(torch.func.vmap(torch.func.grad_and_value(value)), restarts)
    inside = {"type": "ineq", "fun": lambda at: 1.0 - at @ at, "jac": lambda at: -2.0 * at}
    options = {"maxiter": max_steps, "ftol": 1e-8}

    def search(number: int) -> float:
        random = np.random.default_rng(number)
        start = random.standard_normal(len(free))
        start *= random.random() / np.linalg.norm(start)
        try:
            evaluate = partial(together, number)
            end = minimize(
                evaluate, start, jac=True, method="SLSQP", constraints=[inside], options=options
            ).x
            return -sign * evaluate(end / max(1.0, np.linalg.norm(end)))[0]
        finally:
            together.leave()

    with ThreadPoolExecutor(restarts) as threads:
        found = np.array([*threads.map(search, range(restarts))])
    return float(np.exp(sign * np.nanmax(sign * found)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=64)
    parser.add_argument("--max-steps", type=int, default=100, help="of each search of SLSQP")
    every = [*NETWORKS, KINKED]
    parser.add_argument("--networks", nargs="+", default=every, choices=every)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'question':40} bound        today    reach    SLSQP  ratio  seconds of both")
    ratios = []
    for name, network, history in all_networks(given.networks):
        for ahead, radius, day in CASES:
            problem = ask(network, history, ahead, day)
            held = problem.objective(problem.args["reference"], problem.args)[1].detach()
            order = held.argsort().tolist()
            assets = torch.tensor([order[len(order) // 2], order[-1]])
            begin = time.process_time()
            found = fe.reach(
                problem, radius, measure=partial(torch.Tensor.index_select, dim=0, index=assets)
            )
            spent = time.process_time() - begin
            for asset, sign, end in zip(
                assets.tolist(), (1.0, -1.0), (found.upper[0], found.lower[1]), strict=True
            ):
                begin = time.process_time()
                best = best_of_restarts(problem, asset, sign, radius, given.restarts, given.max_steps)
                other = time.process_time() - begin
                today = float(held[asset])
                further = sign * (best - today) > 1e-6  # not at the end of the weight's own range
                ratios.append((float(end) - today) / (best - today) if further else np.nan)
                bound = f"{'highest' if sign > 0 else 'lowest'} {history.prices.assets[asset]}"
                print(
                    f"{f'{name}, {day}, {ahead} days, {radius:g} sigmas':40} {bound:11} {today:6.4f}   "
                    f"{end:6.4f}   {best:6.4f}  {ratios[-1]:5.3f}  {spent:5.1f} {other:5.1f}",
                    flush=True,
                )
    table = np.array([ratio for ratio in ratios if np.isfinite(ratio)])
    far = f"{int((table >= 0.98).sum())} of {len(table)}"
    print(f"smallest ratio {table.min():.3f}, median {np.median(table):.3f}, >= 0.98 in {far}")


if __name__ == "__main__":
    main()
