"""How few entries of the window have to change? Sparse searches, and undoing what is not needed."""

from __future__ import annotations

from pathlib import Path

import torch
from setting import make_setting

import funcexplain as fe
from funcexplain.reports.plots import plot_changes


def main(out: Path, *, quick: bool = False) -> dict[str, fe.Solution]:
    """Draw the few changes that make the network hold 30 % of its smallest position."""
    network, prices, _, x0, channels = make_setting(quick=quick)
    with torch.no_grad():
        today = network(x0[None])[0]
    goal = fe.targets.at_least(int(today.argmin()), 0.3)
    problem = fe.pipe(
        fe.problem(network, goal, x0, assets=prices.assets),
        fe.standardize(network.mean, network.std),
    )
    dense = fe.solve(problem, fe.levenberg_marquardt(), max_steps=60, atol=1e-3)
    few = fe.closest(problem, norm="l1", atol=1e-3, refinements=5 if quick else 40)
    sparse = fe.sparsify(strength=0.02)(problem)
    method = fe.adam(lr=0.05)
    found = fe.solve(sparse, method, max_steps=20 if quick else 1000, atol=1e-3)
    pruned = fe.prune(found, sparse, atol=1e-3)

    axes = plot_changes(few.x, x0, scale=network.std, assets=prices.assets, channels=channels)
    axes.figure.savefig(out / "sparse.png", dpi=120)
    if not quick:  # what the page claims
        changes = [((answer.x - x0) / network.std).abs() for answer in (dense, few, found, pruned)]
        assert all(answer.hit for answer in (dense, few, found, pruned))
        assert [int((change > 0).sum()) for change in changes] == [960, 12, 28, 2]
        assert 6.0 < changes[1].max() < 7.0
        assert 27.0 < changes[3].max() < 29.0
        assert changes[1].sum() < min(change.sum() for change in (changes[0], *changes[2:]))
    return {"dense": dense, "few": few, "sparse": found, "pruned": pruned}


if __name__ == "__main__":
    for name, solution in main(Path(__file__).parent.parent / "images").items():
        x0 = make_setting().x0
        print(name, int((solution.x != x0).sum()), solution.message)
