"""The two ways to a gradient agree on every network, loss and transform."""

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
    make_problem,
    params,
)


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
def test_on_every_network(name: str) -> None:
    assert_both_agree(make_problem(name))


@pytest.mark.parametrize("name", params(LOSSES))
def test_on_every_loss(name: str) -> None:
    assert_both_agree(make_problem(loss=LOSSES[name]))


@pytest.mark.parametrize("name", params(TRANSFORMS))
def test_on_every_transform(name: str) -> None:
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
