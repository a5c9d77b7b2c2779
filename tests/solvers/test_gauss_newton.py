"""Levenberg-Marquardt: known answers, monotone, bounds and frozen entries, rows, trouble."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.solvers.gauss_newton import LevenbergMarquardt
from tests import helpers
from tests.grids import models, targets, x0s
from tests.helpers import (
    ASSETS,
    NETWORKS,
    SHAPE,
    SIZE,
    TRANSFORMS,
    assert_close,
    make_mask,
    make_network,
    make_problem,
    make_target,
    make_x0,
)

F64 = torch.float64
RESIDUALS: dict[str, LevenbergMarquardt] = {
    name: fe.levenberg_marquardt(name) for name in ("auto", "weights", "sqrt", "log")
}


def linear_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(SIZE, ASSETS)).double()


@pytest.mark.parametrize("residual", ["auto", "weights"])
def test_a_linear_network_is_answered_by_the_least_change(residual: Any) -> None:
    network, x0, target = linear_network(), make_x0(), make_target()
    problem = fe.problem(network, target, x0)
    solution = fe.solve(problem, fe.levenberg_marquardt(residual), max_steps=60, atol=1e-14)
    matrix = network[1].weight.detach()  # type: ignore[index]
    with torch.no_grad():
        change = torch.linalg.pinv(matrix) @ (target - network(x0[None])[0])
    assert solution.hit
    torch.testing.assert_close((solution.x - x0).flatten(), change, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strength", [1e-3, 1.0, 30.0])
def test_a_squared_penalty_on_a_linear_network_is_ridge_regression(strength: float) -> None:
    network, x0, target = linear_network(), make_x0(), make_target()
    units = torch.tensor([[[0.3]], [[2.0]]], dtype=F64)
    problem = fe.pipe(
        fe.problem(network, target, x0 + 1.0, reference=x0),
        fe.penalize(fe.penalties.scaled(fe.penalties.l2, units), strength=strength, name="proximity"),
    )
    solution = fe.solve(problem, fe.levenberg_marquardt("weights"), max_steps=80, atol=0.0)
    matrix = network[1].weight.detach()  # type: ignore[index]
    with torch.no_grad():
        gap = target - network(x0[None])[0]
    weight = (strength / SIZE / units.expand(SHAPE).square()).flatten()
    system = matrix.T @ matrix / ASSETS + weight.diag()
    change = torch.linalg.solve(system, matrix.T @ gap / ASSETS)
    torch.testing.assert_close((solution.x - x0).flatten(), change, rtol=1e-3, atol=1e-6)
    assert solution.status is fe.Status.STALLED  # nowhere better, and no hit


@pytest.mark.parametrize(("name", "residual"), helpers.pairs(NETWORKS, RESIDUALS))
def test_what_is_minimized_never_grows(name: str, residual: str) -> None:
    problem = fe.penalize(fe.penalties.l2, strength=1e-4)(make_problem(name))
    history = fe.solve(problem, RESIDUALS[residual], max_steps=8, atol=1e-8).history
    assert history[-1] < history[0]
    plain = fe.solve(make_problem(name), RESIDUALS[residual], max_steps=8, atol=1e-8).history
    assert (plain.diff() <= 1e-12).all()


@pytest.mark.parametrize("name", helpers.params(NETWORKS))
def test_every_network_is_led_to_what_it_can_hold(name: str) -> None:
    network, x0 = make_network(name).eval(), make_x0()
    with torch.no_grad():
        held = network(make_x0(seed=9)[None])[0]
    solution = fe.solve(fe.problem(network, held, x0), fe.levenberg_marquardt(), max_steps=40, atol=1e-6)
    assert solution.hit, solution.message


@pytest.mark.parametrize("name", helpers.params(TRANSFORMS))
def test_transforms_keep_their_promises(name: str) -> None:
    problem = TRANSFORMS[name](make_problem(mask=make_mask()))
    before = helpers.clone_args(problem.args)
    solution = fe.solve(problem, fe.levenberg_marquardt(), max_steps=80, atol=1e-6, keep="best")
    helpers.assert_same(problem.args, before)
    kept = solution.x[~make_mask()]
    if name == "freeze":
        helpers.assert_same(kept, make_x0()[~make_mask()])
    if name == "zero_masked":
        assert (kept == 0).all()
    if name in ("box", "clip"):
        assert (solution.x.abs() <= 4.0).all()
    # Through sinh the least step in z may be a leap in x, to where the network saturates.
    assert solution.hit or name in ("penalize", "sparsify", "reparametrize")
    assert solution.history[-1] < 0.2 * solution.history[0]
    again = fe.problem(make_network("mlp_tanh"), make_target(), solution.x).objective
    torch.testing.assert_close(
        again(solution.x, problem.args)[1], solution.weights, rtol=1e-9, atol=1e-12
    )


def test_entries_rest_on_their_bounds_and_others_make_up_for_them() -> None:
    def total(params: Any, x: Tensor) -> Tensor:
        return x.sum(dim=(0, 1)) @ torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=F64)

    def asked(lower: float, upper: Any) -> fe.Solution:
        def network(params: Any, x: Tensor) -> Tensor:
            w = total(params, x)
            return torch.cat([w, x.new_zeros(1)])

        target = torch.tensor([2.0, 2.0, 0.0], dtype=F64)
        problem = fe.problem((network, {}), target, torch.zeros(1, 1, 3, dtype=F64))
        return fe.solve(
            fe.clip(lower, upper)(problem), fe.levenberg_marquardt("weights"), max_steps=30, atol=1e-10
        )

    free = asked(-10.0, 10.0)
    assert_close(free.x.flatten(), torch.tensor([2.0, 4.0, 2.0], dtype=F64) / 3, rtol=1e-9)
    bounded = asked(-10.0, torch.tensor([10.0, 0.5, 10.0], dtype=F64))
    assert_close(bounded.x.flatten(), torch.tensor([1.5, 0.5, 1.5], dtype=F64), rtol=1e-9)
    assert bounded.x[0, 0, 1] == 0.5
    assert bounded.hit


def bounded(seed: int, map_output: Any) -> tuple[fe.Problem, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A question in a random box with starts on bounds; of odd seeds, its target is feasible."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=F64)

    assets, lookback = 2 + seed % 5, 1 + seed % 4
    shape = (2, lookback, assets)
    matrix = (draw(assets, 2 * lookback * assets) - 0.5) * 10.0 ** draw(2 * lookback * assets)
    offset, x0 = draw(assets), 2.0 * draw(*shape) - 1.0
    lower = torch.where(draw(*shape) < 0.2, x0, x0 - 0.3 * draw(*shape))
    upper = x0 + 0.3 * draw(*shape) + 1e-3
    inside = lower + (upper - lower) * draw(*shape)

    def apply(params: Any, x: Tensor) -> Tensor:
        return map_output(matrix @ x.flatten() + offset)

    target = apply({}, inside)
    if seed % 2 == 0:
        target = target + (draw(assets) - 0.5) * (0.3, 3.0, 30.0)[seed % 3]
    return fe.problem((apply, {}), target, x0), matrix, offset, target, lower, upper


@pytest.mark.parametrize("seeds", [range(0, 60, 6), range(1, 60, 6), range(2, 60, 6)])
def test_bounded_linear_problems_reach_the_minimum_of_scipy(seeds: range) -> None:
    for seed in seeds:
        problem, matrix, offset, target, lower, upper = bounded(seed, lambda y: y)
        solution = fe.solve(
            fe.clip(lower, upper)(problem), fe.levenberg_marquardt("weights"), max_steps=100, atol=1e-9
        )
        bounds = (lower.flatten().numpy(), upper.flatten().numpy())
        known = lsq_linear(matrix.numpy(), (target - offset).numpy(), bounds, method="bvls", tol=1e-14)
        reached = (solution.weights - target).square().sum()
        assert reached <= 2.0 * known.cost * (1.0 + 1e-6) + 1e-15
        assert solution.status is fe.Status.HIT or solution.status is fe.Status.STALLED
        assert ((solution.x >= lower) & (solution.x <= upper)).all()


@pytest.mark.parametrize(
    ("transform", "map_output"),
    [("clip", torch.tanh), ("units", torch.sigmoid), ("penalty", torch.tanh)],
)
def test_within_bounds_stalled_means_a_projected_gradient_of_zero(
    map_output: Any, transform: str
) -> None:
    stalled = 0
    for seed in range(0, 12, 2):
        problem, *_, lower, upper = bounded(seed, map_output)
        if transform == "units":
            problem = fe.standardize(0.1, 0.7)(problem)
        problem = fe.clip(lower, upper)(problem)
        if transform == "penalty":
            problem = fe.penalize(fe.penalties.l2, strength=0.1)(problem)
        solution = fe.solve(problem, fe.levenberg_marquardt("weights"), max_steps=60, atol=1e-7)

        def value(x: Tensor, problem: fe.Problem = problem) -> Tensor:
            return problem.objective(x, problem.args)[0]

        if solution.status is fe.Status.STALLED:
            gradient = torch.func.grad(value)(solution.x)
            moved = torch.maximum(torch.minimum(solution.x - gradient, upper), lower) - solution.x
            assert moved.abs().max() < 1e-6
            stalled += 1
    assert stalled >= 3


def test_rows_are_solved_as_if_they_were_alone() -> None:
    problem = fe.pipe(
        make_problem(), fe.freeze, fe.clip(-4.0, 4.0), fe.penalize(fe.penalties.l2, strength=1e-4)
    )
    grid = fe.vmap(fe.vmap(problem, x0=x0s(3)), target=targets(2))
    method = fe.levenberg_marquardt()
    settings: Any = {"max_steps": 6, "atol": 1e-6}
    ways: Any = itertools.product(["vmap", "samples"], [None, 2])
    together = [fe.solve(grid, method, rows=rows, chunk_size=size, **settings) for rows, size in ways]
    for row in itertools.product(range(2), range(3)):
        alone = fe.solve(grid[row], method, **settings)
        for found in together:
            assert_close(found[row], alone, rtol=1e-7, atol=1e-9)


def test_rows_whose_steps_are_rejected_are_as_if_alone() -> None:
    grid = fe.vmap(make_problem(make_network("mlp_tanh")), x0=4.0 * x0s(6))
    settings: Any = {"method": fe.levenberg_marquardt(damping=1e-4), "max_steps": 40, "atol": 1e-6}
    together = fe.solve(grid, **settings)
    assert together.num_steps.max() > 12  # as where first steps are too long
    for row in range(6):
        assert_close(fe.solve(grid[row], **settings).z, together.z[row], rtol=0.0, atol=1e-3)


def test_a_step_is_pure_and_mapped_by_torch() -> None:
    problem = make_problem()
    init, step = fe.make_step(problem, fe.levenberg_marquardt(), atol=1e-6)
    grid = fe.vmap(problem, x0=x0s(3))
    expected = fe.solve(grid, fe.levenberg_marquardt(), max_steps=8, atol=1e-6)

    def last(x0: Tensor) -> Tensor:
        return fe.run(init, step, {**problem.args, "x0": x0}, num_steps=9)[0].kept.z

    assert_close(torch.func.vmap(last)(x0s(3)), expected.x, rtol=1e-7, atol=1e-9)


def test_models_of_an_ensemble_and_a_consensus_are_served() -> None:
    problem = fe.vmap(make_problem(), params=models(2))
    each = fe.solve(problem, fe.levenberg_marquardt(), max_steps=30, atol=1e-4)
    both = fe.solve(fe.consensus(problem), fe.levenberg_marquardt(), max_steps=60, atol=1e-3)
    assert each.hit.all(), each.message
    assert both.weights.shape == (2, ASSETS)
    assert both.hit, both.message


def test_goals_are_met() -> None:
    t = fe.targets
    network, x0 = make_network("mlp_tanh"), make_x0()
    asked = (
        t.at_least(0, 0.4),
        t.top(1),
        t.group([0, 1], 0.5),
        t.all_of(t.top(2), t.turnover(0.4), t.concentration(0.4)),
    )
    for target in asked:
        solution = fe.solve(
            fe.problem(network, target, x0), fe.levenberg_marquardt(), max_steps=40, atol=1e-4
        )
        assert solution.hit, (target, solution.message)


def test_what_the_network_cannot_reach_ends_stalled_at_the_nearest_point() -> None:
    class Timid(nn.Module):
        """Holds between a tenth and a third of the first asset."""

        def forward(self, x: Tensor) -> Tensor:
            share = 0.1 + 0.2 * torch.sigmoid(x.mean((1, 2, 3)))[:, None]
            return torch.cat([share, (1 - share).expand(-1, 4) / 4], 1)

    problem = fe.problem(Timid(), fe.targets.at_least(0, 0.5), make_x0())
    solution = fe.solve(problem, fe.levenberg_marquardt(), max_steps=200, atol=1e-3)
    assert solution.status is fe.Status.STALLED
    assert abs(float(solution.error) - 0.2) < 1e-3
    assert solution.message.endswith("It is missed by 0.2.")


def test_trouble_is_a_status_and_other_rows_go_on() -> None:
    def fragile(params: Any, x: Tensor) -> Tensor:
        w = torch.softmax(x.sum((0, 1)), -1)
        return torch.where(x.amax() > 1e3, torch.nan, w)

    problem = fe.problem((fragile, {}), make_target(), make_x0())
    starts = torch.stack([make_x0(), torch.full(SHAPE, 2e3, dtype=F64), make_x0(seed=5)])
    solution = fe.solve(fe.vmap(problem, x0=starts), fe.levenberg_marquardt(), max_steps=20, atol=1e-6)
    assert torch.as_tensor(solution.status).tolist() == [0, int(fe.Status.NONFINITE), 0]
    # A try at which the network fails is taken back.
    wild = fe.levenberg_marquardt("log", damping=1e-8)
    far = torch.tensor([0.996, 0.001, 0.001, 0.001, 0.001], dtype=F64)
    narrow = fe.problem((fragile, {}), far, make_x0() * 3)
    assert fe.solve(narrow, wild, max_steps=60, atol=1e-6).hit


@pytest.mark.filterwarnings("ignore:solve. no gradient reaches")
def test_singular_systems_are_no_trouble() -> None:
    def constant(params: Any, x: Tensor) -> Tensor:
        return torch.full((ASSETS,), 0.2, dtype=x.dtype) + 0.0 * x.sum()

    def twice(params: Any, x: Tensor) -> Tensor:
        w = torch.softmax(x.sum((0, 1)), -1)
        return torch.stack([w[0], w[0], w[1], w[1], 1 - 2 * w[0] - 2 * w[1]])

    problem = fe.problem((constant, {}), make_target(), make_x0())
    solution = fe.solve(problem, fe.levenberg_marquardt(), max_steps=20, atol=1e-6)
    assert solution.status is fe.Status.STALLED
    assert_close(solution.x, make_x0())
    target = torch.tensor([0.2, 0.2, 0.1, 0.1, 0.4], dtype=F64)
    for method in RESIDUALS.values():
        tied = fe.solve(fe.problem((twice, {}), target, make_x0()), method, max_steps=60, atol=1e-5)
        assert tied.hit, tied.message


def test_numbers_that_may_be_negative_are_compared_as_they_are() -> None:
    network, x0 = linear_network(), make_x0()
    target = torch.tensor([0.8, -0.3, 0.2, 0.1, 0.2], dtype=F64)
    for residual in ("auto", "weights"):
        solution = fe.solve(
            fe.problem(network, target, x0), fe.levenberg_marquardt(residual), max_steps=40, atol=1e-9
        )
        assert solution.hit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    problem = fe.vmap(make_problem(dtype=dtype), x0=x0s(3, dtype))
    plain = fe.solve(problem, fe.levenberg_marquardt(), max_steps=30, atol=1e-4)
    assert plain.x.dtype is plain.loss.dtype is plain.error.dtype is dtype
    assert plain.hit.all()


class Cast(nn.Module):
    """A body and a head of different dtypes."""

    def __init__(self, body: torch.dtype, head: torch.dtype) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 4, dtype=body), nn.Linear(4, 3, dtype=head)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x.flatten(1).to(self.body.weight.dtype)))
        return torch.softmax(self.head(hidden.to(self.head.weight.dtype)), -1)


@pytest.mark.parametrize(
    ("window", "body", "head"),
    [
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.float64),
    ],
)
@pytest.mark.parametrize("search", ["solve", "closest", "clip", "rows"])
def test_weights_may_be_of_another_dtype_than_the_window(
    window: torch.dtype, body: torch.dtype, head: torch.dtype, search: str
) -> None:
    torch.manual_seed(0)
    network, x0 = Cast(body, head), torch.randn(1, 2, 3).to(window)
    problem = fe.problem(network, torch.tensor([0.5, 0.3, 0.2]).to(window), x0)
    if search == "closest":
        found = fe.closest(problem, max_steps=5, atol=0.05)
    else:
        if search == "clip":
            problem = fe.clip(-3.0, 3.0)(problem)
        if search == "rows":
            problem = fe.vmap(problem, x0=torch.stack([x0, -x0]))
        found = fe.solve(problem, fe.levenberg_marquardt(), max_steps=5)
    assert found.x.dtype is window
    assert found.weights.dtype is head
    expected = network(found.x if search == "rows" else found.x[None]).detach().view_as(found.weights)
    assert_close(found.weights.double(), expected.double(), rtol=1e-5 if body is not window else 0.02)
    before = (network(x0[None])[0].detach() - problem.args["target"]).square().mean()
    assert float(found.loss.flatten()[0]) <= float(before) + 1e-3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fe.levenberg_marquardt("mse"), ValueError, "residual must be 'auto', 'weights'"),  # type: ignore[arg-type]
        (lambda: fe.levenberg_marquardt(damping=0.0), ValueError, "damping must be finite and > 0"),
        (lambda: fe.levenberg_marquardt(damping="x"), TypeError, "damping must be a number"),  # type: ignore[arg-type]
        (
            lambda: fe.solve(make_problem(), fe.levenberg_marquardt),
            TypeError,
            "called with its settings",
        ),
    ],
)
def test_wrong_settings_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
