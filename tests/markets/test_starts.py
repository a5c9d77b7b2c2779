"""Starts: blocks of history, and the real windows that are nearest to a target."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.markets.features import features, windows
from tests.helpers import assert_close, assert_same
from tests.markets.market import (
    ASSETS,
    F64,
    LOOKBACKS,
    SPAN,
    made_prices,
    made_returns,
    network,
    scenario_problem,
    target,
)

S = fe.scenarios
HISTORY = made_returns(300)
SEEDS = torch.arange(400)


def days_of(draws: Tensor) -> Tensor:
    """Which day of history each drawn row is."""
    same = (draws[..., None, :] == HISTORY).all(-1)
    assert (same.sum(-1) == 1).all()
    return same.long().argmax(-1)


@pytest.mark.parametrize("block", [1.0, 4.0, 25.0])
def test_draws_are_blocks_of_history_as_long_as_asked(block: float) -> None:
    days = days_of(S.bootstrap(HISTORY, 40, seeds=SEEDS, block=block))
    follows = days.diff(dim=1) % len(HISTORY) == 1
    # A new block can start on the next day by chance.
    expected = 1 - 1 / block + 1 / block / len(HISTORY)
    deviation = (expected * (1 - expected) / follows.numel()) ** 0.5
    assert abs(float(follows.double().mean()) - expected) < 4 * deviation
    # All days of history are equally likely.
    counts = days[:, 0].bincount(minlength=300) if block > 1 else days.flatten().bincount(minlength=300)
    mean = float(counts.double().mean())
    assert abs(float(counts.double().var()) / mean - 1) < 4 * (2 / 300) ** 0.5


def test_a_long_block_goes_round_the_end_of_history() -> None:
    days = days_of(S.bootstrap(HISTORY, 290, seeds=SEEDS[:20], block=1e12))
    assert (days.diff(dim=1) % 300 == 1).all()
    assert (days.diff(dim=1) < 0).any()


def test_a_draw_depends_on_its_seed_alone() -> None:
    before = torch.get_rng_state()
    draws = S.bootstrap(HISTORY, 12, seeds=torch.tensor([3, 0, 3]))
    assert_same(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    assert_same(S.bootstrap(HISTORY, 12, seeds=torch.tensor([0]))[0], draws[1])
    assert_same(S.bootstrap(HISTORY.float(), 12, seeds=torch.tensor([0]))[0], draws[1].float())
    assert S.bootstrap(HISTORY, 12, seeds=torch.arange(0)).shape == (0, 12, ASSETS)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("lookback", LOOKBACKS)
def test_a_search_starts_at_the_windows_of_draws(lookback: int) -> None:
    draws = S.bootstrap(HISTORY, lookback + SPAN - 1, seeds=torch.arange(6))
    starts = torch.func.vmap(lambda returns: features(returns, SPAN))(draws)
    grid = fe.vmap(scenario_problem(lookback), x0=starts)
    assert_close(fe.solve(grid, max_steps=0).x, starts, rtol=1e-8, atol=1e-12)
    found = fe.solve(grid, fe.adam(lr=0.05), max_steps=30, keep="best")
    assert (found.loss < found.history[:, 0]).all()


@pytest.mark.parametrize("k", [1, 5])
def test_the_nearest_have_the_smallest_errors(k: int) -> None:
    stack, _ = windows(made_prices(), 8, SPAN)
    net = network(8)
    nearest = S.nearest_dates(net, stack, target(), k)
    with torch.no_grad():
        weights = net(stack)
    error = (weights - target()).abs().amax(-1)
    assert_close(nearest.error, error.sort().values[:k])
    assert_close(nearest.weights, weights[nearest.places])
    assert_close(nearest.error, error[nearest.places])
    solution = fe.solve(fe.vmap(scenario_problem(8), x0=stack[nearest.places]), max_steps=0)
    assert_close(solution.weights, nearest.weights, rtol=1e-7)


def test_a_window_of_history_is_nearest_to_its_own_allocation_and_ties_keep_their_order() -> None:
    stack, _ = windows(made_prices(), 8, SPAN)
    apply, params = fe.functionalize(network(8))
    asked = apply(params, stack[17])
    twice = torch.cat([stack, stack[17:18]])
    nearest = S.nearest_dates((apply, params), twice, asked, 2)
    assert sorted(nearest.places.tolist()) == [17, len(stack)]  # equal to rounding
    assert float(nearest.error.max()) < 1e-14
    same = S.nearest_dates((lambda params, x: asked, {}), twice, asked, 3)
    assert same.places.tolist() == [0, 1, 2]


def test_windows_without_an_allocation_come_last() -> None:
    def apply(params: Any, x: Tensor) -> Tensor:
        return x[0, 0].log()  # NaN below zero

    stack = torch.tensor([[-1.0, 1.0], [2.0, 2.0], [1.0, 1.0]], dtype=F64).view(3, 1, 1, 2)
    nearest = S.nearest_dates((apply, {}), stack, torch.zeros(2, dtype=F64), 3)
    assert nearest.places.tolist() == [2, 1, 0]
    assert nearest.error[-1] == torch.inf


WINDOWS = windows(made_prices(), 8, SPAN)[0]
SEED = torch.arange(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: S.nearest_dates(network(8), WINDOWS[0], target(), 1),
            ValueError,
            "nearest_dates: windows must have shape (N, channels, lookback, assets) with N >= k, got",
        ),
        (
            lambda: S.nearest_dates(network(8), WINDOWS[:2], target(), 3),
            ValueError,
            "nearest_dates: windows must have shape (N, channels, lookback, assets) with N >= k",
        ),
        (
            lambda: S.nearest_dates(network(8), WINDOWS, target(), 0),
            ValueError,
            "nearest_dates: k must be >= 1",
        ),
        (
            lambda: S.nearest_dates(network(8), WINDOWS.numpy(), target(), 1),  # type: ignore[arg-type]
            TypeError,
            "nearest_dates: windows must be a torch.Tensor",
        ),
        (lambda: S.bootstrap(HISTORY[0], 5, seeds=SEED), ValueError, "bootstrap: history must have sha"),
        (lambda: S.bootstrap(HISTORY, 0, seeds=SEED), ValueError, "bootstrap: num_days must be >= 1"),
        (lambda: S.bootstrap(HISTORY, 5, seeds=SEED, block=0.5), ValueError, "bootstrap: block must be"),
        (lambda: S.bootstrap(HISTORY, 5, seeds=[1]), TypeError, "bootstrap: seeds must be an int64"),  # type: ignore[arg-type]
        (lambda: S.bootstrap(HISTORY, 5, seeds=SEED[0]), ValueError, "bootstrap: seeds must have shape"),
        (
            lambda: S.bootstrap(HISTORY.long(), 5, seeds=SEED),
            TypeError,
            "bootstrap: history must be flo",
        ),
    ],
)
def test_wrong_settings_raise(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()
