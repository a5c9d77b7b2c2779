"""Sparse changes: true zeros, the same minimum as a long run of subgradients, in company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import funcexplain as fe
from tests import helpers
from tests.grids import targets, x0s
from tests.helpers import SIZE, assert_close, make_mask, make_problem, make_target, make_x0

F64 = torch.float64


def linear_problem() -> fe.Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 5)).double()
    return fe.problem(network, make_target(), make_x0())


def by_subgradients(problem: fe.Problem, strength: float, num_steps: int) -> float:
    """The least value of loss plus strength times l1, by plain subgradient descent, slowly."""
    x, least = problem.args["x0"].clone(), float("inf")
    for step in range(num_steps):
        x = x.detach().requires_grad_()
        value = problem.objective(x, problem.args)[0]
        value = value + strength * fe.penalties.l1(x, problem.args["reference"])
        least = min(least, float(value.detach()))
        (slope,) = torch.autograd.grad(value, x)
        x = x - 30.0 / (step + 10) ** 0.6 * slope
    return least


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_the_minimum_is_that_of_a_long_run_of_subgradients(strength: float) -> None:
    problem = linear_problem()
    sparse = fe.sparsify(strength)(problem)
    solution = fe.solve(sparse, fe.sgd(lr=4.0, momentum=0.9), max_steps=1000)
    changes = solution.x - problem.args["x0"]
    value = float(solution.loss + strength * changes.abs().mean())
    if strength == 0.1:
        twin = by_subgradients(problem, strength, 1500)
        assert value <= twin + 1e-9
        assert value >= 0.85 * twin  # which a long run only comes near to
    assert 0 < int((changes != 0).sum()) <= 6  # of 60; a linear network needs no more than five
    # The subgradient's conditions: |slope| <= strength / N at zeros, = strength / N elsewhere.
    slope = torch.func.grad(lambda x: problem.objective(x, problem.args)[0])(solution.x)
    bound = strength / SIZE
    assert (slope.abs() <= bound * (1 + 1e-3)).all()
    moved = changes != 0
    torch.testing.assert_close(slope[moved], -bound * changes[moved].sign(), rtol=1e-2, atol=0.0)


def test_a_step_of_gradient_descent_is_soft_thresholding() -> None:
    problem, strength, lr = linear_problem(), 0.3, 0.7
    x0 = problem.args["x0"]
    slope = torch.func.grad(lambda x: problem.objective(x, problem.args)[0])(x0)
    solution = fe.solve(fe.sparsify(strength)(problem), fe.sgd(lr=lr), max_steps=1)
    step = -lr * slope
    expected = step.sign() * (step.abs() - lr * strength / SIZE).clamp_min(0.0)
    torch.testing.assert_close(solution.x - x0, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "method", [fe.adam(lr=0.02), fe.sgd(lr=10.0, momentum=0.5), fe.levenberg_marquardt("weights")]
)
def test_every_method_leaves_true_zeros(method: Any) -> None:
    problem = make_problem(mask=None)
    x0 = problem.args["x0"]
    dense = fe.penalize(fe.penalties.l1, strength=0.02)(problem)
    sparse = fe.sparsify(0.01)(problem)
    assert (fe.solve(dense, fe.adam(lr=0.02), max_steps=100).x == x0).sum() == 0
    solution = fe.solve(sparse, method, max_steps=300)
    assert (solution.x == x0).sum() > 0.3 * x0.numel()
    assert float(solution.loss) < 0.9 * float(problem.objective(x0, problem.args)[0])


def test_zeros_are_exact_behind_units_bounds_and_frozen_entries() -> None:
    mask, x0 = make_mask(), make_x0()
    for transforms in (
        (fe.standardize(0.3, 0.7),),
        (fe.freeze, fe.standardize(0.3, 0.7), fe.clip(-4.0, 4.0)),
        (fe.box(-4.0, 4.0), fe.freeze),
    ):
        problem = fe.pipe(make_problem(mask=mask), *transforms, fe.sparsify(0.05))
        solution = fe.solve(problem, fe.adam(lr=0.05), max_steps=100)
        assert (solution.x == x0).sum() > 20, transforms
        assert (solution.x.abs() <= 4.0).all()
        assert fe.check_gradient(problem, rtol=1e-4).ok
        if fe.freeze in transforms:
            helpers.assert_same(solution.x[~mask], x0[~mask])


def test_strengths_are_mapped_and_rows_are_as_if_alone() -> None:
    problem = fe.sparsify(0.1, name="few")(make_problem())
    strengths = torch.tensor([0.0, 0.02, 0.2], dtype=F64)
    grid = fe.vmap(fe.vmap(problem, few=strengths), x0=x0s(2), reference=x0s(2), target=targets(2))
    solution = fe.solve(grid, fe.adam(lr=0.05), max_steps=60)
    changed = (solution.x != x0s(2)[:, None]).flatten(2).sum(-1)
    assert (changed[:, 0] >= changed[:, 1]).all()
    assert (changed[:, 1] > changed[:, 2]).all()
    for i in range(2):
        for j in range(3):
            alone = fe.solve(grid[i, j], fe.adam(lr=0.05), max_steps=60)
            assert_close(solution[i, j].x, alone.x, rtol=1e-8, atol=1e-10)


def test_costs_follow_a_change_of_variables() -> None:
    problem = fe.pipe(make_problem(), fe.sparsify(0.5), fe.standardize(0.0, 2.0))
    z = torch.rand((2, *make_x0().shape), dtype=F64)
    assert float(problem.extra(z, problem.args)) == pytest.approx(0.5 * 2 * float((2 * z).mean()))
    assert fe.check_gradient(problem).ok


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fe.sparsify(-1.0)(make_problem()), ValueError, "sparsify: strength must be one number"),
        (lambda: fe.sparsify("a")(make_problem()), TypeError, "sparsify: strength must be a number"),  # type: ignore[arg-type]
        (lambda: fe.sparsify(0.1, name="a b"), TypeError, "sparsify: name must be an identifier"),
        (lambda: fe.sparsify(0.1)(fe.sparsify(0.1)(make_problem())), ValueError, "already hold"),
        (lambda: fe.sparsify(0.1)(3), TypeError, "sparsify: problem must be a Problem"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
