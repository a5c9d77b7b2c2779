"""What does nearness cost? A Pareto path: one question, mapped over the strength of a penalty."""

from __future__ import annotations

from pathlib import Path

import torch
from setting import make_setting

import funcexplain as fe
from funcexplain.reports.plots import plot_tradeoff


def main(out: Path, *, quick: bool = False) -> fe.Solution:
    """Draw the distance of the allocation from its target against the change of the market."""
    network, _, _, x0, _ = make_setting(quick=quick)
    with torch.no_grad():
        today = network(x0[None])[0]
    target = 0.6 * today
    target[int(today.argmin())] += 0.4  # 40 % in the smallest position

    problem = fe.pipe(
        fe.problem(network, target, x0),
        fe.standardize(network.mean, network.std),
        fe.penalize(fe.penalties.scaled(fe.penalties.l2, network.std), strength=1.0, name="proximity"),
    )
    strengths = torch.logspace(-2, 2, 6 if quick else 24)
    path = fe.vmap(problem, proximity=strengths)
    solution = fe.solve(path, fe.levenberg_marquardt(), max_steps=60, patience=5)

    change = ((solution.x - x0) / network.std).square().mean((1, 2, 3)).sqrt()
    axes = plot_tradeoff(
        change, solution.error, labels=[f"strength {s:.3g}" for s in strengths.tolist()]
    )
    axes.figure.savefig(out / "pareto.png", dpi=200)
    if not quick:  # what the page claims
        error = solution.error
        assert (change.diff() <= 0).all()
        assert (error.diff() >= 0).all()
        assert error[0] < 2e-4
        assert 0.13 < change[0] < 0.135
        assert ((change > 0.9 * change[0]) | (error > 0.066)).all()
        assert error[-1] > 0.29
        assert 0.08 < change[-1] < 0.09
    return solution


if __name__ == "__main__":
    main(Path(__file__).parent.parent / "images")
