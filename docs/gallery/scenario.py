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
    solution = fe.solve(problem, fe.levenberg_marquardt(), max_steps=60, atol=1e-3)

    with torch.no_grad():
        today = network(x0[None])[0]
    actual = torch.as_tensor(prices.values[-LOOKBACK - 1 :])
    path = prices_of(solution.x[0].double(), actual[0])
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    plot_weights(today, problem.args["target"], solution.weights, assets=names, ax=left)
    plot_prices(actual, path, assets=names, most=2, ax=right)
    figure.savefig(out / "scenario.png", dpi=120)
    return solution


if __name__ == "__main__":
    print(main(Path(__file__).parent.parent / "images").message)
