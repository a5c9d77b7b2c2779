"""Laws of one question's network, whose parameters are bound once for all steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.networks.network import Network, bound
from funcexplain.solvers.gradient import backward_value_and_grad
from funcexplain.solvers.state import State
from tests.grids import models, x0s
from tests.helpers import (
    ASSETS,
    NETWORKS,
    SIZE,
    assert_close,
    assert_same,
    assert_untouched,
    make_network,
    make_problem,
    make_x0,
    params,
    snapshot,
)

every_keep = pytest.mark.parametrize("keep", ["last", "best"])


class Writes(nn.Module):
    """Depends on a buffer that it changes at every call, in place or by a new one."""

    calls: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head = how, nn.Linear(SIZE, ASSETS)
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "in_place":
            self.calls += 1
        elif self.how == "through_a_view":
            self.calls.view(1)[0] = self.calls + 1
        elif self.how == "through_data":
            self.calls.data.add_(1)
        elif self.how == "by_a_new_one":
            self.calls = self.calls + 1
        return torch.softmax((1 + self.calls) * self.head(torch.tanh(x.flatten(1))), -1)


def make_writes(how: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return Writes(how).double()


def walked(problem: fe.Problem, method: fe.Optimizer, num_steps: int) -> State:
    """The search without binding, by a backward pass as in `solve`."""
    init, step = fe.make_step(problem, method, atol=0.0, gradient=backward_value_and_grad)
    return fe.run(init, step, problem.args, num_steps=num_steps)[0]


def assert_bound_is_unbound(problem: fe.Problem) -> None:
    found = fe.solve(problem, fe.sgd(lr=0.5), max_steps=6)
    again = fe.solve(problem, fe.sgd(lr=0.5), max_steps=6)
    assert_same(again, found)
    kept = walked(problem, fe.sgd(lr=0.5), 7).kept
    assert_close((found.x, found.weights, found.loss), (kept.z, kept.weights, kept.loss))


@pytest.mark.parametrize("name", params(NETWORKS))
def test_a_bound_network_gives_the_answers_of_an_unbound_one(name: str) -> None:
    network = make_network(name)
    before = snapshot(network)
    assert_bound_is_unbound(make_problem(network))
    assert_untouched(before, network)


@pytest.mark.parametrize("how", ["in_place", "through_a_view", "through_data", "by_a_new_one"])
def test_what_a_network_writes_to_its_buffers_does_not_outlive_the_call(how: str) -> None:
    # The version of a tensor tells neither of writes to its `.data` nor of a new tensor in its place.
    network = make_writes(how)
    before = snapshot(network)
    problem = make_problem(network)
    assert_bound_is_unbound(problem)
    assert_untouched(before, network)
    assert problem.args["params"]["calls"] == 0


def test_binding_puts_the_given_parameters_in() -> None:
    apply, p = fe.functionalize(make_network("mlp_tanh"))
    x, other = make_x0(), {name: 2 * tensor for name, tensor in p.items()}
    expected = apply(other, x)
    assert isinstance(apply, Network)
    with bound(apply, other):
        assert_same(apply.module(x[None])[0], expected)
        assert_same(apply(p, x), make_network("mlp_tanh").eval()(x[None])[0].detach())
        assert_same(apply.module(x[None])[0], expected)
        assert_same(apply(other, x), expected)
    assert_same(apply(other, x), expected)
    with bound(torch.mul, {}):
        pass


def test_parameters_are_taken_out_again_after_an_error() -> None:
    network = make_network("mlp_tanh")
    apply, p = fe.functionalize(network)
    assert isinstance(apply, Network)
    own = {name: id(parameter) for name, parameter in apply.module.named_parameters()}

    def fails(state: State, info: fe.Info) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fe.solve(make_problem((apply, p)), callback=fails)
    assert {name: id(parameter) for name, parameter in apply.module.named_parameters()} == own


@pytest.mark.parametrize("inner", ["same", "other_params", "grid", "ensemble", "objective"])
@pytest.mark.parametrize("name", params(["mlp_tanh", "with_buffers", "lstm_instance_norm"]))
def test_a_search_may_be_nested_in_the_callback_of_another(name: str, inner: str) -> None:
    problem = make_problem(name)
    first = {n: tensor[0] for n, tensor in models(2, name=name).items()}
    nested: dict[str, fe.Problem] = {
        "same": problem,
        "other_params": make_problem((problem.apply, first)),
        "grid": fe.vmap(problem, x0=x0s(3)),
        "ensemble": fe.vmap(problem, params=models(2, name=name)),
    }
    found: list[Any] = []

    def ask(state: State | None = None, info: fe.Info | None = None) -> None:
        if inner == "objective":
            found.append(problem.objective(make_x0(), problem.args))
        else:
            found.append(fe.solve(nested[inner], fe.sgd(lr=0.5), max_steps=2))

    ask()
    plain = fe.solve(problem, fe.sgd(lr=0.5), max_steps=4)
    assert_same(fe.solve(problem, fe.sgd(lr=0.5), max_steps=4, callback=ask), plain)
    assert len(found) == 5
    for answer in found[1:]:
        assert_same(answer, found[0])


@pytest.mark.parametrize("grid", [False, True])
def test_models_of_one_network_may_be_asked_in_threads(grid: bool) -> None:
    # All calls put their parameters into one prepared module: threads take turns.
    ensemble = fe.vmap(make_problem(), params=models(4))
    questions = [fe.vmap(ensemble[m], x0=x0s(3)) if grid else ensemble[m] for m in range(4)]

    def answer(problem: fe.Problem) -> fe.Solution:
        return fe.solve(problem, fe.sgd(lr=0.5), max_steps=100)

    expected = [answer(problem) for problem in questions]
    with ThreadPoolExecutor(4) as executor:
        for found, right in zip(executor.map(answer, questions), expected, strict=True):
            assert_close(found, right)
