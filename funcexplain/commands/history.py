"""A price history in windows: features, dates, and the scale of each channel.

Whatever concerns a date is computed from the prices up to that date.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import torch
from torch import Tensor

from funcexplain.commands.config import FeaturesConfig
from funcexplain.commands.entries import suggest
from funcexplain.commands.prices import PricesConfig
from funcexplain.markets.features import CHANNELS, features, log_returns, windows
from funcexplain.markets.prices import Prices, load


@dataclass(frozen=True, eq=False)
class History:
    """A price history in windows.

    Attributes:
        prices: the prices of the selected assets and days.
        channels: names of the ``C`` channels.
        span: days that momentum and volatility look back.
        windows: all windows ``(N, C, L, A)``, in the network's dtype.
        last_days: rows of the prices at which they end, int64, ``(N,)``.
        days: channels of every day, float64, ``(C, days, A)``.
    """

    prices: Prices
    channels: tuple[str, ...]
    span: int
    windows: Tensor
    last_days: Tensor
    days: Tensor

    @property
    def lookback(self) -> int:
        """Dates per window, ``L``."""
        return self.windows.shape[2]

    @property
    def has_returns(self) -> bool:
        """Whether the first channel holds returns, from which measures against history are computed."""
        return self.channels[0] == "return"

    @property
    def ends(self) -> list[str]:
        """The last day of each window."""
        return [str(day) for day in self.prices.dates[self.last_days.numpy()]]

    def window_days(self, position: int, ahead: int = 0) -> list[str]:
        """The days of the window that ends some days after another, oldest first."""
        last = int(self.last_days[position])
        known = [str(day) for day in self.prices.dates[last + 1 - self.lookback : last + 1]]
        return [
            *known[ahead:],
            *(f"+{day}" for day in range(max(1, ahead + 1 - self.lookback), ahead + 1)),
        ]

    def until(self, position: int) -> Tensor:
        """Channels of the days up to the last one of a window, ``(C, days, A)``."""
        return self.days[:, : int(self.last_days[position]) - self.span + 1]

    def scale(self, position: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel up to then, ``(C, 1, 1)``, as the network's."""
        std, mean = torch.std_mean(self.until(position), dim=(1, 2), keepdim=True)
        return mean.to(self.windows.dtype), std.to(self.windows.dtype)

    def prices_until(self, position: int) -> Prices:
        """The prices up to the last day of a window."""
        end = int(self.last_days[position]) + 1
        return replace(self.prices, values=self.prices.values[:end], dates=self.prices.dates[:end])


def load_history(
    market: PricesConfig, config: FeaturesConfig, dtype: torch.dtype = torch.float32
) -> History:
    """Load the prices of a config and compute their windows in a dtype.

    Raises:
        ValueError: if the file is not a price history, a name is unknown, or there are too few days.
        OSError, ImportError: if the file cannot be read, or a package is missing.

    Example:
        >>> market = PricesConfig("ecb", assets=("EUR", "JPY"))
        >>> load_history(market, FeaturesConfig(lookback=5)).windows.shape[1:]
        torch.Size([3, 5, 2])
    """
    prices = load_prices(market)
    channels = positions("features.channels", config.channels, CHANNELS)
    stack, last_days = windows(prices, config.lookback, config.span)
    days = features(log_returns(prices), config.span)[channels]
    stack = stack[:, channels].to(dtype)
    return History(prices, config.channels, config.span, stack, last_days, days)


def load_prices(market: PricesConfig) -> Prices:
    """Load the assets and days of a config; the assets in its order."""
    try:
        return load(
            market.file,
            assets=market.assets,
            start=market.start,
            end=market.end,
            gaps=market.gaps,
            **market.dialect,
        )
    except ValueError as error:
        raise ValueError(re.sub(r"^(load: )?(?=\w+: )", "prices.", str(error))) from None


def positions(where: str, wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    """Positions of names among known ones; raises for an unknown one, with a suggestion."""
    for name in wanted:
        if name not in known:
            raise ValueError(f"{where}: there is no {name!r} in the data; {suggest(name, tuple(known))}")
    return [list(known).index(name) for name in wanted]


def window_ending_on(history: History, day: date, where: str = "question.date") -> int:
    """Position of the last window that ends on a day."""
    wanted = np.datetime64(day)
    ends = history.prices.dates[history.last_days.numpy()]
    at = int(np.searchsorted(ends.astype(wanted.dtype), wanted, side="right")) - 1
    if at < 0:
        raise ValueError(
            f"{where}: no window ends on {day}; the first day with "
            f"{history.lookback + history.span} days behind it is {ends[0]}"
        )
    if ends[at].astype(wanted.dtype) != wanted:
        raise ValueError(f"{where}: no window ends on {day}; the trading day before it is {ends[at]}")
    return at
