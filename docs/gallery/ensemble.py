"""Do five trainings of one network agree on the answer?"""

from __future__ import annotations

from pathlib import Path

import torch
from setting import make_setting

import funcexplain as fe
from funcexplain.reports.plots import plot_changes


def main(out: Path, *, quick: bool = False) -> tuple[fe.Solution, fe.Solution]:
    """Draw the spread of the models' answers, and find one market that satisfies all models."""
    settings = [make_setting(quick=quick, seed=seed) for seed in range(2 if quick else 5)]
    network, prices, _, x0, channels = settings[0]
    params = fe.stack([setting.network for setting in settings])[1]
    problem = fe.pipe(
        fe.problem(network, fe.targets.at_least("CHF", 0.2), x0, assets=prices.assets),
        fe.standardize(network.mean, network.std),
    )
    ensemble = fe.vmap(problem, params=params, name="model")
    each = fe.solve(ensemble, fe.levenberg_marquardt(), max_steps=60, atol=1e-3)
    both = fe.solve(fe.consensus(ensemble), fe.levenberg_marquardt(), max_steps=100, atol=1e-3)

    spread = each.x.std(0)
    axes = plot_changes(
        x0 + spread,
        x0,
        scale=network.std,
        assets=prices.assets,
        channels=channels,
        unit="spread over models, sigmas",
    )
    axes.figure.savefig(out / "ensemble.png", dpi=120)
    if not quick:  # what the page claims
        assert each.hit.all()
        assert both.hit
        sizes = spread / network.std
        franc = prices.assets.index("CHF")
        moves = (each.x - x0).div(network.std).square().sum((1, 2))
        assert (moves.argmax(1) == franc).all()
        assert sizes.argmax() % len(prices.assets) == franc
        assert 0.3 < sizes.max() < 0.4
        assert (sizes < 0.05).float().mean() > 0.8
    return each, both


if __name__ == "__main__":
    torch.manual_seed(0)
    each, both = main(Path(__file__).parent.parent / "images")
    print(each.message, both.message, both.weights)
