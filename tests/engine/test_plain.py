"""Laws of one question's step: on plain numbers and on tensors, with parameters bound and not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.networks.functional import Network, bound
from funcexplain.solvers.gradient import backward_value_and_grad
from funcexplain.solvers.state import Keep, State, Stopping
from funcexplain.solvers.step import make_plain_step, make_step
from tests.grids import models, x0s
from tests.helpers import (
    ASSETS,
    NETWORKS,
    OPTIMIZERS,
    SIZE,
    TRANSFORMS,
    assert_close,
    assert_same,
    assert_untouched,
    make_network,
    make_problem,
    make_target,
    make_x0,
    params,
    snapshot,
)

every_keep = pytest.mark.parametrize("keep", ["last", "best"])


# --- both steps walk the same path ----------------------------------------------------------------


def assert_same_path(
    problem: fe.Problem, method: Any, stopping: Stopping, max_steps: int, within: float = 1e-12
) -> State:
    """The law: all of the states are equal, until the search ends; returns the last one."""
    _, plain = make_plain_step(problem, method, stopping)
    atol, keep, patience, rtol = stopping
    settings: Any = {} if patience is None else {"patience": patience, "rtol": rtol}
    init, step = make_step(problem, method, atol=atol, keep=keep, **settings)
    state = expected = init(problem.args)
    with torch.no_grad():
        for _ in range(max_steps):
            state, info = plain(state, problem.args)
            expected, expected_info = step(expected, problem.args)
            assert_same(
                (info.error.isnan(), state.status), (expected_info.error.isnan(), expected.status)
            )
            assert_close(known(info), known(expected_info), rtol=within, atol=within)
            if expected.done:
                # Nobody asks an optimizer again that has made its last update.
                expected = expected._replace(optimizer=state.optimizer)
            assert_close(known(state), known(expected), rtol=within, atol=within)
            if expected.done:
                break
    return state


def known(tree: Any) -> Any:
    """The same with numbers for NaN, so that it can be compared."""
    return torch.utils._pytree.tree_map(lambda leaf: leaf.nan_to_num(nan=-7.0), tree)


@pytest.mark.parametrize("transform", params(TRANSFORMS))
@pytest.mark.parametrize("optimizer", params(OPTIMIZERS))
@every_keep
@pytest.mark.parametrize("patience", [None, 3])
def test_the_path_is_the_same_for_every_optimizer_and_transform(
    optimizer: str, transform: str, keep: Keep, patience: int | None
) -> None:
    problem = TRANSFORMS[transform](make_problem())
    within = 1e-10 if "adam" in optimizer else 1e-12
    assert_same_path(problem, OPTIMIZERS[optimizer](), Stopping(0.02, keep, patience, 0.05), 14, within)


@pytest.mark.parametrize("name", params(NETWORKS))
def test_the_path_is_the_same_for_every_network(name: str) -> None:
    assert_same_path(fe.freeze(make_problem(name)), fe.sgd(lr=0.5), Stopping(1e-3, "best", 5, 1e-3), 8)


def rising(p: Any, x: Tensor) -> Tensor:
    return torch.log(x.flatten()[:5])  # not finite once an entry crosses zero


def rooted(p: Any, x: Tensor) -> Tensor:
    return x.flatten()[:5].clamp_min(0).sqrt()  # infinite slope at zero


def flat(p: Any, x: Tensor) -> Tensor:
    return torch.full_like(x[0, 0], 0.2)


def straight(p: Any, x: Tensor) -> Tensor:
    return 1.0 * x[0, 0]


def still(p: Any, x: Tensor) -> Tensor:
    return 0 * x[0, 0] + 0.2


ENDS: dict[str, tuple[dict[str, Any], fe.Optimizer, fe.Status, bool]] = {
    # What changes the question, the method, how it ends, and whether it takes a step before.
    "hit": ({}, fe.sgd(lr=20.0, momentum=0.9), fe.Status.HIT, True),
    "hit_at_once": (
        {"network": (flat, {}), "target": torch.full_like(make_target(), 0.2)},
        fe.sgd(),
        fe.Status.HIT,
        False,
    ),
    "no_graph": ({"network": (flat, {})}, fe.adam(), fe.Status.STALLED, False),
    "no_slope": ({"network": (still, {})}, fe.sgd(momentum=0.9), fe.Status.STALLED, False),
    "impatient": ({}, fe.adam(lr=5.0), fe.Status.STALLED, True),
    "point": (
        {"network": (rising, {}), "x0": make_x0().abs() + 1.0, "target": -20 * make_target()},
        fe.sgd(lr=0.3),
        fe.Status.NONFINITE,
        True,
    ),
    "start": ({"network": (rising, {}), "x0": -make_x0().abs()}, fe.sgd(), fe.Status.NONFINITE, False),
    "slope": (
        {"network": (rooted, {}), "x0": torch.zeros_like(make_x0())},
        fe.adam(),
        fe.Status.NONFINITE,
        False,
    ),
    "overflow": ({"network": (straight, {})}, fe.sgd(lr=1e308), fe.Status.NONFINITE, True),
}


@pytest.mark.parametrize("name", params(ENDS))
@every_keep
def test_the_path_ends_in_the_same_way(name: str, keep: Keep) -> None:
    changes, method, status, moves = ENDS[name]
    stopping = Stopping(0.05, keep, 6 if name == "impatient" else None, 0.1)
    last = assert_same_path(make_problem(**changes), method, stopping, 200, within=1e-8)
    assert int(last.status) == status
    assert bool(last.num_steps > 0) == moves


@every_keep
def test_a_schedule_that_rests_does_not_end_the_search(keep: Keep) -> None:
    """An update of zero alone is no standstill, nor is a slope of zero while momentum moves on."""

    def init(z: Tensor) -> Tensor:
        return torch.zeros((), dtype=torch.int64)

    def update(grads: Tensor, count: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(count % 3 == 0, 0.0, -0.5) * grads, count + 1

    last = assert_same_path(make_problem(), fe.Optimizer(init, update), Stopping(0.0, keep), 10)
    assert last.num_steps == 10

    def fades(p: Any, x: Tensor) -> Tensor:
        return x[0, 0].clamp_max(0.0)

    problem = make_problem((fades, {}), x0=-0.1 * torch.ones_like(make_x0()), target=1 + make_target())
    last = assert_same_path(problem, fe.sgd(lr=0.5, momentum=0.5), Stopping(0.0, keep), 9)
    assert last.num_steps == 9
    assert (last.z[0, 0] > 0).all()


# --- parameters that are bound --------------------------------------------------------------------


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
    with bound(apply, other) as prepared:
        assert_same(prepared(p, x), expected)  # what it is given is not looked at
        assert_same(prepared.samples(p, x[None])[0], expected)  # type: ignore[attr-defined]
        assert_same(apply(p, x), make_network("mlp_tanh").eval()(x[None])[0].detach())
        assert_same(prepared(other, x), expected)
    assert_same(apply(other, x), expected)
    function = rising
    with bound(function, {}) as prepared:
        assert prepared is function


def test_parameters_are_taken_out_again_after_an_error() -> None:
    network = make_network("mlp_tanh")
    apply, p = fe.functionalize(network)
    assert isinstance(apply, Network)
    own = {name: id(parameter) for name, parameter in apply._module.named_parameters()}

    def fails(state: State, info: fe.Info) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fe.solve(make_problem((apply, p)), callback=fails)
    assert {name: id(parameter) for name, parameter in apply._module.named_parameters()} == own


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
