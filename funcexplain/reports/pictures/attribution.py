"""Attribution of a weight's change: its parts, and how they add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from funcexplain.reports.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    Days,
    Values,
    as_array,
    check_array,
    escape_dollars,
    new_axes,
    shorten,
    style_axes,
)
from funcexplain.reports.pictures.changes import heat_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PARTS = 10
"""Maximum number of parts with a bar of their own."""


def plot_attribution(
    parts: Values,
    *,
    assets: Sequence[str],
    channels: Sequence[str],
    dates: Days | None = None,
    name: str = "the weight",
    ax: Axes | None = None,
) -> Axes:
    """Heat map of the parts of one weight's change: which entries of the window raised or lowered it.

    Laid out as `plot_changes`: one block per channel, days from left to right, the assets with the
    largest parts first.

    Args:
        parts: of one weight, such as ``fe.attribute(...).values[0]``, ``(C, L, A)``.
        assets: ``A`` names.
        channels: ``C`` names.
        dates: the ``L`` days of the window. Default: days are counted back from the last one.
        name: of the asset whose weight it is.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes, with a color bar next to them.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit the names and dates.

    Example:
        >>> ax = plot_attribution(np.ones((1, 2, 2)), assets=["EUR", "JPY"], channels=["return"])
        >>> ax.get_title(loc="left")
        'What moved the weight'
    """
    length = np.shape(parts)[1] if np.ndim(parts) == 3 else 0
    shape = (len(channels), length if dates is None else len(dates), len(assets))
    points = 100.0 * check_array("parts", parts, shape)
    return heat_map(
        points,
        assets=assets,
        channels=channels,
        dates=dates,
        unit="percentage points",
        title=f"What moved {shorten(name)}",
        ax=ax,
    )


def plot_waterfall(
    before: float,
    parts: Values,
    *,
    names: Sequence[str],
    name: str = "weight",
    ends: tuple[str, str] = ("before", "after"),
    ax: Axes | None = None,
) -> Axes:
    """How the parts of one weight's change lead from its value before to that after.

    Parts come in order of size; beyond `MAX_PARTS`, the last bar is the sum of the others.

    Args:
        before: the weight at the start, as a share of the portfolio.
        parts: of its change, ``(G,)``.
        names: ``G`` names.
        name: of the asset whose weight it is.
        ends: names of the weights at both ends.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is not one name for each part.

    Example:
        >>> ax = plot_waterfall(0.4, [0.1, -0.2], names=["EUR", "JPY"])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['before', 'JPY', 'EUR', 'after']
    """
    points = 100.0 * check_array("parts", parts, (len(names),))
    first = 100.0 * float(as_array(before))
    order = np.argsort(-np.abs(points), kind="stable")
    shown, rest = order, order[:0]
    if len(order) > MAX_PARTS:
        shown, rest = order[: MAX_PARTS - 1], order[MAX_PARTS - 1 :]
    moves, labels = points[shown], [shorten(names[index]) for index in shown]
    if len(rest):
        moves, labels = np.append(moves, points[rest].sum()), [*labels, f"{len(rest)} others"]
    levels = first + np.concatenate([[0.0], np.cumsum(moves)])
    rows = np.arange(1, len(moves) + 1)
    last = len(moves) + 1
    ax = ax or new_axes(6.0, 1.4 + 0.26 * (last + 1))
    colors = [BLUE if move >= 0.0 else ORANGE for move in moves]
    ax.barh(rows, moves, left=levels[:-1], color=colors, height=0.62, zorder=2)
    ax.barh([0, last], [first, levels[-1]], color=GREY, height=0.62, zorder=2)
    ax.vlines(levels, np.arange(last), np.arange(1, last + 1), color=GREY, linewidth=0.8, zorder=1)
    low, high = min(0.0, float(levels.min())), max(0.0, float(levels.max()))
    room = 0.02 * ((high - low) or 1.0)
    edges = np.maximum(levels[:-1], levels[1:])
    places = [first, *edges.tolist(), float(levels[-1])]
    texts = [f"{first:.2f}%", *(f"{move:+.2f}" for move in moves), f"{levels[-1]:.2f}%"]
    for row, (edge, text) in enumerate(zip(places, texts, strict=True)):
        ax.text(max(edge, 0.0) + room, row, text, va="center", color=INK, fontsize=8.5)
    ax.set_xlim(low - room, high + 9.0 * room)
    style_axes(ax, f"Change of {shorten(name)}, by what moved it")
    ax.grid(axis="x", color=PALE, linewidth=0.8)
    ax.set_yticks(np.arange(last + 1), [escape_dollars(ends[0]), *labels, escape_dollars(ends[1])])
    ax.set_ylim(last + 0.6, -0.6)
    ax.set_xlabel("weight in the portfolio, %; parts in percentage points")
    return ax
