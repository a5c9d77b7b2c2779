"""Pictures of an answer: the allocation, what has to change for it, and the search.

Every function draws on the axes that it is given, or makes a figure of its own, and returns the
axes. Nothing is shown and pyplot is not used, so that no figure is registered anywhere and
matplotlib's backend and settings stay as they are; ``ax.figure.savefig("picture.png")`` saves one.
The colors are told apart by color-blind readers as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from funcexplain.solutions.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    Array,
    checked,
    dress,
    label_days,
    legend,
    new_axes,
    new_figure,
    plain,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 30
"""Assets that get a row of their own; more would be too small to read."""


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
    last row is the sum of all others.

    Args:
        today: weights that the network holds for the reference, ``(A,)``.
        target: weights asked for, ``(A,)``.
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
    given = {"today": today, "target": target, "reached": reached}
    columns = [checked(name, weights, (len(assets),)) for name, weights in given.items()]
    table = 100.0 * np.stack(columns)  # (3, A)
    names = [short(name) for name in assets]
    order = np.argsort(-table[1], kind="stable")
    if len(names) > MOST_ROWS:
        order = np.argsort(-table.max(axis=0), kind="stable")
        shown, others = order[: MOST_ROWS - 1], order[MOST_ROWS - 1 :]
        shown = shown[np.argsort(-table[1, shown], kind="stable")]
        table = np.concatenate([table[:, shown], table[:, others].sum(1, keepdims=True)], axis=1)
        names = [names[index] for index in shown] + [f"{len(others)} others"]
    else:
        table, names = table[:, order], [names[index] for index in order]
    rows = np.arange(len(names))
    ax = ax or new_axes(6.0, 1.4 + 0.24 * len(names))
    held, asked, got = table
    ax.hlines(rows, np.minimum(held, got), np.maximum(held, got), color=PALE, linewidth=5, zorder=1)
    ax.scatter(held, rows, s=34, color=GREY, label="today", zorder=2)
    ax.scatter(asked, rows, s=80, facecolors="none", edgecolors=ORANGE, linewidths=1.6, label="target")
    ax.scatter(got, rows, s=20, color=BLUE, label="reached", zorder=3)
    dress(ax, "Allocation")
    ax.set_yticks(rows, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(-0.025 * table.max(), 1.06 * table.max())
    ax.set_xlabel("weight in the portfolio, %")
    ax.grid(axis="x", color=PALE, linewidth=0.8)
    legend(ax)
    return ax


def plot_changes(
    x: Tensor | ArrayLike,
    reference: Tensor | ArrayLike,
    *,
    scale: Tensor | ArrayLike,
    assets: Sequence[str],
    channels: Sequence[str],
    dates: Sequence[object] | Array | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of ``(x - reference) / scale``: where, when and by how many sigmas x differs.

    One block per channel stands beside the next; days run from left to right in each, and the assets
    with the largest change (root mean square over all channels and days) come first. Of more than
    `MOST_ROWS` assets the others are left out, and the title says so.

    Args:
        x: the answer, ``(C, L, A)``.
        reference: what it is compared with, ``(C, L, A)``.
        scale: one sigma of each entry; broadcasts to x, such as ``(C, 1, 1)``.
        assets: ``A`` names.
        channels: ``C`` names.
        dates: the ``L`` days of the window. Default: days are counted back from the last one.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes; the color bar stands beside them.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not fit the names and dates.

    Example:
        >>> x, names = np.zeros((1, 2, 2)), ["EUR", "JPY"]
        >>> ax = plot_changes(x, x + 0.02, scale=0.01, assets=names, channels=["return"])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['EUR', 'JPY']
    """
    answer = plain(x)
    length = answer.shape[1] if answer.ndim == 3 else 0
    shape = (len(channels), length if dates is None else len(dates), len(assets))
    sigmas = (checked("x", answer, shape) - checked("reference", reference, shape)) / plain(scale)
    order = np.argsort(-np.square(sigmas).mean(axis=(0, 1)), kind="stable")[:MOST_ROWS]
    ax = ax or new_axes(8.0, 1.6 + 0.24 * len(order))
    limit = float(np.abs(sigmas).max()) or 1.0
    gap = max(1.0, 0.1 * length)
    # White lines set cells apart as long as the cells are wider than the lines.
    line = 0.3 if len(channels) * length <= 100 else 0.0
    for channel, name in enumerate(channels):
        left = channel * (length + gap)
        mesh = ax.pcolormesh(
            left + np.arange(length + 1),
            np.arange(len(order) + 1),
            sigmas[channel][:, order].T,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            edgecolors="white" if line else "none",
            linewidth=line,
        )
        ax.annotate(
            short(name),
            xy=(left + length / 2, 1.0),
            xycoords=ax.get_xaxis_transform(),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )
    hidden = len(assets) - len(order)
    left_out = f" ({hidden} assets that change less left out)" if hidden else ""
    dress(ax, f"Change of the market{left_out}", pad=20)
    for side in ("bottom", "left"):
        ax.spines[side].set_visible(False)
    ax.set_yticks(np.arange(len(order)) + 0.5, [short(assets[index]) for index in order])
    ax.set_ylim(len(order), 0)
    label_days(ax, dates, length, gap, len(channels))
    bar = ax.figure.colorbar(mesh, ax=ax, fraction=0.03, pad=0.02, aspect=12 + len(order))
    bar.set_label("standard deviations", color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, length=0, colors=INK)
    bar.outline.set_visible(False)
    return ax


