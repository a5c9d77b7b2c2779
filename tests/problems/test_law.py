"""The law of the search point, and the search point as part of the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.markets.features import features
from funcexplain.problems.law import check_law
from tests.helpers import assert_close, assert_same

F64 = torch.float64
SPAN, DAYS = 4, 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


RETURNS = 0.01 * draw(DAYS, 2)
COV = 1e-4 * torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=F64)


def question(**changes: Any) -> fe.Problem:
    torch.manual_seed(0)
    layers = torch.nn.Flatten(), torch.nn.Linear(36, 2), torch.nn.Softmax(-1)
    network = torch.nn.Sequential(*layers).double()
    with torch.no_grad():
        network[1].weight.mul_(20.0)  # type: ignore[operator]
    target = fe.targets.at_least(0, 0.7)
    return fe.problem(network, target, features(RETURNS, span=SPAN), **changes)


scenario = fe.scenarios.scenario(RETURNS, COV)
KEEPS: dict[str, Any] = {
    "freeze": fe.freeze,
    "zero_masked": fe.zero_masked,
    "cast": fe.cast(dtype=torch.float32),
    "jitter": fe.jitter(0.1),
    "penalize": fe.penalize(fe.penalties.l2, strength=0.1),
    "vmap": lambda p: fe.vmap(p, seed=torch.arange(2)),
    "row": lambda p: fe.vmap(p, seed=torch.arange(2))[1],
}
DROPS: dict[str, Any] = {
    "box": fe.box(-9.0, 9.0),
    "clip": fe.clip(-9.0, 9.0),
    "standardize": fe.standardize(0.0, 0.5),
    "reparametrize": fe.reparametrize(lambda x: x + 1.0, lambda z: z - 1.0),
    "sparsify": fe.sparsify(strength=0.1),
    "a transform of your own": lambda p: replace(p, decode=lambda z, args: p.decode(z, args) + 0.0),
}


@pytest.mark.parametrize("name", KEEPS)
def test_transforms_keep_the_law_of_a_scenario(name: str) -> None:
    assert question().law is None
    problem = KEEPS[name](scenario(question()))
    assert problem.law == "normal"
    check_law("probability", problem)


@pytest.mark.parametrize("name", DROPS)
def test_other_transforms_drop_it_and_are_named(name: str) -> None:
    problem = scenario(question())
    if name in ("box", "clip"):
        assert fe.freeze(DROPS[name](problem)).law is None
    problem = DROPS[name](problem)
    assert problem.law is None
    with pytest.raises(ValueError, match=f"probability: problem must .* after {name}"):
        check_law("probability", problem)


def test_windows_have_no_law() -> None:
    with pytest.raises(ValueError, match="got a search over windows"):
        check_law("probability", question())
    clipped = scenario(fe.clip(-9.0, 9.0)(question()))
    assert clipped.law is None


@pytest.mark.parametrize("rows", [False, True])
def test_the_search_point_decodes_to_the_answer(rows: bool, tmp_path: Path) -> None:
    problem = scenario(question())
    if rows:
        goals = [fe.targets.at_least(0, 0.7), fe.targets.at_least(1, 0.6)]
        problem = fe.vmap(problem, target=goals)
    for found in (
        fe.solve(problem, fe.levenberg_marquardt(), atol=1e-4),
        fe.closest(problem),
        fe.closest(problem, norm="l1"),
    ):
        assert found.hit.all()
        for row in range(2 if rows else 1):
            one, ask = (found[row], problem[row]) if rows else (found, problem)
            assert one.z.shape == (DAYS, 2)
            assert_close(ask.decode(one.z, ask.args), one.x, rtol=1e-9, atol=1e-12)
            assert_same(fe.scenarios.shocks(one, ask), one.z)
        found.save(tmp_path / "answer")
        assert_same(fe.load(tmp_path / "answer").z, found.z)


def test_a_search_over_windows_keeps_one_tensor() -> None:
    found = fe.solve(question(), fe.levenberg_marquardt(), atol=1e-4)
    assert found.z is found.x
    grid = fe.solve(fe.vmap(question(), seed=torch.arange(3)), max_steps=2)
    assert grid.z is grid.x
    assert grid[1].z is not None


def test_shocks_are_found_again_without_an_inverse() -> None:
    # A user's own channels, whose window does not give the returns back.
    def compute(returns: Tensor) -> Tensor:
        return features(returns, span=SPAN).square()

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2), torch.nn.Softmax(-1))
    window = compute(RETURNS)
    question = fe.problem(network.double(), fe.targets.at_least(0, 0.6), window)
    own = fe.scenarios.scenario(RETURNS, COV, features=compute, inverse=lambda window, returns: returns)
    problem = own(question)
    found = fe.solve(problem, fe.levenberg_marquardt(), atol=1e-4)
    near = fe.closest(problem)
    assert found.hit
    assert fe.scenarios.shocks(found, problem).norm() > 0.1
    assert near.hit
    assert 0.0 < near.z.norm() < found.z.norm() * (1 + 1e-9)


def test_entries_that_are_tied_together_are_not_pruned() -> None:
    problem = scenario(question())
    found = fe.closest(problem)
    with pytest.raises(ValueError, match="prune: problem must be searched entry by entry"):
        fe.prune(found, problem)
    units = fe.standardize(0.1, 0.02)(question())
    found = fe.solve(units, fe.levenberg_marquardt(), atol=1e-4)
    pruned = fe.prune(found, units, atol=1e-3)
    assert_close(units.decode(pruned.z, units.args), pruned.x)
