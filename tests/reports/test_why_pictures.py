"""Pictures of attributions, ranges and trades: what each shows, and that it can be read."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from funcexplain.reports.plots import (
    plot_attribution,
    plot_frontier,
    plot_reach,
    plot_trades,
    plot_waterfall,
)
from tests.reports.pictures import assert_no_overlap, legend_of, row_names

NAMES = ["EUR", "JPY", "a $long$ name of an asset", "CHF"]
RNG = np.random.default_rng(0)


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_parts_of_a_weight_lead_from_before_to_after() -> None:
    ax = plot_waterfall(0.4, [0.02, -0.3, 0.0, 0.1], names=NAMES, name="EUR", ends=("May", "June"))
    assert row_names(ax) == ["May", "JPY", "CHF", "EUR", "a \\$long\\$…n asset", "June"]
    assert texts(ax) == ["40.00%", "-30.00", "+10.00", "+2.00", "+0.00", "22.00%"]
    bars: dict[float, Any] = {bar.get_y() + bar.get_height() / 2: bar for bar in ax.patches}  # type: ignore[attr-defined]
    assert bars[1.0].get_x() + bars[1.0].get_width() == pytest.approx(10.0)
    assert bars[5.0].get_width() == pytest.approx(22.0)
    assert_no_overlap(ax)


def test_many_parts_are_summed() -> None:
    parts = RNG.normal(size=40) * 0.01
    ax = plot_waterfall(0.5, parts, names=[f"asset {k}" for k in range(40)])
    assert row_names(ax)[-2] == "31 others"
    assert texts(ax)[-1] == f"{50 + 100 * parts.sum():.2f}%"
    assert_no_overlap(ax)


def test_parts_by_entry_are_a_heat_map_in_percentage_points() -> None:
    parts = np.zeros((2, 3, 4))
    parts[1, 2, 3] = 0.05
    ax = plot_attribution(parts, assets=NAMES, channels=["return", "momentum"], name="CHF")
    assert row_names(ax)[0] == "CHF"
    assert ax.get_title(loc="left") == "What moved CHF"
    assert max(float(np.abs(mesh.get_array()).max()) for mesh in ax.collections) == pytest.approx(5.0)  # type: ignore[arg-type]


def test_ranges_mark_today() -> None:
    ax = plot_reach([0.0, 0.1, 0.2, 0.0], [0.25] * 4, [0.3, 0.9, 0.5, 0.4], assets=NAMES, radius=2.0)
    assert row_names(ax) == ["JPY", "a \\$long\\$…n asset", "CHF", "EUR"]
    assert ax.get_title(loc="left") == "Weights within 2 sigmas"
    assert legend_of(ax) == ["found", "today"]
    assert_no_overlap(ax)


def test_the_frontier_begins_at_today() -> None:
    upper = np.array([[0.3, 0.3, 0.3, 0.3], [0.9, 0.5, 0.4, 0.31]])
    ax = plot_frontier([1.0, 2.0], upper, assets=NAMES, today=[0.25] * 4, most=2)
    assert texts(ax) == ["EUR", "JPY"]
    assert ax.lines[0].get_xdata().tolist() == [0.0, 1.0, 2.0]  # type: ignore[union-attr]
    assert "2 assets that rise less left out" in ax.get_title(loc="left")


@pytest.mark.parametrize("count", [1, 4])
def test_trades_of_scenarios(count: int) -> None:
    names = [f"EUR={-k}% over 5 days" for k in range(count)]
    trades = RNG.normal(size=(count, 4)) * 0.1
    ax = plot_trades(trades, assets=NAMES, names=names)
    assert legend_of(ax) == names
    largest = NAMES[int(np.abs(trades).max(0).argmax())]
    assert row_names(ax)[0][:2] == largest[:2]
    assert_no_overlap(ax)


@pytest.mark.parametrize(
    ("plot", "arguments", "message"),
    [
        (plot_waterfall, {"before": 0.1, "parts": [0.1], "names": NAMES}, "expected parts of shape"),
        (plot_trades, {"trades": [[0.1]], "assets": NAMES, "names": ["a"]}, "expected trades of shape"),
        (
            plot_trades,
            {"trades": np.zeros((8, 4)), "assets": NAMES, "names": [*"abcdefgh"]},
            "scenarios",
        ),
        (plot_reach, {"lower": [0.1], "today": [0.1], "upper": [0.1], "assets": NAMES}, "of shape"),
        (plot_frontier, {"radii": [1.0], "upper": [[0.1] * 4], "assets": NAMES, "most": 0}, "most must"),
    ],
    ids=range(5),
)
def test_bad_arguments_are_refused(plot: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot(**arguments)
