"""Features: equal to their numpy twins, differentiable, and mappable by torch.func."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from funcexplain.markets.features import CHANNELS, features, forward_returns, log_returns, windows
from funcexplain.markets.prices import Prices, ecb

SPAN, LOOKBACK, ASSETS = 4, 3, 2


def made_returns(seed: int = 0, length: int = SPAN + LOOKBACK - 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.01 * torch.randn(length, ASSETS, generator=generator, dtype=torch.float64)


def made_prices(length: int = 12) -> Tensor:
    return 100.0 * made_returns(1, length).cumsum(0).exp()


def numpy_features(returns: np.ndarray, span: int) -> np.ndarray:
    """The definition, day by day."""
    days = range(span - 1, len(returns))
    trailing = [returns[day - span + 1 : day + 1] for day in days]
    return np.stack(
        [
            np.stack([returns[day] for day in days]),
            np.stack([past.sum(axis=0) for past in trailing]),
            np.stack([past.std(axis=0, ddof=1) for past in trailing]),
        ]
    )


def assert_close(got: Tensor, expected: np.ndarray | Tensor, **tolerances: float) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected), **tolerances)  # type: ignore[arg-type]


def test_channels_are_named_in_order() -> None:
    assert CHANNELS == ("return", "momentum", "volatility")


@pytest.mark.parametrize("span", [2, 3, SPAN])
def test_features_equal_their_numpy_twin(span: int) -> None:
    returns = made_returns(length=9)
    got = features(returns, span)
    assert got.shape == (3, 9 - span + 1, ASSETS)
    assert_close(got, numpy_features(returns.numpy(), span), rtol=1e-12, atol=1e-16)


def test_log_returns_of_prices_and_of_tensors() -> None:
    prices = ecb()
    expected = np.diff(np.log(prices.values), axis=0)
    # Logarithms up to 7.3 are rounded to 9e-16 before they are subtracted.
    assert_close(log_returns(prices), expected, rtol=1e-12, atol=2e-15)
    single = log_returns(torch.as_tensor(prices.values).float())
    assert single.dtype == torch.float32


def test_prices_come_back_from_log_returns() -> None:
    prices = made_prices()
    back = prices[0] * torch.cat([torch.zeros(1, ASSETS), log_returns(prices).cumsum(0)]).exp()
    assert_close(back, prices, rtol=1e-12, atol=0.0)


def test_windows_are_the_features_of_every_stretch() -> None:
    prices = made_prices()
    stack, last_days = windows(prices, LOOKBACK, SPAN)
    assert stack.shape == (12 - SPAN - LOOKBACK + 1, 3, LOOKBACK, ASSETS)
    assert last_days.tolist() == list(range(SPAN + LOOKBACK - 1, 12))
    returns = log_returns(prices)
    for window, day in zip(stack, last_days.tolist(), strict=True):
        # returns[day - 1] is the one of prices[day].
        stretch = returns[day - LOOKBACK - SPAN + 1 : day]
        assert_close(window, features(stretch, SPAN), rtol=1e-12, atol=1e-16)


def test_windows_read_prices_of_any_kind() -> None:
    values = made_prices()
    dates = np.datetime64("2024-01-01") + np.arange(12)
    prices = Prices(values.numpy(), dates, ("A", "B"), "made")
    for got, expected in zip(windows(prices, 3, 4), windows(values, 3, 4), strict=True):
        assert torch.equal(got, expected)


def test_forward_returns_are_what_a_holder_earns() -> None:
    prices = made_prices()
    days = torch.tensor([0, 5, 8])
    got = forward_returns(prices, days, horizon=3)
    expected = [(prices[day + 3] - prices[day]) / prices[day] for day in days.tolist()]
    assert_close(got, torch.stack(expected), rtol=1e-10, atol=1e-16)


def finite_differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    slopes = torch.zeros_like(x)
    for index in np.ndindex(*x.shape):
        delta = torch.zeros_like(x)
        delta[index] = step
        slopes[index] = (function(x + delta) - function(x - delta)) / (2 * step)
    return slopes


@pytest.mark.parametrize("channel", range(3), ids=CHANNELS)
def test_gradients_equal_finite_differences(channel: int) -> None:
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(LOOKBACK, ASSETS, generator=generator, dtype=torch.float64)

    def scalar(returns: Tensor) -> Tensor:
        return (mix * features(returns, SPAN)[channel]).sum()

    returns = made_returns()
    assert_close(grad(scalar)(returns), finite_differences(scalar, returns), rtol=1e-6, atol=1e-8)


def test_gradients_reach_prices_through_windows() -> None:
    def scalar(prices: Tensor) -> Tensor:
        return windows(prices, LOOKBACK, SPAN)[0].square().sum()

    prices = made_prices(9)
    assert_close(grad(scalar)(prices), finite_differences(scalar, prices, 1e-4), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, 0.25, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_calm_markets_have_finite_gradients(value: float, dtype: torch.dtype) -> None:
    calm = torch.full((SPAN + LOOKBACK - 1, ASSETS), value, dtype=dtype)
    slope = grad(lambda returns: features(returns, SPAN)[2].sum())(calm)
    assert slope.isfinite().all()
    # The slope of a standard deviation is at most 1 / sqrt(span - 1) in each of `span` windows.
    assert slope.abs().max() <= SPAN / (SPAN - 1) ** 0.5


def test_zero_volatility_is_zero_with_zero_slope() -> None:
    calm = torch.zeros(SPAN, ASSETS, dtype=torch.float64)
    assert features(calm, SPAN)[2].abs().max() == 0
    assert grad(lambda returns: features(returns, SPAN)[2].sum())(calm).abs().max() == 0


def test_features_map() -> None:
    batch = torch.stack([made_returns(seed) for seed in range(5)])

    def scalar(returns: Tensor) -> Tensor:
        return features(returns, SPAN).square().sum()

    mapped = vmap(lambda returns: features(returns, SPAN))(batch)
    assert_close(mapped, torch.stack([features(row, SPAN) for row in batch]), rtol=1e-12, atol=1e-16)
    slopes = vmap(grad(scalar))(batch)
    assert_close(slopes, torch.stack([grad(scalar)(row) for row in batch]), rtol=1e-12, atol=1e-16)


def test_windows_map_over_histories() -> None:
    batch = torch.stack([made_prices(), 2.0 * made_prices().flip(1)])

    def scalar(prices: Tensor) -> Tensor:
        return windows(prices, LOOKBACK, SPAN)[0].square().sum()

    mapped = vmap(lambda prices: windows(prices, LOOKBACK, SPAN)[0])(batch)
    expected = torch.stack([windows(prices, LOOKBACK, SPAN)[0] for prices in batch])
    assert_close(mapped, expected, rtol=1e-12, atol=1e-16)
    slopes = vmap(grad(scalar))(batch)
    assert_close(slopes, torch.stack([grad(scalar)(row) for row in batch]), rtol=1e-12, atol=1e-16)


INVALID: dict[str, tuple[Callable[[], object], str]] = {
    "short returns": (lambda: features(torch.zeros(3, 2), 4), "too short: .*span = 4 rows, got 3"),
    "short span": (lambda: features(torch.zeros(3, 2), 1), "span of at least 2 days, got 1"),
    "vector": (lambda: features(torch.zeros(30)), r"shape \(L \+ span - 1, A\), got .*\(30,\)"),
    "integers": (lambda: log_returns(torch.ones(5, 2, dtype=torch.int64)), "log_returns: .*torch.int64"),
    "one day": (lambda: log_returns(torch.ones(1, 2)), "too short: .*at least 2 days, got 1"),
    "short history": (
        lambda: windows(torch.ones(6, 2), 3, 4),
        r"windows: .*too short: .*at least span \+ lookback = 7 days, got 6",
    ),
    "no lookback": (lambda: windows(torch.ones(6, 2), 0, 4), "lookback of at least 1 day, got 0"),
    "no horizon": (
        lambda: forward_returns(torch.ones(6, 2), torch.tensor([0]), 0),
        "horizon of at least 1 day, got 0",
    ),
    "no future": (
        lambda: forward_returns(torch.ones(6, 2), torch.tensor([0, 4]), 2),
        r"expected days in 0 \.\.\. 3.* with 2 later days; got 0 \.\.\. 4",
    ),
}


@pytest.mark.parametrize(("call", "message"), INVALID.values(), ids=INVALID.keys())
def test_bad_histories_raise(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_shortest_history_makes_one_window() -> None:
    stack, last_days = windows(made_prices(SPAN + LOOKBACK), LOOKBACK, SPAN)
    assert stack.shape[0] == 1
    assert last_days.tolist() == [SPAN + LOOKBACK - 1]
