"""Pruned answers: still hits, minimal, made of entries of the answer and of the reference alone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from tests.grids import F64, targets, x0s
from tests.helpers import NETWORKS, assert_close, assert_same, make_problem, make_x0, params

ATOL = 0.02


def error(problem: fe.Problem, x: Tensor) -> float:
    _, weights = problem.objective(x, problem.args)
    return float((weights - problem.args["target"]).abs().max())


def reachable(network: Any, **changes: Any) -> fe.Problem:
    """A question whose target is what the network holds elsewhere, near the start."""
    problem = make_problem(network, **changes)
    other = problem.args["x0"] + 0.3 * (make_x0(seed=5) - problem.args["x0"])
    other = torch.where(problem.args["mask"], other, problem.args["x0"])
    _, weights = problem.objective(other, problem.args)
    return replace(problem, args={**problem.args, "target": weights.detach()})


def assert_minimal(problem: fe.Problem, found: fe.Solution, pruned: fe.Solution, atol: float) -> None:
    reference, free = problem.args["reference"], problem.args["mask"]
    assert error(problem, pruned.x) <= atol
    assert_same(pruned.x[~free], found.x[~free])
    for entry in ((pruned.x != reference) & free).nonzero().tolist():
        without = pruned.x.clone()
        without[tuple(entry)] = reference[tuple(entry)]
        assert error(problem, without) > atol, entry
    value, weights = problem.objective(pruned.x, problem.args)
    assert_close(pruned.weights, weights)
    assert_close(pruned.loss, value)


@pytest.mark.parametrize("name", params(NETWORKS)[::5])
def test_no_entry_that_is_left_can_be_put_back(name: str) -> None:
    problem = fe.freeze(reachable(name))
    atol = 0.3 * error(problem, problem.args["x0"])
    found = fe.solve(problem, fe.adam(lr=0.02), max_steps=300, atol=0.5 * atol)
    assert found.hit
    pruned = fe.prune(found, problem, atol=atol)
    assert_minimal(problem, found, pruned, atol)
    assert (pruned.x != problem.args["reference"]).sum() < (found.x != problem.args["reference"]).sum()
    for name in ("history", "num_steps"):
        assert_same(getattr(pruned, name), getattr(found, name))
    assert pruned.status is found.status


def apply_first(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Weights that see the first entry alone."""
    first = torch.sigmoid(x.flatten()[0])
    return torch.stack([first, 1 - first])


def test_an_entry_that_alone_matters_alone_stays_changed() -> None:
    x0 = torch.zeros(1, 3, 2, dtype=F64)
    problem = fe.problem((apply_first, {}), torch.tensor([0.7, 0.3], dtype=F64), x0)
    found = fe.solve(problem, fe.sgd(lr=5.0), max_steps=500, atol=1e-6)
    wandered = replace(found, x=found.x + torch.arange(6.0, dtype=F64).view(1, 3, 2))
    pruned = fe.prune(wandered, problem, atol=1e-5)
    assert pruned.x.count_nonzero() == 1
    assert_same(pruned.x[0, 0, 0], found.x[0, 0, 0])


def test_rows_are_pruned_as_if_alone_and_misses_stay() -> None:
    grid = fe.vmap(make_problem(), x0=x0s(3), target=targets(3))
    grid = fe.vmap(grid, seed=torch.arange(2))
    found = fe.solve(grid, fe.sgd(lr=20.0, momentum=0.9), max_steps=60, atol=ATOL)
    x = found.x.clone()
    x[1, 2] = torch.nan
    found = replace(found, x=x)
    pruned = fe.prune(found, grid, atol=ATOL)
    assert found.hit.any()
    assert_same(pruned.x[1, 2], x[1, 2])
    for i in range(2):
        for j in range(3):
            alone = fe.prune(found[i, j], grid[i, j], atol=ATOL)
            assert_same(alone.x == grid.args["reference"], pruned.x[i, j] == grid.args["reference"])
            assert_close(alone.x.nan_to_num(), pruned.x[i, j].nan_to_num(), rtol=1e-6, atol=1e-8)
    loose = fe.prune(found, grid, atol=1e-12)
    assert torch.equal(loose.x.nan_to_num(), found.x.nan_to_num())


def test_fewer_entries_remain_where_their_values_move() -> None:
    # 12 entries of one sum: all moved a little, though one that moves enough is sufficient.
    def apply_sum(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.softmax(torch.stack([x.sum(), x.new_zeros(())]), -1)

    x0 = torch.zeros(1, 6, 2, dtype=F64)
    problem = fe.problem((apply_sum, {}), torch.tensor([0.7, 0.3], dtype=F64), x0)
    found = fe.solve(problem, fe.levenberg_marquardt(), atol=1e-6)
    assert found.x.count_nonzero() == 12
    pruned = fe.prune(found, problem, atol=1e-3)
    assert pruned.x.count_nonzero() <= 3
    assert pruned.error <= 1e-3
    tight = fe.prune(found, fe.clip(-0.3, 0.3)(problem), atol=1e-3)
    assert 3 <= tight.x.count_nonzero() < 6
    assert (tight.x.abs() <= 0.3).all()


def test_masked_entries_and_references_out_of_bounds_stay_as_they_are() -> None:
    problem = fe.zero_masked(reachable("mlp_tanh"))
    found = fe.solve(problem, fe.adam(lr=0.02), max_steps=400, atol=ATOL)
    pruned = fe.prune(found, problem, atol=1.0)  # anything goes
    mask = problem.args["mask"]
    assert torch.equal(pruned.x, torch.where(mask, problem.args["reference"], 0.0))

    bounded = fe.clip(-4.0, 4.0)(make_problem(reference=make_x0() + 10.0))
    found = fe.solve(bounded, max_steps=3)
    assert torch.equal(fe.prune(found, bounded, atol=1.0).x, found.x)


def test_nothing_of_the_callers_changes() -> None:
    problem = fe.freeze(reachable("mlp_tanh"))
    found = fe.solve(problem, fe.adam(lr=0.02), max_steps=300, atol=ATOL)
    before = found.x.clone(), found.weights.clone(), found.loss.clone()
    fe.prune(found, problem, atol=ATOL)
    assert all(map(torch.equal, before, (found.x, found.weights, found.loss)))


def test_a_grid_of_no_rows_is_pruned_to_itself() -> None:
    grid = fe.vmap(make_problem(), x0=x0s(2))[:0]
    assert fe.prune(fe.solve(grid, max_steps=1), grid).x.shape == (0, 2, 6, 5)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"solution": 3}, TypeError, "prune: solution must be a Solution, got int"),
        ({"problem": None}, TypeError, "prune: problem must be a Problem, got NoneType"),
        ({"atol": -1.0}, ValueError, "prune: atol must be finite and >= 0, got -1.0"),
        ({"atol": None}, TypeError, "prune: atol must be a number >= 0, got NoneType"),
    ],
)
def test_other_things_are_refused(change: dict[str, Any], kind: Any, message: str) -> None:
    problem = make_problem()
    arguments = {"solution": fe.solve(problem, max_steps=1), "problem": problem, **change}
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        fe.prune(**arguments)


def test_rows_must_be_those_of_the_problem() -> None:
    problem = make_problem()
    with pytest.raises(ValueError, match=re.escape("the rows of the problem (2,), got ()")):
        fe.prune(fe.solve(problem, max_steps=1), fe.vmap(problem, x0=x0s(2)))
