"""What draws have in common: known laws, frozen days, order and seeds, bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

import funcexplain as fe
from funcexplain.measures.draws import read
from tests.helpers import assert_same
from tests.markets.market import F64
from tests.measures.draws import ALPHA, ASSETS, BASE, BETA, DAYS, FREE, SIGMA, exact_draws, question

P: Any = fe  # wrong types are the point of some calls
MILLS = stats.norm.pdf(BETA) / stats.norm.sf(BETA)
"""Mean of a standard normal above beta."""


def close(found: torch.Tensor, expected: Any, error: Any, errors: float = 4.5) -> bool:
    away = (found - torch.as_tensor(expected)).abs()
    return bool((away <= errors * torch.as_tensor(error) + 1e-12).all())


@pytest.mark.parametrize("levels", [(0.05, 0.25, 0.5, 0.75, 0.95), (0.0, 0.1, 1.0), (0.5,)])
def test_bands_contain_the_stated_share(levels: tuple[float, ...]) -> None:
    problem = question()
    draws = exact_draws(problem)
    found = fe.bands(draws, problem, levels)
    markets = read("bands", draws, problem, 2000, 0)
    for returns, quantiles in ((markets.given, found.given), (markets.ordinary, found.ordinary)):
        paths = returns.cumsum(1) - returns[:, :2].sum(1, keepdim=True)
        moved = FREE.cumsum(0) > 0
        for level, quantile in zip(levels, quantiles, strict=True):
            below = (paths <= quantile + 1e-12).double().mean(0)[moved]
            assert close(below, level, 1.5 / len(paths), 1.0)
    assert found.first == 2
    assert found.levels.tolist() == pytest.approx(levels)
    assert found.given.shape == found.ordinary.shape == (len(levels), DAYS, ASSETS)


def test_ordinary_bands_are_those_of_the_model() -> None:
    problem = question()
    found = fe.bands(exact_draws(problem), problem, (0.1, 0.5), num_samples=4000)
    days = FREE.cumsum(0).double()
    center = BASE.cumsum(0) - BASE[:2].sum(0)
    for row, level in enumerate((0.1, 0.5)):
        z = stats.norm.ppf(level)
        error = SIGMA * days.sqrt() * math.sqrt(level * (1 - level) / 4000) / stats.norm.pdf(z)
        assert close(found.ordinary[row], center + z * SIGMA * days.sqrt(), error)


def test_frozen_days_and_assets_do_not_move() -> None:
    problem = question()
    draws = exact_draws(problem)
    found, moved = fe.bands(draws, problem), fe.moves(draws, problem)
    driven = fe.drivers(draws, problem)
    for quantiles in (found.given, found.ordinary):
        path = BASE.cumsum(0) - BASE[:2].sum(0)
        torch.testing.assert_close(quantiles[:, :2], path[:2].expand(5, -1, -1))
        assert (quantiles[:, 1].abs() < 1e-15).all()  # the day before the first shock
        torch.testing.assert_close(quantiles[..., 2], path[:, 2].expand(5, -1))
    assert moved.sigmas[2] == 0.0
    assert moved.falls[2] == moved.ordinary_falls[2] == float(BASE[2:, 2].sum() < 0)
    assert (driven.shift[~FREE] == 0).all()
    assert (driven.correlation[~FREE] == 0).all()


def test_moves_of_a_half_space() -> None:
    problem, count = question(), 4000
    found = fe.moves(exact_draws(problem, count), problem, num_samples=4000)
    along, days = ALPHA.sum(0), FREE.sum(0)
    mean = BASE[2:].sum(0) + SIGMA * MILLS * along
    assert close(found.mean, mean, SIGMA * days.sqrt() / count**0.5)
    sigmas = torch.where(days > 0, MILLS * along / days.clamp(min=1).sqrt(), 0.0)
    assert close(found.sigmas, sigmas, (2 + sigmas.abs()) / count**0.5)
    chance = stats.norm.cdf(-BASE[2:, 0].sum() / (SIGMA * 3**0.5))
    assert close(found.ordinary_falls[0], chance, 0.5 / 4000**0.5)
    assert found.falls[0] < found.ordinary_falls[0]


def test_drivers_of_a_half_space() -> None:
    """The mean shift is the direction times the Mills ratio; ranks are those of a bivariate normal."""
    problem, count = question(), 4000
    found = fe.drivers(exact_draws(problem, count), problem, num_samples=4000)
    assert close(found.shift, MILLS * ALPHA, FREE / count**0.5)
    for day, asset in FREE.nonzero().tolist():
        # For independent z, y: P(z > y | along > beta), of (y - z) / sqrt(2) and -along.
        rho = float(ALPHA[day, asset]) / 2**0.5
        law = stats.multivariate_normal(cov=[[1.0, rho], [rho, 1.0]])
        expected = 2.0 * law.cdf([0.0, -BETA]) / stats.norm.sf(BETA) - 1.0
        assert close(found.correlation[day, asset], expected, 1.0 / count**0.5)
    assert (found.correlation.abs() <= 1.0).all()


@pytest.mark.parametrize("name", ["bands", "moves", "drivers"])
def test_neither_order_nor_company_matters(name: str, tmp_path: Path) -> None:
    problem, measure = question(), getattr(fe, name)
    draws = exact_draws(problem, 60)
    found = measure(draws, problem)
    for one, other in zip(found, measure(draws[torch.arange(60).flip(0)], problem), strict=True):
        torch.testing.assert_close(one, other)
    whole = read(name, draws, problem, 10, 0).given
    assert_same(read(name, draws[7:9], problem, 10, 0).given, whole[7:9])
    draws.save(tmp_path / "draws.safetensors")
    loaded = fe.load(tmp_path / "draws.safetensors")
    for one, other in zip(found, measure(loaded, problem), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_seed_draws_ordinary_markets_alone() -> None:
    problem = question()
    draws = exact_draws(problem, 60)
    one, same, other = (fe.bands(draws, problem, seed=seed) for seed in (3, 3, 4))
    assert_same(one.ordinary, same.ordinary)
    assert not one.ordinary.equal(other.ordinary)
    assert_same(one.given, other.given)


@pytest.mark.parametrize("name", ["bands", "moves", "drivers", "stories"])
def test_what_is_not_draws_is_refused(name: str) -> None:
    problem, measure = question(), getattr(P, name)
    draws = exact_draws(problem, 12)
    with pytest.raises(
        ValueError, match=f"{name}: draws must be at least two markets from fe.sample, got 1"
    ):
        measure(draws[:1], problem)
    with pytest.raises(ValueError, match=f"{name}: solution must have the rows"):
        measure(fe.solve(fe.vmap(problem, seed=torch.arange(2)), max_steps=0), problem)
    with pytest.raises(TypeError, match=f"{name}: solution must be a Solution, got int"):
        measure(3, problem)
    with pytest.raises(ValueError, match=f"{name}: problem must be one question, got a grid"):
        measure(draws, fe.vmap(problem, seed=torch.arange(12)))
    with pytest.raises(ValueError, match=f"{name}: problem must have a standard normal search point"):
        measure(draws, fe.problem((lambda p, x: x[0, 0], {}), fe.targets.at_least(0, 0.1), BASE[None]))
    with pytest.raises(ValueError, match=f"{name}: num_samples must be"):
        measure(draws, problem, num_samples=0)
    with pytest.raises(TypeError, match=f"{name}: seed must be an int"):
        measure(draws, problem, seed=0.5)


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.9, 0.1), (-0.1,), (math.nan,), (1.5,)])
def test_levels_must_rise(levels: tuple[float, ...]) -> None:
    problem = question()
    with pytest.raises(ValueError, match=r"bands: levels must be rising numbers in \[0, 1\]"):
        fe.bands(exact_draws(problem, 4), problem, levels)


@pytest.mark.parametrize("levels", [0.5, ["a"], None])
def test_levels_must_be_numbers(levels: Any) -> None:
    problem = question()
    with pytest.raises(TypeError, match="bands: levels must be numbers"):
        P.bands(exact_draws(problem, 4), problem, levels)


def test_dtype_of_the_question_is_that_of_its_draws() -> None:
    problem = fe.cast(dtype=torch.float32)(question())
    found = fe.moves(fe.sample(problem, 32, num_samples=2000, num_chains=16), problem)
    assert found.mean.dtype == F64
    assert torch.isfinite(found.sigmas).all()
