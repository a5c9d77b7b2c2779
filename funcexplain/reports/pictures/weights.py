"""Allocations asset by asset: today's, the target, and the one reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from funcexplain.problems.criterion import LINEAR
from funcexplain.reports.drawing import (
    BLUE,
    GREY,
    MAX_ROWS,
    ORANGE,
    PALE,
    Array,
    Values,
    as_array,
    check_array,
    new_axes,
    shorten,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_NARROW = 550  # pixels


def plot_weights(
    today: Values,
    target: Values,
    reached: Values,
    *,
    assets: Sequence[str],
    most: int = MAX_ROWS,
    ax: Axes | None = None,
) -> Axes:
    """Three allocations, asset by asset: today's, the target, and the one reached.

    Assets are sorted by their target weight. Beyond ``most`` assets the largest are shown, and the last
    row is the sum of all others. With goals instead of a target allocation, bounds of single assets are
    drawn as brackets, other goals are not drawn, and assets are sorted by the weight reached, those with
    bounds first.

    Args:
        today: weights at the reference, ``(A,)``.
        target: target weights, ``(A,)``, or goals as in ``problem.args``, ``(K, A + 3)``.
        reached: weights at the answer, ``(A,)``.
        assets: ``A`` names.
        most: maximum number of lines, at least 2.
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
    held, got = check_array("today", today, (size,)), check_array("reached", reached, (size,))
    goals = as_array(target)
    if goals.ndim == 2:
        lower, upper = asset_bounds(check_array("target", goals, (len(goals), size + 3)))
    else:
        lower = upper = check_array("target", goals, (size,))
    bounded = np.isfinite(lower) | np.isfinite(upper)
    first = lower if goals.ndim == 1 else np.where(bounded, 2.0, 0.0) + got
    order, rest = _order(np.stack([held, got, np.where(bounded, first, 0.0)]), first, most)
    table = 100.0 * np.stack([held, got, lower, upper])  # (4, A)
    names = [shorten(assets[index]) for index in order]
    columns = table[:, order]
    if len(rest):
        # Weights add up; bounds of single assets do not bound their sum.
        total = table[:, rest].sum(1)
        total[2:] = total[2:] if goals.ndim == 1 else (-np.inf, np.inf)
        columns = np.concatenate([columns, total[:, None]], axis=1)
        names.append(f"{len(rest)} others")
    held, got, lower, upper = columns
    rows = np.arange(len(names))
    ax = ax or new_axes(6.0, 1.4 + 0.24 * len(names))
    ax.hlines(rows, np.minimum(held, got), np.maximum(held, got), color=PALE, linewidth=5, zorder=1)
    ax.scatter(held, rows, s=34, color=GREY, label="today", zorder=2)
    if goals.ndim == 1:
        ax.scatter(
            lower, rows, s=80, facecolors="none", edgecolors=ORANGE, linewidths=1.6, label="target"
        )
    ax.scatter(got, rows, s=20, color=BLUE, label="reached", zorder=3)
    known = columns[np.isfinite(columns)]
    left, right = min(float(known.min()), 0.0), max(float(known.max()), 1e-9)
    margin = 0.03 * (right - left)
    ax.set_xlim(left - margin, right + 2 * margin)
    if goals.ndim == 2:
        _bracket(ax, rows, lower, upper)
    style_axes(ax, "Allocation", grid="x", narrow=ax.get_window_extent().width < _NARROW)
    ax.set_yticks(rows, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel("weight in the portfolio, %")
    return ax


def asset_bounds(goals: Array) -> tuple[Array, Array]:
    """Lower and upper bounds that goals set on single assets, infinite where there are none.

    Args:
        goals: rows as in ``problem.args["target"]``, ``(K, A + 3)``.

    Returns:
        Lower and upper bounds, ``(A,)`` each.

    Example:
        >>> asset_bounds(np.array([[0.0, 1.0, 0.0, 0.3, np.inf], [1.0, 1.0, 0.0, 0.5, 0.9]]))
        (array([-inf,  0.3]), array([inf, inf]))
    """
    coefficients, (kinds, low, high) = goals[:, :-3], goals[:, -3:].T
    lower, upper = np.full(coefficients.shape[1], -np.inf), np.full(coefficients.shape[1], np.inf)
    single = (kinds == LINEAR) & (np.count_nonzero(coefficients, axis=1) == 1)
    for row in np.flatnonzero(single):
        (asset,) = np.flatnonzero(coefficients[row])
        low_weight, high_weight = sorted((low[row], high[row]) / coefficients[row, asset])
        lower[asset], upper[asset] = max(lower[asset], low_weight), min(upper[asset], high_weight)
    return lower, upper


def _order(sizes: Array, first: Array, most: int) -> tuple[Array, Array]:
    """Assets in drawing order, and those that are summed in the last row."""
    if sizes.shape[1] <= most:
        return np.argsort(-first, kind="stable"), np.arange(0)
    by_size = np.argsort(-sizes.max(axis=0), kind="stable")
    top, rest = by_size[: most - 1], by_size[most - 1 :]
    return top[np.argsort(-first[top], kind="stable")], rest


def _bracket(ax: Axes, rows: Array, lower: Array, upper: Array) -> None:
    """A line between the bounds with a cap at each; on an open side it extends to the edge."""
    bounded = np.isfinite(lower) | np.isfinite(upper)
    left, right = ax.get_xlim()
    ends = np.clip(lower, left, right)[bounded], np.clip(upper, left, right)[bounded]
    ax.hlines(rows[bounded], *ends, color=ORANGE, linewidth=1.6, zorder=1.5, label="allowed")
    for bound in (lower, upper):
        finite = np.isfinite(bound)
        ax.scatter(
            bound[finite], rows[finite], s=110, marker="|", color=ORANGE, linewidths=2.0, zorder=4
        )
