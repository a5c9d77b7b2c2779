"""Draws at which the target holds: fans of paths, shifts of moves, and kinds of market."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from funcexplain.markets.periods import DAY
from funcexplain.measures.draws import Bands, Moves
from funcexplain.measures.stories import Stories
from funcexplain.reports.drawing import (
    BLUE,
    GREY,
    INK,
    MAX_ROWS,
    ORANGE,
    PALE,
    Array,
    Values,
    as_array,
    check_array,
    new_axes,
    new_figure,
    shorten,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_LIGHT, _MIDDLE = "#A9CCE3", "#5499C7"  # of the blue line: the outer and the inner band
_RANGE = (0.05, 0.95)


def plot_fan(
    bands: Bands,
    *,
    assets: Sequence[str],
    answer: Values | None = None,
    most: int = 6,
    title: str = "Markets in which the target holds",
    period: str = DAY,
) -> Figure:
    """Fans of the paths of the assets that shift most, against those of ordinary markets.

    One panel per asset: the outer and the inner band of the draws and their median, over the outer band
    of ordinary markets. Paths are in percent of the last fixed day; its known past is also drawn.

    Args:
        bands: of `bands`; its lowest and highest level bound the outer band.
        assets: ``A`` names.
        answer: cumulative log returns of an answer, ``(D, A)``, zero on the day before ``bands.first``.
        most: maximum number of assets.
        title: a headline.
        period: of the prices.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit, or ``most`` is below one.

    Example:
        >>> import torch
        >>> levels, path = torch.tensor([0.05, 0.5, 0.95]), torch.linspace(0, 0.1, 5)[:, None]
        >>> given = torch.stack([path, 2 * path, 3 * path])
        >>> figure = plot_fan(Bands(levels, given, given - path, 1), assets=["EUR"])
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['EUR']
    """
    if most < 1:
        raise ValueError(f"plot_fan: most must be at least 1, got {most}")
    shape = (*np.shape(bands.ordinary)[:2], len(assets))
    given, ordinary = (check_array(name, getattr(bands, name), shape) for name in ("given", "ordinary"))
    path = None if answer is None else check_array("answer", answer, shape[1:])
    levels, (middle, width) = as_array(bands.levels), (given[:, -1] for given in (given, ordinary))
    center = int(np.abs(levels - 0.5).argmin())
    spread = np.where(width[-1] > width[0], width[-1] - width[0], np.inf)
    shift = np.abs(middle[center] - width[center]) / spread
    order = np.argsort(-shift, kind="stable")[:most]
    first = max(0, 2 * bands.first - shape[1])  # as many days of the past as are shocked
    days = np.arange(first, shape[1]) - bands.first + 1
    known = days <= 0
    if bands.first == 0:
        days, known = np.append(0, days), np.append(True, known)
    percent = [_percent(table, first, bands.first) for table in (given, ordinary)]
    rows = -(-len(order) // _COLUMNS)
    figure = new_figure(10.0, 1.0 + 2.5 * rows)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    grid = figure.add_gridspec(rows, min(_COLUMNS, len(order)))
    outer, inner = (f"{100 * (levels[-1 - at] - levels[at]):.0f}%" for at in (0, min(1, center)))
    for place, asset in enumerate(order):
        ax = figure.add_subplot(grid[divmod(place, _COLUMNS)])
        fan, usual = (table[..., asset] for table in percent)
        ax.fill_between(days, usual[0], usual[-1], color=PALE, linewidth=0, label=f"ordinary, {outer}")
        ax.fill_between(days, fan[0], fan[-1], color=_LIGHT, linewidth=0, label=f"target holds, {outer}")
        if center > 1:
            ax.fill_between(
                days, fan[1], fan[-2], color=_MIDDLE, linewidth=0, label=f"of these, {inner}"
            )
        for edge in (usual[0], usual[-1]):  # seen where the fan covers the band
            ax.plot(days, edge, color=GREY, linewidth=0.8, dashes=(3, 2))
        ax.plot(days, fan[center], color=BLUE, linewidth=2.0, label="their median")
        if path is not None:
            line = _percent(path[None], first, bands.first)[0, :, asset]
            ax.plot(days, line, color=ORANGE, linewidth=1.8, label="closest answer")
        ax.plot(days[known], fan[center][known], color=INK, linewidth=1.4)
        style_axes(ax, shorten(assets[asset]), y="move, %" if place % _COLUMNS == 0 else "")
        ax.grid(axis="y", color=PALE, linewidth=0.8)
        ax.axhline(0.0, color=GREY, linewidth=0.8)
        ax.set_xlim(days[0], days[-1])
        ax.locator_params(axis="x", integer=True, nbins=6)
        ax.locator_params(axis="y", nbins=6)
        if place >= len(order) - _COLUMNS:
            ax.set_xlabel(f"{period}s after the last fixed one")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False,
        labelcolor=INK, fontsize=9, columnspacing=1.4, handletextpad=0.5,
    )  # fmt: skip
    return figure


def plot_shifts(
    moves: Moves, *, assets: Sequence[str], most: int = MAX_ROWS, ax: Axes | None = None
) -> Axes:
    """Bars of every asset's shift in sigmas, largest first, with the share of draws in which it falls.

    Args:
        moves: of `moves`.
        assets: ``A`` names.
        most: maximum number of assets.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes; the shares are written to their right.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit, or ``most`` is below one.

    Example:
        >>> import torch
        >>> values = torch.tensor([0.1, -0.2])
        >>> ax = plot_shifts(Moves(values, values, values.abs(), values.abs()), assets=["EUR", "JPY"])
        >>> [label.get_text() for label in ax.get_yticklabels()], ax.texts[-1].get_text()
        (['JPY', 'EUR'], '10% (10%)')
    """
    if most < 1:
        raise ValueError(f"plot_shifts: most must be at least 1, got {most}")
    table = np.stack([check_array(name, value, (len(assets),)) for name, value in
                      zip(moves._fields, moves, strict=True)])  # fmt: skip
    order = np.argsort(-np.abs(table[1]), kind="stable")[:most]
    _, sigmas, falls, before = table[:, order]
    rows = np.arange(len(order))
    ax = ax or new_axes(7.0, 1.5 + 0.26 * len(order))
    ax.barh(rows, sigmas, height=0.7, color=np.where(sigmas < 0, ORANGE, BLUE))
    limit = 1.1 * float(np.abs(sigmas).max()) or 1.0
    ax.set_xlim(-limit, limit)
    hidden = len(assets) - len(order)
    left_out = f" ({hidden} smaller ones left out)" if hidden else ""
    style_axes(ax, f"Shift of the mean move{left_out}", pad=12)
    ax.grid(axis="x", color=PALE, linewidth=0.8)
    ax.axvline(0.0, color=GREY, linewidth=0.8)
    ax.set_yticks(rows, [shorten(assets[index]) for index in order])
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlabel("mean move where the target holds against ordinary markets, sigmas")
    aside = {
        "xycoords": ax.get_yaxis_transform(),
        "color": INK,
        "fontsize": 8.5,
        "annotation_clip": False,
    }
    ax.annotate("falls (ordinary)", (1.02, -0.75), va="bottom", **aside)  # type: ignore[arg-type]
    for row, share, usual in zip(rows, falls, before, strict=True):
        ax.annotate(f"{100 * share:.0f}% ({100 * usual:.0f}%)", (1.02, row), va="center", **aside)  # type: ignore[arg-type]
    return ax


def plot_stories(stories: Stories, moves: Values, *, assets: Sequence[str], most: int = 12) -> Figure:
    """Kinds of market side by side: the moves of each kind's medoid, and the range of its draws.

    Args:
        stories: of `stories`.
        moves: cumulative log returns of the draws, ``(N, A)``.
        assets: ``A`` names.
        most: maximum number of assets; those whose moves are largest in their own range come first.

    Returns:
        The figure, with a panel for each kind.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit, or ``most`` is below one.

    Example:
        >>> import torch
        >>> moves = torch.tensor([[0.1, 0.0], [0.1, 0.0], [-0.2, 0.0]])
        >>> shares, medoids = torch.tensor([2 / 3, 1 / 3]), torch.tensor([0, 2])
        >>> found = Stories(shares, medoids, torch.tensor([0, 0, 1]), moves[medoids], 1.0)
        >>> figure = plot_stories(found, moves, assets=["EUR", "JPY"])
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['Kind 1: 67%', 'Kind 2: 33%']
    """
    if most < 1:
        raise ValueError(f"plot_stories: most must be at least 1, got {most}")
    labels, medoids = (as_array(value).astype(int) for value in (stories.labels, stories.medoids))
    table = 100.0 * np.expm1(check_array("moves", moves, (len(labels), len(assets))))
    spread = table.std(axis=0)
    means = np.stack([table[labels == kind].mean(axis=0) for kind in range(len(medoids))])
    size = np.abs(means).max(axis=0) / np.where(spread > 0, spread, np.inf)
    order = np.argsort(-size, kind="stable")[:most]
    order = order[np.argsort(means[0, order], kind="stable")]
    rows, kinds = np.arange(len(order)), len(medoids)
    figure = new_figure(2.2 + 2.3 * kinds + (2.0 if kinds == 1 else 0.0), 1.6 + 0.28 * len(order))
    panels = figure.subplots(1, kinds, sharex=True, sharey=True, squeeze=False)[0]
    for kind, ax in enumerate(panels):
        low, high = np.quantile(table[labels == kind][:, order], _RANGE, axis=0)
        middle = table[medoids[kind], order]
        ax.hlines(rows, low, high, color=_LIGHT, linewidth=6)
        ax.scatter(middle, rows, s=28, color=np.where(middle < 0, ORANGE, BLUE), zorder=3)
        style_axes(ax, f"Kind {kind + 1}: {100 * float(stories.shares[kind]):.0f}%")
        ax.grid(axis="x", color=PALE, linewidth=0.8)
        ax.axvline(0.0, color=GREY, linewidth=0.8)
        ax.locator_params(axis="x", nbins=5)
        ax.set_yticks(rows, [shorten(assets[index]) for index in order])
    panels[0].set_ylim(len(order) - 0.4, -0.6)
    figure.supxlabel(
        "move over the shocked days, %; dot: the draw in the middle, bar: 90% of the kind's draws",
        color=INK, fontsize=9,
    )  # fmt: skip
    return figure


def _percent(paths: Array, start: int, first: int) -> Array:
    """Cumulative log returns ``(Q, D, A)`` in percent from a day on; day 0 is added if missing."""
    moved = 100.0 * np.expm1(paths[:, start:])
    return moved if first else np.concatenate([np.zeros_like(moved[:, :1]), moved], axis=1)
