"""Laws of scenarios: consistent channels, exact round trips, frozen shocks, rows as single questions."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.markets import covariances
from funcexplain.markets.features import features, log_returns, windows
from funcexplain.markets.paths import base_returns, invert, prices_of
from tests.helpers import assert_close, assert_gradient, assert_same
from tests.markets.market import (
    ASSETS,
    F64,
    LOOKBACKS,
    SPAN,
    base,
    covariance,
    generator,
    made_prices,
    network,
    question,
    scenario_problem,
    target,
)

S: Any = fe.scenarios  # wrong types are the point of some calls
LONG, SHORT = LOOKBACKS
both = pytest.mark.parametrize("lookback", LOOKBACKS)


def random_z(lookback: int, *rows: int, seed: int = 0) -> Tensor:
    return torch.randn(*rows, lookback + SPAN - 1, ASSETS, dtype=F64, generator=generator(seed))


def asset_mask(lookback: int) -> Tensor:
    return S.shock_mask(lookback + SPAN - 1, ASSETS, assets=[0, 2])


MASKS = {
    "assets": asset_mask,
    "assets of all days": lambda lookback: asset_mask(lookback)[:1],
    "last days": lambda lookback: S.shock_mask(lookback + SPAN - 1, ASSETS, last_days=2),
    "both": lambda lookback: S.shock_mask(lookback + SPAN - 1, ASSETS, assets=[1], last_days=3),
    "any": lambda lookback: random_z(lookback, seed=5) > 0,
}
every_mask = pytest.mark.parametrize("mask", list(MASKS))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_search_starts_at_the_real_window_with_shocks_of_zero(
    lookback: int, dtype: torch.dtype
) -> None:
    problem = scenario_problem(lookback, dtype)
    z = problem.start(problem.args)
    assert z.dtype is dtype
    assert z.shape == (lookback + SPAN - 1, ASSETS)
    eps = torch.finfo(dtype).eps
    assert float(z.abs().max()) < 1e3 * eps
    assert_close(problem.decode(z, problem.args), problem.args["x0"], rtol=0.0, atol=4 * eps)
    zero = torch.zeros_like(z)
    assert_same(problem.decode(zero, problem.args), features(problem.args["returns"], SPAN))


@both
def test_shocks_are_correlated_as_the_covariance_says_and_in_sigmas(lookback: int) -> None:
    problem, z = scenario_problem(lookback), random_z(lookback)
    factor = torch.linalg.cholesky(covariance())
    expected = features(base(lookback) + z @ factor.mT, SPAN)
    assert_close(problem.decode(z, problem.args), expected, atol=1e-15)
    assert_close(factor @ factor.mT, covariance())


@both
def test_decode_inverts_encode_on_windows_of_a_path(lookback: int) -> None:
    problem = scenario_problem(lookback)
    x = problem.decode(random_z(lookback), problem.args)
    back = problem.decode(problem.encode(x, problem.args), problem.args)
    assert_close(back, x, rtol=1e-10, atol=1e-14)


def test_encode_inverts_decode_where_the_window_tells_all_days() -> None:
    problem, z = scenario_problem(LONG), random_z(LONG)
    assert_close(problem.encode(problem.decode(z, problem.args), problem.args), z, atol=1e-10)


@both
def test_the_gradient_in_the_shocks_equals_finite_differences(lookback: int) -> None:
    for free in (None, MASKS["any"](lookback)):
        problem = scenario_problem(lookback, free=free)

        def value(z: Tensor, problem: fe.Problem = problem) -> Tensor:
            return problem.objective(problem.decode(z, problem.args), problem.args)[0]

        z = 0.3 * random_z(lookback)
        assert_gradient(value, z, torch.func.grad(value)(z))


@both
def test_a_search_comes_nearer_and_its_channels_agree(lookback: int) -> None:
    problem = scenario_problem(lookback)
    solution = fe.solve(problem, fe.adam(lr=0.1), max_steps=60, keep="best")
    assert float(solution.loss) < 0.5 * float(solution.history[0])
    returns = invert(solution.x, base(lookback))
    assert_close(features(returns, SPAN), solution.x, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lr", [1.0, 10.0])
def test_a_thousand_wild_searches_keep_prices_positive_and_volatilities_nonnegative(
    dtype: torch.dtype, lr: float
) -> None:
    problem = fe.jitter(1.0)(scenario_problem(LONG, dtype))
    grid = fe.vmap(problem, seed=torch.arange(1000))
    solution = fe.solve(grid, fe.adam(lr=lr), max_steps=6)
    assert solution.x.isfinite().all()
    assert (solution.x[:, 2] >= 0).all()
    assert float((solution.x[:, 0] - base(LONG)[SPAN - 1 :].to(dtype)).abs().max()) > 0.1
    r0, first = problem.args["returns"], torch.full((ASSETS,), 100.0, dtype=dtype)
    returns = torch.func.vmap(lambda x: invert(x, r0))(solution.x)
    prices = torch.func.vmap(lambda r: prices_of(r, first))(returns)
    assert (prices > 0).all()
    agree = torch.func.vmap(lambda r: features(r, SPAN))(returns)
    size = float(solution.x.abs().max())
    assert_close(agree, solution.x, rtol=0.0, atol=100 * torch.finfo(dtype).eps * size)


@both
@every_mask
def test_frozen_shocks_stay_zero_and_frozen_returns_as_they_are(lookback: int, mask: str) -> None:
    free = MASKS[mask](lookback)
    problem = scenario_problem(lookback, free=free)
    init, step = fe.make_step(problem, fe.adam(lr=0.1))
    state, _ = fe.run(init, step, problem.args, num_steps=20)
    free = free.expand(lookback + SPAN - 1, ASSETS)
    assert (state.z[~free] == 0).all()
    assert (state.z[free] != 0).any()
    moved = torch.einsum("dij,dj->di", problem.args["factor"], random_z(lookback))
    assert (moved[~free] == 0).all()  # for any shocks
    window = problem.decode(state.z, problem.args)
    reached = S.reached(free, lookback)
    assert_same(window[0][~free[SPAN - 1 :]], problem.args["returns"][SPAN - 1 :][~free[SPAN - 1 :]])
    assert_same(window[~reached], features(problem.args["returns"], SPAN)[~reached])


@both
@every_mask
def test_with_freeze_what_no_free_shock_reaches_is_the_reference_to_the_bit(
    lookback: int, mask: str
) -> None:
    free = MASKS[mask](lookback).expand(lookback + SPAN - 1, ASSETS)
    reached = S.reached(free, lookback)
    # The reference differs from the features of the returns by rounding.
    problem = scenario_problem(lookback, torch.float32, free=free, mask=reached)
    answers = {}
    for place, name in ((0, "before"), (1, "behind")):
        order: list[Any] = [S.scenario(base(lookback).float(), covariance().float(), free=free)]
        order.insert(place, fe.freeze)
        frozen = fe.pipe(question(lookback, torch.float32, mask=reached), *order)
        answers[name] = fe.solve(fe.vmap(frozen, seed=torch.arange(3)), fe.adam(lr=0.1), max_steps=5).x
        for x in answers[name]:
            assert_same(x[~reached], problem.args["reference"][~reached])
        assert bool((answers[name] != problem.args["reference"]).any())
    assert_same(answers["before"], answers["behind"])


def test_reached_is_what_the_gradient_reaches() -> None:
    free = S.shock_mask(LONG + SPAN - 1, ASSETS, assets=[1], last_days=LONG + 1)
    free[3, 2] = True
    problem = scenario_problem(LONG, free=free)
    slopes = torch.func.jacrev(lambda z: problem.decode(z, problem.args))(random_z(LONG))
    assert_same((slopes != 0).flatten(3).any(-1), S.reached(free, LONG))


def test_a_channel_is_frozen_by_freeze() -> None:
    mask = torch.ones(3, LONG, ASSETS, dtype=torch.bool)
    mask[2] = False
    problem = fe.freeze(scenario_problem(LONG, mask=mask))
    solution = fe.solve(problem, fe.adam(lr=0.1), max_steps=10)
    assert_same(solution.x[2], problem.args["reference"][2])
    assert (solution.x[:2] != problem.args["reference"][:2]).all()


@both
def test_mapped_windows_are_the_single_ones(lookback: int) -> None:
    prices = made_prices()
    stack, last_days = windows(prices, lookback, SPAN)
    stack, last_days = stack[::9], last_days[::9]
    returns = base_returns(prices, last_days, lookback, SPAN)
    first = fe.problem(network(lookback), target(), stack[0], loss=fe.losses.kl)
    problem = S.scenario(returns[0], covariance())(first)
    grid = fe.vmap(problem, x0=stack, reference=stack, returns=returns)
    solution = fe.solve(grid, fe.adam(lr=0.05), max_steps=15)
    shocks = S.shocks(solution, grid)
    assert shocks.shape == (len(stack), lookback + SPAN - 1, ASSETS)
    for row, (window, r0) in enumerate(zip(stack, returns, strict=True)):
        alone = fe.problem(network(lookback), target(), window, loss=fe.losses.kl)
        alone = S.scenario(r0, covariance())(alone)
        found = fe.solve(alone, fe.adam(lr=0.05), max_steps=15)
        assert_close(solution.x[row], found.x, rtol=1e-9, atol=1e-12)
        assert_close(shocks[row], S.shocks(found, alone), rtol=1e-6, atol=1e-8)


def test_mapped_masks_and_covariances_are_the_single_ones() -> None:
    masks = torch.stack(
        [S.shock_mask(LONG + SPAN - 1, ASSETS, assets=[asset]) for asset in range(ASSETS)]
    )
    covs = torch.stack([covariance(), 4 * covariance()])
    problem = scenario_problem(LONG, free=masks[0])
    stack = S.factors(covs[:, None], masks)
    assert stack.shape == (2, ASSETS, LONG + SPAN - 1, ASSETS, ASSETS)
    grid = fe.vmap(problem, factor=stack.flatten(0, 1))
    solution = fe.solve(grid, fe.adam(lr=0.05), max_steps=10)
    for row, (cov, mask) in enumerate((cov, mask) for cov in covs for mask in masks):
        alone = S.scenario(base(LONG), cov, free=mask)(question(LONG))
        assert_close(solution.x[row], fe.solve(alone, fe.adam(lr=0.05), max_steps=10).x, atol=1e-12)


def test_other_windows_are_starts_of_the_same_question() -> None:
    others = torch.stack([features(base(LONG, seed), SPAN) for seed in (1, 2)])
    grid = fe.vmap(scenario_problem(LONG), x0=others)
    started = fe.solve(grid, max_steps=0)
    assert_close(started.x, others, rtol=1e-9, atol=1e-13)
    factor = torch.linalg.cholesky(covariance())
    expected = torch.stack([(base(LONG, seed) - base(LONG)) @ factor.inverse().mT for seed in (1, 2)])
    assert_close(S.shocks(started, grid), expected, rtol=1e-7, atol=1e-8)


def test_the_factor_of_free_assets_is_that_of_their_covariance() -> None:
    free = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    factor = S.factors(covariance(), free)
    for day, flags in zip(factor, free, strict=True):
        expected = torch.where(flags[:, None] & flags, covariance(), 0.0)
        assert_close(day @ day.mT, expected, atol=1e-18)
        assert_same(day, day.tril())
        some = torch.linalg.cholesky(covariance()[flags][:, flags])
        assert_close(day[flags][:, flags], some)
    assert_same(S.factors(covariance()), S.factors(covariance(), free[2:]))


def test_it_casts_and_composes_with_other_transforms() -> None:
    penalty = S.turbulence(base(60), covariance())
    transforms = [
        S.scenario(base(LONG), covariance()),
        fe.jitter(0.1),
        fe.penalize(penalty, strength=0.01),
        fe.cast(dtype=torch.float32),
    ]
    problem = fe.pipe(question(LONG), *transforms)
    solution = fe.solve(problem, max_steps=5)
    assert {solution.x.dtype, solution.loss.dtype, S.shocks(solution, problem).dtype} == {torch.float32}
    assert {problem.args[name].dtype for name in ("returns", "factor")} == {torch.float32}


def test_features_of_the_users_own() -> None:
    """Returns and their squares; the inverse that a user may write."""
    problem = fe.problem(
        fe.opaque(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 6 * ASSETS, ASSETS)).double()
        ),
        target(),
        torch.stack([base(2), base(2).square()]),
    )
    for inverse in (lambda window, returns: window[0], lambda window, returns: returns):
        transform = S.scenario(
            base(2), covariance(), features=lambda r: torch.stack([r, r.square()]), inverse=inverse
        )
        changed = transform(problem)
        assert (changed.start(changed.args) == 0).all()
        solution = fe.solve(changed, fe.adam(lr=0.5), max_steps=5)
        assert_close(solution.x[1], solution.x[0].square())
        assert not torch.equal(solution.x, problem.args["x0"])


def test_real_prices_from_end_to_end() -> None:
    from funcexplain.markets.prices import ecb

    prices = ecb()
    stack, last_days = windows(prices, 20, 20)
    r0, cov = base_returns(prices, last_days[-1], 20, 20), covariances.sample(log_returns(prices)[-500:])
    layer = torch.nn.Linear(3 * 20 * 16, 16)
    with torch.no_grad():
        layer.weight *= 20.0
    net = torch.nn.Sequential(torch.nn.Flatten(), layer, torch.nn.Softmax(-1)).double()
    asked = torch.full((16,), 0.6 / 15, dtype=F64)
    asked[3] = 0.4
    problem = S.scenario(r0, cov)(fe.problem(net, asked, stack[-1], loss=fe.losses.kl))
    solution = fe.solve(problem, fe.adam(lr=0.03), max_steps=300, atol=1e-3)
    assert solution.status is fe.Status.HIT
    returns = r0 + S.shocks(solution, problem) @ torch.linalg.cholesky(cov).mT
    assert_close(features(returns, 20), solution.x, rtol=1e-7, atol=1e-12)
    assert (solution.x[2] >= 0).all()


def test_features_are_those_of_the_span_that_the_days_imply() -> None:
    returns, cov, own = base(LONG), covariance(), partial(features, span=SPAN)
    explicit = S.scenario(returns, cov, features=own, inverse=invert)(question(LONG))
    worded = S.scenario(returns, cov)(question(LONG))
    z = random_z(LONG)
    assert_same(explicit.decode(z, explicit.args), worded.decode(z, explicit.args))


@pytest.mark.parametrize("name", S.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert S.__all__ == sorted(S.__all__)
    value = getattr(S, name)
    doc = inspect.getdoc(value) or ""
    assert not inspect.isfunction(value) or ("Args:" in doc and "Example:" in doc)
    assert doc
    api = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    assert f"::: {value.__module__}" in api
