"""From a price history to what a search needs of it: windows, their days, and sizes of the channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import torch
from torch import Tensor

from funcexplain.commands.config import Features, Market
from funcexplain.commands.entries import nearest
from funcexplain.markets.features import CHANNELS, features, log_returns, windows
from funcexplain.markets.prices import Prices, load


@dataclass(frozen=True, eq=False)
class History:
    """A price history in windows.

    Attributes:
        prices: the prices, cut to the assets and days that are asked for.
        channels: names of the ``C`` channels.
        span: days that momentum and volatility look back.
        windows: all windows ``(N, C, L, A)``, in the network's dtype.
        last_days: rows of the prices on which they end, int64, ``(N,)``.
        days: channels of every day, float64, ``(C, days, A)``.
        mean: of each channel, ``(C, 1, 1)``, in the network's dtype.
        std: likewise.
    """

    prices: Prices
    channels: tuple[str, ...]
    span: int
    windows: Tensor
    last_days: Tensor
    days: Tensor
    mean: Tensor
    std: Tensor

    @property
    def lookback(self) -> int:
        """Days per window, ``L``."""
        return self.windows.shape[2]

    @property
    def ends(self) -> list[str]:
        """The day on which each window ends."""
        return [str(day) for day in self.prices.dates[self.last_days.numpy()]]

    def window_days(self, place: int) -> list[str]:
        """The days of one window, oldest first."""
        last = int(self.last_days[place])
        return [str(day) for day in self.prices.dates[last + 1 - self.lookback : last + 1]]


def load_history(market: Market, asked: Features, dtype: torch.dtype = torch.float32) -> History:
    """Load prices and make windows of them.

    Args:
        market: the table ``[prices]``.
        asked: the table ``[features]``.
        dtype: of the windows.

    Returns:
        The history.

    Raises:
        ValueError: the prices are none, an asset or channel is unknown, or there are too few days.
        OSError: the file cannot be read.
        ImportError: a package is missing.

    Example:
        >>> load_history(Market("ecb", assets=("EUR", "JPY")), Features(lookback=5)).windows.shape[1:]
        torch.Size([3, 5, 2])
    """
    prices = cut(load(market.file), market)
    channels = places("features.channels", asked.channels, CHANNELS)
    stack, last_days = windows(prices, asked.lookback, asked.span)
    days = features(log_returns(prices), asked.span)[channels]
    stack = stack[:, channels].to(dtype)
    std, mean = torch.std_mean(days, dim=(1, 2), keepdim=True)
    return History(
        prices, asked.channels, asked.span, stack, last_days, days, mean.to(dtype), std.to(dtype)
    )


def cut(prices: Prices, market: Market) -> Prices:
    """The assets and days that a config asks for, in its order of assets.

    Args:
        prices: the whole history.
        market: the table ``[prices]``.

    Returns:
        A part of it.

    Raises:
        ValueError: an asset is unknown, or no days are left.
    """
    wanted = market.assets or prices.assets
    columns = places("prices.assets", wanted, prices.assets)
    keep = np.ones(len(prices.dates), dtype=bool)
    if market.start is not None:
        keep &= prices.dates >= np.datetime64(market.start)
    if market.end is not None:
        keep &= prices.dates <= np.datetime64(market.end)
    if not keep.any():
        raise ValueError(
            f"prices: expected days between start and end, got none; there are {prices.dates[0]} to "
            f"{prices.dates[-1]}"
        )
    return Prices(prices.values[keep][:, columns], prices.dates[keep], tuple(wanted), prices.source)


def places(where: str, wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    """The places of names among known ones; an unknown one is refused with the nearest."""
    for name in wanted:
        if name not in known:
            raise ValueError(f"{where}: there is no {name!r} in the data; {nearest(name, tuple(known))}")
    return [list(known).index(name) for name in wanted]


def place_of_day(history: History, day: date) -> int:
    """The place of the window that ends on a day."""
    ends = history.prices.dates[history.last_days.numpy()]
    at = int(np.searchsorted(ends, np.datetime64(day)))
    if at == len(ends) or ends[at] != np.datetime64(day):
        if np.datetime64(day) < ends[0]:
            why = f"the first day with {history.lookback + history.span} days behind it is {ends[0]}"
        else:
            why = f"the trading day before it is {ends[at - 1]}"
        raise ValueError(f"question.date: no window ends on {day}; {why}")
    return at
