"""Pictures and sentences of draws: what they show is true of the data, and can be read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.measures.draws import Bands, Moves
from funcexplain.measures.stories import Stories
from funcexplain.reports.draws import (
    Common,
    answer_sentence,
    drivers_sentence,
    find_common,
    mixing_sentence,
    moves_sentence,
    share_of,
    shocked_prices,
    stories_sentence,
)
from funcexplain.reports.plots import plot_fan, plot_prices, plot_shifts, plot_stories
from funcexplain.solutions.draws import Mixing
from tests.measures.draws import exact_draws, question
from tests.reports.pictures import assert_no_overlap, legend_of, row_names

LEVELS = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)


def names(size: int) -> list[str]:
    return [f"the asset {index}" for index in range(size)]


def made_bands(assets: int, first: int = 8, days: int = 16) -> Bands:
    """Fans of which asset 1 shifts most."""
    steps = torch.arange(1 - first, days - first + 1).clamp(min=0).double().sqrt()
    width = 0.01 * torch.special.ndtri(LEVELS)
    shift = torch.zeros(assets, dtype=torch.float64)
    shift[1], shift[0] = -0.03, 0.01
    usual = width[:, None, None] * steps[:, None].expand(-1, assets)
    return Bands(LEVELS, usual + shift * steps[:, None], usual, first)


@pytest.mark.parametrize(("assets", "first"), [(2, 8), (20, 0), (3, 15)])
def test_a_fan_shows_the_assets_that_shift_most(assets: int, first: int) -> None:
    bands = made_bands(assets, first)
    path = bands.given[2] * 1.1
    figure = plot_fan(bands, assets=names(assets), answer=path)
    panels = figure.axes
    assert len(panels) == min(6, assets)
    assert [ax.get_title(loc="left") for ax in panels[:2]] == ["the asset 1", "the asset 0"]
    lines = {line.get_label(): line for line in panels[0].lines}
    shown = np.asarray(lines["their median"].get_ydata())
    expected = 100 * bands.given[2, :, 1].expm1().numpy()
    np.testing.assert_allclose(shown[-(16 - first) :], expected[first:])
    assert shown[np.asarray(lines["their median"].get_xdata()) == 0] == 0.0
    assert np.asarray(lines["closest answer"].get_ydata())[-1] == pytest.approx(
        100 * math.expm1(path[-1, 1])
    )
    assert panels[0].get_ylabel() == "move, %"
    assert panels[-1].get_xlabel()
    assert_no_overlap(panels[0])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["ordinary, 90%", "target holds, 90%", "of these, 50%"]


@pytest.mark.parametrize("assets", [4, 40])
def test_shifts_are_bars_with_shares(assets: int) -> None:
    sigmas = torch.linspace(-2.0, 1.0, assets)
    falls, before = torch.linspace(0.9, 0.1, assets), torch.full((assets,), 0.5)
    ax = plot_shifts(Moves(sigmas / 100, sigmas, falls, before), assets=names(assets))
    bars = [float(bar.get_width()) for bar in ax.patches]  # type: ignore[attr-defined]
    assert bars == sorted(bars, key=abs, reverse=True)
    assert row_names(ax)[0] == "the asset 0"
    assert ax.texts[1].get_text() == "90% (50%)"
    assert len(bars) == min(30, assets)
    assert_no_overlap(ax)
    inside = ax.get_window_extent()
    assert all(text.get_window_extent().x0 >= inside.x1 for text in ax.texts)


@pytest.mark.parametrize("kinds", [1, 5])
def test_stories_are_side_by_side(kinds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % kinds
    moves = 0.01 * torch.randn(60, 9, generator=generator) + 0.03 * labels[:, None]
    medoids = torch.arange(kinds)
    found = Stories(torch.bincount(labels) / 60, medoids, labels, moves[medoids], 0.5)
    figure = plot_stories(found, moves, assets=names(9))
    assert len(figure.axes) == kinds
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles[0] == f"Kind 1: {100 / kinds:.0f}%"
    for kind, ax in enumerate(figure.axes):
        assert not kind or not any(label.get_visible() for label in ax.get_yticklabels())
        dots = np.sort(np.asarray(ax.collections[1].get_offsets())[:, 0])
        np.testing.assert_allclose(dots, 100 * np.sort(moves[kind].expm1()), rtol=1e-5)
    assert_no_overlap(figure.axes[0])


@pytest.mark.parametrize("plot", [plot_fan, plot_shifts, plot_stories])
def test_pictures_of_nothing_are_refused(plot: Any) -> None:
    one = torch.zeros(2)
    given: dict[Any, tuple[Any, ...]] = {
        plot_fan: (made_bands(2),),
        plot_shifts: (Moves(one, one, one, one),),
        plot_stories: (Stories(one[:1], one[:1].long(), one.long(), one[None], 0.0), torch.zeros(2, 2)),
    }
    with pytest.raises(ValueError, match=f"{plot.__name__}: most must be at least 1, got 0"):
        plot(*given[plot], assets=names(2), most=0)
    with pytest.raises(ValueError, match="of shape"):
        plot(*given[plot], assets=names(3))


def test_sentences_are_true_of_the_draws() -> None:
    problem = question(sides=2, level=3.0)
    draws = exact_draws(problem, 200, sides=2, beta=3.0)
    found, assets = find_common(draws, problem), ["EUR", "JPY", "CHF"]
    totals = fe.scenarios.returns_of(draws, problem)[:, 2:].sum(1)
    at = int(found.moves.sigmas.abs().argmax())
    text, falls = moves_sentence(found, assets), float((totals[:, at] < 0).double().mean())
    assert text.startswith(f"In 200 markets drawn at which the target holds, {assets[at]} falls in ")
    assert (
        f"{share_of(falls)} (ordinary markets: {share_of(float(found.moves.ordinary_falls[at]))})"
        in text
    )
    low, high = totals[:, at].quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).expm1()
    assert f"from {100 * low:+.1f}% to {100 * high:+.1f}% in 90% of them" in text
    kinds = stories_sentence(found.stories, torch.ones(3), assets)
    assert kinds.startswith("They are of 2 kinds: ")
    for share in found.stories.shares.tolist():
        assert f"{share_of(share)} with " in kinds
    sign = drivers_sentence(found.drivers, 2, assets)
    day, asset = divmod(int(found.drivers.correlation.abs().argmax()), 3)
    assert f"{assets[asset]} on day {day - 1}" in sign
    for draw, typical in ((0, True), (1, True), (0, False)):
        path = totals[draw].expand(6, -1).clone()
        path[-1, at] = path[-1, at] if typical else 0.5
        said = answer_sentence(path, found, assets)
        moved = f"{assets[at]} moves {100 * math.expm1(path[-1, at]):+.1f}%, "
        inside = low.log1p() <= path[-1, at] <= high.log1p()
        assert said.startswith(f"In the closest answer, {moved}{'within' if inside else 'outside'}")
    one = fe.stories(draws, problem, 1)
    assert stories_sentence(one, torch.ones(3), assets) == (
        "They are of one kind: their moves do not fall into groups."
    )


@pytest.mark.parametrize(
    ("effective", "rhat", "says"),
    [
        (200.0, 1.01, "worth about 200 independent draws"),
        (200.0, 1.5, "have not mixed"),
        (10.0, 1.01, "have not mixed"),
        (200.0, math.nan, "is unknown"),
    ],
)
def test_shares_of_chains_that_did_not_mix_are_called_rough(
    effective: float, rhat: float, says: str
) -> None:
    text = mixing_sentence(Mixing(0.4, effective, rhat, 8, 1000, 32), 256)
    assert says in text
    assert ("rough" in text) == (says != "worth about 200 independent draws")
    assert mixing_sentence(None, 256) == ""


def test_prices_of_all_shocked_days_have_the_range_of_the_draws() -> None:
    bands = made_bands(3)  # of 16 days, the last eight of which are shocked
    found = Common(60, bands, *[None] * 5)  # type: ignore[arg-type]
    steps = bands.given[2].exp().numpy()
    actual = np.exp(0.01 * np.random.default_rng(0).normal(size=(17, 3)).cumsum(0))
    scenario = actual.copy()
    scenario[-2:] *= 1.1  # an answer that moves only the last two
    paths, fan = shocked_prices((actual, scenario), found)
    assert fan is not None
    assert len(paths[0]) == len(fan[0]) == 9
    np.testing.assert_allclose(paths[0], actual[-9:])
    for bound, level in zip(fan, (0, -1), strict=True):
        np.testing.assert_allclose(bound[0], actual[-9])
        np.testing.assert_allclose(bound[1:] / bound[0], bands.given[level, -8:].exp())
    assert (fan[0][-1] <= actual[-9] * steps[-1]).all()
    ax = plot_prices(*paths, assets=names(3), ahead=8, fan=fan)
    assert len(ax.collections) == 3
    assert "90% of draws" in legend_of(ax)
    assert_no_overlap(ax)
    alone, none = shocked_prices((actual, scenario), None)
    assert (len(alone[0]), none) == (3, None)
    assert shocked_prices((actual[-5:], scenario[-5:]), found)[1] is None  # too few days


@pytest.mark.usefixtures("rough_pictures")
def test_a_report_has_a_section_on_draws(tmp_path: Path) -> None:
    problem = question(sides=2, level=3.0)
    draws = exact_draws(problem, 60, sides=2, beta=3.0)
    solution = draws[0]
    assets = ["EUR", "JPY", "CHF"]
    plain, drawn = (
        fe.report(
            solution, problem, tmp_path / "page.html", scale=0.02, assets=assets, draws=given
        ).read_text()
        for given in (None, draws)
    )
    assert drawn.count("<img") == plain.count("<img") + 3
    found = find_common(draws, problem)
    assert moves_sentence(found, assets) in drawn
    assert "What markets in which the target holds have in common" not in plain
    with pytest.raises(ValueError, match="report: draws must be at least two markets"):
        fe.report(solution, problem, tmp_path / "page.html", scale=0.02, draws=draws[:1])
