"""Rows end each at a step of its own: the pool's turn over, histories, ``keep`` and ``patience``."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch

import funcexplain as fe
from tests.grids import (
    F64,
    assert_padded,
    assert_rows_equal_alone,
    numbers,
    targets,
    without_nan,
    x0s,
)
from tests.helpers import assert_close, assert_same, make_problem, make_target, make_x0

SETTINGS: dict[str, Any] = {"max_steps": 40, "atol": 0.05, "patience": 8, "rtol": 0.05}


def method() -> fe.Optimizer:
    return fe.sgd(lr=20.0, momentum=0.9)


def mixture() -> fe.Problem:
    """Rows that hit sooner and later, stall, use up their steps, and are not finite, in turn."""
    problem = fe.penalize(fe.penalties.l2, strength=0.0, name="proximity")(make_problem())
    starts = x0s(7)
    starts[2] = math.nan
    goals = torch.cat([targets(2), fe.one_hot_targets(5, dtype=F64)[:1]])
    grid = fe.vmap(fe.vmap(problem, target=goals), x0=starts)
    return fe.vmap(grid, proximity=torch.tensor([0.0, 0.5], dtype=F64))


@cache
def whole(**changes: Any) -> fe.Solution:
    return fe.solve(mixture(), method(), **{**SETTINGS, **changes})


@cache
def solved_alone(row: tuple[int, ...]) -> fe.Solution:
    return fe.solve(mixture()[row], method(), **SETTINGS)


def test_the_mixture_is_one() -> None:
    found = whole()
    for status in (fe.Status.HIT, fe.Status.STALLED, fe.Status.MAX_STEPS, fe.Status.NONFINITE):
        assert int(torch.as_tensor(found.status == status).sum()) >= 3
    assert len(found.num_steps.unique()) >= 10


@pytest.mark.parametrize("chunk_size", [1, 5, 40])
def test_rows_that_end_at_different_steps_are_those_solved_alone(chunk_size: Any) -> None:
    found = fe.solve(mixture(), method(), chunk_size=chunk_size, **SETTINGS)
    assert_padded(found)
    # The path to here multiplies rounding by a little at each of its steps.
    assert_close(without_nan(found), without_nan(whole()), rtol=1e-9)
    if chunk_size == 5:
        assert_rows_equal_alone(mixture(), method, chunk_size=5, within=(1e-9, 1e-12), **SETTINGS)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_kept_point_is_the_rows_own(keep: Any) -> None:
    grid = fe.vmap(make_problem(), x0=x0s(6))
    wild = fe.solve(grid, fe.adam(lr=5.0), max_steps=40, keep=keep, chunk_size=4)
    evaluated, last = wild.history, wild.loss
    if keep == "best":
        last = fe.solve(grid, fe.adam(lr=5.0), max_steps=40).loss
        least = torch.cat([evaluated, last[:, None]], dim=1).amin(1)
        assert_close(wild.loss, least, rtol=1e-6)
        assert (wild.loss < last).any()
    for row in range(6):
        problem = grid[row]
        _, (loss, weights) = problem.evaluate(wild.x[row], problem.args)
        assert_close((wild.loss[row], wild.weights[row]), (loss, weights), rtol=1e-9)


@pytest.mark.parametrize("every", [2, 7, 1000])
def test_a_history_of_every_kth_step_is_part_of_the_whole_one(every: int) -> None:
    for chunk_size in (3, None) if every == 7 else (3,):
        found = fe.solve(mixture(), method(), history=every, chunk_size=chunk_size, **SETTINGS)
        full = whole(chunk_size=chunk_size)
        assert_same(found.history, full.history[..., ::every])
        assert_padded(found, every)
        assert_same((found.x, found.loss, found.num_steps), (full.x, full.loss, full.num_steps))
    for row in [(0, 0, 0), (1, 3, 2)]:
        alone = fe.solve(mixture()[row], method(), history=every, **SETTINGS)
        assert_close(found[row].history, alone.history, rtol=1e-9)
        assert_same(alone.history, solved_alone(row).history[::every])


def test_no_history_is_empty() -> None:
    found = fe.solve(mixture(), method(), history=False, **SETTINGS)
    assert found.history.shape == (2, 7, 3, 0)
    assert_same((found.x, found.status), (whole().x, whole().status))
    alone = fe.solve(mixture()[0, 0, 0], method(), history=False, **SETTINGS)
    assert alone.history.shape == (0,)
    assert_close(without_nan(found[0, 0, 0]), without_nan(alone), rtol=1e-9)


@pytest.mark.parametrize("max_steps", [0, 1])
def test_the_least_budgets(max_steps: int) -> None:
    grid = fe.vmap(make_problem(), x0=x0s(5))
    found = assert_rows_equal_alone(grid, method, max_steps=max_steps, chunk_size=2)
    assert found.history.shape == (5, max_steps)
    assert found.num_steps.eq(max_steps).all()


def test_rows_that_hit_at_once_take_no_step() -> None:
    problem = make_problem()
    held = torch.stack([problem.objective(x0, problem.args)[1] for x0 in x0s(3)])
    grid = fe.vmap(problem, x0=x0s(3), target=held)
    found = assert_rows_equal_alone(grid, method, max_steps=5, chunk_size=2, atol=1e-9)
    assert found.hit.all()
    assert found.history.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("atol", [0.1, 0.3, 1e-3])
def test_a_row_at_the_edge_of_atol_ends_as_it_does_alone(atol: float, dtype: torch.dtype) -> None:
    # Both kinds of step must compare in the weights' dtype, to which torch rounds atol.
    def apply(p: Any, x: torch.Tensor) -> torch.Tensor:
        return x[0, 0]

    edge = torch.zeros(2, 6, 5, dtype=dtype)
    edge[0, 0] = atol  # rounded, up or down
    nothing = torch.zeros(5, dtype=dtype)
    grid = fe.vmap(make_problem((apply, {}), dtype=dtype, target=nothing), x0=torch.stack([edge, edge]))
    assert_rows_equal_alone(grid, lambda: fe.sgd(lr=0.0), max_steps=2, atol=atol)


@pytest.mark.parametrize("large", ["gradient", "point"])
def test_large_numbers_are_finite(large: str) -> None:
    # That all entries are finite is read off their sum or norm, which must not overflow before them.
    dtype = torch.float32
    factor = 1e25 if large == "gradient" else 1.0

    def apply(p: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x[0, 0], -1)

    x0 = make_x0(dtype) if large == "gradient" else torch.full((2, 6, 5), 3e37)
    problem = make_problem(
        (apply, {}), dtype=dtype, x0=x0, loss=lambda w, t: factor * fe.losses.mse(w, t)
    )
    for solution in (
        fe.solve(problem, fe.sgd(lr=1e-26), max_steps=3),
        fe.solve(fe.vmap(problem, x0=x0[None]), fe.sgd(lr=1e-26), max_steps=3)[0],
    ):
        assert solution.status is fe.Status.MAX_STEPS


def test_small_gradients_are_not_zero() -> None:
    # Squares vanish in float32 before the gradient does: such a search must not count as stalled.
    dtype = torch.float32

    def faint(weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 1e-25 * fe.losses.mse(weights, target)

    problem = make_problem(dtype=dtype, loss=faint)
    init, step = fe.make_step(problem, fe.sgd(lr=1.0), atol=0.0)
    assert step(init(problem.args), problem.args)[1].grad_norm > 0
    alone = fe.solve(problem, fe.sgd(lr=1.0), max_steps=3)
    rows = fe.solve(fe.vmap(problem, x0=problem.args["x0"][None]), fe.sgd(lr=1.0), max_steps=3)
    assert alone.status is rows[0].status is fe.Status.MAX_STEPS


# --- patience, told again in plain Python ---------------------------------------------------------


def told_again(values: list[float], patience: int, rtol: float, max_steps: int) -> tuple[int, fe.Status]:
    """When a search ends that evaluates these values in turn and never hits."""
    least, waited = math.inf, 0
    for step, value in enumerate(values[: max_steps + 1]):
        if step == 0 or value < least - rtol * abs(least):
            least, waited = value, 0
        else:
            waited += 1
        if waited >= patience:
            return step, fe.Status.STALLED
    return max_steps, fe.Status.MAX_STEPS


@cache
def without_patience(offset: float) -> tuple[fe.Problem, fe.Solution]:
    """Searches whose values rise and fall: Adam overshoots at this rate."""

    # With the offset the value falls through zero, where "of itself" needs its absolute value.
    def shifted(weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 10 * fe.losses.mse(weights, target) + offset

    grid = fe.vmap(make_problem(loss=shifted), x0=x0s(4), target=make_target().flip(0).expand(4, 5))
    return grid, fe.solve(grid, fe.adam(lr=0.5), max_steps=40)


@pytest.mark.parametrize(
    ("patience", "rtol", "offset"),
    [
        (patience, rtol, (0.0, -0.3)[(turn + place) % 2])
        for turn, patience in enumerate([1, 3, 10, 100])
        for place, rtol in enumerate([0.0, 0.01, 0.2])
    ],
)
def test_patience_ends_a_search_that_no_longer_falls(patience: int, rtol: float, offset: float) -> None:
    grid, free = without_patience(offset)
    settings: dict[str, Any] = {"max_steps": 40, "patience": patience, "rtol": rtol}
    found = fe.solve(grid, fe.adam(lr=0.5), chunk_size=3, **settings)
    alone = fe.solve(grid[0], fe.adam(lr=0.5), **settings)
    for row in range(4):
        values = [*free[row].history.tolist(), float(free[row].loss)]
        steps, status = told_again(values, patience, rtol, 40)
        for answer in (alone, found[row]) if row == 0 else (found[row],):
            assert (int(answer.num_steps), answer.status) == (steps, status)
            assert_close(answer.history, free[row].history[:steps], rtol=1e-6)
            assert_close(answer.loss, torch.tensor(values[steps], dtype=F64), rtol=1e-6)


def test_patience_holds_for_the_value_that_is_minimized() -> None:
    # The loss falls, but the strength of the penalty makes it nothing.
    def away(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return 1 + 0 * (x - reference).sum()

    grid = fe.vmap(
        fe.penalize(away, strength=0.0, name="toll")(make_problem()), toll=numbers(2, F64, 0.0, 1e4)
    )
    found = fe.solve(grid, method(), max_steps=30, patience=4, rtol=1e-4)
    assert found.status.tolist() == [fe.Status.MAX_STEPS, fe.Status.STALLED]  # type: ignore[union-attr]
    assert found.num_steps.tolist() == [30, 4]
