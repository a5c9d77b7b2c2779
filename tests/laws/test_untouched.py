"""The law: nothing of the caller's changes, neither network, tensors, generator nor grad mode."""

from __future__ import annotations

import pytest
import torch

import funcexplain as fe
from tests.helpers import (
    NETWORKS,
    TRANSFORMS,
    assert_same,
    assert_untouched,
    clone_args,
    make_network,
    make_problem,
    make_target,
    make_x0,
    params,
    scalar,
    snapshot,
)

every_network = pytest.mark.parametrize("name", params(NETWORKS))
every_transform = pytest.mark.parametrize("name", params(TRANSFORMS))


@every_network
@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_untouched(name: str, training: bool) -> None:
    network = make_network(name).train(training)
    network.register_forward_hook(lambda *_: None)
    before = snapshot(network)
    apply, p = fe.functionalize(network)
    torch.func.grad(scalar(apply, make_target()), argnums=1)(p, make_x0())
    assert_untouched(before, network)


@every_transform
def test_a_transform_leaves_the_problem_as_it_was(name: str) -> None:
    problem = make_problem()
    before = clone_args(problem.args)
    fe.solve(TRANSFORMS[name](problem), max_steps=3)
    assert_same(problem.args, before)


@pytest.mark.parametrize("name", params(NETWORKS))
@pytest.mark.parametrize("training", [True, False])
def test_the_callers_network_and_tensors_are_untouched(name: str, training: bool) -> None:
    network = make_network(name).train(training)
    target, x0, mask = make_target(), make_x0(), torch.ones(2, 6, 5, dtype=torch.bool)
    mask[0, 0] = False
    before, tensors = snapshot(network), clone_args({"t": target, "x": x0, "m": mask})
    solution = fe.explain(network, target, x0, mask=mask, max_steps=3)
    assert_untouched(before, network)
    assert_same({"t": target, "x": x0, "m": mask}, tensors)
    assert not any(t.requires_grad for t in (solution.x, solution.weights, solution.loss))
    with torch.no_grad():  # the answer shares no memory with the caller
        solution.x.add_(1.0)
    assert_same(x0, tensors["x"])
