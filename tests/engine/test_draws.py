"""Markets at which a target holds: their law, that they hit and stay in the scenario, diagnostics."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy import stats

import funcexplain as fe
from funcexplain.engine.draws import effective_size, split_rhat
from tests.engine.test_probability import event, goals, half_space, weights_drawn
from tests.helpers import assert_same
from tests.markets.market import F64, LOOKBACKS, network


@pytest.mark.parametrize(("beta", "num_samples"), [(1.5, 8_000), (4.0, 20_000)])
def test_draws_of_a_half_space(beta: float, num_samples: int) -> None:
    draws = fe.sample(half_space(10, beta), 256, atol=0.0, num_samples=num_samples)
    assert draws.dims == ("draw",)
    assert draws.hit.all()
    z = draws.z.flatten(1)
    along = z.sum(1) / 10**0.5
    assert (along >= beta).all()
    mixing = draws.mixing
    assert mixing is not None
    assert mixing.rhat < 1.2
    assert 0.2 < mixing.acceptance < 1.0
    law = stats.truncnorm(beta, math.inf)
    error = law.std() / mixing.effective_sample_size**0.5
    assert abs(float(along.mean()) - law.mean()) < 3 * error
    thinned = slice(None, None, max(1, round(256 / mixing.effective_sample_size)))
    assert stats.kstest(along[thinned].numpy(), law.cdf).pvalue > 0.01
    across = z - along[:, None] / 10**0.5
    across = across[:, :5].flatten() / 0.9**0.5
    assert stats.kstest(across[:: 5 * 2].numpy(), "norm").pvalue > 0.01


def test_draws_of_a_quadratic_event_are_on_both_sides() -> None:
    problem = event(lambda z: z[0].square(), 4, fe.targets.at_least(0, 6.25))
    draws = fe.sample(problem, 256, atol=0.0, num_samples=10_000)
    z, mixing = draws.z.flatten(1), draws.mixing
    assert mixing is not None
    along, law = z[:, 0].abs(), stats.truncnorm(2.5, math.inf)
    assert abs(float(along.mean()) - law.mean()) < 3 * law.std() / mixing.effective_sample_size**0.5
    thinned = slice(None, None, max(1, round(256 / mixing.effective_sample_size)))
    assert stats.kstest(along[thinned].numpy(), law.cdf).pvalue > 0.01
    for across in z[thinned, 1:].T:
        assert stats.kstest(across.numpy(), "norm").pvalue > 0.01
    assert 0.25 < float((z[:, 0] > 0).double().mean()) < 0.75


def test_draws_are_markets_of_the_question(tmp_path: Path) -> None:
    level = float(weights_drawn().quantile(torch.tensor(0.99, dtype=F64)))
    problem = goals(level)[0]
    draws = fe.sample(problem, 24, num_chains=8, num_samples=600)
    assert draws.hit.all()
    assert (draws.error <= 1e-3).all()
    assert (draws.weights[:, 1] >= level - 1e-3).all()
    with torch.no_grad():
        torch.testing.assert_close(network(LOOKBACKS[0])(draws.x), draws.weights)
    returns = fe.scenarios.returns_of(draws, problem)
    fixed = problem.args["returns"]
    assert_same(returns[:, :-3], fixed[:-3].expand(24, -1, -1))
    assert_same(returns[:, -3:, 0], fixed[-3:, 0].expand(24, -1))
    assert (draws.z[:, :-3] == 0).all()
    assert len(draws.x.flatten(1).unique(dim=0)) > 18
    assert fe.evaluate(draws, problem, scale=0.01, draws=2)["hit"].shape == (24,)
    draws.save(tmp_path / "draws.safetensors")
    assert_same(fe.load(tmp_path / "draws.safetensors").x, draws.x)
    assert fe.sample(problem, 24, num_chains=8, num_samples=600, chunk_size=5).x.equal(draws.x)
    other = fe.sample(problem, 24, num_chains=8, num_samples=600, seed=1)
    assert not other.x.equal(draws.x)
    assert draws[:5].mixing is None


def test_diagnostics_of_chains() -> None:
    noise = torch.randn(200, 8, 2, dtype=F64)
    assert split_rhat(noise) < 1.02
    assert effective_size(noise) > 1000
    assert split_rhat(noise + torch.arange(8.0)[:, None]) > 2.0
    walk = noise.cumsum(0)
    assert effective_size(walk) < 200
    assert effective_size(torch.ones_like(noise)) == 1600
