"""What pictures are drawn of in the tests, and what is read off them."""

from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.text import Text

from funcexplain.reports.plots import plot_changes, plot_weights

CHANNELS = ["return", "momentum", "volatility"]


def made(assets: int, channels: int = 3, lookback: int = 20) -> dict[str, Any]:
    """Everything that an overview shows; asset 1 of the names changes most."""
    rng = np.random.default_rng(0)
    today = rng.dirichlet(np.ones(assets))
    reference = 0.01 * rng.normal(size=(channels, lookback, assets))
    change = 0.001 * rng.normal(size=reference.shape)
    change[..., 1] *= 50
    return {
        "today": today,
        "target": np.roll(today, 1),
        "reached": 0.9 * np.roll(today, 1) + 0.1 / assets,
        "x": reference + change,
        "reference": reference,
        "history": [np.geomspace(1, 1e-4, 30), np.geomspace(1, 1e-2, 40)],
        "scale": np.full((channels, 1, 1), 0.01),
        "assets": [f"the asset {index}" for index in range(assets)],
        "channels": [CHANNELS[index % 3] for index in range(channels)],
        "dates": np.datetime64("2026-10-01") + np.arange(lookback),
    }


def changes(data: dict[str, Any], **more: Any) -> Axes:
    names = ("x", "reference", "scale", "assets", "channels", "dates")
    return plot_changes(**{name: data[name] for name in names} | more)


def weights(data: dict[str, Any], **more: Any) -> Axes:
    return plot_weights(**{name: data[name] for name in ("today", "target", "reached", "assets")} | more)


def paths(assets: int, days: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Prices as they were, and a scenario in which asset 1 moves most and asset 0 next."""
    actual = np.exp(0.001 * np.random.default_rng(1).normal(size=(days, assets)).cumsum(0))
    moved = np.zeros(assets)
    moved[:2] = 0.1, -0.2
    return actual, actual * np.exp(np.linspace(0, 1, days)[:, None] * moved)


def drawn(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def points_of(points: Any) -> np.ndarray:
    return np.asarray(points.get_offsets())


def row_names(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def meshes(ax: Axes) -> list[QuadMesh]:
    return [child for child in ax.get_children() if isinstance(child, QuadMesh)]


def legend_of(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def labels_out_of_view(ax: Axes) -> set[Text]:
    """Labels of ticks beyond the limits of the axes, and of minor ticks: never drawn."""
    labels: set[Text] = set()
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        shown = axis.get_majorticklabels()  # none where another panel has those of a shared axis
        places = zip(axis.get_majorticklocs(), shown, strict=True) if shown else ()
        labels |= {label for place, label in places if not low <= place <= high}
        labels |= set(axis.get_minorticklabels())
    return labels


def assert_no_overlap(ax: Axes) -> None:
    """No two texts of the picture with these axes cover each other."""
    figure = ax.figure
    drawn(figure)
    hidden = {label for ax in figure.axes for label in labels_out_of_view(ax)}
    texts = [
        (item.get_text(), Text.get_window_extent(item))  # that of an annotation holds its line, too
        for item in figure.findobj(Text)
        if isinstance(item, Text) and item not in hidden and item.get_text().strip()
    ]
    assert len(texts) > 10
    for index, (text, box) in enumerate(texts):
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
        for other, other_box in texts[:index]:
            width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            # A pixel of the empty margin round the letters may be shared.
            assert width <= 1 or height <= 1, (text, other)
