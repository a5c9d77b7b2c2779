"""The change from the actual market to the answer: where, when, and in how many assets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from funcexplain.markets.periods import DAY
from funcexplain.reports.drawing import (
    BLUE,
    GREY,
    INK,
    MAX_ROWS,
    ORANGE,
    Array,
    Days,
    Values,
    as_array,
    check_array,
    label_days,
    new_axes,
    shorten,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 12
"""Maximum number of assets with a bar of their own."""


def plot_changes(
    x: Values,
    reference: Values,
    *,
    scale: Values,
    assets: Sequence[str],
    channels: Sequence[str],
    dates: Days | None = None,
    unit: str = "standard deviations",
    period: str = DAY,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of ``(x - reference) / scale``: where, when and by how many sigmas x differs.

    One block per channel, side by side; days run from left to right, and the assets with the largest
    change (root mean square over channels and days) come first. Beyond `MAX_ROWS` assets the rest are
    omitted, and the title says so.

    Args:
        x: the answer, ``(C, L, A)``.
        reference: the window it is compared with, ``(C, L, A)``.
        scale: one sigma of each entry; broadcasts to x, such as ``(C, 1, 1)``.
        assets: ``A`` names.
        channels: ``C`` names.
        dates: the ``L`` days of the window. Default: days are counted back from the last one.
        unit: name of the unit of ``scale``.
        period: of the prices.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes, with a color bar next to them.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit the names and dates.

    Example:
        >>> x, names = np.zeros((1, 2, 2)), ["EUR", "JPY"]
        >>> ax = plot_changes(x, x + 0.02, scale=0.01, assets=names, channels=["return"])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['EUR', 'JPY']
    """
    length = np.shape(x)[1] if np.ndim(x) == 3 else 0
    shape = (len(channels), length if dates is None else len(dates), len(assets))
    sigmas = _in_sigmas(x, reference, scale, shape)
    return heat_map(
        sigmas,
        assets=assets,
        channels=channels,
        dates=dates,
        unit=unit,
        title="Change of the market",
        period=period,
        ax=ax,
    )


def heat_map(
    values: Array,
    *,
    assets: Sequence[str],
    channels: Sequence[str],
    dates: Days | None,
    unit: str,
    title: str,
    period: str = DAY,
    ax: Axes | None,
) -> Axes:
    """Signed values ``(C, L, A)`` as colors: one block per channel, the largest assets first."""
    length = values.shape[1]
    order = np.argsort(-np.square(values).mean(axis=(0, 1)), kind="stable")[:MAX_ROWS]
    ax = ax or new_axes(8.0, 1.6 + 0.24 * len(order))
    limit = float(np.abs(values).max()) or 1.0
    gap = max(1.0, 0.1 * length)
    # White lines separate the cells, as long as the cells are wider than the lines.
    line = 0.3 if len(channels) * length <= 100 else 0.0
    for channel, name in enumerate(channels):
        left = channel * (length + gap)
        mesh = ax.pcolormesh(
            left + np.arange(length + 1),
            np.arange(len(order) + 1),
            values[channel][:, order].T,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            edgecolors="white" if line else "none",
            linewidth=line,
        )
        ax.annotate(
            shorten(name),
            xy=(left + length / 2, 1.0),
            xycoords=ax.get_xaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )
    hidden = len(assets) - len(order)
    left_out = f" ({hidden} assets with smaller values left out)" if hidden else ""
    style_axes(ax, f"{title}{left_out}", pad=20)
    for side in ("bottom", "left"):
        ax.spines[side].set_visible(False)
    ax.set_yticks(np.arange(len(order)) + 0.5, [shorten(assets[index]) for index in order])
    ax.set_ylim(len(order), 0)
    label_days(ax, dates, length, gap, len(channels), period)
    bar = ax.figure.colorbar(mesh, ax=ax, fraction=0.03, pad=0.02, aspect=12 + len(order))
    bar.set_label(unit, color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, length=0, colors=INK)
    bar.outline.set_visible(False)
    return ax


def plot_cumulative(
    x: Values,
    reference: Values,
    *,
    scale: Values,
    assets: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """Share of the change that each asset contributes, largest first, and the cumulative share.

    The share of an asset is its part of ``sum(((x - reference) / scale)^2)``. A line that rises
    steeply is a change of a few assets; one that rises evenly, a change of the whole market. The title
    gives the number of assets that make up 80 % of it.

    Args:
        x: the answer, ``(C, L, A)``.
        reference: the window it is compared with, ``(C, L, A)``.
        scale: one sigma of each entry; broadcasts to x, such as ``(C, 1, 1)``.
        assets: ``A`` names.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit.

    Example:
        >>> x, change = np.zeros((1, 2, 2)), np.array([[[0.01, 0.03], [0.01, 0.03]]])
        >>> ax = plot_cumulative(x + change, x, scale=0.01, assets=["EUR", "JPY"])
        >>> ax.get_title(loc="left"), ax.lines[0].get_ydata().round().tolist()
        ('1 of 2 assets make up 80% of the change', [90.0, 100.0])
    """
    sigmas = _in_sigmas(x, reference, scale, (*np.shape(x)[:-1], len(assets)))
    sizes = np.square(sigmas).reshape(-1, len(assets)).sum(axis=0)
    order = np.argsort(-sizes, kind="stable")
    shares = 100.0 * sizes[order] / (sizes.sum() or 1.0)
    total = shares.cumsum()
    count = int(np.searchsorted(total, 80.0)) + 1
    names = [shorten(assets[index]) for index in order]
    hidden = len(assets) - MAX_BARS
    if hidden > 0:
        shares = np.append(shares[:MAX_BARS], 100.0 - total[MAX_BARS - 1])
        total = np.append(total[:MAX_BARS], 100.0)
        names = [*names[:MAX_BARS], f"{hidden} others"]
    rows = np.arange(len(names))
    ax = ax or new_axes(6.0, 3.4)
    bars = ax.bar(rows, shares, width=0.7, color=BLUE, label="asset")
    if hidden > 0:
        bars.patches[-1].set_facecolor(GREY)
    ax.plot(rows, total, color=ORANGE, linewidth=1.6, marker="o", markersize=4, label="cumulative")
    title = f"{count} of {len(assets)} assets make up 80% of the change"
    title = title if sizes.any() else "Nothing changes"
    style_axes(ax, title, pad=22, y="share of the change, %", grid="y")
    ax.set_xticks(rows, names, rotation=90)
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_ylim(0, 105)
    return ax


def _in_sigmas(x: Values, reference: Values, scale: Values, shape: tuple[int, ...]) -> Array:
    """The change in units of ``scale``; raises unless both windows have this shape."""
    return (check_array("x", x, shape) - check_array("reference", reference, shape)) / as_array(scale)
