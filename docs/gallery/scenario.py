"""What if only the franc and the yen could have moved? A scenario with all other currencies frozen."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from setting import LOOKBACK, SPAN, make_setting

import funcexplain as fe
from funcexplain.markets.covariances import sample
from funcexplain.markets.features import log_returns
from funcexplain.markets.paths import base_returns, prices_of
from funcexplain.reports.plots import plot_prices, plot_weights


def main(out: Path, *, quick: bool = False) -> fe.Solution:
    """Draw the prices of two currencies at which the network holds 20 % of one of them."""
    network, prices, _, x0, _ = make_setting(quick=quick)
    names = list(prices.assets)
    moving = [names.index("CHF"), names.index("JPY")]
    returns = base_returns(prices, torch.tensor(len(prices.dates) - 1), LOOKBACK, SPAN).float()
    cov = sample(log_returns(prices)[-500:]).float()
    free = fe.scenarios.shock_mask(len(returns), len(names), assets=moving)

    target = fe.targets.at_least("CHF", 0.2)
    problem = fe.pipe(
        fe.problem(network, target, x0, assets=names),
        fe.scenarios.scenario(returns, cov, free=free),
    )
    solution = fe.closest(problem, atol=1e-3, max_steps=60)

    with torch.no_grad():
        today = network(x0[None])[0]
    actual = torch.as_tensor(prices.values[-LOOKBACK - 1 :])
    path = prices_of(solution.x[0].double(), actual[0])
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    plot_weights(today, problem.args["target"], solution.weights, assets=names, ax=left)
    plot_prices(actual, path, assets=names, most=2, ax=right)
    figure.savefig(out / "scenario.png", dpi=120)
    if not quick:  # what the page claims
        others = [k for k in range(len(names)) if k not in moving]
        assert solution.hit
        assert torch.equal(solution.x[0][:, others], x0[0][:, others])
        for name, low, high in (("CHF", -0.0040, -0.0025), ("JPY", -0.0045, -0.0025)):
            asset = names.index(name)
            assert low < path[-1, asset] / path[0, asset] - 1.0 < high
            assert actual[-1, asset] / actual[0, asset] - 1.0 > 0.002
        assert 1.7 < solution.z.norm() < 1.9
    return solution


if __name__ == "__main__":
    print(main(Path(__file__).parent.parent / "images").message)
