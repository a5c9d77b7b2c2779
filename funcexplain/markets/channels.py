"""Channels of a window, to compose: returns, momentum, volatility, RSI, z-scores, ranks, of any span.

    mine = join(log_return(), zscore(momentum(20), 60), rsi(14))
    mine(returns)                                     (T, A) -> (3, T - mine.days + 1, A)

Each is a differentiable function of daily log returns, so that all channels of a scenario follow one
path of prices. A day's value needs the returns of its last ``days`` days. A day may be any period, such
as a week or a minute. `parse` reads the same expressions from text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from funcexplain.problems.checks import check_is_tensor, check_number, check_positive

__all__ = [
    *("Channels", "cross_section", "join", "log_return", "momentum", "moving_average_ratio", "parse"),
    *("rank", "rsi", "scaled", "simple_return", "volatility", "zscore"),
]


@dataclass(frozen=True, eq=False, repr=False)
class Channels:
    """Named channels of each day, a function of the daily log returns up to that day.

    Attributes:
        names: names of the ``C`` channels.
        days: number of returns that a day's values need, including its own.
        function: from returns ``(T, A)`` to ``(C, T - days + 1, A)``.
    """

    names: tuple[str, ...]
    days: int
    function: Callable[[Tensor], Tensor]

    def __call__(self, returns: Tensor) -> Tensor:
        """Compute the channels of every day that has enough returns behind it.

        Args:
            returns: daily log returns, ``(T, A)`` with ``T >= days``.

        Returns:
            Shape ``(C, T - days + 1, A)``.

        Raises:
            TypeError: if returns are not a floating tensor.
            ValueError: if they have another shape or too few days.

        Example:
            >>> momentum(2)(torch.tensor([[0.25], [0.5], [0.25]])).flatten()
            tensor([0.7500, 0.7500])
        """
        check_is_tensor("channels", "returns", returns)
        if returns.ndim != 2 or not returns.is_floating_point():
            raise TypeError(
                f"channels: returns must be floating with shape (T, A), got {returns.dtype} of shape "
                f"{tuple(returns.shape)}"
            )
        if len(returns) < self.days:
            raise ValueError(
                f"channels: returns must have at least {self.days} days for {', '.join(self.names)}, "
                f"got {len(returns)}; give more days, or shorten the spans"
            )
        return self.function(returns)

    def __repr__(self) -> str:
        return f"Channels({', '.join(self.names)}; {self.days} days)"


def join(*channels: Channels) -> Channels:
    """Several channels in one window, in this order.

    Args:
        channels: at least one.

    Raises:
        TypeError: if one is not `Channels`.
        ValueError: if there are none, or a name appears twice.

    Example:
        >>> join(log_return(), momentum(20))
        Channels(log_return, momentum(20); 20 days)
    """
    for index, part in enumerate(channels):
        if not isinstance(part, Channels):
            raise TypeError(
                f"join: channels[{index}] must be Channels, such as momentum(20), got "
                f"{type(part).__name__}"
            )
    names = tuple(name for part in channels for name in part.names)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"join: channels must be one or more with different names, got {list(names)}")
    days = max(part.days for part in channels)

    def function(returns: Tensor) -> Tensor:
        return torch.cat([part.function(returns[days - part.days :]) for part in channels])

    return Channels(names, days, function)


def log_return() -> Channels:
    """Log return of each day, ``r[t]``.

    Example:
        >>> log_return()(torch.tensor([[0.25]]))
        tensor([[[0.2500]]])
    """
    return Channels(("log_return",), 1, lambda returns: returns[None])


def simple_return() -> Channels:
    """Simple return of each day, ``exp(r[t]) - 1``.

    Example:
        >>> simple_return()(torch.tensor([[2.0]]).log()).item()
        1.0
    """
    return Channels(("simple_return",), 1, lambda returns: returns.expm1()[None])


def momentum(span: int = 20) -> Channels:
    """Log return over the last ``span`` days, ``sum r[s]``.

    Example:
        >>> momentum(2)(torch.tensor([[0.25], [0.5]])).item()
        0.75
    """
    days = check_positive("momentum", "span", span)
    return Channels((f"momentum({days})",), days, lambda returns: sliding(returns, days).sum(1)[None])


def volatility(span: int = 20) -> Channels:
    """Sample standard deviation of the last ``span`` log returns, at least 2; not annualized.

    Example:
        >>> volatility(2)(torch.tensor([[0.01], [0.03]])).item()
        0.0141...
    """
    days = _check_span("volatility", span, 2)
    return Channels(
        (f"volatility({days})",), days, lambda returns: _root(_variance(sliding(returns, days)))[None]
    )


def rsi(span: int = 14) -> Channels:
    """Relative strength index, ``100 G / (G + L)``, of simple averages of ``span`` price changes.

    G is the mean gain and L the mean loss in price; 50 where prices do not move.

    Example:
        >>> rsi(2)(torch.tensor([[1.5], [1.0 / 1.5]]).log()).item()
        50.0...

    References:
        J. W. Wilder (1978), New Concepts in Technical Trading Systems; with simple averages, as here,
        it depends on ``span`` days alone (D. Cutler)
    """
    days = check_positive("rsi", "span", span)

    def function(returns: Tensor) -> Tensor:
        change = _paths(returns, days).diff(dim=1)
        gain, loss = change.clamp_min(0.0).sum(1), (-change).clamp_min(0.0).sum(1)
        total = gain + loss
        return (100.0 * torch.where(total > 0, gain / torch.where(total > 0, total, 1.0), 0.5))[None]

    return Channels((f"rsi({days})",), days, function)


def moving_average_ratio(span: int = 20, fast: int = 1) -> Channels:
    """Mean price of ``fast`` days over that of ``span`` days, minus one; ``fast=1`` is the last price.

    Example:
        >>> moving_average_ratio(2)(torch.tensor([[3.0]]).log()).item()
        0.5...
    """
    slow, quick = (
        _check_span("moving_average_ratio", span, 2),
        check_positive("moving_average_ratio", "fast", fast),
    )
    if quick >= slow:
        raise ValueError(f"moving_average_ratio: fast must be below span, got {quick} and {slow}")
    name = f"moving_average_ratio({slow}{'' if quick == 1 else f', {quick}'})"

    def function(returns: Tensor) -> Tensor:
        prices = _paths(returns, slow - 1)
        return (prices[:, -quick:].mean(1) / prices.mean(1) - 1.0)[None]

    return Channels((name,), slow - 1, function)


def zscore(channels: Channels, span: int = 60) -> Channels:
    """Standardize by mean and sample deviation of an asset's last ``span`` values, today's included.

    ``(f[t] - mean) / std``, zero where the values are constant.

    Example:
        >>> zscore(log_return(), 2)(torch.tensor([[0.01], [0.03]])).item()
        0.7071...
    """
    _check_channels("zscore", channels)
    count = _check_span("zscore", span, 2)
    names = tuple(f"zscore({name}, {count})" for name in channels.names)

    def function(returns: Tensor) -> Tensor:
        trailing = sliding(channels.function(returns).movedim(1, 0), count)  # (T, span, C, A)
        return _standardize(trailing, 1)[:, -1].movedim(0, 1)

    return Channels(names, channels.days + count - 1, function)


def cross_section(channels: Channels) -> Channels:
    """Standardize over the assets of each day, ``(f - mean) / std``; zero where all are equal.

    Example:
        >>> cross_section(log_return())(torch.tensor([[0.01, 0.03]]))
        tensor([[[-0.7071,  0.7071]]])
    """
    _check_channels("cross_section", channels)
    names = tuple(f"cross_section({name})" for name in channels.names)
    return Channels(names, channels.days, lambda returns: _standardize(channels.function(returns), -1))


def rank(channels: Channels, temperature: float = 0.1) -> Channels:
    """Rank of each asset among all on each day, from 0 (lowest) to 1, smoothed to be differentiable.

    ``sum_j sigmoid((f_i - f_j) / (temperature * std)) / (A - 1)`` over the other assets, with the
    standard deviation over assets. ``temperature=0`` gives exact ranks, which have no gradient: a search
    cannot move them.

    Example:
        >>> rank(log_return(), temperature=0.0)(torch.tensor([[0.01, 0.03, 0.02]]))
        tensor([[[0.0000, 1.0000, 0.5000]]])

    References:
        T. Qin, T.-Y. Liu, H. Li (2010), A General Approximation Framework for Direct Optimization of
        Information Retrieval Measures, https://doi.org/10.1007/s10791-009-9124-x
    """
    _check_channels("rank", channels)
    softness = check_number("rank", "temperature", temperature, minimum=0.0)
    suffix = "" if temperature == 0.1 else f", {temperature:g}"
    names = tuple(f"rank({name}{suffix})" for name in channels.names)

    def function(returns: Tensor) -> Tensor:
        values = channels.function(returns)
        gaps = values[..., :, None] - values[..., None, :]
        if softness == 0.0:
            above = 0.5 * (gaps.sign() + 1.0)
        else:
            spread = _root(values.var(-1, correction=0))[..., None, None]
            above = (gaps / (softness * torch.where(spread > 0, spread, 1.0))).sigmoid()
        return (above.sum(-1) - 0.5) / max(1, values.shape[-1] - 1)

    return Channels(names, channels.days, function)


def scaled(channels: Channels, mean: Tensor | float, std: Tensor | float) -> Channels:
    """Fixed units, ``(f - mean) / std``, as saved with a network.

    Args:
        channels: the channels to scale.
        mean: number or tensor that broadcasts to ``(C, T, A)``, such as ``(C, 1, 1)``.
        std: as ``mean``, positive.

    Example:
        >>> scaled(log_return(), 0.0, 0.5)(torch.tensor([[0.25]])).item()
        0.5
    """
    _check_channels("scaled", channels)
    if bool((torch.as_tensor(std) <= 0).any()):
        raise ValueError(
            f"scaled: std must be > 0, got a minimum of {float(torch.as_tensor(std).min())}"
        )
    names = tuple(f"scaled({name})" for name in channels.names)
    function = channels.function
    return Channels(names, channels.days, lambda returns: (function(returns) - mean) / std)


_MAKERS: dict[str, Callable[..., Channels]] = {
    make.__name__: make
    for make in (
        *(cross_section, log_return, momentum, moving_average_ratio, rank, rsi, simple_return),
        *(volatility, zscore),
    )
}
CHANNEL_NAMES = tuple(_MAKERS)
"""Names that `parse` knows, besides ``return``."""
_SPANNED = ("momentum", "volatility")


def parse(text: str, span: int = 20) -> Channels:
    """Read a channel such as ``"zscore(momentum(20), 60)"``; its name is the text.

    Args:
        text: the name of a channel of this module, with or without its arguments; ``"return"`` is
            ``log_return``.
        span: of ``momentum`` and ``volatility`` without arguments.

    Raises:
        ValueError: if it is not such an expression; the message names a similar one.

    Example:
        >>> parse("rank(momentum(5))")
        Channels(rank(momentum(5)); 5 days)
    """
    try:
        # "return" is a keyword of Python.
        found = _evaluate(
            ast.parse(re.sub(r"\breturn\b", "return_", text.strip()), mode="eval").body, span
        )
    except (SyntaxError, RecursionError, MemoryError):
        found = None
    if not isinstance(found, Channels):
        raise ValueError(f"expected a channel such as momentum(20) or zscore(return, 60), got {text!r}")
    return Channels((text,), found.days, found.function)


def _evaluate(node: ast.AST, span: int) -> Any:
    """The value of a number, a name, or a call of a channel with such arguments."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name):
        return _find(node.id)(*([span] if node.id in _SPANNED else []))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        make, given = _find(node.func.id), [_evaluate(argument, span) for argument in node.args]
        try:
            return make(*given)
        except TypeError as error:
            raise ValueError(f"{node.func.id}: {error}") from None
    return None


