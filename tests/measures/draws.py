"""Exact draws for the laws of their measures: truncated normal along a line, normal across."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

import funcexplain as fe
from funcexplain.engine.draws import solution_of
from funcexplain.engine.event import Event
from funcexplain.solutions.draws import Draws, Mixing
from tests.markets.market import F64, generator

DAYS, ASSETS = 6, 3
BETA = 2.0
DIRECTION = torch.tensor(
    [[0.0, 0, 0], [0, 0, 0], [1, 2, 0], [0, 0, 0], [3, -1, 0], [1, 0, 0]], dtype=F64
)
ALPHA = DIRECTION / DIRECTION.norm()
FREE = torch.ones(DAYS, ASSETS, dtype=torch.bool)
FREE[:2] = FREE[3] = False
FREE[:, 2] = False
BASE = 0.01 * torch.randn(DAYS, ASSETS, dtype=F64, generator=generator(5))
SIGMA = 0.02


def question(*, sides: int = 1, level: float = BETA) -> fe.Problem:
    """A linear network of the shocks: the first weight is their projection, or its size."""

    def apply(params: object, x: Tensor) -> Tensor:
        along = ((x[0] - BASE) / SIGMA * ALPHA).sum()
        return torch.stack([along if sides == 1 else along.abs(), *[along * 0.0] * (ASSETS - 1)])

    problem = fe.problem((apply, {}), fe.targets.at_least(0, level), BASE[None], leverage=float("inf"))
    cov = SIGMA**2 * torch.eye(ASSETS, dtype=F64)
    window = fe.scenarios.scenario(
        BASE, cov, free=FREE, features=lambda r: r[None], inverse=lambda x, r: x[0]
    )
    return window(problem)


def exact_draws(problem: fe.Problem, count: int = 400, *, sides: int = 1, beta: float = BETA) -> Draws:
    """Independent draws at which the projection is at least ``beta``; half of them below -beta."""
    noise = torch.randn(count, DAYS, ASSETS, dtype=F64, generator=generator(1)) * FREE
    chance = torch.rand(count, dtype=F64, generator=generator(2)) * stats.norm.cdf(-beta)
    along = torch.as_tensor(stats.norm.isf(chance.numpy()))
    if sides == 2:
        along[::2] *= -1.0
    across = noise - (noise * ALPHA).sum((1, 2), keepdim=True) * ALPHA
    z, event = across + along[:, None, None] * ALPHA, Event(problem, 1e-9)
    found = solution_of(event, event.free(z), 1e-9, Mixing(0.5, count, 1.0, 1, 1000, 20))
    assert isinstance(found, Draws)
    assert bool(found.hit.all())
    return found
