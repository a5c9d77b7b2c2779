"""The networks and the questions that all frameworks are given: the same numbers, whoever asks.

Four networks of our own, which are written a second time in jax.numpy (`in_jax`), and deepdow's seven.
All map ``(N, 2, 20, 10)`` (channels, days, assets) to allocations ``(N, 10)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CHANNELS, LOOKBACK, ASSETS = 2, 20, 10
WIDTH = CHANNELS * LOOKBACK * ASSETS
HIDDEN, GROUPS, HEADS = 32, 4, 2
LR = 1e-2


class Case(NamedTuple):
    """What is measured: a network by name, a dtype by name, so many problems, steps of a solve."""

    network: str
    dtype: str
    problems: int
    steps: int


class Questions(NamedTuple):
    """Allocations to reach, ``(problems, A)``, and windows to start from, ``(problems, C, L, A)``."""

    targets: NDArray[np.floating[Any]]
    starts: NDArray[np.floating[Any]]


class Mlp(nn.Sequential):
    """Dense layers."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(WIDTH, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, ASSETS),
            nn.Softmax(-1),
        )


class Conv(nn.Module):
    """A convolution over time shared by the assets, between two normalization layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.InstanceNorm2d(CHANNELS), nn.GroupNorm(GROUPS, HIDDEN)
        self.conv = nn.Conv2d(CHANNELS, HIDDEN, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.second(self.conv(self.first(x))))
        return torch.softmax(hidden.mean((1, 2)), -1)


class Lstm(nn.Module):
    """An LSTM over each asset's history, all assets of all samples in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(CHANNELS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        histories = x.permute(0, 3, 2, 1).flatten(0, 1)
        last = self.cell(histories)[0][:, -1]
        return torch.softmax(self.head(last).view(len(x), ASSETS), -1)


class Transformer(nn.Module):
    """One block of attention over the days; a day is described by all channels of all assets."""

    def __init__(self) -> None:
        super().__init__()
        width = CHANNELS * ASSETS
        self.block = nn.TransformerEncoderLayer(width, HEADS, 64, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(width, ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        days = x.permute(0, 2, 1, 3).flatten(2)
        return torch.softmax(self.head(self.block(days).mean(1)), -1)


OWN: dict[str, Callable[[], nn.Module]] = {
    "mlp": Mlp,
    "conv": Conv,
    "lstm": Lstm,
    "transformer": Transformer,
}
DEEPDOW: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "DummyNet": ("DummyNet", (CHANNELS,), {}),
    "MinimalNet": ("MinimalNet", (ASSETS,), {}),
    "LinearNet": ("LinearNet", (CHANNELS, LOOKBACK, ASSETS), {}),
    "KeynesNet-Conv": ("KeynesNet", (CHANNELS,), {"transform_type": "Conv"}),
    "KeynesNet-RNN": ("KeynesNet", (CHANNELS,), {"transform_type": "RNN"}),
    "ThorpNet": ("ThorpNet", (ASSETS,), {}),
    "BachelierNet": ("BachelierNet", (CHANNELS, ASSETS), {}),
}
NETWORKS = (*OWN, *DEEPDOW)


def make_network(name: str, dtype: str) -> nn.Module:
    """A network in eval mode, with the same parameters in every process."""
    torch.manual_seed(0)
    if name in DEEPDOW:
        from deepdow import nn as deepdow_nn

        kind, sizes, settings = DEEPDOW[name]
        network: nn.Module = getattr(deepdow_nn, kind)(*sizes, **settings)
    else:
        network = OWN[name]()
        with torch.no_grad():  # else scales and shifts are ones and zeros, as no trained network's are
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network.to(getattr(torch, dtype)).eval()


def make_questions(case: Case) -> Questions:
    """The questions of a case; those of a smaller case are the first of a larger one."""
    scores = np.exp(np.random.default_rng(0).standard_normal((case.problems, ASSETS)))
    starts = np.random.default_rng(1).standard_normal((case.problems, CHANNELS, LOOKBACK, ASSETS))
    targets = scores / scores.sum(-1, keepdims=True)
    return Questions(targets.astype(case.dtype), starts.astype(case.dtype))