def plot_history(
    history: Tensor | ArrayLike | Sequence[Tensor],
    *,
    best: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Loss over steps on a logarithmic scale, one line per start; the best start stands out.

    A dot marks its lowest loss. Losses that are not positive or not finite cannot be drawn on this
    scale and leave a gap; where none is left, as for a start that needed no step, the axes say so.

    Args:
        history: losses ``(num_steps,)``, or ``(S, num_steps)`` for several starts, or a sequence of
            such rows of different lengths.
        best: index of the start that the answer comes from. Default: the one with the lowest loss.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> ax = plot_history([[1.0, 0.1, 0.01], [1.0, 0.5, 0.4]])
        >>> len(ax.lines)
        2
    """
    rows = _rows(history)
    if best is None:
        best = min(range(len(rows)), key=lambda index: np.nanmin(rows[index], initial=np.inf))
    ax = ax or new_axes(6.0, 3.2)
    others = "other starts" if len(rows) > 2 else "other start"
    for index, row in enumerate(rows):
        if index != best:
            ax.plot(row, color=GREY, linewidth=1.0, alpha=0.7, label=others)
            others = "_"  # matplotlib keeps such labels out of the legend
    ax.plot(rows[best], color=BLUE, linewidth=2.0, label="best start" if len(rows) > 1 else "loss")
    if np.isfinite(rows[best]).any():
        step = int(np.nanargmin(rows[best]))
        loss = rows[best][step]
        ax.scatter([step], [loss], s=30, color=BLUE, zorder=3, label=f"lowest: {loss:.2g}")
    else:
        note = ax.text(0.5, 0.5, "no step was taken, or no loss is positive", color=INK, fontsize=9)
        note.set(ha="center", va="center", transform=ax.transAxes)
    dress(ax, "Search")
    if any(np.isfinite(row).any() for row in rows):
        ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("loss", color=INK, fontsize=9)
    ax.grid(color=PALE, linewidth=0.8)
    legend(ax)
    return ax


def plot_overview(
    today: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    reached: Tensor | ArrayLike,
    x: Tensor | ArrayLike,
    reference: Tensor | ArrayLike,
    history: Tensor | ArrayLike | Sequence[Tensor],
    *,
    scale: Tensor | ArrayLike,
    assets: Sequence[str],
    channels: Sequence[str],
    dates: Sequence[object] | Array | None = None,
    best: int | None = None,
    title: str = "",
) -> Figure:
    """One figure with the allocation, the changes and the search; 1200 pixels wide when saved.

    Args:
        today: as in `plot_weights`, like ``target`` and ``reached``.
        target: weights asked for.
        reached: weights reached.
        x: as in `plot_changes`, like ``reference``, ``scale``, ``channels`` and ``dates``.
        reference: what x is compared with.
        history: as in `plot_history`.
        scale: one sigma.
        assets: ``A`` names.
        channels: ``C`` names.
        dates: the days of the window.
        best: as in `plot_history`.
        title: a headline.

    Returns:
        The figure; its ``savefig("overview.png")`` saves it.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: as in the three plots.

    Example:
        >>> weights, x, names = [0.5, 0.5], np.ones((1, 2, 2)), ["EUR", "JPY"]
        >>> figure = plot_overview(weights, weights, weights, x, x, [0.1], scale=1.0, assets=names,
        ...                        channels=["return"])
        >>> [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
        ['Allocation', 'Change of the market', 'Search']
    """
    rows = max(8, min(len(assets), MOST_ROWS))
    figure = new_figure(12.0, 4.6 + 0.22 * rows)
    grid = figure.add_gridspec(2, 2, width_ratios=[5, 7], height_ratios=[2.0 + 0.22 * rows, 2.0])
    plot_weights(today, target, reached, assets=assets, ax=figure.add_subplot(grid[:, 0]))
    plot_changes(
        x,
        reference,
        scale=scale,
        assets=assets,
        channels=channels,
        dates=dates,
        ax=figure.add_subplot(grid[0, 1]),
    )
    plot_history(history, best=best, ax=figure.add_subplot(grid[1, 1]))
    if title:
        figure.suptitle(
            fill(title, width=105), x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold"
        )
    return figure


def _rows(history: Tensor | ArrayLike | Sequence[Tensor]) -> list[Array]:
    """Histories as a list of rows; what a logarithm cannot show becomes nan."""
    if isinstance(history, (list, tuple)) and history and np.ndim(plain(history[0])) == 1:
        rows = [plain(row) for row in history]
    else:
        rows = list(np.atleast_2d(plain(history)))
    return [np.where(np.isfinite(row) & (row > 0), row, np.nan) for row in rows]
