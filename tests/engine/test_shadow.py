"""Shadow prices equal what the closest market says when its target moves."""

from __future__ import annotations

import pytest
import torch

import funcexplain as fe
from tests.engine.test_reach import linear
from tests.helpers import ASSETS, assert_close, make_network, make_problem, make_target, make_x0

MESH = 0.01


def question(target: fe.targets.Target, name: str = "mlp_tanh") -> fe.Problem:
    return fe.problem(make_network(name).eval(), target, make_x0())


def distance(problem: fe.Problem) -> float:
    solution = fe.closest(problem, refinements=100)
    assert solution.status == fe.Status.CLOSEST
    return float((solution.x - make_x0()).norm())


def test_prices_of_a_linear_network_are_in_closed_form() -> None:
    network, x0 = linear(), make_x0()
    with torch.no_grad():
        today = float(network(x0[None])[0, 1])
    p = fe.problem(network, fe.targets.at_least(1, today + 3.0), x0, leverage=100.0)
    prices = fe.shadow_prices(fe.closest(p), p)
    assert_close(prices, 0.01 / network[1].weight[1:2].detach().norm(dim=1), rtol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_prices_equal_differences_of_the_closest_market(sign: int) -> None:
    make = fe.targets.at_least if sign > 0 else fe.targets.at_most
    with torch.no_grad():
        today = float(make_network("mlp_tanh").eval()(make_x0()[None])[0, 0])
    wanted = today + sign * 0.1
    problem = question(make(0, wanted))
    solution = fe.closest(problem, refinements=100)
    above, below = (distance(question(make(0, wanted + step))) for step in (MESH, -MESH))
    expected = (above - below) / (2 * MESH) * 0.01
    assert float(fe.shadow_prices(solution, problem)) == pytest.approx(expected, rel=0.02)
    assert sign * expected > 0.0


@pytest.mark.parametrize(("name", "asset", "more"), [("mlp_tanh", 2, 0.1), ("conv_no_norm", 1, 0.2)])
def test_a_tolerance_finer_than_the_search_leaves_the_price(name: str, asset: int, more: float) -> None:
    with torch.no_grad():
        today = float(make_network(name).eval()(make_x0()[None])[0, asset])
    problem = question(fe.targets.at_least(asset, today + more), name)
    fine, rough = ((fe.closest(problem, atol=atol), atol) for atol in (1e-9, 1e-3))
    assert fine[0].weights[asset] - today - more > 10.0 * fine[1]  # which is no more than rounding
    prices = [fe.shadow_prices(solution, problem, atol=atol) for solution, atol in (fine, rough)]
    assert_close(*prices, rtol=0.01)
    change = fine[0].x - make_x0()
    (move,) = fe.sensitivity(fine[0], problem, atol=fine[1]).target
    assert_close((change * move).sum() / change.norm(), 100.0 * prices[0][0], rtol=0.01)


def test_rows_misses_and_what_is_met_already() -> None:
    grid = fe.vmap(make_problem(), target=torch.stack([make_target(seed=seed) for seed in range(2)]))
    solution = fe.closest(grid)
    found = fe.shadow_prices(solution, grid)
    assert found.shape == (2, ASSETS)
    assert_close(found[1], fe.shadow_prices(solution[1], grid[1]), rtol=1e-9)
    missed = fe.solve(grid, max_steps=0)
    assert fe.shadow_prices(missed, grid).isnan().all()
    met = question(fe.targets.at_least(0, 0.0))
    assert (fe.shadow_prices(fe.closest(met), met) == 0.0).all()


def test_bad_arguments_are_refused() -> None:
    problem = make_problem()
    with pytest.raises(TypeError, match="shadow_prices: solution must be a Solution"):
        fe.shadow_prices(3, problem)  # type: ignore[arg-type]
    clipped = fe.clip(-9.0, 9.0)(problem)
    with pytest.raises(ValueError, match="shadow_prices: problem must have no bounds"):
        fe.shadow_prices(fe.solve(clipped, max_steps=0), clipped)
    with pytest.raises(ValueError, match="shadow_prices: atol must be"):
        fe.shadow_prices(fe.solve(problem, max_steps=0), problem, atol=0.0)


def test_differences_of_an_allocation_s_prices() -> None:
    shift = torch.zeros(ASSETS, dtype=torch.float64)
    shift[0], shift[1] = MESH, -MESH

    def asked(target: torch.Tensor) -> fe.Problem:
        return fe.problem(make_network("mlp_tanh").eval(), target, make_x0())

    target = asked(make_target()).objective(make_x0(), asked(make_target()).args)[1] + 6.0 * shift
    solution = fe.closest(asked(target), refinements=100, atol=1e-5)
    above, below = (
        float((fe.closest(asked(target + s), refinements=100, atol=1e-5).x - make_x0()).norm())
        for s in (shift, -shift)
    )
    prices = fe.shadow_prices(solution, asked(target), atol=1e-5)
    expected = (above - below) / (2 * MESH) * 0.01
    assert float(prices[0] - prices[1]) == pytest.approx(expected, rel=0.02)
    assert abs(float(prices.sum())) < 1e-9
