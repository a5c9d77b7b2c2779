"""Plots: what they show, on which axes, and that they leave matplotlib's global state alone."""

import builtins
import sys
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from funcexplain.reports.plots import (
    MAX_ROWS,
    plot_cumulative,
    plot_history,
    plot_overview,
    plot_prices,
    plot_tradeoff,
)
from tests.reports.pictures import (
    assert_no_overlap,
    changes,
    drawn,
    legend_of,
    made,
    meshes,
    paths,
    row_names,
    weights,
)


@pytest.mark.parametrize("assets", [2, 20, 100])
def test_overview_is_legible(assets: int) -> None:
    data, hit = made(assets), [True, False]
    figure = plot_overview(**data, hit=hit, prices=paths(assets), title="What would it take? " * 8)
    assert figure.get_figwidth() * figure.dpi == 1200
    assert_no_overlap(figure.axes[0])
    for ax in figure.axes:
        for label in ax.get_yticklabels() + ax.get_xticklabels():
            assert float(label.get_fontsize()) >= 8


@pytest.mark.parametrize(("channels", "lookback"), [(1, 1), (1, 20), (3, 2), (6, 60)])
def test_changes_are_legible_in_all_sizes(channels: int, lookback: int) -> None:
    for dates in (made(5, channels, lookback)["dates"], None):
        ax = changes(made(5, channels, lookback), dates=dates)
        assert len(meshes(ax)) == channels
        assert_no_overlap(ax)


def test_changes_are_in_sigmas_and_the_largest_come_first() -> None:
    data = made(4)
    ax = changes(data)
    assert row_names(ax)[0] == "the asset 1"
    sigmas = (data["x"] - data["reference"]) / data["scale"]
    order = [data["assets"].index(name) for name in row_names(ax)]
    for channel, mesh in enumerate(meshes(ax)):
        np.testing.assert_allclose(np.asarray(mesh.get_array()), sigmas[channel][:, order].T)
        assert mesh.get_clim() == (-np.abs(sigmas).max(), np.abs(sigmas).max())


def test_weights_show_the_three_allocations() -> None:
    data = made(6)
    ax = weights(data)
    order = np.argsort(-data["target"])
    assert row_names(ax) == [data["assets"][index] for index in order]
    shown = {str(c.get_label()): np.asarray(c.get_offsets())[:, 0] for c in ax.collections[1:]}
    for name in ("today", "target", "reached"):
        np.testing.assert_allclose(shown[name], 100 * data[name][order])


def test_many_assets_are_summed_up() -> None:
    data = made(100)
    ax = weights(data)
    assert len(row_names(ax)) == MAX_ROWS
    assert row_names(ax)[-1] == f"{101 - MAX_ROWS} others"
    for points in ax.collections[1:]:
        assert np.asarray(points.get_offsets())[:, 0].sum() == pytest.approx(100.0)
    heat = changes(data)
    assert len(row_names(heat)) == MAX_ROWS
    assert f"{100 - MAX_ROWS} assets" in heat.get_title(loc="left")


def test_history_marks_the_lowest_loss_of_the_best_start() -> None:
    rows = torch.tensor([[1.0, 0.5, 0.4], [1.0, 0.1, 0.2], [1.0, 0.9, 0.8]])
    ax = plot_history(rows)
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_offsets()), [[1, 0.1]])
    chosen = plot_history(rows, best=2)
    np.testing.assert_allclose(np.asarray(chosen.collections[0].get_offsets()), [[2, 0.8]], rtol=1e-6)
    assert legend_of(ax) == ["other starts", "best start", "lowest: 0.1"]


def test_names_are_no_formulas() -> None:
    data = made(2, channels=2) | {"assets": ["A$x_$B", r"$\frac"], "channels": ["$^$", "$a$"]}
    drawn(plot_overview(**data, title="US$ and A$_"))
    assert row_names(changes(data)) == [r"\$\frac", r"A\$x_\$B"]


def test_history_skips_what_a_logarithm_cannot_show() -> None:
    ax = plot_history([torch.tensor([1.0, float("nan"), -0.5, 0.25, 0.0])])
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_ydata()), [1, np.nan, np.nan, 0.25, np.nan])


@pytest.mark.parametrize("history", [[], torch.zeros(0), [torch.zeros(0), torch.zeros(2)]])
def test_history_without_a_loss_says_so(history: Any) -> None:
    ax = plot_history(history)
    assert ax.texts[0].get_text() == "no steps, or no positive losses"
    drawn(ax.figure)


def test_tensors_and_arrays_look_the_same() -> None:
    data = made(5)
    tensors: dict[str, Any] = {
        name: torch.as_tensor(value).requires_grad_() if isinstance(value, np.ndarray) else value
        for name, value in data.items()
        if name != "dates"
    }
    assert drawn(plot_overview(**data)) == drawn(plot_overview(**tensors, dates=data["dates"]))


def test_given_axes_are_drawn_on_and_returned() -> None:
    data = made(5)
    for plot in (weights, changes):
        ax = Figure().add_subplot()
        assert plot(data, ax=ax) is ax
    one, two, three, four = Figure().subplots(4)
    assert plot_history(data["history"], ax=one) is one
    assert plot_tradeoff([0.1], [0.1], ax=two) is two
    assert plot_prices(*paths(2), assets=["A", "B"], ax=three) is three
    assert plot_cumulative(data["x"], data["x"], scale=1.0, assets=data["assets"], ax=four) is four


def test_global_state_of_matplotlib_is_untouched() -> None:
    def settings() -> dict[str, Any]:
        # Reading the backend as matplotlib does would choose one, and import pyplot for it.
        return {key: dict.__getitem__(mpl.rcParams, key) for key in dict.keys(mpl.rcParams)}

    before, settings_before = "matplotlib.pyplot" in sys.modules, settings()
    data = made(5)
    copies = {name: np.copy(data[name]) for name in ("today", "x", "reference")}
    drawn(plot_overview(**data))
    assert ("matplotlib.pyplot" in sys.modules) == before
    assert settings() == settings_before
    for name, copy in copies.items():
        np.testing.assert_array_equal(data[name], copy)


def test_wrong_shapes_are_named() -> None:
    data = made(5)
    with pytest.raises(ValueError, match=r"expected target of shape \(5,\), got \(4,\)"):
        weights(data | {"target": np.ones(4)})
    with pytest.raises(ValueError, match=r"expected x of shape \(3, 20, 5\), got \(20, 5\)"):
        changes(data | {"x": data["x"][0], "dates": data["dates"]})
    with pytest.raises(ValueError, match=r"expected x of shape \(3, 19, 5\), got \(3, 20, 5\)"):
        changes(data | {"dates": data["dates"][1:]})


def test_missing_matplotlib_comes_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "funcexplain\[demo\]"'):
        plot_history([1.0])
