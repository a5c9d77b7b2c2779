"""A price history in windows: features, dates, and the scale of each channel.

Everything about a date is computed from the prices up to that date.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import torch
from torch import Tensor

from funcexplain.commands.config import NetworkConfig
from funcexplain.commands.entries import suggest
from funcexplain.commands.features import Compute, Windows, make_windows
from funcexplain.commands.prices import PricesConfig
from funcexplain.commands.sections import FeaturesConfig
from funcexplain.markets.features import CHANNELS, features, log_returns
from funcexplain.markets.periods import period_of, unit_of
from funcexplain.markets.prices import Prices, load


@dataclass(frozen=True, eq=False)
class History:
    """A price history in windows.

    Attributes:
        prices: the prices of the selected assets and days.
        channels: names of the ``C`` channels.
        span: number of returns that the first day of a window needs, including its own.
        windows: all windows ``(N, C, L, A)``, in the network's dtype.
        last_days: rows of the prices at which they end, int64, ``(N,)``.
        days: channels of every day, float64, ``(C, days, A)``.
        compute: from the returns behind a window, ``(L + span - 1, A)``, to the window; None for windows
            from a file.
    """

    prices: Prices
    channels: tuple[str, ...]
    span: int
    windows: Tensor
    last_days: Tensor
    days: Tensor
    compute: Compute | None

    @property
    def lookback(self) -> int:
        """Dates per window, ``L``."""
        return self.windows.shape[2]

    @property
    def has_returns(self) -> bool:
        """Whether the first channel holds returns, from which measures against history are computed."""
        returns = log_returns(self.prices)[-self.days.shape[1] :].to(self.days)
        return returns.shape == self.days[0].shape and torch.allclose(self.days[0], returns)

    @property
    def is_standard(self) -> bool:
        """Whether windows have the library's three channels, from which returns can be recovered."""
        if self.channels != CHANNELS or self.span < 2:
            return False
        own = features(log_returns(self.prices), self.span)[:, -self.days.shape[1] :]
        return torch.allclose(self.days, own.to(self.days))

    @property
    def period(self) -> str:
        """The period of the prices, by which texts count."""
        return period_of(self.prices.dates)

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
        return self.days[:, : range(len(self.windows))[position] + self.lookback]

    def scale(self, position: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel up to then, ``(C, 1, 1)``, as the network's."""
        std, mean = torch.std_mean(self.until(position), dim=(1, 2), keepdim=True)
        return mean.to(self.windows.dtype), std.to(self.windows.dtype)

    def prices_until(self, position: int) -> Prices:
        """The prices up to the last day of a window."""
        end = int(self.last_days[position]) + 1
        return replace(self.prices, values=self.prices.values[:end], dates=self.prices.dates[:end])


def load_history(
    market: PricesConfig,
    config: FeaturesConfig,
    dtype: torch.dtype = torch.float32,
    network: NetworkConfig | None = None,
) -> History:
    """Load the prices of a config and compute their windows in a dtype.

    Args:
        market: the prices.
        config: the features.
        dtype: of the windows.
        network: where the function of the features is looked for; None refuses to run one.

    Example:
        >>> market = PricesConfig("ecb", assets=("EUR", "JPY"))
        >>> load_history(market, FeaturesConfig(lookback=5)).windows.shape[1:]
        torch.Size([3, 5, 2])
    """
    prices = load_prices(market)
    if config.factory is not None and network is None:
        raise ValueError(
            "features.factory: computes the windows, which runs code that the config names; if you "
            "trust its author, add --trust-config"
        )
    return make_history(prices, make_windows(prices, config, network or NetworkConfig()), dtype)


def make_history(prices: Prices, made: Windows, dtype: torch.dtype) -> History:
    """A history of the windows of the last days of some prices."""
    stack = made.stack
    last_days = torch.arange(len(prices.dates) - len(stack), len(prices.dates))
    # Days of the first window, and the last day of each later one.
    days = torch.cat([stack[0], stack[1:, :, -1].movedim(0, 1)], dim=1)
    return History(prices, made.channels, made.span, stack.to(dtype), last_days, days, made.compute)


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
    unit = unit_of(history.period)
    if at < 0:
        raise ValueError(
            f"{where}: no window ends on {day}; the first {unit} with "
            f"{history.lookback + history.span} {unit}s behind it is {ends[0]}"
        )
    if ends[at].astype(wanted.dtype) != wanted:
        raise ValueError(
            f"{where}: no window ends on {day}; the {history.period} before it is {ends[at]}"
        )
    return at
