"""The Jacobian of what a target measures: one reverse pass where columns are scored apart, else all."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.markets.features import features
from funcexplain.solvers.gauss_newton import measure_of
from funcexplain.solvers.gradient import make_objective
from funcexplain.solvers.jacobian import (
    _pull_back,
    _pull_by_rules,
    _pull_one_by_one,
    column_jacobian,
    with_backward_jacobian,
    with_jacobian,
)
from tests.catalogue.entry import build
from tests.helpers import NETWORKS, SHAPE, assert_close, make_network, params
from tests.laws.test_every_way import CATALOGUE

F64 = torch.float64
# Networks with a reverse pass that allows no inputs.
EVERY = [name for name in (*NETWORKS, *CATALOGUE) if name != "checkpoint_reentrant"]
FOUND = ["conv_no_norm", "temporal_conv", "tcn", "eiie_cnn", "eiie_lstm", "patch_tst", "temporal_fusion"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def jacobian(weights: Tensor, z: Tensor) -> Tensor:
    rows = [torch.autograd.grad(w, z, retain_graph=True)[0].flatten() for w in weights]
    return torch.stack(rows)


@pytest.mark.parametrize("name", params(EVERY))
def test_columns_scored_apart_are_found_only_where_they_give_the_full_jacobian(name: str) -> None:
    network = (make_network(name) if name in NETWORKS else build(CATALOGUE[name])).eval()
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), F64)
    z = draw(*SHAPE).to(dtype).requires_grad_()
    with torch.random.fork_rng(devices=[]):
        weights = network(z[None].clone())[0]
    found = column_jacobian(weights, weights, z, None, checks=True)
    assert found is not None or name not in FOUND
    if found is not None:
        assert_close(found, jacobian(weights, z), rtol=1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize(
    ("name", "apart"),
    {
        "softmax": True,
        "sum": True,
        "saturated": True,
        "two_assets": True,
        "zero": False,
        "unnormalized": False,
        "ranks": False,
        "neighbors": False,
        "shared": False,
    }.items(),
)
def test_what_counts_as_scored_apart(name: str, apart: bool) -> None:
    z = draw(2, 3, 2 if name == "two_assets" else 5).requires_grad_()
    score = (z * (1.0 + z.square())).sum((0, 1))
    clipped = torch.cat([score[:1] * 0.0 + (score[:1] - score[:1].detach()), score[1:].exp()])
    weights = {
        "softmax": lambda: score.softmax(-1),
        "sum": lambda: score.square() / score.square().sum(),
        "saturated": lambda: (1e3 * score).softmax(-1),
        "two_assets": lambda: (score * score.flip(0)).cumsum(0).softmax(-1),
        "zero": lambda: clipped / clipped.sum(),
        "unnormalized": lambda: score.tanh(),
        "ranks": lambda: (score * z.sum()).softmax(-1),
        "neighbors": lambda: (score + 1e-3 * score.roll(1).sin()).softmax(-1),
        "shared": lambda: (score / score.norm()).softmax(-1),
    }[name]()
    found = column_jacobian(weights, weights, z, None, checks=True)
    assert (found is not None) == apart
    if found is not None:
        assert_close(found, jacobian(weights, z), rtol=1e-9)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("target", ["allocation", "goals"])
def test_scenarios_mix_columns_by_a_known_factor(target: str, held: bool) -> None:
    returns, assets = 0.01 * draw(8, 4), 4
    matrix = draw(assets, assets, seed=1)
    cov = 1e-4 * (matrix @ matrix.T + torch.eye(assets, dtype=F64))
    free = torch.tensor([[True, not held, True, True]])
    window = features(returns, span=4)

    def apply(params: object, x: Tensor) -> Tensor:
        return (30.0 * x).tanh().sum((0, 1)).softmax(-1)

    goals = fe.targets.all_of(fe.targets.at_least(0, 0.3), fe.targets.concentration(0.4))
    asked = torch.full((assets,), 0.25, dtype=F64) if target == "allocation" else goals
    problem = fe.scenarios.scenario(returns, cov, free=free)(fe.problem((apply, {}), asked, window))
    objective, measure = make_objective(problem), measure_of(problem)
    z = draw(8, assets, seed=2)
    x = z.clone().requires_grad_()
    _, (_, weights) = objective(x, problem.args)
    measured, factor = measure(weights, problem.args).flatten(), problem.args["factor"]
    assert column_jacobian(measured, weights, x, factor, checks=True) is not None
    ours = with_backward_jacobian(objective, measure)(z, problem.args).slopes
    assert_close(ours, with_jacobian(objective, measure)(z, problem.args).slopes, rtol=1e-9, atol=1e-15)


class Drifting(nn.Module):
    """Columns that interact only where the first entry is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.sinh().sum((1, 2))
        gate = torch.relu(x[:, 0, 0, :1] - 0.5)
        return (score + 3.0 * gate * score.roll(1, -1)).softmax(-1)


