"""The path behind a window: its daily returns, from prices or from channels, and back to prices.

`features` computes the channels of ``L`` days from the returns of ``L + span - 1`` days, since momentum
and volatility of the first day look back. `base_returns` selects these returns from a history, and
`invert` recovers them from a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from funcexplain.markets.features import CHANNELS, log_returns
from funcexplain.markets.prices import Prices
from funcexplain.problems.checks import check_is_tensor, check_positive


def base_returns(
    prices: Prices | Tensor, last_days: Tensor, lookback: int = 20, span: int = 20
) -> Tensor:
    """Log returns whose features are the windows that end on the given days.

    Args:
        prices: a price history, or positive prices of shape ``(T, A)``.
        last_days: rows of ``prices`` on which windows end, int64, any shape, as from ``windows``.
        lookback: days per window, ``L``.
        span: days that momentum and volatility look back, as in `features`.

    Returns:
        Shape ``(*last_days.shape, L + span - 1, A)``; float64 for `Prices`, else the tensor's dtype.

    Raises:
        TypeError: if ``last_days`` is not an int64 tensor, or ``lookback`` or ``span`` not an int.
        ValueError: for a day on which no window can end, or prices as in `log_returns`.

    Example:
        >>> from funcexplain.markets.features import features, windows
        >>> prices = torch.rand(50, 4, dtype=torch.float64) + 1.0
        >>> stack, last_days = windows(prices, lookback=10, span=20)
        >>> returns = base_returns(prices, last_days, lookback=10, span=20)
        >>> returns.shape, torch.allclose(features(returns[3], span=20), stack[3])
        (torch.Size([21, 29, 4]), True)
    """
    days = check_positive("base_returns", "lookback", lookback)
    days += check_positive("base_returns", "span", span) - 1
    kind = last_days.dtype if isinstance(last_days, Tensor) else type(last_days).__name__
    if kind is not torch.int64:
        raise TypeError(f"base_returns: last_days must be an int64 tensor of rows of prices, got {kind}")
    returns = log_returns(prices)
    if last_days.numel() and not days <= int(last_days.min()) <= int(last_days.max()) <= len(returns):
        raise ValueError(
            f"base_returns: last_days must be in {days} ... {len(returns)}, the rows of prices that "
            f"have {days} returns behind them, got {int(last_days.min())} ... {int(last_days.max())}"
        )
    # The return of prices[day] is returns[day - 1].
    return returns[last_days[..., None] + torch.arange(-days, 0, device=returns.device)]


def invert(window: Tensor, returns: Tensor) -> Tensor:
    """Recover the daily log returns from a window; undetermined ones are nearest to the given ones.

    Returns of the last ``L`` days are a channel. Earlier ones follow from differences of the momentum,
    ``r[t] = r[t + span] - (momentum[t + 1] - momentum[t])``. For the remaining ``span - L`` days, if
    any, the window determines only the sum and the sum of squares: the result has the returns nearest to
    the given ones that match both.

    Args:
        window: channels as in `features`, shape ``(3, L, A)``.
        returns: log returns of ``L + span - 1`` days, ``(L + span - 1, A)``; implies ``span``.

    Returns:
        Log returns, the shape of ``returns``; their `features` are the window, to rounding.

    Example:
        >>> from funcexplain.markets.features import features
        >>> returns = 0.01 * torch.randn(24, 3, dtype=torch.float64)
        >>> window = features(returns, span=20)
        >>> torch.allclose(features(invert(window, torch.rand_like(returns)), span=20), window)
        True
    """
    _check_floating("invert", "window", window, 3)
    _check_floating("invert", "returns", returns, 2)
    if len(window) != len(CHANNELS) or window.shape[2:] != returns.shape[1:]:
        raise ValueError(
            f"invert: window must have shape (3, L, A) for returns (L + span - 1, A), got "
            f"{tuple(window.shape)} for {tuple(returns.shape)}"
        )
    last, momentum, volatility = window
    lookback, span = len(last), len(returns) - len(last) + 1
    known = min(lookback, span) - 1
    early = last[1 : known + 1] - momentum.diff(dim=0)[:known]
    num_open = span - 1 - known
    if num_open == 0:
        return torch.cat([early, last])
    recent = torch.cat([early, last[:1]])  # in the first day's span
    total = momentum[0] - recent.sum(0)
    squares = (span - 1) * volatility[0].square() + momentum[0].square() / span - recent.square().sum(0)
    spread = returns[known : span - 1]
    spread = spread - spread.mean(0)
    size = spread.square().sum(0)
    ratio = (squares - total.square() / num_open).clamp_min(0) / torch.where(size > 0, size, 1.0)
    return torch.cat([early, total / num_open + spread * ratio.sqrt(), last])


def prices_of(returns: Tensor, first: Tensor) -> Tensor:
    """Prices from daily log returns, ``p[t] = p[0] exp(r[1] + ... + r[t])``, always positive.

    Args:
        returns: daily log returns, shape ``(D, A)``.
        first: prices on the day before the first return, positive, ``(A,)``.

    Returns:
        Prices of ``D + 1`` days, ``(D + 1, A)``, starting with ``first``.

    Example:
        >>> prices_of(torch.tensor([[2.0], [0.5]]).log(), torch.tensor([100.0])).flatten()
        tensor([100., 200., 100.])
    """
    _check_floating("prices_of", "returns", returns, 2)
    _check_floating("prices_of", "first", first, 1)
    if returns.shape[1:] != first.shape:
        raise ValueError(
            f"prices_of: first must have one price for each of {returns.shape[1]} assets, got "
            f"{tuple(first.shape)}"
        )
    return torch.cat([first[None], first * returns.cumsum(0).exp()])


def _check_floating(where: str, name: str, value: Any, ndim: int) -> None:
    """Raise unless a value is a floating tensor of a number of dimensions."""
    check_is_tensor(where, name, value)
    if value.ndim != ndim or not value.is_floating_point():
        raise TypeError(
            f"{where}: {name} must be floating with {ndim} dimensions, got {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )
