"""The search: losses over steps, and distance against fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from funcexplain.reports.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Array,
    Values,
    as_array,
    check_array,
    escape_dollars,
    new_axes,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 400
"""Maximum number of points of a line; more would fall on the same pixels."""


def plot_history(
    history: Values | Sequence[Tensor],
    *,
    best: int | None = None,
    hit: Values | None = None,
    rows: str = "start",
    ax: Axes | None = None,
) -> Axes:
    """Loss over steps on a logarithmic scale, one line per row; the best row stands out.

    A dot marks its lowest loss. Losses that are not positive or not finite cannot be drawn on this
    scale and leave a gap; if none can, as for a row without steps, a note on the axes says so. With
    ``hit``, a ring marks the end of each row that hit, and a cross that of each row that missed.

    Args:
        history: losses ``(num_steps,)``, or ``(S, num_steps)`` for several rows, or a sequence of
            such rows of different lengths.
        best: index of the row of the answer. Default: the one with the lowest loss.
        hit: whether each row hit its target, ``(S,)``.
        rows: name of a row.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: ``hit`` is not one flag for each row.

    Example:
        >>> ax = plot_history([[1.0, 0.1, 0.01], [1.0, 0.5, 0.4]])
        >>> len(ax.lines)
        2
    """
    lines = _rows(history)
    flags = None if hit is None else check_array("hit", hit, (len(lines),)) > 0
    if best is None:
        best = min(range(len(lines)), key=lambda index: np.nanmin(lines[index], initial=np.inf))
    ax = ax or new_axes(6.0, 3.2)
    others = [row for index, row in enumerate(lines) if index != best]
    if others:
        # Drawn as one line with gaps: a thousand artists would take seconds.
        steps, losses = zip(*map(_thinned, others), strict=True)
        name = f"other {rows}s" if len(others) > 1 else f"other {rows}"
        faint = max(0.15, 0.7 / (1 + len(others) / 40))
        line = np.concatenate(steps), np.concatenate(losses)
        ax.plot(*line, color=GREY, linewidth=1.0, alpha=faint, label=name)
    ax.plot(lines[best], color=BLUE, linewidth=2.0, label=f"best {rows}" if others else "loss")
    if np.isfinite(lines[best]).any():
        step = int(np.nanargmin(lines[best]))
        loss = lines[best][step]
        ax.scatter([step], [loss], s=30, color=BLUE, zorder=3, label=f"lowest: {loss:.2g}")
    else:
        note = ax.text(0.5, 0.5, "no steps, or no positive losses", color=INK, fontsize=9)
        note.set(ha="center", va="center", transform=ax.transAxes)
    if flags is not None:
        _mark_ends(ax, lines, flags)
    style_axes(ax, "Search", y="loss", grid="both", narrow=flags is not None)
    if any(np.isfinite(row).any() for row in lines):
        ax.set_yscale("log")
    ax.set_xlabel("step")
    return ax


def plot_tradeoff(
    distance: Values,
    error: Values,
    *,
    hit: Values | None = None,
    labels: Sequence[str] | None = None,
    unit: str = "sigmas",
    ax: Axes | None = None,
) -> Axes:
    """Error of each row against its distance from today's market.

    A row is efficient if no other row is better in both; a stepped line joins these. The rows may come
    from a Pareto path, ``fe.vmap(problem, penalty=strengths)``, or from any other grid.

    Args:
        distance: from today's market, such as ``metrics["rms_sigmas"]``, ``(R,)``.
        error: from the target, such as ``solution.error``, as a share of the portfolio, ``(R,)``.
        hit: whether each row hit its target, ``(R,)``.
        labels: ``R`` names; those of efficient rows are written beside them if there is room.
        unit: of the distance.
        ax: axes to draw on. Default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the sizes differ.

    Example:
        >>> ax = plot_tradeoff([0.1, 0.2, 0.3], [0.05, 0.01, 0.02])
        >>> ax.lines[0].get_xdata().tolist()
        [0.1, 0.2]
    """
    far = as_array(distance)
    size = far.size
    far, miss = check_array("distance", far, (size,)), 100.0 * check_array("error", error, (size,))
    flags = np.zeros(size, bool) if hit is None else check_array("hit", hit, (size,)) > 0
    known = np.isfinite(far) & np.isfinite(miss)
    if labels is not None and len(labels) != size:
        raise ValueError(f"expected {size} labels, one for each row, got {len(labels)}")
    ax = ax or new_axes(6.0, 4.0)
    front = _efficient(far, miss, known)
    stairs: dict[str, Any] = {"drawstyle": "steps-post", "linewidth": 1.0, "zorder": 1}
    ax.plot(far[front], miss[front], color=INK, label="efficient", **stairs)
    faint = max(0.35, 1.0 / (1 + size / 200))
    kinds = [("row", known, BLUE, "o")] if hit is None else [
        ("hit", known & flags, BLUE, "o"), ("missed", known & ~flags, ORANGE, "x")
    ]  # fmt: skip
    for label, chosen, color, marker in kinds:
        if chosen.any():
            dots = far[chosen], miss[chosen]
            ax.scatter(*dots, s=26, color=color, marker=marker, alpha=faint, label=label)
    y = "largest error of a weight, percentage points"
    style_axes(ax, "Distance against fit", y=y, grid="both")
    positive = miss[known & (miss > 0)]
    if positive.size and positive.max() > 30 * positive.min():
        ax.set_yscale("symlog", linthresh=float(positive.min()))
        ax.set_ylim(0, 1.6 * float(positive.max()))
    if labels is not None and front.size:
        _name_rows(ax, far, miss, front, labels)
    ax.set_xlabel(f"distance from today's market, {unit}")
    return ax


def _mark_ends(ax: Axes, rows: list[Array], flags: Array) -> None:
    """Rings and crosses at the last loss of each row; their shapes differ, not only their colors."""
    ended = [np.flatnonzero(np.isfinite(row)) for row in rows]
    kinds: tuple[tuple[str, bool, dict[str, Any]], ...] = (
        ("hit", True, {"marker": "o", "facecolors": "none", "edgecolors": BLUE}),
        ("missed", False, {"marker": "x", "color": ORANGE}),
    )
    for name, wanted, style in kinds:
        chosen = [index for index, flag in enumerate(flags) if flag == wanted and len(ended[index])]
        if chosen:
            last = [int(ended[index][-1]) for index in chosen]
            losses = [rows[index][step] for index, step in zip(chosen, last, strict=True)]
            label = f"{name}: {len(chosen)}"
            ax.scatter(last, losses, s=28, linewidths=1.2, zorder=4, label=label, **style)


def _name_rows(ax: Axes, far: Array, miss: Array, front: Array, labels: Sequence[str]) -> None:
    """Names of efficient rows, to the lower left of their points, where neither rows nor lines are.

    The ends of the line come first; a name without room is left out.
    """
    low, high = float(far[front].min()), ax.get_xlim()[1]
    ax.set_xlim(low - 0.3 * (high - low), high)
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= high])  # no distance is negative
    pixels = ax.figure.dpi / 72.0
    corners = ax.transData.transform(np.stack([far[front], miss[front]], axis=1))
    edge = ax.transAxes.transform((0.0, 0.0))[0]
    used: list[tuple[float, float, float]] = []
    for place in dict.fromkeys([0, len(front) - 1, *range(len(front))]):
        (right, top), label = corners[place], labels[front[place]]
        left, height = right - (6.0 + 5.5 * len(label)) * pixels, 14.0 * pixels
        if left > edge and all(
            abs(top - other) >= height or right <= start or left >= end for start, end, other in used
        ):
            used.append((left, right, top))
            ax.annotate(
                escape_dollars(label),
                xy=(far[front[place]], miss[front[place]]),
                xytext=(-6, -4),
                textcoords="offset points",
                ha="right",
                va="top",
                color=INK,
                fontsize=8.5,
            )


def _efficient(far: Array, miss: Array, known: Array) -> Array:
    """Rows that no other row beats in both, in order of distance."""
    order = np.flatnonzero(known)[np.lexsort((miss[known], far[known]))]
    lowest = np.minimum.accumulate(miss[order])
    better = np.ones(len(order), bool)
    better[1:] = miss[order][1:] < lowest[:-1]
    return order[better]


def _thinned(row: Array) -> tuple[Array, Array]:
    """Steps and losses of a line, at most `MAX_POINTS`, followed by a gap."""
    steps = np.arange(len(row))
    if len(row) > MAX_POINTS:
        steps = np.unique(np.linspace(0, len(row) - 1, MAX_POINTS).astype(int))
    return np.append(steps, np.nan), np.append(row[steps], np.nan)


def _rows(history: Values | Sequence[Tensor]) -> list[Array]:
    """Histories as a list of rows; NaN replaces values without a logarithm."""
    if isinstance(history, (list, tuple)) and history and np.ndim(as_array(history[0])) == 1:
        rows = [as_array(row) for row in history]
    else:
        rows = list(np.atleast_2d(as_array(history)))
    return [np.where(np.isfinite(row) & (row > 0), row, np.nan) for row in rows]