def test_a_structure_that_is_lost_on_the_way_is_noticed() -> None:
    def objective(z: Tensor, args: object) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        weights = Drifting()(z)
        loss = weights.square().sum(-1)
        return loss, (loss, weights)

    evaluate = with_backward_jacobian(objective, lambda weights, args: weights)
    mapped = torch.func.vmap(torch.func.jacrev(lambda z: Drifting()(z[None])[0]))
    near, far = (draw(3, 1, 2, 4) * 0.1 + offset for offset in (0.0, 1.0))
    for z in (near, near, near, near, far, near, far):  # the fifth evaluation is checked
        assert_close(evaluate(z, {}).slopes, mapped(z).flatten(2), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("rows", [1, 5])
def test_answers_are_those_of_full_jacobians(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network("conv_no_norm")
    x0, asked = draw(rows, *SHAPE), draw(rows, *SHAPE, seed=3)
    with torch.no_grad():
        targets = network(asked)
    problem = fe.problem(network, targets[0], x0[0])
    grid = fe.vmap(problem, x0=x0, reference=x0, target=targets)
    ours = fe.solve(grid, fe.levenberg_marquardt(), max_steps=40, atol=1e-9)
    monkeypatch.setattr("funcexplain.solvers.jacobian.column_jacobian", lambda *args, **kwargs: None)
    full = fe.solve(grid, fe.levenberg_marquardt(), max_steps=40, atol=1e-9)
    assert ours.hit.all()
    assert torch.equal(ours.num_steps, full.num_steps)
    assert_close(ours.x, full.x, rtol=1e-6)


class Crossed(nn.Module):
    """A layer over the days of each asset, then scores that interact."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.scores = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, days, assets = x.shape
        columns = x.permute(0, 3, 1, 2).reshape(-1, channels, days)
        if isinstance(self.layer, nn.LSTM):
            columns = self.layer(columns.mT)[0].mT
        else:
            columns = self.layer(columns)
        return (
            self.scores(columns.mean(-1).reshape(rows, -1)).reshape(rows, assets, -1).sum(-1).softmax(-1)
        )


@pytest.mark.parametrize("make", [partial(nn.Conv1d, 2, 2, 3), partial(nn.LSTM, 2, 2, batch_first=True)])
def test_directions_share_a_pass_without_a_warning(make: Any) -> None:
    torch.manual_seed(0)
    layer = make()
    network = Crossed(layer).eval().requires_grad_(False)
    z = draw(3, 2, 5, 4).float().requires_grad_()
    weights = network(z)
    directions = torch.eye(4)[:, None].expand(-1, 3, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, way = _pull_back(weights, z, directions, None)
        again, same = _pull_back(weights, z, directions, way)
    assert_close(found, _pull_one_by_one(weights, z, directions), rtol=1e-4, atol=1e-7)
    assert_close(found, again, rtol=0.0, atol=0.0)
    assert same is way is not _pull_one_by_one
    if isinstance(layer, nn.Conv1d):
        assert way is _pull_by_rules
