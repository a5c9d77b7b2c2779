"""Derivatives of the closest answer: closed forms, differences of `closest`, and a long run's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import funcexplain as fe
from tests.engine.test_reach import linear
from tests.helpers import (
    ASSETS,
    SHAPE,
    assert_close,
    make_network,
    make_problem,
    make_target,
    make_x0,
)

TIGHT = 1e-7
MESH = 1e-3


def question(name: str = "mlp_tanh", more: float = 0.0) -> fe.Problem:
    network = make_network(name).eval()
    with torch.no_grad():
        today = float(network(make_x0()[None])[0, 0])
    return fe.problem(network, fe.targets.at_least(0, today + 0.1 + more), make_x0())


def moved(problem: fe.Problem, change: Any, by: float) -> fe.Problem:
    params = {name: own + by * change[name] for name, own in problem.args["params"].items()}
    return replace(problem, args={**problem.args, "params": params})


def change_of(problem: fe.Problem) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.1 * torch.randn(own.shape, dtype=own.dtype, generator=generator)
        for name, own in problem.args["params"].items()
    }


def closest(problem: fe.Problem) -> fe.Solution:
    solution = fe.closest(problem, refinements=200, atol=TIGHT)
    assert solution.status == fe.Status.CLOSEST
    return solution


def exact(problem: fe.Problem) -> Tensor:
    """The closest window of one goal, where `closest` stops near, as scipy finds it."""
    optimize = pytest.importorskip("scipy.optimize")
    reference = problem.args["reference"].flatten().numpy()

    def above(x: Tensor) -> Tensor:
        _, weights = problem.objective(x.view(SHAPE), problem.args)
        return weights[0] - problem.args["target"][0, -2]

    bound = {
        "type": "ineq",
        "fun": lambda x: float(above(torch.from_numpy(x))),
        "jac": lambda x: torch.func.grad(above)(torch.from_numpy(x)).numpy(),
    }
    found = optimize.minimize(
        lambda x: (0.5 * np.square(x - reference).sum(), x - reference),
        closest(problem).x.flatten().numpy(),
        jac=True,
        method="SLSQP",
        constraints=[bound],
        options={"ftol": 1e-14, "maxiter": 200},
    )
    return torch.from_numpy(found.x).view(SHAPE)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_linear_network_has_them_in_closed_form() -> None:
    network, x0 = linear(), make_x0()
    with torch.no_grad():
        today = network(x0[None])[0, 1]
    p = fe.problem(network, fe.targets.at_least(1, float(today) + 3.0), x0, leverage=100.0)
    change = change_of(p)
    found = fe.sensitivity(closest(p), p, params=change, atol=TIGHT)
    row = network[1].weight[1].detach()
    assert_close(found.target, (row / row.square().sum()).view(1, *SHAPE), rtol=1e-6)

    def answer(by: Tensor) -> Tensor:
        own = row + by * change["1.weight"][1]
        missing = today + 3.0 - own @ x0.flatten() - by * change["1.bias"][1]
        return missing * own / own.square().sum()

    expected = torch.func.jvp(answer, (torch.zeros((), dtype=row.dtype),), (row.new_ones(()),))[1]
    assert found.params is not None
    assert_close(found.params.flatten(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["mlp_tanh", "conv_no_norm"])
def test_they_equal_differences_of_closest(name: str) -> None:
    p = question(name)
    change = change_of(p)
    found = fe.sensitivity(closest(p), p, params=change, atol=TIGHT)
    ends = [exact(question(name, by)) for by in (MESH, -MESH)]
    assert distance(found.target[0], (ends[0] - ends[1]) / (2 * MESH)) < 0.01
    ends = [exact(moved(p, change, by)) for by in (MESH, -MESH)]
    assert found.params is not None
    assert distance(found.params, (ends[0] - ends[1]) / (2 * MESH)) < 0.01


def test_they_equal_derivatives_of_a_long_run() -> None:
    p = question()
    change = change_of(p)
    found = fe.sensitivity(closest(p), p, params=change, atol=TIGHT)
    steered = fe.penalize(fe.penalties.l2, strength=1e-5)(p)
    init, step = fe.make_step(steered, fe.levenberg_marquardt())
    (goal,) = p.args["target"]

    def answer(more: Tensor, by: Tensor) -> Tensor:
        target = torch.stack([*goal[:-2], goal[-2] + more, goal[-1]])[None]
        args = {**moved(steered, change, by).args, "target": target}  # type: ignore[arg-type]
        return fe.run(init, step, args, num_steps=15)[0].z

    zero, one = goal.new_zeros(()), goal.new_ones(())
    for pair, expected in (((one, zero), found.target[0]), ((zero, one), found.params)):
        assert expected is not None
        assert distance(torch.func.jvp(answer, (zero, zero), pair)[1], expected) < 1e-3


def test_of_an_allocation_what_sums_to_zero_counts() -> None:
    p = question()
    x = make_x0() + 0.1
    target = p.objective(x, p.args)[1].detach()
    shift = torch.zeros_like(target)
    shift[0], shift[1] = MESH, -MESH

    def asked(target: Tensor) -> fe.Problem:
        return fe.problem(make_network("mlp_tanh").eval(), target, make_x0())

    found = fe.sensitivity(closest(asked(target)), asked(target), atol=TIGHT)
    ends = [closest(asked(target + by)).x for by in (shift, -shift)]
    expected = (ends[0] - ends[1]) / (2 * MESH)
    assert found.params is None
    assert distance(found.target[0] - found.target[1], expected) < 0.05
    assert found.target.sum(0).abs().max() < 1e-6 * found.target.abs().max()


def test_the_window_of_a_scenario_moves_as_its_search_point() -> None:
    p = fe.standardize(0.1, 0.5)(question())
    found = fe.sensitivity(fe.closest(p, refinements=200, atol=TIGHT), p, atol=TIGHT)
    plain = question()
    expected = fe.sensitivity(closest(plain), plain, atol=TIGHT)
    assert_close(found.target, expected.target, rtol=1e-3, atol=1e-5)


def test_rows_misses_and_what_is_met_already() -> None:
    grid = fe.vmap(make_problem(), target=torch.stack([make_target(seed=seed) for seed in range(2)]))
    solution = fe.closest(grid)
    found = fe.sensitivity(solution, grid)
    assert found.target.shape == (2, ASSETS, *SHAPE)
    assert_close(found.target[1], fe.sensitivity(solution[1], grid[1]).target, rtol=1e-6, atol=1e-9)
    assert fe.sensitivity(fe.solve(grid, max_steps=0), grid).target.isnan().all()
    met = question(more=-0.2)
    assert (fe.sensitivity(fe.closest(met), met).target == 0.0).all()


def test_bad_arguments_are_refused() -> None:
    p = make_problem()
    solution = fe.solve(p, max_steps=0)
    with pytest.raises(TypeError, match="sensitivity: solution must be a Solution"):
        fe.sensitivity(3, p)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sensitivity: params must have the structure"):
        fe.sensitivity(solution, p, params={"other": torch.zeros(2)})
    wrong = {name: torch.zeros(2) for name in p.args["params"]}
    with pytest.raises(ValueError, match="sensitivity: params must have the shapes"):
        fe.sensitivity(solution, p, params=wrong)
    with pytest.raises(ValueError, match="sensitivity: atol must be"):
        fe.sensitivity(solution, p, atol=0.0)


def test_a_saddle_point_has_none() -> None:
    class Bowl(torch.nn.Module):
        """The second weight grows along one entry, and with the square of another."""

        def forward(self, x: Tensor) -> Tensor:
            grows = x[:, 0, 0, 0] + 2.0 * x[:, 0, 0, 1].square()
            return torch.stack([-grows, grows], -1)

    zero = torch.zeros(1, 1, 2, dtype=torch.float64)
    problem = fe.problem(Bowl(), fe.targets.at_least(1, 1.0), zero, leverage=100.0)
    start = zero + torch.tensor([1.0, 0.0], dtype=torch.float64)
    saddle = fe.solve(fe.vmap(problem, x0=start[None]), max_steps=0)[0]
    assert fe.sensitivity(saddle, problem).target.isnan().all()
    flat = fe.problem(Bowl(), fe.targets.at_least(1, 0.1), zero, leverage=100.0)
    assert_close(fe.sensitivity(fe.closest(flat), flat).target[0, 0, 0, 0], start[0, 0, 0], rtol=1e-6)
