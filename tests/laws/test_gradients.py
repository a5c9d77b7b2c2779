"""The law: gradients are right. Finite differences, and both ways to a gradient, over the catalogues."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.solvers.gradient import backward_value_and_grad, value_and_grad
from tests.helpers import (
    LOSSES,
    NETWORKS,
    TRANSFORMS,
    assert_close,
    assert_gradient,
    make_network,
    make_problem,
    make_target,
    make_x0,
    params,
    scalar,
)

DTYPES = [torch.float32, torch.float64]
every_network = pytest.mark.parametrize("name", params(NETWORKS))
every_transform = pytest.mark.parametrize("name", params(TRANSFORMS))


@every_network
def test_gradient_equals_finite_differences(name: str) -> None:
    apply, p = fe.functionalize(make_network(name))
    loss, x = scalar(apply, make_target()), make_x0()
    assert_gradient(lambda x: loss(p, x), x, torch.func.grad(loss, argnums=1)(p, x))


@pytest.mark.parametrize("name", params(["with_buffers", "tied", "weight_norm", "conv_instance_norm"]))
def test_gradient_of_parameters_equals_finite_differences(name: str) -> None:
    apply, p = fe.functionalize(make_network(name))
    loss, x = scalar(apply, make_target()), make_x0()
    key = next(n for n in p if n.endswith(("bias", "weight", "original0")))
    grads = torch.func.grad(lambda t: loss({**p, key: t}, x))(p[key])
    assert_gradient(lambda t: loss({**p, key: t}, x), p[key], grads)


@every_transform
def test_the_gradient_in_the_search_space_equals_finite_differences(name: str) -> None:
    problem = TRANSFORMS[name](make_problem())

    def value(z: Tensor) -> Tensor:
        return problem.objective(problem.decode(z, problem.args), problem.args)[0]

    z = problem.start(problem.args)
    assert_gradient(value, z, torch.func.grad(value)(z))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", params(NETWORKS))
def test_check_gradient_passes_on_every_network(name: str, dtype: torch.dtype) -> None:
    found = fe.check_gradient(make_problem(name, dtype), rtol=1e-3)
    assert found.ok, found
    assert len(found.slopes) == 4 * len({dtype, torch.float64})
    assert {slope.dtype for slope in found.slopes} == {dtype, torch.float64}
    doubles = [slope.error for slope in found.slopes if slope.dtype is torch.float64]
    assert max(doubles) < 1e-6


@pytest.mark.parametrize("name", params(TRANSFORMS))
def test_check_gradient_passes_on_every_transform(name: str) -> None:
    assert fe.check_gradient(TRANSFORMS[name](make_problem()), rtol=1e-6).ok


@pytest.mark.parametrize("name", params(LOSSES))
def test_check_gradient_passes_on_every_loss(name: str) -> None:
    assert fe.check_gradient(make_problem(loss=LOSSES[name]), rtol=1e-6).ok


def assert_both_agree(problem: fe.Problem) -> None:
    def objective(z: Tensor, args: dict) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return problem.evaluate(problem.decode(z, args), args)

    z = problem.start(problem.args)
    functional, backward = value_and_grad(objective), backward_value_and_grad(objective)
    assert_close(backward(z, problem.args), functional(z, problem.args), rtol=1e-9, atol=1e-13)
    with torch.no_grad():
        assert_close(backward(z, problem.args), functional(z, problem.args), rtol=1e-9, atol=1e-13)
    assert not any(t.requires_grad for t in (*backward(z, problem.args)[0][1], z))


@pytest.mark.parametrize("name", params(NETWORKS))
def test_both_ways_agree_on_every_network(name: str) -> None:
    assert_both_agree(make_problem(name))


@pytest.mark.parametrize("name", params(LOSSES))
def test_both_ways_agree_on_every_loss(name: str) -> None:
    assert_both_agree(make_problem(loss=LOSSES[name]))


@pytest.mark.parametrize("name", params(TRANSFORMS))
def test_both_ways_agree_on_every_transform(name: str) -> None:
    assert_both_agree(TRANSFORMS[name](make_problem()))


@pytest.mark.parametrize("cut", [lambda x: x.detach(), lambda x: torch.ones(5), torch.sign])
def test_a_network_without_a_gradient_has_zeros(cut: object) -> None:
    def apply(p: dict, x: Tensor) -> Tensor:
        return torch.softmax(cut(x)[..., :5].reshape(-1)[:5] * 1.0, 0).double()  # type: ignore[operator]

    problem = make_problem(network=(apply, {}))
    assert_both_agree(problem)
    with pytest.warns(UserWarning, match="no gradient reaches the input"):
        solution = fe.solve(problem, max_steps=5)
    assert solution.status is fe.Status.STALLED
    assert torch.equal(solution.x, problem.args["x0"])
