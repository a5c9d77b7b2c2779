"""How likely targets are, against known and counted chances: ``python -m tests.benchmarks.probability``.

The linear network has events of known chance in 1 to 1 000 dimensions. The network of the demo is asked
for events whose chance is counted over plain draws of its next ten days.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.demo import train_on
from funcexplain.engine.event import Event, forwards_only
from funcexplain.engine.probability import Method
from funcexplain.markets.features import windows
from funcexplain.markets.prices import load
from funcexplain.networks.noise import normal

F64 = torch.float64
DIMS, EXPONENTS = (1, 10, 100, 1000), (1, 3, 5, 7, 9)
LEVELS, ASSETS = (0.1, 0.01, 0.001, 0.0001), ("EUR", "CHF", "JPY", "NOK", "KRW")


def half_space(num_dims: int, exponent: int) -> fe.Problem:
    """A linear network in one asset; its weight exceeds ``beta`` with the chance ``10**-exponent``."""
    beta = -float(torch.special.ndtri(torch.tensor(10.0**-exponent, dtype=F64)))
    base = torch.zeros(num_dims, 1, dtype=F64)
    linear = torch.nn.Linear(num_dims, 1, bias=False)
    torch.nn.init.constant_(linear.weight, num_dims**-0.5)
    network = torch.nn.Sequential(torch.nn.Flatten(), linear).double()
    problem = fe.problem(network, fe.targets.at_least(0, beta), base[None], leverage=math.inf)
    cov = torch.eye(1, dtype=F64)
    return fe.scenarios.scenario(base, cov, features=lambda r: r[None], inverse=lambda x, r: x[0])(
        problem
    )


def linear(method: Method, num_samples: int, num_seeds: int, dims: Iterable[int]) -> None:
    """Bias, spread and coverage over seeds."""
    print(f"\n{method}, {num_samples} forward passes, {num_seeds} seeds")
    print("dims      p   mean/p     cv   told   in 3 errors   in interval")
    for num_dims in dims:
        for exponent in EXPONENTS:
            seeds = torch.arange(num_seeds)
            problem = fe.vmap(half_space(num_dims, exponent), seed=seeds)
            found = fe.probability(problem, method=method, num_samples=num_samples, atol=0.0)
            true = 10.0**-exponent
            close = (found.estimate - true).abs() <= 3.0 * found.standard_error
            covers = (found.lower <= true) & (true <= found.upper)
            ratio, told = found.estimate / true, (found.standard_error / found.estimate).mean()
            print(
                f"{num_dims:4d}  1e-{exponent}  {ratio.mean():7.3f} {ratio.std() / ratio.mean():6.3f} "
                f"{told:6.3f} {int(close.sum()):6d}/{num_seeds} {int(covers.sum()):9d}/{num_seeds}",
                flush=True,
            )


def demo(num_samples: int, num_draws: int, saved: str | None) -> None:
    """The demo's network: chances against plain draws, and the time of a forward pass."""
    prices = load("ecb")
    if saved is None:
        network, history = train_on(prices, 0, 100, print)
        x0 = history.windows[-1]
    else:
        network = torch.load(saved, weights_only=False)
        x0 = windows(prices)[0][-1].float()
    ahead = fe.scenarios.ahead(prices, 10)
    first = fe.problem(network, fe.targets.at_least(0, 0.5), x0, assets=prices.assets)
    weights, seconds = _draw(ahead(first), num_draws)
    print(f"\ndemo, {num_samples} forward passes against {num_draws} plain draws")
    print(f"a plain draw takes {1e6 * seconds:.0f} us", flush=True)
    held = weights[:, [prices.assets.index(asset) for asset in ASSETS]].double()
    thresholds = held.quantile(1.0 - torch.tensor(LEVELS, dtype=F64), dim=0).T.flatten()
    names = [asset for asset in ASSETS for _ in LEVELS]
    counted = (weights[:, [prices.assets.index(name) for name in names]] >= thresholds).double().mean(0)
    targets = [fe.targets.at_least(*pair) for pair in zip(names, thresholds.tolist(), strict=True)]
    begin = time.process_time()
    grid = fe.vmap(ahead(first), target=targets)
    found = fe.probability(grid, num_samples=num_samples, atol=0.0, seed=1)
    each = (time.process_time() - begin) / int(found.num_forwards.sum())
    # Counting errs, too: the interval is widened by its error.
    slack = 1.0 + 1.96 / (counted * num_draws).sqrt()
    covers = (found.lower / slack <= counted) & (counted <= found.upper * slack)
    print("asset  weight   counted        auto  interval               method")
    for row, name in enumerate(names):
        print(
            f"{name}    {thresholds[row]:.4f}  {counted[row]:.2e}  {found.estimate[row]:.2e}  "
            f"{found.lower[row]:.2e} {found.upper[row]:.2e} {'' if covers[row] else 'MISSED':6s} "
            f"{found.methods[row]}"
        )
    worst = (found.estimate / counted).log().abs().max().exp()
    print(
        f"intervals cover {int(covers.sum())} of {len(names)}; off by a factor of {worst:.2f} at worst"
    )
    print(f"a forward pass of all events in one call takes {each / seconds:.2f} times a plain draw")


def _draw(problem: fe.Problem, count: int) -> tuple[Tensor, float]:
    """Weights of plain draws, and the CPU time of each."""
    event, found = Event(problem, 0.0), []
    begin = time.process_time()
    with forwards_only(problem):
        for start in range(0, count, 256):
            points = normal(torch.tensor(10**6 + start), (256, len(event.like)), event.like.dtype)
            found.append(event.weights(event.windows(event.search_points(points))))
    return torch.cat(found)[:count], (time.process_time() - begin) / count


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("linear", "demo"))
    parser.add_argument("--method", default="subset")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--network", help="a pickled network of the demo; default: train one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "linear":
        linear(given.method, given.samples, given.seeds, given.dims)
    else:
        demo(given.samples, given.draws, given.network)


if __name__ == "__main__":
    main()
