"""Why the network holds the portfolio: the change of a weight, split by the assets' data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from funcexplain.measures.attribution import attribute
from funcexplain.problems.problem import Problem
from funcexplain.reports.drawing import Array, as_array
from funcexplain.reports.moves import MAX_NAMED
from funcexplain.reports.numbers import join
from funcexplain.reports.pictures.weights import asset_bounds
from funcexplain.solutions.html import Html, element, table
from funcexplain.solutions.solution import Solution

_MAX_NODES = 256


class Reason(NamedTuple):
    """The changes of weights from the reference to an answer, split by the assets' data.

    Attributes:
        main: the weight that the target names and whose weight changes most.
        change: of each weight, ``(W,)``.
        parts: ``(W, A)``: the part of a weight's change due to an asset's data.
        error: largest distance of the sum of a weight's parts from its change.
    """

    main: int
    change: Array
    parts: Array
    error: float


def find_reason(problem: Problem, solution: Solution, target: Array) -> Reason | None:
    """Split the changes of one question's answer by `attribute`; the target is as in `trades_table`.

    None if the answer is not finite, or the network fails at a window on the path.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> reason = find_reason(p, fe.solve(p, atol=1e-3), np.array([0.9, 0.1]))
        >>> reason.main, reason.parts.round(2)
        (0, array([[ 0.2,  0.2],
               [-0.2, -0.2]]))
    """
    # Along z, every window on the way is one that the search space allows.
    end = solution if problem.law else solution.x
    if not bool(solution.x.isfinite().all() and solution.weights.isfinite().all()):
        return None
    try:
        parts = attribute(problem, end=end, path="z" if problem.law else "x", max_nodes=_MAX_NODES)
    except Exception:  # any type: this runs the user's network at windows that the search never saw
        return None
    size = parts.change.shape[-1]
    values = as_array(parts.values).reshape(-1, size, *parts.values.shape[-3:]).mean(0)
    change = as_array(parts.change).reshape(-1, size).mean(0)
    named = np.ones(size, bool)
    if target.ndim == 2:
        lower, upper = asset_bounds(target)
        named = np.isfinite(lower) | np.isfinite(upper)
    main = int(np.where(named | ~named.any(), np.abs(change), -1.0).argmax())
    return Reason(main, change, values.sum((1, 2)), float(parts.error))


def describe_reason(reason: Reason, assets: Sequence[str], weights: Sequence[str] | None = None) -> str:
    """The attribution of the main weight in a sentence.

    Example:
        >>> reason = Reason(0, np.array([0.2, -0.2]), np.array([[0.15, 0.05], [-0.15, -0.05]]), 0.0)
        >>> describe_reason(reason, ["NOK", "JPY"])
        'Against the market without shocks, NOK changes by +20.00 points: the data of NOK ...'
    """
    row, main = reason.parts[reason.main], (weights or assets)[reason.main]
    order = np.argsort(-np.abs(row), kind="stable")[:MAX_NAMED]
    parts = [f"those of {assets[at]} {100 * row[at]:+.2f}" for at in order]
    parts[0] = f"the data of {assets[order[0]]} bring {100 * row[order[0]]:+.2f}"
    if len(row) > len(parts):
        parts.append(f"those of all others {100 * (row.sum() - row[order].sum()):+.2f}")
    # Not against today: ahead, the weights move without any shock.
    change = f"{main} changes by {100 * reason.change[reason.main]:+.2f} points"
    return f"Against the market without shocks, {change}: {join(parts)}."


def reason_table(reason: Reason, assets: Sequence[str], weights: Sequence[str]) -> list[Html]:
    """The contribution of each asset's data to the main weight, largest first."""
    row = reason.parts[reason.main]
    order = np.argsort(-np.abs(row), kind="stable")
    lines = [(assets[at], f"{100 * row[at]:+.2f}") for at in order if row[at] != 0.0]
    heads = ("data of", f"adds to {weights[reason.main]}, points")
    text = (
        "By integrated gradients on the way from the window without shocks to the answer; "
        f"the parts add up to the change to within {100 * reason.error:.2f} points."
    )
    return [table(heads, lines, (1,)), element("p", text, class_="note")]
