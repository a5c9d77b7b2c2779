"""Plots of an answer: the allocation, the changes that lead to it, and the search.

Every function draws on the axes it gets, or on those of a new figure, and returns the axes. pyplot is
not used: no figure is shown or registered, and matplotlib's backend and settings are left alone;
``ax.figure.savefig("picture.png")`` saves one. The colors are distinguishable for color-blind readers.
The functions are defined by topic in `pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from funcexplain.markets.periods import DAY
from funcexplain.reports.drawing import INK, Days, Values, escape_dollars, new_figure
from funcexplain.reports.drawing import MAX_ROWS as MAX_ROWS
from funcexplain.reports.pictures.attribution import plot_attribution as plot_attribution
from funcexplain.reports.pictures.attribution import plot_waterfall as plot_waterfall
from funcexplain.reports.pictures.changes import plot_changes as plot_changes
from funcexplain.reports.pictures.changes import plot_cumulative as plot_cumulative
from funcexplain.reports.pictures.dates import plot_dates as plot_dates
from funcexplain.reports.pictures.draws import plot_fan as plot_fan
from funcexplain.reports.pictures.draws import plot_shifts as plot_shifts
from funcexplain.reports.pictures.draws import plot_stories as plot_stories
from funcexplain.reports.pictures.prices import plot_prices as plot_prices
from funcexplain.reports.pictures.reach import plot_frontier as plot_frontier
from funcexplain.reports.pictures.reach import plot_reach as plot_reach
from funcexplain.reports.pictures.reach import plot_trades as plot_trades
from funcexplain.reports.pictures.search import plot_history as plot_history
from funcexplain.reports.pictures.search import plot_tradeoff as plot_tradeoff
from funcexplain.reports.pictures.weights import plot_weights as plot_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_overview(
    today: Values,
    target: Values,
    reached: Values,
    x: Values,
    reference: Values,
    history: Values | Sequence[Tensor],
    *,
    scale: Values,
    assets: Sequence[str],
    channels: Sequence[str],
    outputs: Sequence[str] | None = None,
    dates: Days | None = None,
    best: int | None = None,
    hit: Values | None = None,
    prices: tuple[Values, Values] | None = None,
    fan: tuple[Values, Values] | None = None,
    ahead: int = 0,
    unit: str = "standard deviations",
    period: str = DAY,
    title: str = "",
) -> Figure:
    """One figure with the allocation, the changes and the search; 1200 pixels wide when saved.

    Args:
        today: weights at the reference, as in `plot_weights`, like ``target`` and ``reached``.
        target: the target weights or goals.
        reached: weights reached.
        x: the answer, as in `plot_changes`, like ``reference``, ``scale``, ``channels`` and ``dates``.
        reference: the window that x is compared with.
        history: losses, as in `plot_history`, like ``best`` and ``hit``.
        scale: one sigma.
        assets: ``A`` names.
        channels: ``C`` names.
        outputs: names of the weights, if they are not those of the assets.
        dates: the days of the window.
        best: index of the row of the answer.
        hit: whether each row hit.
        prices: actual and scenario, as in `plot_prices`; drawn in a panel of their own.
        fan: range of the prices.
        ahead: number of days that are still to come.
        unit: name of the unit of ``scale``.
        period: of the prices.
        title: a headline.

    Returns:
        The figure; its ``savefig("overview.png")`` saves it.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: as in the plots.

    Example:
        >>> weights, x, names = [0.5, 0.5], np.ones((1, 2, 2)), ["EUR", "JPY"]
        >>> figure = plot_overview(weights, weights, weights, x, x, [0.1], scale=1.0, assets=names,
        ...                        channels=["return"])
        >>> [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
        ['Allocation', 'Change of the market', 'Nothing changes', 'Search']
    """
    rows = max(8, min(len(assets), MAX_ROWS))
    heights = [2.0 + 0.22 * rows, 3.4, *([3.6] if prices is not None else [])]
    figure = new_figure(12.0, 0.6 + sum(heights))
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    # Each row has columns of its own, whose margins do not depend on the names in the other rows.
    top, middle = grid[0].subgridspec(1, 2, width_ratios=[5, 7]), grid[1].subgridspec(1, 2)
    upper = [figure.add_subplot(top[place]) for place in (0, 1)]
    lower = [figure.add_subplot(middle[place]) for place in (0, 1)]
    plot_weights(today, target, reached, assets=outputs or assets, ax=upper[0])
    plot_changes(
        x,
        reference,
        scale=scale,
        assets=assets,
        channels=channels,
        dates=dates,
        unit=unit,
        period=period,
        ax=upper[1],
    )
    plot_cumulative(x, reference, scale=scale, assets=assets, ax=lower[0])
    plot_history(history, best=best, hit=hit, ax=lower[1])
    if prices is not None:
        count = np.shape(prices[0])[0]
        days = None if dates is None or ahead or len(dates) < count else dates[-count:]
        ax = figure.add_subplot(grid[2])
        plot_prices(*prices, assets=assets, dates=days, fan=fan, ahead=ahead, period=period, ax=ax)
    if title:
        text = escape_dollars(fill(title, width=105))
        figure.suptitle(text, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    return figure
