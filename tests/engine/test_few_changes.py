"""The closest hit in the sum of changes: linear programs, groups, exact zeros, rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

import funcexplain as fe
from tests.helpers import assert_close

F64 = torch.float64
SHAPE = (2, 3, 4)
LOWER = 0.2


def make_rows(seed: int) -> Tensor:
    return torch.randn(4, 24, generator=torch.Generator().manual_seed(seed), dtype=F64) / 5.0


def ask(seed: int, *transforms: Any) -> fe.Problem:
    """Weights linear in the window: at least ``LOWER`` of two assets."""
    rows = make_rows(seed)
    goals = fe.targets.all_of(fe.targets.at_least(0, LOWER), fe.targets.at_least(1, LOWER))
    network: Any = (lambda params, x: rows @ x.flatten(), {})
    problem = fe.problem(network, goals, torch.zeros(SHAPE, dtype=F64), leverage=float("inf"))
    return fe.pipe(problem, *transforms)


def by_linear_program(rows: Tensor, atol: float = 1e-3) -> float:
    """The smallest sum of changes."""
    jacobian = rows[:2].numpy()
    found = linprog(
        np.ones(48), np.hstack([-jacobian, jacobian]), np.full(2, atol - LOWER), bounds=(0, None)
    )
    return float(found.fun)


@pytest.mark.parametrize("seed", range(3))
def test_the_sum_of_changes_is_that_of_a_linear_program(seed: int) -> None:
    near = fe.closest(ask(seed), norm="l1")
    assert near.hit
    assert near.x.abs().sum() <= 1.05 * by_linear_program(make_rows(seed))
    assert near.x.count_nonzero() <= 4
    plain = fe.closest(ask(seed))
    assert near.x.abs().sum() < plain.x.abs().sum()
    assert plain.x.count_nonzero() == 24


def test_zeros_are_exact_in_other_units_and_within_bounds() -> None:
    x0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=F64)
    rows = make_rows(1)
    goals = fe.targets.at_least(0, float(rows[0] @ x0.flatten()) + LOWER)
    problem = fe.problem((lambda p, x: rows @ x.flatten(), {}), goals, x0, leverage=float("inf"))
    free = fe.closest(fe.standardize(0.3, 0.7)(problem), norm="l1")
    assert 1 <= (free.x != x0).sum() <= 3
    half = 0.4 * (free.x - x0).abs().max()
    near = fe.closest(fe.pipe(problem, fe.clip(x0 - half, x0 + half)), norm="l1")
    assert near.hit
    assert ((near.x - x0).abs() <= half * (1 + 1e-12)).all()
    assert 2 <= (near.x != x0).sum() <= 6


@pytest.mark.parametrize(
    ("groups", "axis"), [("assets", 2), ("days", 1), ("periods", 1), ("channels", 0), ("numbers", 2)]
)
def test_few_groups_change(groups: str, axis: int) -> None:
    numbers: Any = groups
    if groups == "numbers":
        numbers = torch.arange(4).expand(SHAPE)
    near = fe.closest(ask(0), norm="l1", groups=numbers)
    assert near.hit
    changed = near.x.movedim(axis, 0).flatten(1).abs().amax(1) > 0
    assert 1 <= changed.sum() < max(SHAPE[axis], 3)


def test_rows_are_as_if_alone_and_misses_stay() -> None:
    problem = ask(0)
    goals = [fe.targets.at_least(0, 0.1), fe.targets.at_most(2, -0.2)]
    grid = fe.vmap(problem, target=goals)
    together = fe.closest(grid, norm="l1")
    for row in range(2):
        assert_close(together[row].x, fe.closest(grid[row], norm="l1").x, rtol=1e-5, atol=1e-7)
    assert not fe.closest(grid, norm="l1", max_steps=0).hit.any()


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"norm": "l0"}, ValueError, "closest: norm must be 'l1' or 'l2', got 'l0'"),
        ({"groups": "assets"}, ValueError, "closest: groups have an effect with norm='l1' alone"),
        ({"norm": "l1", "groups": "sectors"}, ValueError, "closest: groups must be one of"),
        ({"norm": "l1", "groups": torch.zeros(SHAPE)}, TypeError, "closest: groups must hold integers"),
        ({"norm": "l1", "groups": torch.arange(4)}, ValueError, "in the shape of the search space"),
    ],
)
def test_other_settings_are_refused(settings: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        fe.closest(ask(0), **settings)
