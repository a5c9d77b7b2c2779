"""The results of a problem at a few fixed windows, which reveal what a description of its code misses.

Since machines differ in rounding, half of the digits must agree. Numbers that differ between two calls,
as of a network that draws random numbers, are left out.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from funcexplain.engine.batching import row_of, spread
from funcexplain.engine.trial import noise_for
from funcexplain.networks.rounding import agree, coarsest_eps
from funcexplain.problems.problem import Problem
from funcexplain.solvers.optimizers import as_method
from funcexplain.solvers.state import Stopping
from funcexplain.solvers.step import make_plain_step

Behavior = dict[str, list[float]]
"""Numbers by what they are, such as ``"loss of row 0"``; ``"eps"`` is their relative rounding."""

_ROWS = 3
# Multiples of a window at which the network is called, too: of the other sign, and large.
_MULTIPLES = (-1.0, 4.0)


def measure_behavior(problem: Problem, method: Any) -> Behavior:
    """Evaluate a few rows near their starts: loss, gradient and weights there, and one step.

    Args:
        problem: a grid.
        method: the search method.

    Returns:
        Numbers on which two evaluations agree.

    Example:
        >>> from funcexplain.clusters.example import build
        >>> behavior = measure_behavior(build(rows=1), None)
        >>> [round(weight, 3) for weight in behavior["weights of row 0"]]
        [0.53, 0.47]
    """
    first, second = _measure(problem, method), _measure(problem, method)
    return {name: first[name] for name in first if name in second and _equal(first, second, name)}


def compare_behavior(there: Behavior, here: Behavior) -> tuple[str, str] | None:
    """The first difference, in words; None if there is none.

    Example:
        >>> here = {"loss of row 0": [0.6], "eps": [1e-7]}
        >>> compare_behavior({"loss of row 0": [0.5], "eps": [1e-7]}, here)
        ('loss of row 0: 0.5', 'loss of row 0: 0.6')
    """
    for name in {**there, **here}:
        if not (name in there and name in here and _equal(there, here, name)):
            return f"{name}: {_text(there.get(name))}", f"{name}: {_text(here.get(name))}"
    return None


def _measure(grid: Problem, method: Any) -> Behavior:
    found: Behavior = {"eps": [coarsest_eps(grid.args)]}
    total = math.prod(grid.shape)
    rows = spread(total, _ROWS, torch.device("cpu")).tolist() if total else ()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number in rows:
            with suppress(Exception):  # of the network's, there; it shows as what is missing
                found |= {
                    f"{name} of row {number}": _numbers(t) for name, t in _row(grid, number, method)
                }
    return found


def _row(grid: Problem, number: int, method: Any) -> list[tuple[str, Tensor]]:
    """The results of one row."""
    row = row_of(grid, number)
    args = row.args
    init, step = make_plain_step(row, as_method("clusters.solve", method), Stopping())
    start = row.start(args)
    z = row.project(start + noise_for(start), args)
    state, info = step(init(args)._replace(z=z), args)
    kept, x, moves = state.kept, row.decode(z, args), (state.z - z).flatten().double()
    # Of many moves, their size and three sums with fixed signs.
    waves = torch.arange(1.0, len(moves) + 1, dtype=torch.float64, device=z.device).square()
    sums = [(waves * k).cos() @ moves for k in (1, 2, 3)]
    found = [("weights", kept.weights), ("loss", kept.loss), ("value", kept.value)]
    found += [("gradient", info.grad_norm), ("step", torch.stack([moves.norm(), *sums]))]
    for multiple in _MULTIPLES:
        _, (loss, weights) = row.evaluate(multiple * x, args)
        far = [*weights.flatten(), loss]
        found.append((f"weights and loss at {multiple:g} times the window", torch.stack(far)))
    return found


def _numbers(t: Tensor) -> list[float]:
    return [float(number) for number in t.detach().flatten().tolist()]


def _equal(there: Behavior, here: Behavior, name: str) -> bool:
    if name == "eps":
        return True
    one, other = (torch.tensor(numbers[name], dtype=torch.float64) for numbers in (there, here))
    return agree(one, other, max(*there["eps"], *here["eps"]))


def _text(numbers: list[float] | None) -> str:
    return "an error" if numbers is None else ", ".join(f"{number:.6g}" for number in numbers[:4])
