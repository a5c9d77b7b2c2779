"""Reach: exact where the network is linear, never beyond the radius, and as far as scipy's searches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.helpers import (
    ASSETS,
    SHAPE,
    SIZE,
    assert_close,
    make_network,
    make_problem,
    make_target,
    make_x0,
)
from tests.markets import market

F64 = torch.float64


def linear() -> Any:
    network: Any = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, ASSETS).to(F64))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(ASSETS, SIZE, dtype=F64, generator=generator))
        network[1].bias.zero_()
    return network


def question(network: nn.Module) -> fe.Problem:
    return fe.problem(network.eval(), make_target(), make_x0(), leverage=math.inf)


def test_the_ends_of_a_linear_network_are_its_support_function() -> None:
    network, std = linear(), 0.5
    found = fe.reach(fe.standardize(0.1, std)(question(network)), 2.0, starts=2)
    with torch.no_grad():
        today, width = network(make_x0()[None])[0], 2.0 * std * network[1].weight.norm(dim=1)
    assert_close(found.lower, today - width, rtol=1e-10)
    assert_close(found.upper, today + width, rtol=1e-10)


def test_frozen_entries_use_up_none_of_the_radius() -> None:
    network, mask = linear(), torch.arange(SIZE).view(SHAPE) % 3 == 0
    p = fe.problem(network, make_target(), make_x0(), mask=mask, leverage=math.inf)
    found = fe.reach(fe.freeze(p), 1.0, starts=3)
    with torch.no_grad():
        width = (network[1].weight * mask.flatten()).norm(dim=1)
        assert_close(found.upper, network(make_x0()[None])[0] + width, rtol=1e-9)


def test_a_measure_of_the_weights() -> None:
    network = linear()
    found = fe.reach(question(network), 1.0, measure=lambda w: w[:2].sum(), starts=1)
    with torch.no_grad():
        today, row = network(make_x0()[None])[0, :2].sum(), network[1].weight[:2].sum(0)
    assert_close(found.upper, today + row.norm(), rtol=1e-10)
    pair = fe.reach(question(network), 1.0, measure=lambda w: torch.stack([w[0], -w[0]]), starts=1)
    assert_close(pair.lower[1], -pair.upper[0], rtol=1e-10)


def test_ends_are_as_far_as_those_of_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    network, radius = make_network("mlp_tanh").eval(), 2.0
    found, x0 = fe.reach(question(network), radius), make_x0()

    def weight(flat: np.ndarray, asset: int, sign: float) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(flat).view(SHAPE).requires_grad_()
        value = sign * network(x[None])[0, asset]
        (slope,) = torch.autograd.grad(value, x)
        return float(value.detach()), slope.flatten().numpy()

    inside = {
        "type": "ineq",
        "fun": lambda flat: radius**2 - ((flat - x0.flatten().numpy()) ** 2).sum(),
        "jac": lambda flat: -2.0 * (flat - x0.flatten().numpy()),
    }
    for asset in range(2):
        for sign, end in ((1.0, found.lower), (-1.0, found.upper)):
            best = optimize.minimize(
                *(weight, x0.flatten().numpy(), (asset, sign)),
                jac=True,
                method="SLSQP",
                constraints=[inside],
            )
            assert sign * float(end[asset]) <= best.fun + 1e-6


def test_markets_within_the_radius_bring_the_ends_about() -> None:
    lookback = market.LOOKBACKS[0]
    scenario = fe.scenarios.scenario(market.base(lookback), market.covariance())
    problem = scenario(market.question(lookback))
    seen: list[Tensor] = []
    inner = problem.decode

    def watched(z: Tensor, args: Any) -> Tensor:
        if not torch._C._functorch.is_functorch_wrapped_tensor(z):
            seen.append(z.norm().detach())
        return inner(z, args)

    watching = dataclasses.replace(problem, decode=watched, normal=watched)
    small, large = fe.reach(watching, 1.0, max_steps=20), fe.reach(problem, 3.0, max_steps=20)
    assert (torch.stack(seen) <= 1.0 + 1e-12).all() if seen else True
    assert (small.lower >= large.lower - 1e-6).all()
    assert (small.upper <= large.upper + 1e-6).all()
    assert (small.lower < small.upper).all()


def test_rows_are_as_alone() -> None:
    x0s = torch.stack([make_x0(seed=seed) for seed in range(3)])
    targets = torch.stack([make_target(seed=seed) for seed in range(2)])
    network = make_network("conv_no_norm")
    grid = fe.vmap(fe.vmap(question(network), x0=x0s, reference=x0s), target=targets)
    found = fe.reach(grid, 1.0, starts=2, max_steps=10)
    assert found.lower.shape == found.upper.shape == (2, 3, ASSETS)
    for row in ((0, 1), (1, 2)):
        alone = fe.reach(grid[row], 1.0, starts=2, max_steps=10)
        assert_close(found.upper[row], alone.upper, rtol=1e-9)
        assert_close(found.lower[row], alone.lower, rtol=1e-9)


def test_bounds_hold() -> None:
    x0 = make_x0().clamp(-0.5, 0.5)
    problem = fe.problem(linear(), make_target(), x0, leverage=math.inf)
    clipped = fe.reach(fe.clip(-0.5, 0.5)(problem), 100.0, starts=1, max_steps=50)
    with torch.no_grad():
        expected = 0.5 * problem.args["params"]["1.weight"].abs().sum(1)
    assert_close(clipped.upper, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"radius": 0.0}, "radius must be"),
        (ValueError, {"radius": -1.0}, "radius must be"),
        (ValueError, {"radius": math.nan}, "radius must be"),
        (TypeError, {"radius": "far"}, "radius must be"),
        (ValueError, {"radius": []}, "radius must be"),
        (ValueError, {"radius": [2.0, 1.0]}, "radius must be"),
        (ValueError, {"starts": 0}, "starts must be"),
        (ValueError, {"max_steps": -1}, "max_steps must be"),
        (ValueError, {"seed": -1}, "seed must be"),
        (TypeError, {"measure": 3}, "measure must be"),
        (ValueError, {"measure": lambda w: w.outer(w)}, "measure must map weights"),
        (TypeError, {"measure": lambda w: 3.0}, "the output of measure must be"),
    ],
    ids=range(12),
)
def test_bad_arguments_are_refused(
    error: type[Exception], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(error, match=f"reach: .*{message}"):
        fe.reach(make_problem(), **{"radius": 1.0, **arguments})


def test_several_radii_give_the_curve() -> None:
    network, radii = linear(), [0.5, 1.0, 2.0]
    grid = fe.vmap(question(network), x0=make_x0()[None], reference=make_x0()[None])
    found = fe.reach(grid, radii, starts=1)
    assert found.upper.shape == (3, 1, ASSETS)
    for place, radius in enumerate(radii):
        assert_close(found.upper[place], fe.reach(grid, radius, starts=1).upper, rtol=1e-10)
    curved = fe.reach(question(make_network("mlp_tanh")), radii, starts=1, max_steps=5)
    assert (curved.upper.diff(dim=0) >= 0.0).all()
    assert (curved.lower.diff(dim=0) <= 0.0).all()
