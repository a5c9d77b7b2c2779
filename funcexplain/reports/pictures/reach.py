"""How far markets within a radius can move the weights, and trades in several scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from funcexplain.reports.drawing import (
    BLUE,
    COLORS,
    GREY,
    INK,
    MAX_ROWS,
    ORANGE,
    PALE,
    Values,
    as_array,
    check_array,
    escape_dollars,
    new_axes,
    shorten,
    spread_out,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_reach(
    lower: Values,
    today: Values,
    upper: Values,
    *,
    assets: Sequence[str],
    radius: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A bar for each asset from the minimum to the maximum weight found, with today's marked.

    Assets are sorted by their highest weight; beyond `MAX_ROWS` the others are left out, and the title
    says so.

    Args:
        lower: lowest weights, such as ``fe.reach(...).lower``, ``(A,)``.
        today: weights at the reference, ``(A,)``.
        upper: highest weights, ``(A,)``.
        assets: ``A`` names.
        radius: of the markets, in sigmas, for the title.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the weights do not have the shape ``(A,)``.

    Example:
        >>> ax = plot_reach([0.1, 0.2], [0.3, 0.7], [0.8, 0.9], assets=["EUR", "JPY"], radius=2.0)
        >>> ax.get_title(loc="left")
        'Weights within 2 sigmas'
    """
    shape = (len(assets),)
    given = {"lower": lower, "today": today, "upper": upper}
    low, held, high = (100.0 * check_array(name, value, shape) for name, value in given.items())
    order = np.argsort(-high, kind="stable")[:MAX_ROWS]
    rows = np.arange(len(order))
    ax = ax or new_axes(6.0, 1.4 + 0.24 * len(order))
    ax.hlines(rows, low[order], high[order], color=BLUE, linewidth=6, alpha=0.45, label="found")
    ax.scatter(held[order], rows, s=34, color=INK, label="today", zorder=3)
    hidden = len(assets) - len(order)
    left_out = f" ({hidden} assets with lower weights left out)" if hidden else ""
    title = "Weights within reach" if radius is None else f"Weights within {radius:g} sigmas"
    style_axes(ax, f"{title}{left_out}", grid="x")
    ax.set_yticks(rows, [shorten(assets[index]) for index in order])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlabel("weight in the portfolio, %; a wider range may exist")
    return ax


def plot_frontier(
    radii: Values,
    upper: Values,
    *,
    assets: Sequence[str],
    today: Values | None = None,
    most: int = 5,
    ax: Axes | None = None,
) -> Axes:
    """The maximum weight found against the radius: how large a market move each weight takes.

    Args:
        radii: increasing, in sigmas, ``(R,)``.
        upper: highest weights, such as ``fe.reach(problem, radii).upper``, ``(R, A)``.
        assets: ``A`` names.
        today: weights at the reference, ``(A,)``, drawn at radius zero.
        most: maximum number of assets, at most 7; those whose weights rise most are drawn.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit, or ``most`` is not 1 to 7.

    Example:
        >>> ax = plot_frontier([1.0, 2.0], [[0.5, 0.6], [0.8, 0.7]], assets=["EUR", "JPY"])
        >>> ax.get_xlabel()
        'radius of the market, sigmas'
    """
    if not 1 <= most <= len(COLORS):
        raise ValueError(f"plot_frontier: most must be in 1 ... {len(COLORS)}, the colors, got {most}")
    x = as_array(radii)
    y = 100.0 * check_array("upper", upper, (*x.shape, len(assets)))
    if today is not None:
        x = np.concatenate([[0.0], x])
        y = np.concatenate([100.0 * check_array("today", today, (len(assets),))[None], y])
    rise = y[-1] - y[0]
    order = np.argsort(-rise, kind="stable")[:most]
    ax = ax or new_axes(6.0, 3.4)
    places = spread_out(y[-1][order], 0.055 * (float(y[:, order].max() - y[:, order].min()) or 1.0))
    for index, color, place in zip(order, COLORS, places, strict=False):
        ax.plot(x, y[:, index], color=color, linewidth=1.8, marker="o", markersize=3.5)
        ax.annotate(
            shorten(assets[index]),
            xy=(x[-1], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
        )
    hidden = len(assets) - len(order)
    left_out = f" ({hidden} assets that rise less left out)" if hidden else ""
    style_axes(ax, f"Highest weight found{left_out}", y="weight in the portfolio, %")
    ax.grid(color=PALE, linewidth=0.8)
    ax.margins(y=0.12)
    ax.set_xlim(0.0 if today is not None else None, None)
    ax.set_xlabel("radius of the market, sigmas")
    return ax


def plot_trades(
    trades: Values, *, assets: Sequence[str], names: Sequence[str], ax: Axes | None = None
) -> Axes:
    """The network's trades in scenarios, asset by asset.

    Assets are sorted by their largest trade; beyond `MAX_ROWS` the others are left out, and the title
    says so. One scenario is drawn as bars, several as dots.

    Args:
        trades: weights in the scenario minus today's, ``(S, A)``, for up to 7 scenarios.
        assets: ``A`` names.
        names: ``S`` names of the scenarios.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit the names, or there are more than 7 scenarios.

    Example:
        >>> ax = plot_trades([[0.1, -0.1]], assets=["EUR", "JPY"], names=["EUR -5%"])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['EUR', 'JPY']
    """
    if not 1 <= len(names) <= len(COLORS):
        raise ValueError(f"plot_trades: expected 1 ... {len(COLORS)} scenarios, got {len(names)}")
    points = 100.0 * check_array("trades", trades, (len(names), len(assets)))
    order = np.argsort(-np.abs(points).max(axis=0), kind="stable")[:MAX_ROWS]
    rows = np.arange(len(order))
    ax = ax or new_axes(6.0, 1.4 + 0.24 * len(order))
    ax.axvline(0.0, color=GREY, linewidth=1.0)
    if len(names) == 1:
        colors = [BLUE if move >= 0.0 else ORANGE for move in points[0][order]]
        ax.barh(rows, points[0][order], color=colors, height=0.62, label=escape_dollars(names[0]))
    else:
        for line, name, color in zip(points, names, COLORS, strict=False):
            ax.scatter(line[order], rows, s=30, color=color, alpha=0.85, label=escape_dollars(name))
    hidden = len(assets) - len(order)
    left_out = f" ({hidden} assets with smaller trades left out)" if hidden else ""
    # The names of scenarios are long: one a line, between title and axes.
    style_axes(ax, f"Trade{left_out}", pad=10.0 + 15.0 * len(names))
    ax.grid(axis="x", color=PALE, linewidth=0.8)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        borderpad=0.2,
    )
    ax.set_yticks(rows, [shorten(assets[index]) for index in order])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlabel("trade, percentage points of the portfolio: bought right of zero, sold left")
    return ax
