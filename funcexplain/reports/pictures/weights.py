"""Allocations asset by asset: held today, asked for and reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from funcexplain.problems.criterion import LINEAR
from funcexplain.reports.drawing import (
    BLUE,
    GREY,
    MOST_ROWS,
    ORANGE,
    PALE,
    Array,
    checked,
    dress,
    legend,
    new_axes,
    plain,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_weights(
    today: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    reached: Tensor | ArrayLike,
    *,
    assets: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """Three allocations, asset by asset: held today, asked for, and reached.

    Assets are sorted by their target weight. Of more than `MOST_ROWS` the largest are shown, and the
    last row is the sum of all others. Goals are no allocation: bounds of single assets are drawn as
    brackets, other goals are not drawn, and assets are sorted by the weight that was reached, those
    with bounds first.

    Args:
        today: weights that the network holds for the reference, ``(A,)``.
        target: weights asked for, ``(A,)``, or goals as in ``problem.args``, ``(K, A + 3)``.
        reached: weights that the network holds for the answer, ``(A,)``.
        assets: ``A`` names.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the weights do not have the shape ``(A,)``.

    Example:
        >>> ax = plot_weights([0.7, 0.3], [0.4, 0.6], [0.41, 0.59], assets=["EUR", "JPY"])
        >>> ax.get_xlabel()
        'weight in the portfolio, %'
    """
    size = len(assets)
    held, got = checked("today", today, (size,)), checked("reached", reached, (size,))
    asked = plain(target)
    if asked.ndim == 2:
        lower, upper = bounds_of(checked("target", asked, (len(asked), size + 3)))
    else:
        lower = upper = checked("target", asked, (size,))
    bounded = np.isfinite(lower) | np.isfinite(upper)
    first = lower if asked.ndim == 1 else np.where(bounded, 2.0, 0.0) + got
    order, rest = _order(np.stack([held, got, np.where(bounded, first, 0.0)]), first)
    table = 100.0 * np.stack([held, got, lower, upper])  # (4, A)
    names = [short(assets[index]) for index in order]
    shown = table[:, order]
    if len(rest):
        # Bounds of single assets do not add up to one of their sum, allocations do.
        total = table[:, rest].sum(1)
        total[2:] = total[2:] if asked.ndim == 1 else (-np.inf, np.inf)
        shown = np.concatenate([shown, total[:, None]], axis=1)
        names.append(f"{len(rest)} others")
    held, got, lower, upper = shown
    rows = np.arange(len(names))
    ax = ax or new_axes(6.0, 1.4 + 0.24 * len(names))
    ax.hlines(rows, np.minimum(held, got), np.maximum(held, got), color=PALE, linewidth=5, zorder=1)
    ax.scatter(held, rows, s=34, color=GREY, label="today", zorder=2)
    if asked.ndim == 1:
        ax.scatter(
            lower, rows, s=80, facecolors="none", edgecolors=ORANGE, linewidths=1.6, label="target"
        )
    ax.scatter(got, rows, s=20, color=BLUE, label="reached", zorder=3)
    ends = np.stack([held, got, lower, upper])
    most = max(float(ends[np.isfinite(ends)].max()), 1e-9)
    least = min(float(ends[np.isfinite(ends)].min()), 0.0)
    margin = 0.03 * (most - least)
    ax.set_xlim(least - margin, most + 2 * margin)
    if asked.ndim == 2:
        _bracket(ax, rows, lower, upper)
    dress(ax, "Allocation")
    ax.set_yticks(rows, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel("weight in the portfolio, %")
    ax.grid(axis="x", color=PALE, linewidth=0.8)
    legend(ax)
    return ax


def bounds_of(goals: Array) -> tuple[Array, Array]:
    """Bounds that goals set to single assets: lower and upper ones, infinite where there are none.

    Args:
        goals: rows as in ``problem.args["target"]``, ``(K, A + 3)``.

    Returns:
        Lower and upper bounds, ``(A,)`` each.

    Example:
        >>> bounds_of(np.array([[0.0, 1.0, 0.0, 0.3, np.inf], [1.0, 1.0, 0.0, 0.5, 0.9]]))
        (array([-inf,  0.3]), array([inf, inf]))
    """
    coefficients, (kinds, low, high) = goals[:, :-3], goals[:, -3:].T
    lower, upper = np.full(coefficients.shape[1], -np.inf), np.full(coefficients.shape[1], np.inf)
    alone = (kinds == LINEAR) & (np.count_nonzero(coefficients, axis=1) == 1)
    for row in np.flatnonzero(alone):
        (asset,) = np.flatnonzero(coefficients[row])
        least, most = sorted((low[row], high[row]) / coefficients[row, asset])
        lower[asset], upper[asset] = max(lower[asset], least), min(upper[asset], most)
    return lower, upper


def _order(sizes: Array, first: Array) -> tuple[Array, Array]:
    """Assets in the order in which they are drawn, and those that are summed up."""
    if sizes.shape[1] <= MOST_ROWS:
        return np.argsort(-first, kind="stable"), np.arange(0)
    by_size = np.argsort(-sizes.max(axis=0), kind="stable")
    shown, rest = by_size[: MOST_ROWS - 1], by_size[MOST_ROWS - 1 :]
    return shown[np.argsort(-first[shown], kind="stable")], rest


def _bracket(ax: Axes, rows: Array, lower: Array, upper: Array) -> None:
    """A line from bound to bound with a cap at each; towards an open side it goes on to the edge."""
    bounded = np.isfinite(lower) | np.isfinite(upper)
    left, right = ax.get_xlim()
    ends = np.clip(lower, left, right)[bounded], np.clip(upper, left, right)[bounded]
    ax.hlines(rows[bounded], *ends, color=ORANGE, linewidth=1.6, zorder=1.5, label="allowed")
    for bound in (lower, upper):
        finite = np.isfinite(bound)
        ax.scatter(
            bound[finite], rows[finite], s=110, marker="|", color=ORANGE, linewidths=2.0, zorder=4
        )