def _find(name: str) -> Callable[..., Channels]:
    """The function of a channel by its name."""
    known = _MAKERS | {"return_": log_return}
    if name not in known:
        close = get_close_matches(name, _MAKERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from return, {', '.join(_MAKERS)}"
        raise ValueError(f"there is no channel {name!r}; {hint}")
    return known[name]


def sliding(rows: Tensor, length: int) -> Tensor:
    """All ``length`` consecutive rows: ``(T, ...)`` to ``(T - length + 1, length, ...)``."""
    # Tensor.unfold returns a view, but its backward has no batching rule under torch.func.vmap.
    first = torch.arange(rows.shape[0] - length + 1, device=rows.device)
    return rows[first[:, None] + torch.arange(length, device=rows.device)]


def _paths(returns: Tensor, days: int) -> Tensor:
    """Prices over each day's last ``days`` returns, from 1 before them: ``(T, days + 1, A)``."""
    moves = sliding(returns, days).cumsum(1)
    return torch.cat([torch.zeros_like(moves[:, :1]), moves], 1).exp()


def _standardize(values: Tensor, dim: int) -> Tensor:
    """Values in sample deviations from their mean along a dimension."""
    centered = values - values.mean(dim, keepdim=True)
    deviation = _root(centered.square().sum(dim, keepdim=True) / max(1, values.shape[dim] - 1))
    return centered / torch.where(deviation > 0, deviation, 1.0)


def _variance(trailing: Tensor) -> Tensor:
    """Variance over dimension 1; in two passes, since Tensor.var takes six times as long."""
    centered = trailing - trailing.mean(1, keepdim=True)
    return centered.square().sum(1) / (trailing.shape[1] - 1)


def _root(variance: Tensor) -> Tensor:
    """Square root whose gradient is zero at zero, one of its subgradients."""
    # Both `where` are needed: the inner one keeps 0 out of the root, whose infinite derivative would
    # otherwise reach the gradient as inf * 0 = nan from the unselected branch.
    positive = variance > 0
    return torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)


def _check_span(where: str, span: int, minimum: int) -> int:
    if check_positive(where, "span", span) < minimum:
        raise ValueError(f"{where}: span must be at least {minimum} days, got {span}")
    return span


def _check_channels(where: str, channels: Any) -> None:
    if not isinstance(channels, Channels):
        raise TypeError(f"{where}: channels must be Channels, such as momentum(20), got {channels!r}")
