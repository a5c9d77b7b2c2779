"""Where two networks disagree: exact where they are linear, and rows are as alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import funcexplain as fe
from tests.engine.test_reach import linear
from tests.helpers import (
    ASSETS,
    SIZE,
    assert_close,
    make_network,
    make_problem,
    make_target,
    make_x0,
)

SINGLE: Any = {
    "x0": make_x0(torch.float32),
    "target": make_target(torch.float32),
}


def other_linear() -> Any:
    network = linear()
    with torch.no_grad():
        network[1].weight.copy_(network[1].weight.flip(0).cos())
        network[1].bias.add_(0.1)
    return network


def question(network: nn.Module | None = None) -> fe.Problem:
    return fe.problem(network or linear(), make_target(), make_x0(), leverage=math.inf)


def test_linear_networks_disagree_first_along_the_difference_of_their_weights() -> None:
    one, two = linear(), other_linear()
    row = (one[1].weight - two[1].weight)[2].detach()
    with torch.no_grad():
        today = float((one(make_x0()[None]) - two(make_x0()[None]))[0, 2])
    asked = fe.difference(question(one), two, by=fe.targets.at_least(2, today + 1.0))
    solution = fe.closest(asked, atol=1e-6)
    assert solution.status == fe.Status.CLOSEST
    assert_close((solution.x - make_x0()).flatten(), row / row.square().sum(), rtol=1e-4, atol=1e-6)
    assert_close(solution.weights, (one(solution.x[None]) - two(solution.x[None]))[0].detach())


def test_a_share_is_what_is_held_differently() -> None:
    one, two = make_network("mlp_tanh").eval(), make_network("conv_no_norm").eval()
    p = fe.problem(one, make_target(), make_x0())
    with torch.no_grad():
        now = float((one(make_x0()[None]) - two(make_x0()[None])).abs().sum() / 2)
    solution = fe.closest(fe.difference(p, two, by=now + 0.1))
    with torch.no_grad():
        apart = (one(solution.x[None]) - two(solution.x[None]))[0]
    assert solution.hit
    assert_close(solution.weights, apart, rtol=1e-9)
    assert float(apart.abs().sum() / 2) == pytest.approx(now + 0.1, abs=2e-3)
    met = fe.closest(fe.difference(p, two, by=0.5 * now))
    assert torch.equal(met.x, make_x0())


def test_a_question_stands_for_its_network_and_transforms_are_kept() -> None:
    p = fe.standardize(0.1, 0.5)(question())
    by_network = fe.difference(p, other_linear(), by=0.7)
    by_question = fe.difference(p, question(other_linear()), by=0.7)
    x = torch.sin(make_x0())
    assert torch.equal(
        by_network.objective(x, p.args | by_network.args)[1],
        by_question.objective(x, by_question.args)[1],
    )
    assert by_network.decode is p.decode


def test_rows_equal_alone() -> None:
    x0s = torch.stack([make_x0(seed=seed) for seed in range(3)])
    targets = torch.stack([make_target(seed=seed) for seed in range(2)])
    models = {name: torch.stack([own, 2.0 * own]) for name, own in question().args["params"].items()}
    rows = fe.vmap(fe.vmap(question(), x0=x0s, reference=x0s), params=models, target=targets)
    grid = fe.difference(rows, other_linear(), by=2.0)
    solution = fe.solve(grid, max_steps=20)
    assert grid.dims == rows.dims
    for row in ((0, 1), (1, 2)):
        for one in (grid[row], fe.difference(rows[row], other_linear(), by=2.0)):
            assert_close(solution.x[row], fe.solve(one, max_steps=20).x, rtol=1e-9)
    asked = fe.difference(question(), other_linear(), by=2.0)
    mapped = fe.solve(fe.vmap(asked, x0=x0s, reference=x0s), max_steps=20)
    assert_close(mapped.x, solution.x[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("other", "by", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(SIZE, ASSETS + 1).double()), 0.1, "same assets"),
        (3, 0.1, "network must be"),
        (None, 0.0, "by must be"),
        (None, math.nan, "by must be"),
        (None, "much", "by must be"),
        (make_problem(make_network("mlp_tanh", torch.float32), **SINGLE), 0.1, "windows"),
    ],
    ids=range(6),
)
def test_bad_arguments_are_refused(other: Any, by: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fe.difference(question(), other_linear() if other is None else other, by=by)


def test_networks_of_other_assets_and_grids_that_do_not_fit_are_refused() -> None:
    names = [f"asset {k}" for k in range(ASSETS)]
    p = fe.problem(linear(), make_target(), make_x0(), assets=names, leverage=math.inf)
    q = fe.problem(linear(), make_target(), make_x0(), assets=names[::-1], leverage=math.inf)
    with pytest.raises(ValueError, match="difference: networks must have the same assets"):
        fe.difference(p, q)
    with pytest.raises(ValueError, match="difference: problem must be one question"):
        fe.difference(p, fe.vmap(p, x0=make_x0()[None]))
    with pytest.raises(ValueError, match="difference: expected at least one row"):
        fe.difference(fe.vmap(p, x0=make_x0()[None][:0]), linear())
    references = fe.vmap(p, reference=torch.stack([make_x0(), -make_x0()]))
    with pytest.raises(ValueError, match="difference: by must not be measured from today"):
        fe.difference(references, other_linear(), by=fe.targets.turnover(0.1))
    with pytest.raises(TypeError, match="difference: problem must be a Problem"):
        fe.difference(linear(), linear())
