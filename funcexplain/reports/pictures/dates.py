"""A question over many dates: the size of the change, and the probability of the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from funcexplain.reports.drawing import (
    BLUE,
    ORANGE,
    PALE,
    Values,
    as_array,
    check_array,
    new_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TICKS, _DOTS = 5, 60  # maximum numbers


def plot_dates(
    dates: Sequence[object],
    size: Values,
    hit: Values,
    *,
    chance: Values | None = None,
    unit: str = "standard deviations",
) -> Axes:
    """The size of the change that a target takes on each date; below it, its probability.

    Args:
        dates: the ``N`` dates.
        size: size of the change on each date, ``(N,)``.
        hit: whether it reaches the target, ``(N,)``; a cross marks a date where it does not.
        chance: probability of the target on each, drawn on a logarithmic scale. Default: not drawn.
        unit: of the size.

    Returns:
        The axes of the size; those of the probability are the second of its figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit.

    Example:
        >>> ax = plot_dates(["2026-10-29", "2026-10-30"], [3.0, 2.5], [True, True])
        >>> ax.get_ylabel()
        'size, standard deviations'
    """
    count = len(dates)
    sizes = check_array("size", size, (count,))
    reached = check_array("hit", hit, (count,)).astype(bool)
    panels = 1 if chance is None else 2
    figure = new_figure(8.0, 2.6 + 1.8 * (panels - 1))
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    ax, days = axes[0], np.arange(count)
    line: dict[str, Any] = {"color": BLUE, "linewidth": 1.5, "markersize": 3.5}
    line["marker"] = "o" if count <= _DOTS else None
    ax.plot(days, np.where(reached, sizes, np.nan), label="reached", **line)
    missed = ~reached & np.isfinite(sizes)
    if missed.any():
        ax.scatter(days[missed], sizes[missed], marker="x", s=22, color=ORANGE, label="missed")
    ax.set_ylim(bottom=0.0)
    style_axes(ax, "Size of the change on each date", y=f"size, {unit}", grid="y")
    if chance is not None:
        known = as_array(chance)
        axes[1].plot(days, np.where(known > 0, known, np.nan), **line)
        axes[1].set_yscale("log")
        style_axes(axes[1], "Probability of the target", y="probability")
        axes[1].grid(axis="y", color=PALE, linewidth=0.8)
    ticks = np.unique(np.linspace(0, count - 1, min(count, _TICKS)).round().astype(int))
    axes[-1].set_xticks(ticks, [str(dates[at]) for at in ticks])
    axes[-1].set_xlabel("date")
    return ax
