"""Price paths: the actual ones, and those of the scenario."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from funcexplain.markets.periods import DAY, unit_of
from funcexplain.reports.drawing import (
    COLORS,
    GREY,
    INK,
    PALE,
    Array,
    Days,
    Values,
    as_array,
    check_array,
    new_axes,
    shorten,
    spread_out,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NARROW = 450  # pixels
_MOST_FANS = 3  # more ranges would cover each other


def plot_prices(
    actual: Values,
    scenario: Values,
    *,
    assets: Sequence[str],
    dates: Days | None = None,
    most: int = 5,
    window: int = 0,
    ahead: int = 0,
    period: str = DAY,
    fan: tuple[Values, Values] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Price paths of the assets that move most: actual, dashed, and in the scenario, solid.

    Prices are shown as an index, 100 on the first day, so that all assets are comparable. Those
    with the largest distance between both paths, ``max |log(scenario / actual)|`` over days, are drawn
    and named at the end of their line.

    Args:
        actual: actual prices, positive, ``(D, A)``.
        scenario: prices in the scenario, positive, ``(D, A)``.
        assets: ``A`` names.
        dates: the ``D`` days. Default: days are counted back from the last one.
        most: maximum number of assets to draw, 1 to 7.
        window: number of last days to shade, those that a network sees, if there are more.
        ahead: number of last days that are still to come; without ``dates``, day 0 is the one before.
        period: of the prices.
        fan: lowest and highest prices of the middle 90 % of draws, which are shaded, ``(D, A)`` each;
            then at most three assets are drawn.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit, a price is not positive, or ``most`` is out of range.

    Example:
        >>> ax = plot_prices([[2.0, 8.0], [3.0, 8.0]], [[2.0, 8.0], [2.0, 9.0]], assets=["EUR", "JPY"])
        >>> ax.get_ylabel(), [text.get_text() for text in ax.texts]
        ('price, first day = 100', ['EUR', 'JPY'])
    """
    if not 1 <= most <= len(COLORS):
        raise ValueError(f"plot_prices: most must be in 1 ... {len(COLORS)}, the colors, got {most}")
    days = as_array(actual).shape[0] if dates is None else len(dates)
    pair = [check_array(name, table, (days, len(assets))) for name, table in
            (("actual", actual), ("scenario", scenario))]  # fmt: skip
    if not all((table > 0).all() for table in pair):
        raise ValueError("plot_prices: prices must be positive; fe.scenarios.prices_of converts returns")
    if fan is not None:
        most = min(most, _MOST_FANS)
        pair += [check_array("fan", bound, pair[0].shape) for bound in fan]
    distance = np.abs(np.log(pair[1] / pair[0])).max(axis=0)
    order = np.argsort(-distance, kind="stable")[:most]
    before, after, *bounds = (100.0 * table[:, order] / table[0, order] for table in pair)
    ax = ax or new_axes(8.0, 4.0)
    base = "without shocks" if ahead else "actual"
    day = np.arange(days) - (days - 1) + ahead
    for place, color in enumerate(COLORS[: len(order)]):
        names = (base, "scenario") if place == 0 else ("_", "_")  # one entry each in the legend
        ax.plot(day, before[:, place], color=color, linewidth=1.3, dashes=(3, 2), label=names[0])
        ax.plot(day, after[:, place], color=color, linewidth=2.0, label=names[1])
        if bounds:
            low, high = (bound[:, place] for bound in bounds)
            name = "90% of draws" if place == 0 else "_"
            ax.fill_between(day, low, high, color=color, alpha=0.15, linewidth=0, label=name)
    if 0 < window < days:
        ax.axvspan(float(day[-window]), float(day[-1]), color=PALE, alpha=0.5, linewidth=0)
    drawn = np.stack([before, after, *bounds])
    low, high = drawn.min(), drawn.max()
    margin = 0.05 * ((high - low) or 1.0)
    ax.set_ylim(low - margin, high + margin)
    # A narrow figure has no room for a title beside the legend.
    narrow = ax.get_window_extent().width <= _NARROW
    hidden = len(assets) > len(order) and not narrow
    title = f"Prices of the {len(order)} assets that move most" if hidden else "Prices"
    style_axes(ax, title, y="price, first day = 100", grid="both", narrow=narrow)
    _name_ends(
        ax, day[-1], after[-1], [shorten(assets[index]) for index in order], high - low + 2 * margin
    )
    if dates is None:
        ax.locator_params(axis="x", integer=True)
        unit = unit_of(period)
        ax.set_xlabel(f"{period}s from today" if ahead else f"{unit}s before the last {unit}")
    else:
        ends = [0] if days == 1 else [0, (days - 1) // 2, days - 1] if days > 4 else [0, days - 1]
        ax.set_xticks(day[ends], [str(dates[end]) for end in ends])
        ax.set_xlabel(f"{period}s")
    entries = ax.get_legend()
    assert entries is not None
    for line in entries.get_lines():
        line.set_color(INK)  # the line style tells both apart; the color is the asset's
    for patch in entries.get_patches():
        patch.set_facecolor(GREY)
    return ax


def _name_ends(ax: Axes, end: float, values: Array, names: list[str], height: float) -> None:
    """Write names behind the ends of the lines, moved apart where they would overlap."""
    positions = spread_out(values, 0.065 * height)
    for value, position, name, color in zip(values, positions, names, COLORS, strict=False):
        ax.annotate(
            name,
            xy=(float(end), value),
            xytext=(1.03, (position - ax.get_ylim()[0]) / height),
            textcoords="axes fraction",
            va="center",
            color=color,
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )
