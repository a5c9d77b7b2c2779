"""Replace deepdow's function: first the same numbers, then better questions."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from setting import make_setting

import funcexplain as fe


def main(out: Path, *, quick: bool = False) -> dict[str, list[float]]:
    """Draw the losses of the drop-in, and of the same question in sigmas."""
    network, _, _, x0, _ = make_setting(quick=quick)
    with torch.no_grad():
        target = 0.6 * network(x0[None])[0]
    target[int(target.argmin())] += 0.4
    steps = 20 if quick else 200

    # from deepdow.explain import gradient_wrt_input   becomes   import funcexplain as fe
    _, before = fe.gradient_wrt_input(network, target, x0, n_iter=steps, verbose=False)

    problem = fe.problem(network, target, x0)
    in_sigmas = fe.standardize(network.mean, network.std)(problem)
    adam = fe.solve(in_sigmas, fe.adam(lr=0.1), max_steps=steps)
    newton = fe.solve(in_sigmas, fe.levenberg_marquardt("weights"), max_steps=steps, atol=1e-6)

    losses = {
        "deepdow's function, units of x": before,
        "adam, in sigmas": adam.history.tolist(),
        "levenberg_marquardt, in sigmas": newton.history.tolist(),
    }
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for (name, values), color in zip(losses.items(), ("#999999", "#d55e00", "#0072b2"), strict=True):
        axes.semilogy(values, label=name, color=color, linewidth=2)
    axes.set_xlabel("step")
    axes.set_ylabel("mean squared error of the weights")
    axes.legend(frameon=False)
    figure.savefig(out / "dropin.png", dpi=150)
    if not quick:  # what the page claims
        assert min(before) > 0.011
        assert adam.history[-1] < 2e-6
        assert newton.history[:11].min() < 1e-10
    return losses


if __name__ == "__main__":
    for name, values in main(Path(__file__).parent.parent / "images").items():
        print(f"{name}: {values[-1]:.2g} after {len(values)} steps")
