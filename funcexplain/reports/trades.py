"""The trades from today's portfolio to the one reached, their turnover and its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from funcexplain.reports.drawing import Array
from funcexplain.reports.moves import MAX_LINES
from funcexplain.reports.numbers import format_percent
from funcexplain.reports.page import picture
from funcexplain.reports.pictures.weights import asset_bounds, plot_weights
from funcexplain.solutions.html import Html, element, table


def turnover_of(today: Array, reached: Array) -> Array:
    """The one-sided turnover from portfolios ``(..., A)`` to others, ``sum |reached - today| / 2``.

    Example:
        >>> float(turnover_of(np.array([0.75, 0.25]), np.array([0.5, 0.5])))
        0.25
    """
    return np.abs(reached - today).sum(-1) / 2


def trades_table(
    today: Array, target: Array, reached: Array, assets: Sequence[str], spread: float | None = None
) -> list[Html]:
    """Weights today, the target's and those reached, the trade in each asset, and the turnover.

    Args:
        today: weights, ``(A,)``.
        target: an allocation ``(A,)``, or goals ``(K, A + 3)``, of which bounds on single assets are
            shown.
        reached: weights, ``(A,)``.
        assets: ``A`` names.
        spread: bid-ask spread as a fraction of the price; each trade pays half.

    Returns:
        The table and a sentence.
    """
    lower, upper = (target, target) if target.ndim == 1 else asset_bounds(target)
    trade = reached - today
    order = np.argsort(-np.abs(trade), kind="stable")
    lines = [
        (
            assets[at],
            format_percent(today[at]),
            _bounds(lower[at], upper[at]),
            format_percent(reached[at]),
            f"{100 * trade[at]:+.2f}",
        )
        for at in order[:MAX_LINES]
    ]
    heads = ("asset", "today", "target", "reached", "trade, points")
    moved = float(turnover_of(today, reached))
    text = f"The turnover, half the sum of all trades, is {format_percent(moved)} of the portfolio."
    if spread is not None:
        cost = f"{1e4 * moved * spread:.1f} basis points"
        text += f" At a bid-ask spread of {format_percent(spread)} it costs {cost}."
    if (more := len(assets) - MAX_LINES) > 0:
        text += f" {more} more assets are traded less."
    return [table(heads, lines, range(1, len(heads))), element("p", text)]


def groups_picture(
    today: Array,
    target: Array,
    reached: Array,
    assets: Sequence[str],
    groups: Mapping[str, Sequence[str]],
) -> list[Html]:
    """The total weight of each group by name, as `plot_weights` draws assets; nothing without groups.

    Args:
        today: weights, ``(A,)``.
        target: an allocation ``(A,)``, or goals ``(K, A + 3)``, of which bounds on groups are drawn.
        reached: weights, ``(A,)``.
        assets: ``A`` names.
        groups: names of the members of each group.
    """
    if not groups:
        return []
    members = np.array([[name in inside for name in assets] for inside in groups.values()], dtype=float)
    if target.ndim == 1:
        totals = members @ target
    else:
        same = (target[:, None, :-3] == members).all(-1)  # (K, G)
        totals = np.concatenate([same.astype(float), target[:, -3:]], axis=1)
    ax = plot_weights(members @ today, totals, members @ reached, assets=[*groups])
    return [picture(ax, "Total weight of each group today and reached, in percent.")]


def _bounds(lower: float, upper: float) -> str:
    """The target for one weight, or empty."""
    if lower == upper:
        return format_percent(lower)
    parts = [f"at least {format_percent(lower)}"] if np.isfinite(lower) else []
    return " and ".join([*parts, *([f"at most {format_percent(upper)}"] if np.isfinite(upper) else [])])
