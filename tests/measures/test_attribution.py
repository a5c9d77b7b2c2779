"""Attributions: parts add up, equal closed forms and other packages, and what does not move has none."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.measures import attribution
from tests.helpers import ASSETS, NETWORKS, SHAPE, SIZE, make_network, make_problem, make_target, make_x0
from tests.markets import market

F64 = torch.float64


class Linear(nn.Module):
    """Weights that are linear in the window."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.matrix = nn.Parameter(torch.randn(ASSETS, SIZE, dtype=F64, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T


class Kinked(nn.Module):
    """Weights with jumps, whose slopes are zero almost everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        scores = x.mean((1, 2))
        return nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(x) + 0.0 * scores


def evaluated(name: str) -> nn.Module:
    return make_network(name).eval()


def question(network: nn.Module) -> fe.Problem:
    return fe.problem(network, make_target(), make_x0(), leverage=math.inf)


def ends() -> tuple[Tensor, Tensor]:
    return make_x0(seed=3), make_x0(seed=4)


def held(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x[None])[0]


@pytest.mark.parametrize(
    "settings", [{}, {"path": "z"}, {"method": "shapley", "groups": "days"}], ids=str
)
def test_parts_of_a_linear_network_are_slopes_times_changes(settings: dict[str, Any]) -> None:
    network, (start, end) = Linear(), ends()
    found = fe.attribute(question(network), start, end, **settings)
    expected = network.matrix.detach().view(ASSETS, *SHAPE) * (end - start)
    if "groups" in settings:
        expected = expected.sum((1, 3))
    torch.testing.assert_close(found.values, expected, rtol=1e-11, atol=1e-12)
    assert found.error < 1e-12
    assert found.standard_error is None
    assert repr(found).startswith(f"Attribution(values={tuple(expected.shape)}, error=")


@pytest.mark.parametrize("name", NETWORKS)
def test_parts_of_every_network_add_up(name: str) -> None:
    network, (start, end) = evaluated(name), ends()
    found = fe.attribute(question(network), start, end)
    change = held(network, end) - held(network, start)
    torch.testing.assert_close(found.change, change)
    assert found.values.shape == (ASSETS, *SHAPE)
    error = (found.values.sum((1, 2, 3)) - change).abs().max()
    assert error <= 1e-3 * change.abs().max()
    assert found.error == pytest.approx(float(error), abs=1e-15)
    exact = fe.attribute(question(network), start, end, method="shapley", groups="channels")
    torch.testing.assert_close(exact.values.sum(-1), change, rtol=0, atol=1e-14)


def saturated() -> tuple[nn.Module, Tensor, Tensor]:
    network: Any = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, ASSETS).to(F64), nn.Softmax(-1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        network[1].weight.copy_(5.0 * torch.randn(ASSETS, SIZE, dtype=F64, generator=generator))
        network[1].bias.zero_()
    return network, make_x0(), -make_x0()


def test_panels_are_bisected_where_a_network_saturates() -> None:
    network, start, end = saturated()
    rough = fe.attribute(question(network), start, end, max_nodes=8)
    fine = fe.attribute(question(network), start, end, tolerance=1e-10)
    assert rough.error > 1e-2 * rough.change.abs().max()  # reported, not hidden
    assert fine.error <= 1e-10 * fine.change.abs().max()


def test_gradients_equal_a_quadrature_of_scipy() -> None:
    integrate = pytest.importorskip("scipy.integrate")
    network, (start, end) = evaluated("mlp_tanh"), ends()

    def slopes(t: float) -> np.ndarray:
        jacobian: Any = torch.autograd.functional.jacobian(
            lambda x: network(x[None])[0], start + t * (end - start)
        )
        return (jacobian * (end - start)).numpy()

    expected, _ = integrate.quad_vec(slopes, 0.0, 1.0, epsabs=1e-12)
    found = fe.attribute(question(network), start, end, tolerance=1e-12)
    np.testing.assert_allclose(found.values, expected, atol=1e-11)


def test_gradients_equal_those_of_captum() -> None:
    captum = pytest.importorskip("captum.attr")
    network, (start, end) = evaluated("conv_no_norm"), ends()
    found = fe.attribute(question(network), start, end, tolerance=1e-9)
    for asset in range(ASSETS):
        expected = captum.IntegratedGradients(network).attribute(
            end[None], start[None], target=asset, n_steps=64
        )
        torch.testing.assert_close(found.values[asset], expected[0], rtol=1e-6, atol=1e-8)


def test_shapley_values_equal_the_mean_over_all_orders() -> None:
    network, (start, end) = evaluated("mlp_gelu"), ends()
    numbers = torch.arange(SIZE).view(SHAPE) % 4
    gains = torch.zeros(ASSETS, 4, dtype=F64)
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        x = start
        for group in order:
            following = torch.where(numbers == group, end, x)
            gains[:, group] += held(network, following) - held(network, x)
            x = following
    found = fe.attribute(question(network), start, end, method="shapley", groups=numbers)
    torch.testing.assert_close(found.values, gains / len(orders), rtol=0, atol=1e-14)


def test_shapley_values_of_a_kinked_network_add_up() -> None:
    start, end = ends()
    found = fe.attribute(question(Kinked()), start, end, method="shapley")
    assert found.change.abs().max() == 1.0
    assert found.error <= 1e-14
    assert fe.attribute(question(Kinked()), start, end, max_nodes=64).error == 1.0


def test_sampled_shapley_values_add_up_and_are_as_sure_as_they_say() -> None:
    network, (start, end) = evaluated("mlp_gelu"), ends()
    numbers = torch.arange(SIZE).view(SHAPE) % 13
    settings: dict[str, Any] = {"method": "shapley", "groups": numbers, "draws": 40}
    found = fe.attribute(question(network), start, end, **settings)
    again = fe.attribute(question(network), start, end, **settings)
    other = fe.attribute(question(network), start, end, **settings, seed=1)
    assert found.error <= 1e-14
    assert torch.equal(found.values, again.values)
    assert found.standard_error is not None
    assert other.standard_error is not None
    both = (found.standard_error.square() + other.standard_error.square()).sqrt()
    score = (found.values - other.values).abs() / both
    assert 0.2 < float(score.square().mean()) < 3.0


@pytest.mark.parametrize("settings", [{}, {"method": "shapley"}, {"groups": "assets"}], ids=str)
def test_what_does_not_move_has_no_part_to_the_bit(settings: dict[str, Any]) -> None:
    start, end = ends()
    end = torch.where(torch.arange(ASSETS) < 2, end, start)
    found = fe.attribute(question(evaluated("attention")), start, end, **settings)
    assert (found.values[..., 2:] == 0.0).all()
    assert not found.values.signbit()[..., 2:].any()
    assert (found.values[..., :2] != 0.0).any()
    still = fe.attribute(question(evaluated("attention")), start, start, **settings)
    assert (still.values == 0.0).all()


def test_rows_are_as_alone() -> None:
    network = evaluated("mlp_tanh")
    starts = torch.stack([make_x0(seed=seed) for seed in range(3)])
    answers = torch.stack([make_x0(seed=seed) for seed in range(3, 9)]).view(2, 3, *SHAPE)
    models = [evaluated("mlp_tanh"), evaluated("mlp_tanh")]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(1.5)
    grid = fe.vmap(question(network), x0=starts, reference=starts)
    grid = fe.vmap(grid, params=fe.stack(models)[1])
    for settings in ({}, {"path": "z"}, {"method": "shapley", "groups": "days"}):
        found = fe.attribute(grid, end=answers, **settings)  # type: ignore[arg-type]
        assert found.error.shape == found.change.shape[:2] == (2, 3)
        for row in np.ndindex(2, 3):
            alone = fe.attribute(grid[row], end=answers[row], **settings)  # type: ignore[arg-type]
            torch.testing.assert_close(found.values[row], alone.values, rtol=0, atol=1e-13)
    shared = fe.attribute(grid, end=answers[0, 0])
    assert shared.change.shape == (2, 3, ASSETS)


def test_a_path_of_search_points_has_possible_markets() -> None:
    lookback = market.LOOKBACKS[0]
    problem = fe.scenarios.scenario(market.base(lookback), market.covariance())(
        market.question(lookback)
    )
    solution = fe.solve(problem, fe.levenberg_marquardt(), max_steps=20)
    seen: list[Tensor] = []
    inner = problem.apply

    def watched(params: Any, x: Tensor) -> Tensor:
        seen.append(x)
        return inner(params, x)

    watching = dataclasses.replace(problem, apply=watched)
    found = fe.attribute(watching, end=solution, path="z", tolerance=1e-3)
    assert found.error <= 1e-3 * found.change.abs().max()
    windows = [x for x in seen if x.ndim == 3 and not torch._C._functorch.is_functorch_wrapped_tensor(x)]
    for x in windows:
        again = problem.decode(problem.encode(x.detach(), problem.args), problem.args)
        torch.testing.assert_close(again, x.detach(), rtol=1e-6, atol=1e-9)
    by_asset = fe.attribute(problem, end=solution, path="z", method="shapley", groups="assets")
    assert by_asset.values.shape == (market.ASSETS, market.ASSETS)
    assert by_asset.error <= 1e-14
    with pytest.raises(ValueError, match="attribute: end must be a window of the search space"):
        fe.attribute(problem, end=torch.full_like(problem.args["x0"], -1.0), path="z")


def test_float32_and_networks_that_cannot_be_mapped() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x.mean((1, 2)) * (2.0 if float(x.sum()) > 0.0 else 1.0), -1)

    x0 = make_x0(torch.float32)
    problem = fe.problem(Branching(), make_target(torch.float32), x0)
    end = 2.0 * x0
    found = fe.attribute(problem, x0, end)
    assert found.values.dtype == torch.float32
    assert found.error <= 2e-3 * found.change.abs().max()


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (TypeError, {"end": None}, "end must be a window or an answer of the problem, got none"),
        (TypeError, {"end": 3}, "end must be a torch.Tensor"),
        (TypeError, {"end": torch.zeros(SHAPE)}, "end must"),
        (ValueError, {"end": torch.zeros(2, *SHAPE, dtype=F64)}, r"end must have shape \(2, 6, 5\)"),
        (ValueError, {"start": torch.zeros(1, 6, 5, dtype=F64)}, "start must have shape"),
        (ValueError, {"end": torch.full(SHAPE, torch.nan, dtype=F64)}, "end must be finite"),
        (ValueError, {"path": "w"}, "path must be one of"),
        (ValueError, {"method": "lime"}, "method must be one of"),
        (ValueError, {"groups": "weeks"}, "groups must be one of"),
        (ValueError, {"groups": torch.zeros(3, dtype=torch.int64)}, "in the shape of the window"),
        (TypeError, {"groups": torch.zeros(SHAPE)}, "groups must hold integers"),
        (ValueError, {"tolerance": 0.0}, "tolerance must be"),
        (ValueError, {"max_nodes": 0}, "max_nodes must be"),
        (ValueError, {"draws": 1}, "draws must be at least 2"),
        (ValueError, {"seed": -1}, "seed must be"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(
    error: type[Exception], arguments: dict[str, Any], message: str
) -> None:
    given = {"start": make_x0(seed=3), "end": make_x0(seed=4), **arguments}
    with pytest.raises(error, match=f"attribute: .*{message}"):
        fe.attribute(make_problem(), **given)


def test_a_grid_without_rows_and_another_problem_s_answer_are_refused() -> None:
    problem: Callable[[], fe.Problem] = make_problem
    with pytest.raises(ValueError, match="expected at least one row"):
        fe.attribute(fe.vmap(problem(), x0=torch.zeros(0, *SHAPE, dtype=F64)), end=make_x0())
    answer = fe.solve(fe.vmap(problem(), x0=make_x0()[None]), max_steps=1)
    with pytest.raises(ValueError, match="attribute: solution must have the rows"):
        fe.attribute(problem(), end=answer)
    with pytest.raises(TypeError, match="attribute: problem must be a Problem"):
        fe.attribute(3, end=make_x0())  # type: ignore[arg-type]


def test_rows_in_several_batches_are_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "_NUMBERS", 1)
    cubed = fe.reparametrize(
        lambda x, args: (x / args["std"]).asinh(), lambda z, args: args["std"] * z.sinh()
    )
    problem = fe.pipe(question(evaluated("mlp_tanh")), fe.standardize(0.0, 1.0), cubed)
    std = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    grid, (start, end) = fe.vmap(problem, std=std), ends()
    found = fe.attribute(grid, start, end, path="z")
    for row in range(3):
        alone = fe.attribute(grid[row], start, end, path="z")
        torch.testing.assert_close(found.values[row], alone.values, rtol=0, atol=1e-13)
    assert (found.values[0] - found.values[2]).abs().max() > 1e-6
