"""The shared setting: real exchange rates, a network trained on them, and the last window."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.markets.allocators import ConvAllocator, train_allocator
from funcexplain.markets.features import CHANNELS, forward_returns, windows
from funcexplain.markets.prices import Prices, load

LOOKBACK, SPAN, HORIZON = 20, 20, 5  # days


class Setting(NamedTuple):
    """A trained network, its prices and windows; ``x0`` is the last window."""

    network: ConvAllocator
    prices: Prices
    windows: Tensor
    x0: Tensor
    channels: tuple[str, ...] = CHANNELS


def make_setting(*, quick: bool = False, seed: int = 0) -> Setting:
    """Load the prices and train the demo's network on them."""
    torch.set_num_threads(1)
    prices = load("ecb")
    stack, last_days = windows(prices, LOOKBACK, SPAN)
    stack = stack.float()
    future = forward_returns(prices, last_days[:-HORIZON], HORIZON)
    steps = 20 if quick else 100
    network = train_allocator(stack[:-HORIZON], future, seed=seed, num_steps=steps)
    return Setting(network, prices, stack, stack[-1].clone())
