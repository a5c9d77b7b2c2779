"""What the plots share: figures apart from pyplot, one style of axes, plain arrays.

Figures are made directly, so that none is registered globally and matplotlib's backend and settings stay
as they are. Colors are told apart by color-blind readers as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), and three greys.
BLUE, ORANGE = "#0072B2", "#D55E00"
INK, GREY, PALE = "#222222", "#8C8C8C", "#E3E3E3"
COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#A67C00", "#56B4E9", INK)
"""One for each of several lines; yellow, which is not seen on white, is darkened."""

MOST_ROWS = 30
"""Assets that get a row of their own; more would be too small to read."""

Array = NDArray[Any]


def require_matplotlib() -> None:
    """Check that plots can be drawn, before work is done for one.

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
    """A white figure of so many inches, at 100 pixels each, which pyplot does not know."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def new_axes(width: float, height: float) -> Axes:
    """Axes that fill a new figure."""
    return new_figure(width, height).add_subplot()


def dress(ax: Axes, title: str, pad: float = 8.0) -> None:
    """What all axes have in common."""
    ax.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold", pad=pad)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", labelsize=8.5, length=0, colors=INK)
    ax.xaxis.label.set(color=INK, fontsize=9)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        ax.spines[side].set_color(GREY)


def legend(ax: Axes) -> None:
    """A legend beside the title, where it covers no data."""
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=3,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        borderpad=0.2,
        handletextpad=0.5,
        columnspacing=1.2,
    )


def label_days(
    ax: Axes, dates: Sequence[object] | Array | None, length: int, gap: float, blocks: int
) -> None:
    """First and last day under each block, where there is room for both, and the axis in words."""
    if dates is None:
        first, last, what = f"\N{MINUS SIGN}{length - 1}", "0", "days before the last day"
    else:
        first, last, what = str(dates[0]), str(dates[-1]), "trading days"
    positions, labels = [], []
    if length > 1 and blocks <= 3:
        for block in range(blocks):
            left = block * (length + gap)
            positions += [left, left + length]
            labels += [first, last]
        what += ", oldest on the left"
    elif length > 1:
        what += f", {first} to {last} in each block"
    ax.set_xticks(positions, labels)
    for index, label in enumerate(ax.get_xticklabels()):
        label.set_horizontalalignment("right" if index % 2 else "left")
    ax.set_xlim(0, blocks * (length + gap) - gap)
    ax.set_xlabel(what)


def plain(values: Tensor | ArrayLike) -> Array:
    """A tensor of any device, or anything like an array, as a float64 array."""
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()  # numpy has no bfloat16
    return np.asarray(values, dtype=np.float64)


def checked(name: str, values: Tensor | ArrayLike, shape: tuple[int, ...]) -> Array:
    """`plain`, refused with a ``ValueError`` if it has another shape."""
    array = plain(values)
    if array.shape != shape:
        raise ValueError(f"expected {name} of shape {shape}, got {array.shape}")
    return array


def short(name: str) -> str:
    """A name that fits its row; both ends are kept, since names often differ in the last letters."""
    return literal(name if len(name) <= 16 else f"{name[:8]}…{name[-7:]}")


def literal(text: str) -> str:
    """Text that matplotlib shows as it is: between two dollars it would read a formula."""
    return text.replace("$", r"\$")


def apart(values: Array, gap: float) -> Array:
    """Places for labels as near to their values as at least a gap between neighbours lets them be.

    Example:
        >>> apart(np.array([1.0, 1.0, 5.0]), 2.0)
        array([0., 2., 5.])
    """
    order = np.argsort(values, kind="stable")
    groups: list[list[Any]] = []  # of labels that touch: their values, less their place in the group
    for value in np.asarray(values, dtype=float)[order]:
        groups.append([value])
        while len(groups) > 1 and _first(groups[-1], gap) < _first(groups[-2], gap) + gap * len(
            groups[-2]
        ):
            last = groups.pop()
            groups[-1] = groups[-1] + last
    placed = [_first(group, gap) + gap * index for group in groups for index in range(len(group))]
    places = np.empty(len(placed))
    places[order] = placed
    return places


def _first(group: list[Any], gap: float) -> float:
    """Place of the first label of a group that is centered on its values."""
    return float(np.mean(group)) - gap * (len(group) - 1) / 2
