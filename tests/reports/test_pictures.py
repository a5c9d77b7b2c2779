"""Pictures of goals, prices, shares, hits and trade-offs: what each shows, and that it can be read."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from funcexplain.reports.plots import (
    plot_cumulative,
    plot_history,
    plot_prices,
    plot_tradeoff,
    plot_weights,
)
from tests.reports.pictures import (
    assert_no_overlap,
    drawn,
    legend_of,
    made,
    paths,
    points_of,
    row_names,
    weights,
)


def goals(assets: int) -> np.ndarray:
    """At least 30 % in asset 0, twice asset 1 in 20 ... 40 %, a sector, a turnover."""
    rows = np.zeros((4, assets + 3))
    rows[0, 0], rows[0, -2:] = 1.0, (0.3, np.inf)
    rows[1, 1], rows[1, -2:] = 2.0, (0.2, 0.4)
    rows[2, :2], rows[2, -2:] = 1.0, (0.5, 0.9)
    rows[3, :-3], rows[3, -3:] = 1.0 / assets, (1.0, -np.inf, 0.2)
    return rows


@pytest.mark.parametrize("assets", [4, 100])
def test_goals_are_brackets_of_single_assets(assets: int) -> None:
    ax = weights(made(assets) | {"target": goals(assets)})
    names = row_names(ax)
    assert set(names[:2]) == {"the asset 0", "the asset 1"}
    caps = [
        tuple(point)
        for points in ax.collections
        if isinstance(points, PathCollection) and str(points.get_label()).startswith("_")
        for point in points_of(points)
        if len(points_of(points)) <= 2
    ]
    first, second = names.index("the asset 0"), names.index("the asset 1")
    np.testing.assert_allclose(sorted(caps), sorted([(10, second), (30, first), (20, second)]))
    assert legend_of(ax) == ["today", "reached", "allowed"]
    assert_no_overlap(ax)


def test_goals_without_bounds_of_single_assets_show_what_is_held() -> None:
    data = made(4)
    ax = weights(data | {"target": goals(4)[2:]})
    order = np.argsort(-data["reached"])
    assert row_names(ax) == [data["assets"][index] for index in order]
    assert_no_overlap(ax)


def test_negative_weights_are_in_view() -> None:
    ax = plot_weights([-0.5, 1.5], [0.5, 0.5], [-0.4, 1.4], assets=["short", "long"])
    low, high = ax.get_xlim()
    assert low < -50 < 150 < high


@pytest.mark.parametrize("assets", [2, 100])
def test_prices_show_what_moves_most(assets: int) -> None:
    actual, scenario = paths(assets)
    names = [f"the asset {index}" for index in range(assets)]
    ax = plot_prices(actual, scenario, assets=names)
    assert len(ax.lines) == 2 * min(5, assets)
    assert [text.get_text() for text in ax.texts[:2]] == ["the asset 1", "the asset 0"]
    for line, table in zip(ax.lines, (actual, scenario), strict=False):
        np.testing.assert_allclose(np.asarray(line.get_ydata()), 100 * table[:, 1] / table[0, 1])
    assert_no_overlap(ax)
    days = np.datetime64("2026-10-01") + np.arange(30)
    assert_no_overlap(plot_prices(actual, scenario, assets=names, dates=days))
    assert legend_of(ax) == ["actual", "scenario"]


def test_names_of_lines_that_end_alike_stand_apart() -> None:
    flat = np.ones((10, 5))
    assert_no_overlap(plot_prices(flat, flat, assets=list("ABCDE")))


def test_prices_that_cannot_be_drawn_are_refused() -> None:
    flat = np.ones((3, 2))
    with pytest.raises(ValueError, match="plot_prices: prices must be positive"):
        plot_prices(flat, -flat, assets=["A", "B"])
    with pytest.raises(ValueError, match=r"plot_prices: most must be in 1 ... 7, the colors, got 8"):
        plot_prices(flat, flat, assets=["A", "B"], most=8)
    with pytest.raises(ValueError, match=r"expected scenario of shape \(3, 2\), got \(2, 2\)"):
        plot_prices(flat, flat[1:], assets=["A", "B"])


@pytest.mark.parametrize("assets", [3, 20])
def test_cumulative_shares_add_up(assets: int) -> None:
    data = made(assets)
    ax = plot_cumulative(data["x"], data["reference"], scale=data["scale"], assets=data["assets"])
    bars = [float(bar.get_height()) for bar in ax.patches]  # type: ignore[attr-defined]
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names[0] == "the asset 1"
    assert sum(bars) == pytest.approx(100)
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_ydata()), np.cumsum(bars))
    if assets > 12:
        assert names[-1] == f"{assets - 12} others"
    assert ax.get_title(loc="left") == f"1 of {assets} assets make up 80% of the change"
    assert_no_overlap(ax)


def test_history_marks_which_rows_hit() -> None:
    rows = [np.geomspace(1, last, 30) for last in (1e-4, 1e-1, 1e-2)]
    ax = plot_history(rows, hit=[True, False, True], rows="row")
    assert legend_of(ax) == ["other rows", "best row", "lowest: 0.0001", "hit: 2", "missed: 1"]
    ends = {str(points.get_label()): points_of(points) for points in ax.collections}
    np.testing.assert_allclose(ends["hit: 2"], [[29, 1e-4], [29, 1e-2]])
    np.testing.assert_allclose(ends["missed: 1"], [[29, 1e-1]])
    with pytest.raises(ValueError, match=r"expected hit of shape \(3,\), got \(2,\)"):
        plot_history(rows, hit=[True, False])


def test_history_of_a_thousand_rows_is_few_artists() -> None:
    ax = plot_history(torch.rand(1000, 600) + 0.1, hit=torch.arange(1000) % 2)
    assert len(ax.lines) == 2
    assert len(np.asarray(ax.lines[0].get_ydata())) < 1000 * 410


def assert_names_cover_nothing(ax: Axes) -> None:
    """No name of a row covers a point or the stepped line through the efficient ones."""
    drawn(ax.figure)
    (line,) = ax.lines
    corners = np.repeat(ax.transData.transform(np.asarray(line.get_xydata())), 2, axis=0)
    steps = np.stack([corners[1:, 0], corners[:-1, 1]], axis=1)
    along = np.linspace(0, 1, 200)[:, None, None]
    on_line = (steps[:-1] + along * (steps[1:] - steps[:-1])).reshape(-1, 2)
    rows = [ax.transData.transform(points_of(points)) for points in ax.collections]
    seen = np.concatenate([on_line, *rows])
    for text in ax.texts:
        box = text.get_window_extent().padded(-1)
        inside = (seen > [box.x0, box.y0]) & (seen < [box.x1, box.y1])
        assert not inside.all(axis=1).any(), text.get_text()


@pytest.mark.parametrize(
    ("size", "curve"), [(1, False), (2, True), (12, False), (12, True), (500, False), (500, True)]
)
def test_tradeoff_goes_through_efficient_rows(size: int, curve: bool) -> None:
    rng = np.random.default_rng(0)
    far, miss = rng.random(size), 0.3 * rng.random(size) + 1e-4
    if curve:  # all rows are efficient, and many are nearly the same
        strength = np.geomspace(1e-4, 1, size)
        far, miss = 1 / (1 + 30 * strength), 0.3 * strength / (0.05 + strength)
    names = [f"strength {value:.2g}" for value in far]
    ax = plot_tradeoff(far, miss, hit=miss < 0.01, labels=names)
    front = np.asarray(ax.lines[0].get_xydata())
    for x, y in front:
        assert not ((far <= x) & (100 * miss < y - 1e-12)).any()
    assert sum(len(points_of(points)) for points in ax.collections) == size
    assert ax.texts
    assert {text.get_text() for text in ax.texts} <= {f"strength {x:.2g}" for x in front[:, 0]}
    assert_names_cover_nothing(ax)
    assert_no_overlap(ax)


def test_tradeoff_leaves_out_what_is_unknown() -> None:
    ax = plot_tradeoff([np.nan, 0.1, 0.2], [0.1, np.nan, 0.3])
    assert [len(points_of(points)) for points in ax.collections] == [1]
    drawn(plot_tradeoff([np.nan], [np.nan], labels=["none"]).figure)
    with pytest.raises(ValueError, match="expected 2 labels, one for each row, got 1"):
        plot_tradeoff([0.1, 0.2], [0.1, 0.2], labels=["one"])
