"""Alternatives: they hold, are likely enough, differ, and begin with the answer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import funcexplain as fe
from tests.helpers import assert_same
from tests.measures.draws import ALPHA, BETA, FREE, exact_draws, question

P: Any = fe  # wrong types are the point of some calls


@pytest.fixture(scope="module")
def closest() -> fe.Solution:
    return fe.closest(question())


@pytest.mark.parametrize("likelihood", [0.9, 0.1, 0.001])
def test_they_hold_and_are_likely_enough(closest: fe.Solution, likelihood: float) -> None:
    problem = question()
    draws = exact_draws(problem, 200)
    found = fe.alternatives(closest, draws, problem, likelihood=likelihood)
    assert found.hit.all()
    assert len(found.x) == 5
    assert found.dims == ("alternative",)
    assert_same(found.z[0], closest.z)
    assert (found.z[:, ~FREE] == 0).all()
    density = -0.5 * (found.z.flatten(1).square().sum(1) - closest.z.square().sum())
    assert bool((density >= math.log(likelihood) - 1e-3).all())
    assert bool((density[1:].exp() < 1.5 * likelihood).any())  # as far as allowed
    moves = fe.scenarios.returns_of(found, problem)[:, 2:].sum(1)
    assert float(torch.pdist(moves).min()) > 0.0
    # No step across the answer changes a day alone: each asset moves alike on all of its free days.
    steps = (found.z - closest.z)[1:, :, 0]
    torch.testing.assert_close(steps[:, 2], steps[:, 4])


def test_only_the_answer_is_as_likely_as_the_likeliest() -> None:
    problem = question()
    along = torch.as_tensor(BETA * ALPHA)
    answer = fe.closest(problem)
    torch.testing.assert_close(answer.z, along, atol=2e-3, rtol=0)
    found = fe.alternatives(answer, exact_draws(problem, 50), problem, likelihood=1.0)
    assert float((found.z - answer.z).abs().max()) < 0.1


def test_what_cannot_be_compared_is_refused(closest: fe.Solution) -> None:
    problem = question()
    draws = exact_draws(problem, 10)
    for likelihood in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"alternatives: likelihood must be in \(0, 1\]"):
            fe.alternatives(closest, draws, problem, likelihood=likelihood)
    with pytest.raises(TypeError, match="alternatives: likelihood"):
        P.alternatives(closest, draws, problem, likelihood="a")
    with pytest.raises(ValueError, match="alternatives: count"):
        fe.alternatives(closest, draws, problem, count=0)
    missed = fe.solve(problem, max_steps=0)
    with pytest.raises(ValueError, match="alternatives: answer must hold the target"):
        fe.alternatives(missed, draws, problem)
    with pytest.raises(ValueError, match=r"alternatives: answer must be one market, got rows \(10,\)"):
        fe.alternatives(draws, draws, problem)
    some = fe.alternatives(closest, draws, problem)
    with pytest.raises(ValueError, match=r"moves: draws must be at least two markets from fe.sample"):
        fe.moves(some, problem)
