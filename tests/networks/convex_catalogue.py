"""The four exact allocators with generic programs for each, as the laws over them need it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.networks import convex

ASSETS, CAP = 6, 0.4


class Allocator(NamedTuple):
    """A function, the dimensions that each argument has in one example, and a module of it."""

    function: Callable[..., Tensor]
    dims: tuple[int, ...]
    module: Callable[..., torch.nn.Module]


ALLOCATORS = {
    "sparsemax": Allocator(convex.sparsemax, (1,), convex.Sparsemax),
    "capped_softmax": Allocator(convex.capped_softmax, (1,), convex.CappedSoftmax),
    "markowitz": Allocator(convex.markowitz, (1, 2, 0, 0), convex.Markowitz),
    "risk_budgeting": Allocator(convex.risk_budgeting, (2, 1), convex.RiskBudgeting),
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(name: str, *batch: int, num_assets: int = ASSETS, seed: int = 0) -> list[Tensor]:
    """Arguments of a generic program."""
    root = draw(*batch, num_assets, num_assets, seed=seed) / num_assets**0.5
    scores = 0.5 * draw(*batch, num_assets, seed=seed + 1)
    if name == "markowitz":
        gamma, alpha = draw(*batch, seed=seed + 2).abs() + 0.5, draw(*batch, seed=seed + 3).abs() * 0.1
        return [scores, root, gamma, alpha]
    if name == "risk_budgeting":
        return [root, 0.2 * torch.softmax(scores, -1)]
    return [scores]


def allocate(name: str, cap: float = CAP) -> Callable[..., Tensor]:
    return partial(ALLOCATORS[name].function, max_weight=cap)


def loss(name: str, *arguments: Tensor) -> Tensor:
    """A scalar of one example whose derivatives of all orders see every weight."""
    return (allocate(name)(*arguments) + 0.3).pow(3).mul(torch.arange(1.0, ASSETS + 1.0)).sum(-1)


def every(name: str) -> tuple[int, ...]:
    return tuple(range(len(ALLOCATORS[name].dims)))
