"""Market features as differentiable functions of prices.

All channels of a window are functions of one path of prices. They are computed with torch operations
only, so that ``torch.func.grad`` differentiates and ``torch.func.vmap`` maps them: a search can move the
path, and return, momentum and volatility stay consistent. Units are per day; nothing is annualized.
"""

from __future__ import annotations

import torch
from torch import Tensor

from funcexplain.markets.channels import join, log_return, momentum, sliding, volatility
from funcexplain.markets.prices import Prices
from funcexplain.problems.checks import check_count

CHANNELS = ("return", "momentum", "volatility")


def log_returns(prices: Prices | Tensor) -> Tensor:
    """Daily log returns: ``log(p[t + 1] / p[t])``.

    Args:
        prices: a price history, or positive prices of shape ``(T, A)`` with ``T >= 2``.

    Returns:
        Shape ``(T - 1, A)``; float64 for `Prices`, else the dtype of the tensor.

    Raises:
        ValueError: if the prices are not two-dimensional, not floating, or shorter than two days.

    Example:
        >>> log_returns(torch.tensor([[1.0], [2.0], [1.0]])).squeeze().tolist()
        [0.693..., -0.693...]
    """
    prices = _check_table("log_returns", prices, 2, "at least 2 days")
    return prices.log().diff(dim=0)


def features(returns: Tensor, span: int = 20) -> Tensor:
    """Compute return, momentum and volatility for each day with ``span`` days of history.

    With ``r[t]`` the log return of day ``t``, and sums over its last days ``t - span < s <= t``:

    - return: ``r[t]``
    - momentum: ``sum r[s]``, the log return over the span
    - volatility: ``sqrt(sum (r[s] - mean)^2 / (span - 1))``, the sample standard deviation

    The derivative of the square root is infinite at zero; where the variance is exactly zero, the
    gradient of the volatility is defined as zero, one of its subgradients.

    Args:
        returns: daily log returns, shape ``(L + span - 1, A)`` with ``L >= 1``.
        span: number of days that momentum and volatility look back, at least 2.

    Returns:
        Shape ``(C, L, A)`` with the channels in the order of `CHANNELS`; per day, not annualized.

    Raises:
        ValueError: if ``span < 2``, or ``returns`` is not two-dimensional, not floating, or too short.

    Example:
        >>> features(torch.tensor([[0.01], [0.03]]), span=2).flatten()
        tensor([0.0300, 0.0400, 0.0141])
    """
    if check_count("features", "span", span) < 2:
        raise ValueError(f"features: expected a span of at least 2 days, got {span}")
    remedy = f"at least span = {span} rows"
    returns = _check_table("features", returns, span, remedy, "returns", "(L + span - 1, A)")
    return join(log_return(), momentum(span), volatility(span))(returns)


def windows(prices: Prices | Tensor, lookback: int = 20, span: int = 20) -> tuple[Tensor, Tensor]:
    """Compute all windows of features in a price history, and the last day of each.

    Args:
        prices: a price history, or positive prices of shape ``(T, A)``.
        lookback: days per window, ``L``.
        span: days that momentum and volatility look back, as in `features`.

    Returns:
        The windows, shape ``(N, C, L, A)`` with ``N = T - span - L + 1``, and the row of ``prices`` of
        each window's last day, int64, ``(N,)``.

    Raises:
        ValueError: for fewer than ``span + lookback`` days, ``lookback < 1``, or as in `features`.

    Example:
        >>> stack, last_days = windows(torch.rand(50, 4) + 1.0, lookback=10, span=20)
        >>> stack.shape, last_days[0].item(), last_days[-1].item()
        (torch.Size([21, 3, 10, 4]), 29, 49)
    """
    if check_count("windows", "lookback", lookback) < 1:
        raise ValueError(f"windows: expected a lookback of at least 1 day, got {lookback}")
    need = check_count("windows", "span", span) + lookback
    prices = _check_table("windows", prices, need, f"at least span + lookback = {need} days")
    channels = features(log_returns(prices), span)
    stack = sliding(channels.transpose(0, 1), lookback).transpose(1, 2)
    last_days = torch.arange(need - 1, prices.shape[0], device=prices.device)
    return stack, last_days


def forward_returns(prices: Prices | Tensor, days: Tensor, horizon: int = 5) -> Tensor:
    """Simple returns over the next ``horizon`` days: ``p[t + horizon] / p[t] - 1``.

    The simple return of a portfolio is the weighted sum of those of its assets; log returns are not.

    Args:
        prices: a price history, or positive prices of shape ``(T, A)``.
        days: rows of ``prices`` that the returns start from, int64, shape ``(N,)``.
        horizon: number of days, at least 1.

    Returns:
        Shape ``(N, A)``.

    Raises:
        ValueError: if ``horizon < 1``, or the history ends less than ``horizon`` days after a day.

    Example:
        >>> prices = torch.tensor([[1.0], [2.0], [3.0]])
        >>> forward_returns(prices, torch.tensor([0, 1]), horizon=1).squeeze().tolist()
        [1.0, 0.5]
    """
    if check_count("forward_returns", "horizon", horizon) < 1:
        raise ValueError(f"forward_returns: expected a horizon of at least 1 day, got {horizon}")
    prices = _check_table("forward_returns", prices, 1 + horizon, f"more than {horizon} days")
    last = prices.shape[0] - 1 - horizon
    if not isinstance(days, Tensor) or days.dtype is not torch.int64:
        got = days.dtype if isinstance(days, Tensor) else type(days).__name__
        raise TypeError(f"forward_returns: days must be an int64 tensor of rows of prices, got {got}")
    if days.numel() and not 0 <= int(days.min()) <= int(days.max()) <= last:
        raise ValueError(
            f"forward_returns: expected days in 0 ... {last}, the ones with {horizon} later "
            f"days; got {int(days.min())} ... {int(days.max())}"
        )
    return prices[days + horizon] / prices[days] - 1


def _check_table(
    where: str,
    table: Prices | Tensor,
    need: int,
    remedy: str,
    name: str = "prices",
    shape: str = "(T, A)",
) -> Tensor:
    """A table as a tensor; raises unless it is floating, two-dimensional and has ``need`` rows."""
    if isinstance(table, Prices):
        table = torch.as_tensor(table.values)
    if not isinstance(table, Tensor):
        raise TypeError(
            f"{where}: {name} must be a floating tensor of shape {shape}, got {type(table).__name__}"
        )
    if table.ndim != 2 or not table.is_floating_point():
        raise ValueError(
            f"{where}: expected {name} as a floating tensor of shape {shape}, got {table.dtype} of "
            f"shape {tuple(table.shape)}"
        )
    if table.shape[0] < need:
        raise ValueError(
            f"{where}: the history is too short: expected {name} of {remedy}, got {table.shape[0]}"
        )
    return table
