"""Returns behind windows: selected from history, recovered from a window, summed to prices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from funcexplain.markets.features import features, log_returns, windows
from funcexplain.markets.paths import base_returns, invert, prices_of
from funcexplain.markets.prices import ecb
from tests.helpers import assert_close, assert_same
from tests.markets.market import ASSETS, F64, SPAN, base, made_prices, made_returns


@pytest.mark.parametrize("lookback", [1, 3, 8])
def test_the_features_of_base_returns_are_the_windows(lookback: int) -> None:
    prices = made_prices(40)
    stack, last_days = windows(prices, lookback, SPAN)
    returns = base_returns(prices, last_days, lookback, SPAN)
    assert returns.shape == (len(stack), lookback + SPAN - 1, ASSETS)
    for window, path in zip(stack, returns, strict=True):
        assert_close(features(path, SPAN), window, rtol=1e-10, atol=1e-15)
    assert_same(base_returns(prices, last_days[4], lookback, SPAN), returns[4])
    grid = base_returns(prices, last_days[:6].view(2, 3), lookback, SPAN)
    assert_same(grid.flatten(0, 1), returns[:6])


def test_base_returns_read_prices_of_any_kind() -> None:
    prices = ecb()
    day = torch.tensor(len(prices.dates) - 1)
    assert_same(base_returns(prices, day, 20, 20), log_returns(prices)[-39:])
    single = torch.as_tensor(prices.values).float()
    assert base_returns(single, day, 20, 20).dtype is torch.float32


# The span is 5: the window determines all days, all but one, or only sums of several.
@pytest.mark.parametrize("lookback", [9, 5, 4, 3, 2, 1])
def test_returns_read_off_a_window_make_that_window(lookback: int) -> None:
    truth, guess = base(lookback, 1), base(lookback, 2)
    window = features(truth, SPAN)
    found = invert(window, guess)
    assert found.shape == truth.shape
    assert_close(features(found, SPAN), window, rtol=1e-9, atol=1e-13)
    if lookback >= SPAN - 1:
        assert_close(found, truth, atol=1e-15)
    assert_same(found[SPAN - 1 :], truth[SPAN - 1 :])
    assert_close(invert(window, truth), truth, atol=1e-9)  # the nearest to the truth is the truth


def test_undetermined_days_get_the_nearest_returns() -> None:
    truth, guess = base(1, 1), base(1, 2)
    window = features(truth, SPAN)
    found = invert(window, guess)
    # Other solutions rotate the undetermined days about their mean.
    spread = found[: SPAN - 1] - found[: SPAN - 1].mean(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(spread.shape, dtype=F64, generator=generator)
        other = other - other.mean(0)
        other = other * spread.norm(dim=0) / other.norm(dim=0)
        turned = torch.cat([found[: SPAN - 1].mean(0) + other, found[SPAN - 1 :]])
        assert_close(features(turned, SPAN), window, rtol=1e-9, atol=1e-13)
        assert ((turned - guess).norm(dim=0) >= (found - guess).norm(dim=0)).all()


def test_invert_maps_and_takes_a_calm_guess() -> None:
    truths = torch.stack([base(3, seed) for seed in range(4)])
    stack = torch.stack([features(truth, SPAN) for truth in truths])
    guess = base(3, 9)
    mapped = torch.func.vmap(lambda window: invert(window, guess))(stack)
    assert_close(mapped, torch.stack([invert(window, guess) for window in stack]))
    # Without a direction to spread along: finite, with the right momentum.
    calm = invert(stack[0], torch.zeros_like(guess))
    assert_close(features(calm, SPAN)[:2], stack[0, :2], rtol=1e-9, atol=1e-15)


def test_prices_of_inverts_log_returns() -> None:
    prices = made_prices(30)
    assert_close(prices_of(log_returns(prices), prices[0]), prices)
    wild = 30.0 * made_returns(20)
    assert (prices_of(wild, prices[0]) > 0).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: base_returns(p, torch.tensor(11), 8, 5), ValueError, r"in 12 \.\.\. 19, .* got 11"),
        (lambda p: base_returns(p, torch.tensor(20), 8, 5), ValueError, r"in 12 \.\.\. 19, .* got 20"),
        (lambda p: base_returns(p, 15, 8, 5), TypeError, "last_days must be an int64 tensor .* got int"),  # type: ignore[arg-type]
        (lambda p: base_returns(p, torch.tensor(15.0), 8, 5), TypeError, "got torch.float32"),
        (lambda p: base_returns(p, torch.tensor(15), 0, 5), ValueError, "lookback must be >= 1"),
        (lambda p: base_returns(p, torch.tensor(15), 8, 2.0), TypeError, "span must be an int"),  # type: ignore[arg-type]
    ],
)
def test_days_without_a_window_raise(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^base_returns: .*{message}"):
        call(made_prices(20))
