"""Penalties that are made from settings: numpy twins, what they favour, what they refuse."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import funcexplain as fe
from tests.grids import F64
from tests.helpers import assert_close, assert_gradient, make_network, make_problem, make_x0


def covariance(*lead: int, assets: int = 5) -> Tensor:
    factor = torch.randn(*lead, assets, assets, dtype=F64, generator=torch.Generator().manual_seed(2))
    return factor @ factor.mT + 0.1 * torch.eye(assets, dtype=F64)


@pytest.mark.parametrize(("axis", "place"), [("channels", 0), ("days", 1), ("assets", 2)])
def test_groups_are_those_of_numpy(axis: str, place: int) -> None:
    x, reference = make_x0(seed=9), make_x0()
    d = np.moveaxis((x - reference).numpy(), place, 0)
    expected = np.mean([np.sqrt(np.mean(group**2)) for group in d])
    assert float(fe.penalties.group(axis)(x, reference)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("axis", ["channels", "days", "assets"])
def test_a_group_that_is_not_changed_has_no_gradient_and_others_do(axis: str) -> None:
    reference = make_x0()
    x, place = reference.clone(), {"channels": 0, "days": 1, "assets": 2}[axis]
    x.movedim(place, 0)[0] += 1.0
    grads = torch.func.grad(fe.penalties.group(axis))(x, reference).movedim(place, 0)
    assert (grads[0] != 0).all()
    assert (grads[1:] == 0).all()


def test_a_change_of_one_asset_costs_less_than_the_same_spread_over_all() -> None:
    reference = torch.zeros(2, 6, 5, dtype=F64)
    one, all_assets = reference.clone(), reference + 5**-0.5
    one[..., 0] = 1.0
    assert_close(fe.penalties.l2(one, reference), fe.penalties.l2(all_assets, reference))
    few = fe.penalties.group("assets")
    assert few(one, reference) < 0.5 * few(all_assets, reference)


@pytest.mark.parametrize("lead", [(), (2, 1)])
def test_mahalanobis_is_that_of_numpy(lead: tuple[int, ...]) -> None:
    cov, x, reference = covariance(*lead), make_x0(seed=9), make_x0()
    d, inverse = (x - reference).numpy(), np.linalg.inv(cov.expand(2, 6, 5, 5).numpy())
    expected = np.einsum("cla,clab,clb->cl", d, inverse, d).mean() / 5
    penalty = fe.penalties.mahalanobis(cov)
    assert float(penalty(x, reference)) == pytest.approx(expected, rel=1e-10)
    assert_gradient(lambda x: penalty(x, reference), x, torch.func.grad(penalty)(x, reference))


def test_mahalanobis_of_the_identity_is_l2_averages_over_assets_and_is_one_for_draws() -> None:
    x, reference = make_x0(seed=9), make_x0()
    identity = fe.penalties.mahalanobis(torch.eye(5, dtype=F64))
    assert_close(identity(x, reference), fe.penalties.l2(x, reference))
    cov = covariance()
    both = fe.penalties.mahalanobis(torch.block_diag(cov, cov))  # of assets that are there twice
    expected = fe.penalties.mahalanobis(cov)(x, reference)
    assert_close(both(torch.cat([x, x], -1), torch.cat([reference, reference], -1)), expected)
    draws = torch.randn(1, 40_000, 5, dtype=F64, generator=torch.Generator().manual_seed(1))
    draws = draws @ torch.linalg.cholesky(cov).mT
    value = fe.penalties.mahalanobis(cov)(draws, torch.zeros_like(draws))
    assert float(value) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("scale", [0.5, make_x0(seed=3).abs() + 0.1], ids=["number", "entries"])
def test_scaled_divides_both_windows(scale: Any) -> None:
    x, reference = make_x0(seed=9), make_x0()
    for penalty in (fe.penalties.l1, fe.penalties.smoothness):
        found = fe.penalties.scaled(penalty, scale)(x, reference)
        assert_close(found, penalty(x / scale, reference / scale))


def test_they_follow_the_problem_to_other_dtypes_and_are_stored_by_name() -> None:
    made = {
        "group": fe.penalties.group("assets"),
        "mahalanobis": fe.penalties.mahalanobis(covariance()),
        "l2": fe.penalties.scaled(fe.penalties.l2, 0.1),
    }
    for name, penalty in made.items():
        problem = fe.penalize(penalty, strength=0.1)(make_problem("mlp_tanh", torch.float32))
        assert name in problem.args
        strengths: Any = {name: torch.tensor([0.0, 0.1, 1.0])}
        grid = fe.vmap(problem, **strengths)
        found = fe.solve(grid, max_steps=20)
        assert found.x.dtype == torch.float32
        moved = [float(penalty(x, problem.args["reference"])) for x in found.x]
        assert moved == sorted(moved, reverse=True)


@pytest.mark.parametrize("method", ["levenberg_marquardt", "adam"])
def test_the_path_of_a_goal_is_monotone_and_ends_at_the_constrained_optimum(method: str) -> None:
    x0, network = make_x0(), make_network("mlp_tanh")
    held = network(x0[None])[0].detach()
    goal = fe.targets.at_least(int(held.argmin()), float(held.min()) + 0.1)
    problem = fe.problem(network, goal, x0)
    nearest = float((fe.closest(problem).x - x0).norm())
    strengths: Any = {"l2": torch.logspace(1, -4, 6, dtype=F64)}
    path = fe.vmap(fe.penalize(fe.penalties.l2, strength=1.0)(problem), **strengths)
    exact = method == "levenberg_marquardt"
    chosen: Any = fe.levenberg_marquardt() if exact else fe.adam(lr=0.02)
    found = fe.solve(path, chosen, max_steps=60 if exact else 300, atol=1e-3)
    moved = (found.x - x0).flatten(1).norm(dim=1)
    assert (moved.diff() >= -1e-2 * nearest).all()
    assert found.hit.tolist() == sorted(found.hit.tolist())
    assert found.hit[-1]
    if exact:
        assert float(moved[found.hit].max()) <= 1.02 * nearest
    short = fe.solve(path[5], chosen, max_steps=5, atol=1e-3)
    assert short.hit == (short.error <= 1e-3)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: fe.penalties.group("asset"), ValueError, "group: axis must be one of ['assets', 'ch"),
        (lambda: fe.penalties.group(-1), ValueError, "group: axis must be one of"),  # type: ignore[arg-type]
        (lambda: fe.penalties.mahalanobis(3), TypeError, "mahalanobis: cov must be a torch.Tensor"),  # type: ignore[arg-type]
        (lambda: fe.penalties.mahalanobis(torch.ones(2, 3)), ValueError, "mahalanobis: cov must be sq"),
        (lambda: fe.penalties.mahalanobis(torch.ones(2)), ValueError, "mahalanobis: cov must be square"),
        (
            lambda: fe.penalties.mahalanobis(torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
            ValueError,
            "mahalanobis: cov must be symmetric",
        ),
        (lambda: fe.penalties.mahalanobis(torch.ones(2, 2)), ValueError, "mahalanobis: cov must be pos"),
        (lambda: fe.penalties.scaled(3, 1.0), TypeError, "scaled: penalty must be callable"),  # type: ignore[arg-type]
        (lambda: fe.penalties.scaled(fe.penalties.l1, 0.0), ValueError, "scaled: scale must be finite"),
        (
            lambda: fe.penalties.scaled(fe.penalties.l1, torch.tensor([1.0, -2.0])),
            ValueError,
            "scaled: scale must be > 0, got a minimum of -2",
        ),
    ],
)
def test_other_settings_are_refused(make: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        make()
