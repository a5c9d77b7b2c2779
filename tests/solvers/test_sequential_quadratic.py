"""Sequential quadratic programming, by `closest`: closed forms, SLSQP's optima, multipliers, bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import funcexplain as fe
from tests.helpers import assert_close, assert_same, pairs

F64 = torch.float64
ATOL = 1e-3
KINDS = ("exact", "least", "both")


def smooth(seed: int, size: int = 12, assets: int = 4) -> Any:
    g = torch.Generator().manual_seed(seed)
    first = torch.randn(8, size, generator=g, dtype=F64) / size**0.5
    second = 1.5 * torch.randn(assets, 8, generator=g, dtype=F64)
    return lambda params, x: torch.softmax(second @ torch.tanh(first @ x.flatten()), -1)


def ask(seed: int, *transforms: Any, kind: str = "exact") -> fe.Problem:
    """A question about a smooth network whose target is held nearby."""
    network, g = smooth(seed), torch.Generator().manual_seed(100 + seed)
    x0 = 0.3 * torch.randn(1, 3, 4, generator=g, dtype=F64)
    other = network({}, (x0 + 0.8 * torch.randn(x0.shape, generator=g, dtype=F64)).clamp(-0.8, 0.8))
    change = other - network({}, x0)
    up, down = int(change.argmax()), int(change.argmin())
    more = fe.targets.at_least(up, float(other[up]))
    target = {
        "exact": other,
        "least": more,
        "both": fe.targets.all_of(more, fe.targets.at_most(down, float(other[down]))),
    }[kind]
    return fe.pipe(fe.problem((network, {}), target, x0), *transforms)


def measured(problem: fe.Problem, z: Tensor) -> Tensor:
    args = problem.args
    weights = problem.apply(args["params"], problem.decode(z, args))
    return problem.criterion.compare(weights, args["target"])[0].flatten()


def by_slsqp(problem: fe.Problem, start: Tensor, bounds: Any = None) -> float:
    """The distance of the nearest hit that scipy finds from a start."""
    reference, shape = problem.args["reference"], problem.args["x0"].shape
    lower, upper, _ = (b.flatten().numpy() for b in problem.criterion.bounds(problem.args["target"]))

    def room(z: Any) -> Any:
        values = measured(problem, torch.tensor(z).view(shape)).numpy()
        gaps = np.concatenate([values - lower + ATOL, upper + ATOL - values])
        return gaps[np.isfinite(gaps)]

    r = reference.flatten().numpy()
    found = minimize(
        lambda z: 0.5 * ((z - r) ** 2).sum(),
        start.flatten().numpy(),
        jac=lambda z: z - r,
        constraints={"type": "ineq", "fun": room},
        bounds=bounds,
        method="SLSQP",
        options={"maxiter": 200, "ftol": 1e-12},
    )
    assert room(found.x).min() > -1e-6
    return float(np.linalg.norm(found.x - r))


def residual(problem: fe.Problem, x: Tensor, free: Tensor | None = None) -> float:
    """Gradient of the Lagrangian at a window, relative to the distance, with the best multipliers."""
    change = (x - problem.args["reference"]).flatten()
    jacobian = torch.autograd.functional.jacobian(lambda x: measured(problem, x), x).flatten(1)
    lower, upper, _ = (b.flatten() for b in problem.criterion.bounds(problem.args["target"]))
    values = measured(problem, x)
    active = (values < lower + 0.5 * ATOL) | (values > upper - 0.5 * ATOL)
    free = torch.ones_like(change, dtype=torch.bool) if free is None else free.flatten()
    rows = jacobian[active][:, free]
    multipliers = torch.linalg.lstsq(rows.T, -change[free, None]).solution
    return float((change[free] + (rows.T @ multipliers)[:, 0]).norm() / change.norm())


def ask_linear(rows: Tensor, target: Any, x0: Tensor) -> fe.Problem:
    window = x0.view(1, 1, -1)
    network: Any = (lambda params, x: rows @ x.flatten(), {})
    return fe.problem(network, target, window, leverage=float("inf"))


def test_the_nearest_points_of_a_half_space_a_slab_and_a_box_are_known() -> None:
    rows, x0 = torch.eye(4, dtype=F64), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)
    rows[0] = torch.tensor([3.0, 4.0, 0.0, 0.0])  # of norm 5
    start = float(rows[0] @ x0)
    for target, distance in (
        (fe.targets.at_least(0, start + 10.0), 2.0),
        (fe.targets.at_most(0, start - 5.0), 1.0),
        (fe.targets.all_of(fe.targets.at_least(0, start + 5.0), fe.targets.at_most(0, 99.0)), 1.0),
    ):
        near = fe.closest(ask_linear(rows, target, x0))
        assert near.status is fe.Status.CLOSEST
        change = (near.x.flatten() - x0) @ rows[0] / 5.0
        assert float(change.abs()) == pytest.approx(distance, rel=1e-2)
        assert float((near.x.flatten() - x0).norm()) == pytest.approx(distance, rel=1e-3)
    box = fe.closest(ask_linear(torch.eye(4, dtype=F64), fe.targets.between(-1.0, 1.0), x0))
    assert_close(box.x.flatten(), x0.clamp(-1.0, 1.0), rtol=0.0, atol=1.1e-3)


@pytest.mark.parametrize(("seed", "kind"), pairs(range(4), KINDS))
def test_the_distance_is_that_of_slsqp(seed: int, kind: str) -> None:
    problem = ask(seed, kind=kind)
    near = fe.closest(problem)
    assert near.status is fe.Status.CLOSEST
    distance = float((near.x - problem.args["reference"]).norm())
    assert distance <= 1.005 * by_slsqp(problem, near.x)
    assert residual(problem, near.x) <= 1e-2


@pytest.mark.parametrize(("seed", "kind"), pairs(range(3, 7), KINDS, each=1))
def test_within_bounds_it_is_that_of_slsqp(seed: int, kind: str) -> None:
    free = ask(seed, kind=kind)
    x0 = free.args["reference"]
    half = 0.8 * float((fe.closest(free).x - x0).abs().max())
    lower, upper = x0 - half, x0 + half
    near = fe.closest(fe.clip(lower, upper)(free))
    assert near.status is fe.Status.CLOSEST
    at_bounds = (near.x == lower) | (near.x == upper)
    assert at_bounds.any()
    assert ((near.x >= lower) & (near.x <= upper)).all()
    bounds = list(zip(lower.flatten().tolist(), upper.flatten().tolist(), strict=True))
    assert float((near.x - x0).norm()) <= 1.005 * by_slsqp(free, near.x, bounds)
    assert residual(free, near.x, ~at_bounds) <= 1e-2


def test_frozen_entries_stay_and_the_others_are_optimal() -> None:
    mask = torch.arange(12).view(1, 3, 4) % 3 > 0
    problem = ask(5)
    x0 = problem.args["x0"]
    goal = fe.targets.at_least(0, 0.1 + float(problem.apply({}, x0)[0]))
    frozen = fe.freeze(fe.problem((problem.apply, {}), goal, x0, mask=mask))
    near = fe.closest(frozen)
    assert near.status is fe.Status.CLOSEST
    assert_same(near.x[~mask], x0[~mask])
    assert residual(frozen, near.x, mask) <= 1e-2


def test_rows_of_mixed_targets_are_as_if_alone() -> None:
    goals = [fe.targets.at_least(k, 0.3) for k in range(4)]
    goals += [fe.targets.exit(0), fe.targets.at_most(1, 0.05)]
    problem = ask(1, kind="least")
    grid = fe.vmap(problem, target=goals)
    together = fe.closest(grid)
    for row in range(len(goals)):
        alone = fe.closest(grid[row])
        assert_close(together[row].x, alone.x, rtol=1e-6, atol=1e-8)
        assert together[row].status is alone.status
        assert together.num_steps[row] == alone.num_steps


@pytest.mark.parametrize(
    "target",
    [
        fe.targets.at_least(0, 0.3),
        fe.targets.at_most(1, 0.1),
        fe.targets.between(0.1, 0.6),
        fe.targets.top(2),
        fe.targets.group([0, 1], at_least=0.7),
        fe.targets.concentration(at_most=0.3),
        fe.targets.all_of(fe.targets.turnover(0.2), fe.targets.shift(0, 0.05)),
    ],
    ids=repr,
)
def test_every_kind_of_target_is_hit_in_float32(target: Any) -> None:
    network = smooth(2)
    x0 = 0.3 * torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
    near = fe.closest(
        fe.cast(dtype=torch.float32)(
            fe.problem((lambda p, x: network(p, x.double()).to(x), {}), target, x0)
        )
    )
    assert near.hit
    assert near.error <= ATOL


def test_a_goal_that_is_met_moves_nothing() -> None:
    problem = ask(0)
    held = problem.apply({}, problem.args["x0"])
    near = fe.closest(
        fe.problem(
            (problem.apply, {}), fe.targets.at_least(0, float(held[0]) - 0.01), problem.args["x0"]
        )
    )
    assert near.hit
    assert near.num_steps == 0
    assert_same(near.x, problem.args["x0"])


def test_a_target_out_of_reach_is_as_the_first_search_left_it() -> None:
    problem = fe.clip(-0.1, 0.1)(
        fe.problem((smooth(0), {}), fe.targets.at_least(0, 0.9), torch.zeros(1, 3, 4, dtype=F64))
    )
    found = fe.solve(problem, fe.levenberg_marquardt(), atol=ATOL)
    near = fe.closest(problem)
    assert not near.hit
    assert near.status is found.status
    assert_same(near.x, found.x)


def test_a_kink_is_never_called_closest() -> None:
    def kinked(params: Any, x: Tensor) -> Tensor:
        a, b = x.flatten()
        return torch.stack([1.0 - torch.relu(a - 0.2) - torch.relu(0.2 - a) + b, b])

    start = torch.tensor([0.9, 0.1], dtype=F64).view(1, 1, 2)
    problem = fe.problem((kinked, {}), fe.targets.at_least(0, 1.2), start, leverage=float("inf"))
    near = fe.closest(problem)
    assert near.hit
    if near.status is fe.Status.CLOSEST:
        assert residual(problem, near.x) <= 1e-2
