"""Windows from prices: by channels of the library, by the user's function, or from a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.commands.config import NetworkConfig
from funcexplain.commands.entries import suggest
from funcexplain.commands.environment import fixed_seed, importable
from funcexplain.commands.network import call_factory, import_factory
from funcexplain.commands.sections import FeaturesConfig
from funcexplain.commands.weights import one_line, read_tensors
from funcexplain.markets.channels import CHANNEL_NAMES, Channels, join, parse, sliding
from funcexplain.markets.features import CHANNELS, log_returns
from funcexplain.markets.prices import Prices

Compute = Callable[[Tensor], Tensor]
# Returns that a function is tried on to find out how many it needs, beyond the lookback.
_TRIAL_DAYS = 300
_CHUNK = 256
_LEVEL = 1.25  # a function of prices must give the same for prices times this


class Windows(NamedTuple):
    """All windows of a price history.

    Attributes:
        channels: names of the ``C`` channels.
        span: number of returns that the first day of a window needs, including its own.
        stack: windows ``(N, C, L, A)``, float64.
        compute: from the returns behind a window, ``(L + span - 1, A)``, to the window; None for windows
            from a file.
    """

    channels: tuple[str, ...]
    span: int
    stack: Tensor
    compute: Compute | None


def make_windows(prices: Prices, config: FeaturesConfig, network: NetworkConfig) -> Windows:
    """Compute or read the windows of a price history.

    Example:
        >>> import numpy as np
        >>> values = torch.rand(30, 2, dtype=torch.float64).numpy() + 1.0
        >>> days = np.arange("2024-01-01", "2024-01-31", dtype="M8[D]")
        >>> prices = Prices(values, days, ("A", "B"), "drawn")
        >>> config = FeaturesConfig(lookback=5, channels=("return", "rsi(3)"))
        >>> make_windows(prices, config, NetworkConfig("mine:make")).stack.shape
        torch.Size([23, 2, 5, 2])
    """
    if config.file is not None:
        return _read_windows(prices, config)
    returns = log_returns(prices)
    if config.factory is None:
        made: Any = _named_channels(config)
    else:
        with fixed_seed(), importable(str(Path(network.folder).resolve())):
            made = _make(config, network)
    if isinstance(made, Channels):
        if len(returns) < config.lookback + made.days - 1:
            raise ValueError(
                "features: the history is too short: expected prices of at least span + lookback = "
                f"{made.days + config.lookback} days, got {len(returns) + 1}"
            )
        stack = sliding(made(returns).movedim(0, 1), config.lookback).transpose(1, 2)
        return Windows(config.channels or made.names, made.days, stack, made)
    function, names = made
    return _of_function(function, config.channels or names, returns, prices, config)


def _named_channels(config: FeaturesConfig) -> Channels:
    """Channels by the names of the config."""
    parts = []
    known = (*CHANNELS, *CHANNEL_NAMES)
    for index, text in enumerate(config.channels or CHANNELS):
        if text.isidentifier() and text not in known:
            hint = suggest(text, known)
            raise ValueError(f"features.channels: there is no {text!r} in the data; {hint}")
        try:
            parts.append(parse(text, config.span))
        except ValueError as error:
            raise ValueError(f"features.channels[{index}]: {error}") from None
    return join(*parts)


def _make(config: FeaturesConfig, network: NetworkConfig) -> Channels | tuple[Compute, Any]:
    """Channels, or a function of returns and its names, from the factory of a config."""
    assert config.factory is not None
    where, arguments = "features.factory", config.arguments or {}
    found = import_factory(where, config.factory, network.package, Path(network.folder))
    names = getattr(found, "channels", None)
    if not isinstance(found, Channels) and (isinstance(found, type) or not _inputs(found, arguments)):
        found, arguments = call_factory(where, config.factory, found, arguments), {}
    if isinstance(found, list | tuple) and found and all(isinstance(part, Channels) for part in found):
        return join(*found)
    if isinstance(found, tuple) and len(found) == 2:
        found, names = found
    if isinstance(found, Channels):
        return found
    names = getattr(found, "channels", names)
    if not callable(found):
        raise ValueError(
            f"{where}: {config.factory} must be, or return, a function of returns or prices, or "
            f"channels such as fe.channels.momentum(20), got {type(found).__name__}"
        )
    inputs = _inputs(found, arguments)
    function = partial(found, **arguments) if arguments else found
    of_prices = config.of == "prices" or (config.of == "auto" and inputs[:1] == ["prices"])
    return (_OfPrices(function) if of_prices else function), names


def _inputs(function: Any, arguments: dict[str, Any]) -> list[str]:
    """Names of the arguments that a function needs besides those of the config."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ["returns"]
    needed = [p for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    return [p.name for p in needed if p.name not in arguments]


class _OfPrices:
    """A function of prices as one of log returns: prices begin at 1."""

    def __init__(self, function: Compute) -> None:
        self.function = function

    def __call__(self, returns: Tensor) -> Tensor:
        start = returns.new_zeros(1, returns.shape[1])
        return self.function(torch.cat([start, returns.cumsum(0)]).exp())


def _of_function(
    function: Compute, names: Any, returns: Tensor, prices: Prices, config: FeaturesConfig
) -> Windows:
    """Windows that a function computes, each from the returns behind it alone."""
    where, lookback = f"features.factory: {config.factory}", config.lookback
    trial = returns[-(lookback + _TRIAL_DAYS) :]
    rows = _call(where, function, trial).shape[1]
    span = len(trial) - rows + 1
    needed = lookback + span - 1
    if rows < lookback or needed < 1:
        raise ValueError(
            f"{where} returned {rows} days for {len(trial)} returns, fewer than features.lookback = "
            f"{lookback}; shorten the lookback, or give more prices"
        )
    window = _call(where, function, returns[-needed:])
    if window.shape[1] != lookback:
        raise ValueError(
            f"{where} must return {lookback} days for {needed} returns, as many fewer as for "
            f"{len(trial)}, got {window.shape[1]}; its number of days must follow that of its input"
        )
    if isinstance(function, _OfPrices):
        level = torch.as_tensor(prices.values[-needed - 1 :])
        scaled = [_call(where, function.function, level * factor) for factor in (1.0, _LEVEL)]
        if not all(torch.allclose(window, one, rtol=1e-6, equal_nan=True) for one in scaled):
            raise ValueError(
                f"{where} must not depend on the level of prices, since a scenario moves returns; "
                "divide by a price, such as the last one, or search over windows with features.file"
            )
    behind = sliding(returns, needed)
    try:
        with torch.no_grad():
            stack = torch.func.vmap(function, chunk_size=_CHUNK)(behind)
    except Exception as error:  # any type: this runs the user's function
        raise ValueError(
            f"{where} must work under torch.func.vmap, without an if on values: {one_line(error)}"
        ) from error
    if not bool(stack.isfinite().all()):
        raise ValueError(f"{where} returned values that are not finite; guard divisions by zero")
    labels = _labels(where, names, stack.shape[1])
    return Windows(labels, span, stack.double(), function)


def _call(where: str, function: Compute, argument: Tensor) -> Tensor:
    """The channels ``(C, days, A)`` that a function returns."""
    try:
        with torch.no_grad():
            found = function(argument)
    except Exception as error:  # any type: this runs the user's function
        raise ValueError(f"{where} raised {one_line(error)}; --debug shows where") from error
    if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[2] != argument.shape[1]:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"{where} must return channels (C, days, A) for an input (days, A) of shape "
            f"{tuple(argument.shape)}, got {got}; torch.stack(channels) makes them of (days, A) each"
        )
    return found


