"""The closest hit: known answers, never further than the search, rows, goals, trouble."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.grids import targets, x0s
from tests.helpers import (
    NETWORKS,
    SHAPE,
    assert_close,
    assert_same,
    make_mask,
    make_network,
    make_problem,
    make_target,
    make_x0,
    params,
)

F64 = torch.float64


def distance(x: Tensor) -> Tensor:
    return (x - make_x0()).square().flatten(-3).mean(-1)


@pytest.mark.parametrize("name", params(NETWORKS))
def test_it_is_a_hit_no_further_than_the_search_finds(name: str) -> None:
    network, x0 = make_network(name).eval(), make_x0()
    with torch.no_grad():
        held = network(make_x0(seed=9)[None])[0]
    problem = fe.problem(network, held, x0)
    found = fe.solve(problem, fe.levenberg_marquardt(), max_steps=40, atol=1e-3)
    near = fe.closest(problem, max_steps=40)
    assert near.hit
    assert near.error <= 1e-3
    assert distance(near.x) <= distance(found.x) * (1 + 1e-12)
    with torch.no_grad():
        torch.testing.assert_close(network(near.x[None])[0], near.weights)


def test_the_nearest_point_of_a_curve_is_found() -> None:
    # w_0 = |x|**2 - 1 over two entries: all points of a circle hit 0; the nearest to (3, 1) is known.
    def circle(weights: Any, x: Tensor) -> Tensor:
        return torch.stack([x.square().sum() - 1.0, x.new_zeros(())])

    x0 = torch.tensor([3.0, 1.0], dtype=F64).view(1, 1, 2)
    start = torch.tensor([0.2, -1.5], dtype=F64).view(1, 1, 2)
    problem = fe.problem((circle, {}), torch.zeros(2, dtype=F64), start, reference=x0)
    near = fe.closest(problem, atol=1e-6, refinements=200)
    torch.testing.assert_close(near.x, x0 / x0.norm(), rtol=1e-3, atol=1e-3)


def test_a_goal_is_met_and_no_more() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Softmax(-1)).double()
    problem = fe.problem(network, fe.targets.at_least(0, 0.5), torch.zeros(1, 1, 4, dtype=F64))
    greedy = fe.solve(problem, fe.sgd(lr=200.0), max_steps=50, atol=1e-3)
    near = fe.closest(problem, fe.sgd(lr=200.0), max_steps=50)
    assert greedy.weights[0] > 0.6
    assert abs(float(near.weights[0]) - 0.5) <= 1.1e-3


def test_frozen_entries_and_bounds_are_kept() -> None:
    problem = fe.pipe(make_problem(), fe.freeze, fe.standardize(0.1, 0.7), fe.clip(-4.0, 4.0))
    near = fe.closest(problem)
    assert near.hit
    assert_same(near.x[~make_mask()], make_x0()[~make_mask()])
    assert (near.x.abs() <= 4.0).all()


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_rows_are_as_if_alone(chunk_size: int | None) -> None:
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(2), reference=x0s(2)), target=targets(2))
    together = fe.closest(grid, max_steps=30, refinements=8, chunk_size=chunk_size)
    assert together.shape == (2, 2)
    for i in range(2):
        for j in range(2):
            alone = fe.closest(grid[i, j], max_steps=30, refinements=8)
            assert_close(together[i, j].x, alone.x, rtol=1e-6, atol=1e-8)
            assert together[i, j].num_steps == alone.num_steps


def test_rows_that_miss_are_as_the_search_left_them() -> None:
    problem = make_problem()
    starts = torch.stack([make_x0(), torch.full(SHAPE, torch.nan, dtype=F64)])
    grid = fe.vmap(problem, x0=starts)
    near = fe.closest(grid, max_steps=30)
    assert torch.as_tensor(near.status).tolist() == [fe.Status.CLOSEST, fe.Status.NONFINITE]
    missed = fe.closest(problem, max_steps=0)
    assert missed.status is fe.Status.MAX_STEPS
    assert_same(missed.x, make_x0())


def test_nothing_of_the_callers_changes_and_wrong_settings_are_refused() -> None:
    problem = make_problem()
    state = torch.get_rng_state()
    fe.closest(problem, refinements=2)
    assert torch.equal(state, torch.get_rng_state())
    wrong: Any
    for wrong, message in (
        ({"atol": -1.0}, "closest: atol must be"),
        ({"refinements": -1}, "closest: refinements must be"),
        ({"chunk_size": 0}, "closest: chunk_size must be >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fe.closest(problem, **wrong)
    with pytest.raises(TypeError, match="closest: problem must be a Problem"):
        fe.closest(make_target())  # type: ignore[arg-type]
