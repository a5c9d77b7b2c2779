"""A network with an optimizer inside: what would make it hold its portfolio of another day?"""

from __future__ import annotations

from pathlib import Path

import torch
from deepdow.nn import BachelierNet
from matplotlib.figure import Figure
from setting import make_setting

import funcexplain as fe
from funcexplain.reports.plots import plot_changes, plot_weights


def main(out: Path, *, quick: bool = False) -> fe.Solution:
    """Draw the market change that leads from the last window to the allocation of a year ago."""
    trained, prices, windows, x0, channels = make_setting(quick=True)
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BachelierNet(3, len(prices.assets), hidden_size=8).eval()
    apply, params = fe.functionalize(network)  # its convex layer becomes an exact allocator
    today, target = apply(params, x0), apply(params, windows[-250])

    problem = fe.pipe(
        fe.problem((apply, params), target.detach(), x0), fe.standardize(trained.mean, trained.std)
    )
    # An asset held at exactly zero has zero slope: start where it is not.
    noisy = fe.jitter(1.0)(problem)
    starts = fe.vmap(noisy, seed=torch.arange(2 if quick else 16), name="start")
    answers = fe.closest(starts, atol=1e-3, max_steps=60, refinements=5 if quick else 100)
    solution = answers.best(by=(answers.x - x0).square().mean((1, 2, 3)))

    figure = Figure(figsize=(12.0, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    plot_weights(today.detach(), target.detach(), solution.weights, assets=prices.assets, ax=left)
    plot_changes(solution.x, x0, scale=trained.std, assets=prices.assets, channels=channels, ax=right)
    figure.savefig(out / "bachelier.png", dpi=100)
    if not quick:  # what the page claims
        alone = fe.solve(problem, fe.levenberg_marquardt(), max_steps=60, atol=1e-3)
        assert alone.status is fe.Status.STALLED
        assert 0.03 < alone.error < 0.05
        assert int(answers.hit.sum()) == 15
        assert solution.hit
        change = ((solution.x - x0) / trained.std).abs().amax((1, 2))
        assert change[0] > 0.1
        assert change[1:].max() < 0.01
    return solution


if __name__ == "__main__":
    print(main(Path(__file__).parent.parent / "images").message)