def _labels(where: str, names: Any, count: int) -> tuple[str, ...]:
    """Names of channels, numbers if there are none."""
    if names is None:
        return tuple(f"channel {number}" for number in range(count))
    texts = [names] if isinstance(names, str) else list(names) if isinstance(names, Sequence) else []
    if len(texts) != count or len({*map(str, texts)}) != count:
        raise ValueError(
            f"{where} returned {count} channels, got {len(texts)} names for them; give one each, "
            "as features.channels or beside the function"
        )
    return tuple(map(str, texts))


def _read_windows(prices: Prices, config: FeaturesConfig) -> Windows:
    """Windows of the last days of the prices, from a file."""
    where, path = "features.file", config.file or ""
    loaded = read_tensors(where, path)
    if isinstance(loaded, dict):
        loaded = loaded.get("windows", next(iter(loaded.values())) if len(loaded) == 1 else None)
    if not isinstance(loaded, Tensor) or not loaded.is_floating_point() or loaded.ndim not in (3, 4):
        raise ValueError(
            f"{where}: expected windows (N, C, L, A), or one (C, L, A), as a floating tensor in "
            f"{path!r}, got something else; name it windows, if the file holds several"
        )
    stack = loaded.double() if loaded.ndim == 4 else loaded.double()[None]
    num_days, assets = prices.values.shape
    if 0 in stack.shape or stack.shape[3] != assets or stack.shape[0] + stack.shape[2] - 1 > num_days:
        raise ValueError(
            f"{where}: expected windows of the {assets} assets and the last of {num_days} days of "
            f"prices, got shape {tuple(stack.shape)}; order assets as in prices.assets, the last window "
            "is that of the last day"
        )
    if not bool(stack.isfinite().all()):
        raise ValueError(f"{where}: windows must be finite, got NaN or infinite entries")
    return Windows(_labels(where, config.channels, stack.shape[1]), 1, stack, None)
