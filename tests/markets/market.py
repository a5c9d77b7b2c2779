"""A small synthetic market for float64 laws: correlated returns, their windows, and a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.markets.features import features

F64 = torch.float64
ASSETS, SPAN = 4, 5
# A window determines all returns behind it only if the lookback exceeds the span.
LOOKBACKS = (8, 3)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixing() -> Tensor:
    """Factor from independent shocks to correlated ones, of a few percent a day."""
    mix = torch.randn(ASSETS, ASSETS, dtype=F64, generator=generator(7)) + 2 * torch.ones(ASSETS, ASSETS)
    return 0.01 * mix


def covariance() -> Tensor:
    return mixing() @ mixing().mT + 1e-5 * torch.eye(ASSETS, dtype=F64)


def made_returns(days: int, seed: int = 0) -> Tensor:
    return torch.randn(days, ASSETS, dtype=F64, generator=generator(seed)) @ mixing().mT


def made_prices(days: int = 60, seed: int = 0) -> Tensor:
    return 100.0 * made_returns(days, seed).cumsum(0).exp()


def base(lookback: int, seed: int = 0) -> Tensor:
    return made_returns(lookback + SPAN - 1, seed)


def network(lookback: int, dtype: torch.dtype = F64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = nn.Linear(3 * lookback * ASSETS, 16)
        last = nn.Linear(16, ASSETS)
    with torch.no_grad():
        first.weight *= 20.0  # features are a few percent
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), last, nn.Softmax(-1)).to(dtype)


def target(dtype: torch.dtype = F64) -> Tensor:
    return torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=dtype)


def question(lookback: int, dtype: torch.dtype = F64, *, seed: int = 0, **settings: Any) -> fe.Problem:
    window = features(base(lookback, seed), SPAN).to(dtype)
    net = network(lookback, dtype)
    return fe.problem(net, target(dtype), window, loss=fe.losses.kl, **settings)


def scenario_problem(
    lookback: int, dtype: torch.dtype = F64, *, free: Tensor | None = None, **settings: Any
) -> fe.Problem:
    transform = fe.scenarios.scenario(base(lookback).to(dtype), covariance().to(dtype), free=free)
    return transform(question(lookback, dtype, **settings))
