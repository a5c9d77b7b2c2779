"""How far is the market from each currency? A list of goals, and the closest market for each."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from setting import make_setting

import funcexplain as fe


def main(out: Path, *, quick: bool = False) -> fe.Solution:
    """Draw, for each asset, the smallest change that makes the network hold 30 % of it."""
    network, prices, _, x0, _ = make_setting(quick=quick)
    names = prices.assets
    problem = fe.pipe(
        fe.problem(network, fe.targets.at_least(0, 0.3), x0, assets=names),
        fe.standardize(network.mean, network.std),
    )
    each = fe.vmap(problem, target=[fe.targets.at_least(name, 0.3) for name in names])
    solution = fe.closest(each, refinements=5 if quick else 40)

    change = ((solution.x - x0) / network.std).square().mean((1, 2, 3)).sqrt()
    order = change.argsort(descending=True)
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    colors = ["#0072b2" if hit else "#d55e00" for hit in solution.hit[order].tolist()]
    axes.barh([names[k] for k in order.tolist()], change[order].tolist(), color=colors)
    axes.set_xlabel("smallest change of the market, root mean square in sigmas")
    axes.set_title("To hold at least 30 % of it", loc="left", fontweight="bold")
    figure.savefig(out / "one_hot.png", dpi=150)
    if not quick:  # what the page claims
        assert solution.hit.all()
        with torch.no_grad():
            held = network(x0[None])[0] >= 0.3
        assert int(held.sum()) == 2
        assert change[held].max() < 1e-5
        assert 0.115 < change.max() < 0.125
    return solution


if __name__ == "__main__":
    torch.manual_seed(0)
    print(main(Path(__file__).parent.parent / "images"))
