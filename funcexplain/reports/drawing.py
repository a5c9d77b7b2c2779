"""Helpers of all plots: figures without pyplot, one style of axes, conversion to arrays.

Figures are created directly, so none is registered globally, and matplotlib's backend and settings are
left alone. The colors are distinguishable for color-blind readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from funcexplain.markets.periods import DAY, unit_of
from funcexplain.reports.fonts import drawable, make_figure
from funcexplain.solutions.writing import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), and three greys.
BLUE, ORANGE = "#0072B2", "#D55E00"
INK, GREY, PALE = "#222222", "#8C8C8C", "#E3E3E3"
COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#A67C00", "#56B4E9", INK)
"""For several lines; yellow, invisible on white, is darkened."""

MAX_ROWS = 30
"""Maximum number of assets with a row of their own; more would be too small to read."""

Array = NDArray[Any]
Values = Tensor | ArrayLike
"""Numbers that plots accept."""
Days = Sequence[object] | Array
"""Dates that plots accept."""
Grid = Literal["x", "y", "both"] | None


def require_matplotlib() -> None:
    """Raise unless plots can be drawn, before any work is done for one.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> require_matplotlib()
    """
    try:
        import matplotlib.figure  # noqa: F401 (only tried)
    except ImportError as error:
        raise ImportError(
            'plots need matplotlib; install it with: pip install "funcexplain[demo]"'
        ) from error


def new_figure(width: float, height: float) -> Figure:
    """A white figure of this size in inches, at 100 pixels each, unknown to pyplot."""
    require_matplotlib()
    figure = make_figure(width, height)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def new_axes(width: float, height: float) -> Axes:
    """Axes that fill a new figure."""
    return new_figure(width, height).add_subplot()


_ABOVE_LEGEND = 22.0  # points between a title and the axes
_LEGEND: dict[str, Any] = {
    **{"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 3, "frameon": False},
    **{"labelcolor": INK, "fontsize": 9, "borderpad": 0.2, "handletextpad": 0.5, "columnspacing": 1.2},
}


def style_axes(
    ax: Axes,
    title: str,
    pad: float = 8.0,
    *,
    y: str = "",
    grid: Grid = None,
    narrow: bool = False,
) -> None:
    """Title, ticks, spines and the label of the y axis in the common style.

    If ``grid`` names an axis or "both", also draws grid lines and a legend next to the title, or below
    it if there is no room (``narrow``).
    """
    pad = _ABOVE_LEGEND if narrow else pad
    ax.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=pad)
    ax.set_ylabel(y, color=INK, fontsize=9)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", labelsize=8.5, length=0, colors=INK)
    ax.xaxis.label.set(color=INK, fontsize=9)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        ax.spines[side].set_color(GREY)
    if grid:
        ax.grid(axis=grid, color=PALE, linewidth=0.8)
        ax.legend(**_LEGEND)


def label_days(
    ax: Axes, dates: Days | None, length: int, gap: float, blocks: int, period: str = DAY
) -> None:
    """Label the first and last day of each block, if there is room for both, and the axis."""
    if dates is None:
        first, last, text = (
            f"\N{MINUS SIGN}{length - 1}",
            "0",
            "{0}s before the last {0}".format(unit_of(period)),
        )
    else:
        first, last, text = str(dates[0]), str(dates[-1]), f"{period}s"
    positions, labels = [], []
    if length > 1 and blocks <= 3:
        for block in range(blocks):
            left = block * (length + gap)
            positions += [left, left + length]
            labels += [first, last]
        text += ", oldest on the left"
    elif length > 1:
        text += f", {first} to {last} in each block"
    ax.set_xticks(positions, labels)
    for index, label in enumerate(ax.get_xticklabels()):
        label.set_horizontalalignment("right" if index % 2 else "left")
    ax.set_xlim(0, blocks * (length + gap) - gap)
    ax.set_xlabel(text)


def as_array(values: Values) -> Array:
    """A tensor on any device, or an array-like, as a float64 array."""
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()  # numpy has no bfloat16
    return np.asarray(values, dtype=np.float64)


def check_array(name: str, values: Values, shape: tuple[int, ...]) -> Array:
    """`as_array`; raises a ``ValueError`` unless it has this shape."""
    array = as_array(values)
    if array.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, got {array.shape}")
    return array


def shorten(name: str) -> str:
    """Shorten a name to 16 letters; both ends are kept, since names often differ at the end."""
    return escape_dollars(name if len(name) <= 16 else f"{name[:8]}…{name[-7:]}")


def escape_dollars(text: str) -> str:
    """Escape dollars, between which matplotlib renders formulas, and letters that cannot be drawn."""
    return drawable(printable(text, keep="\n")).replace("$", r"\$")


def spread_out(values: Array, gap: float) -> Array:
    """Positions of labels, closest to their values with at least ``gap`` between neighbors.

    Example:
        >>> spread_out(np.array([1.0, 1.0, 5.0]), 2.0)
        array([0., 2., 5.])
    """
    order = np.argsort(values, kind="stable")
    groups: list[list[Any]] = []  # values of labels that touch
    for value in np.asarray(values, dtype=float)[order]:
        groups.append([value])
        while len(groups) > 1:
            before, last = groups[-2:]
            if _first(last, gap) >= _first(before, gap) + gap * len(before):
                break
            groups[-2:] = [before + last]
    placed = [_first(group, gap) + gap * index for group in groups for index in range(len(group))]
    places = np.empty(len(placed))
    places[order] = placed
    return places


def _first(group: list[Any], gap: float) -> float:
    """Position of the first label of a group that is centered on its values."""
    return float(np.mean(group)) - gap * (len(group) - 1) / 2
