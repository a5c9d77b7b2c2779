"""Compiled code is never out of date: its key holds what steps read, answers are evaluated plainly."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.engine import compiled
from tests.engine.compilation import Trace
from tests.grids import F64, targets, without_nan, x0s
from tests.helpers import assert_close, make_network, make_problem

POWER, SETTINGS, LIMITS = 2, {"power": [2]}, torch.tensor([2.0], dtype=F64)


def distance(weights: Tensor, target: Tensor, power: Any) -> Tensor:
    return ((weights - target).abs() ** power).sum()


class Loss:
    """A loss with a setting."""

    shared = 2

    def __init__(self) -> None:
        self.power = 2

    def __call__(self, weights: Tensor, target: Tensor) -> Tensor:
        return distance(weights, target, self.power)

    def method(self, weights: Tensor, target: Tensor) -> Tensor:
        return distance(weights, target, self.power)

    def of_class(self, weights: Tensor, target: Tensor) -> Tensor:
        return distance(weights, target, self.shared)


def by_closure() -> tuple[Any, Callable[[], object]]:
    power = 2

    def loss(weights: Tensor, target: Tensor) -> Tensor:
        return distance(weights, target, power)

    def change() -> None:
        nonlocal power
        power = 1

    return loss, change


def by_global() -> tuple[Any, Callable[[], object]]:
    return lambda w, t: distance(w, t, POWER), lambda: globals().update(POWER=1)


def by_nested_function() -> tuple[Any, Callable[[], object]]:
    def inner(weights: Tensor, target: Tensor) -> Tensor:
        return distance(weights, target, POWER)

    return lambda w, t: inner(w, t), lambda: globals().update(POWER=1)


def by_list_in_a_dict() -> tuple[Any, Callable[[], object]]:
    return lambda w, t: distance(w, t, SETTINGS["power"][0]), lambda: SETTINGS["power"].__setitem__(0, 1)


def by_tensor() -> tuple[Any, Callable[[], object]]:
    return lambda w, t: distance(w, t, LIMITS[0]), lambda: LIMITS.data.fill_(1.0)


def by_attribute() -> tuple[Any, Callable[[], object]]:
    loss = Loss()
    return loss, lambda: setattr(loss, "power", 1)


def by_bound_method() -> tuple[Any, Callable[[], object]]:
    loss = Loss()
    return loss.method, lambda: setattr(loss, "power", 1)


def by_attribute_of_the_class() -> tuple[Any, Callable[[], object]]:
    return Loss().of_class, lambda: setattr(Loss, "shared", 1)


def by_partial() -> tuple[Any, Callable[[], object]]:
    options = {"power": 2}

    def loss(w: Tensor, t: Tensor, options: dict[str, int]) -> Tensor:
        return distance(w, t, options["power"])

    return functools.partial(loss, options=options), lambda: options.update(power=1)


def by_default() -> tuple[Any, Callable[[], object]]:
    def loss(w: Tensor, t: Tensor, *, power: int = 2) -> Tensor:
        return distance(w, t, power)

    return loss, lambda: loss.__kwdefaults__.update(power=1)  # type: ignore[union-attr]


def by_layer() -> tuple[Any, Callable[[], object]]:
    layer = nn.Linear(1, 1).to(F64)
    nn.init.constant_(layer.weight, 2.0)
    return lambda w, t: distance(w, t, layer.weight.detach()[0, 0]), lambda: layer.weight.data.fill_(1)


def by_environment() -> tuple[Any, Callable[[], object]]:
    """No description sees it, but the first step does."""
    return lambda w, t: distance(w, t, float(os.environ["POWER"])), lambda: os.environ.update(POWER="1")


CHANGES = [
    *(by_closure, by_global, by_nested_function, by_list_in_a_dict, by_tensor, by_attribute, by_default),
    *(by_bound_method, by_attribute_of_the_class, by_partial, by_layer, by_environment),
]


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(globals(), "POWER", 2)
    monkeypatch.setitem(SETTINGS, "power", [2])
    monkeypatch.setattr(Loss, "shared", 2)
    monkeypatch.setenv("POWER", "2")
    LIMITS.fill_(2.0)
    yield
    LIMITS.fill_(2.0)


def assert_current(problem: fe.Problem, method: Any, **settings: Any) -> fe.Solution:
    """Compiled and uncompiled searches agree, and loss and weights belong to x."""
    settings = {"max_steps": 3, **settings}
    found = fe.solve(problem, method, compile=True, **settings)
    assert_close(without_nan(found), without_nan(fe.solve(problem, method, **settings)), rtol=1e-9)
    return found


@pytest.mark.parametrize("change", CHANGES[:-1], ids=lambda change: change.__name__)
def test_the_key_of_code_holds_what_a_loss_reads(change: Any) -> None:
    loss, change_it = change()
    before = [compiled._describe(make_problem(loss=loss).loss) for _ in range(2)]
    change_it()
    assert before[0] == before[1] != compiled._describe(loss)


@pytest.mark.parametrize("change", [by_global, by_environment])
def test_code_follows_what_a_loss_reads(traced: list[Trace], change: Any) -> None:
    loss, change_it = change()
    grid, method = fe.vmap(make_problem(loss=loss), x0=x0s(5)), fe.sgd(lr=0.5)
    before = [assert_current(grid, method) for _ in range(2)]
    assert len(traced) == 1
    change_it()
    assert not torch.equal(assert_current(grid, method).loss, before[1].loss)
    assert len(traced) == 2


def test_code_follows_the_default_dtype(traced: list[Trace]) -> None:
    grid = fe.vmap(make_problem(loss=lambda w, t: distance(w, t, 2) * torch.full((), 1 / 3)), x0=x0s(5))
    method, losses = fe.sgd(lr=0.5), []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            losses.append(assert_current(grid, method).loss)
        finally:
            torch.set_default_dtype(torch.float32)
    assert not torch.equal(*losses)


def test_code_follows_an_optimizer(traced: list[Trace], monkeypatch: pytest.MonkeyPatch) -> None:
    rate = {"lr": 0.5}
    grid = fe.vmap(make_problem(), x0=x0s(5))
    seen = fe.as_optimizer((lambda z: (), lambda grads, state, z: (-rate["lr"] * grads, state)))
    unseen = fe.as_optimizer(
        (lambda z: (), lambda grads, state, z: (-float(os.environ["POWER"]) * grads, state))
    )
    for method in (seen, unseen):
        for value in (0.5, 0.1):
            rate["lr"] = value
            monkeypatch.setenv("POWER", str(value))
            assert_current(grid, method)


def test_a_callback_lowers_a_strength(traced: list[Trace]) -> None:
    strength, found = [1.0], []
    size = fe.penalize(lambda x, _: strength[0] * x.square().sum(), strength=1.0, name="size")
    problem = size(make_problem())

    def lower(state: fe.State, info: fe.Info) -> None:
        strength[0] *= 0.5

    for wanted in (True, False):
        strength[0] = 1.0
        grid = fe.vmap(problem, x0=x0s(5))
        found.append(fe.solve(grid, fe.sgd(lr=0.1), max_steps=4, compile=wanted, callback=lower))
    assert_close(without_nan(found[0]), without_nan(found[1]), rtol=1e-9)


@pytest.mark.parametrize("tensor", [False, True])
def test_a_callback_lowers_the_learning_rate(
    traced: list[Trace], said: pytest.LogCaptureFixture, tensor: bool
) -> None:
    rate: Any = torch.tensor(1.0, dtype=F64) if tensor else [1.0]
    method = fe.as_optimizer((lambda z: (), lambda grads, state, z: (-_first(rate) * grads, state)))
    grid, found = fe.vmap(make_problem(), x0=x0s(5)), []

    def lower(state: fe.State, info: fe.Info) -> None:
        if tensor:
            rate.mul_(0.5)
        else:
            rate[0] *= 0.5

    for wanted in (True, False):
        _set(rate, 1.0)
        found.append(fe.solve(grid, method, max_steps=6, compile=wanted, callback=lower, chunk_size=3))
    assert_close(without_nan(found[0]), without_nan(found[1]), rtol=1e-9)
    assert len(traced) == 1
    assert "the callback changes what the steps read" in said.text


def _first(rate: Any) -> Any:
    return rate if isinstance(rate, Tensor) else rate[0]


def _set(rate: Any, value: float) -> None:
    rate.fill_(value) if isinstance(rate, Tensor) else rate.__setitem__(0, value)


def test_a_method_that_counts_its_calls(traced: list[Trace], said: pytest.LogCaptureFixture) -> None:
    class Schedule:
        calls = 0

        def update(self, grads: Tensor, state: Any, z: Tensor) -> tuple[Tensor, Any]:
            self.calls += 1
            return -0.5 / self.calls * grads, state

    grid, method = fe.vmap(make_problem(), x0=x0s(5)), (lambda z: (), Schedule().update)
    fe.solve(grid, method, max_steps=5, compile=True)
    assert "the method changes what it reads" in said.text


def test_a_network_that_keeps_its_last_output_is_compiled_once(traced: list[Trace]) -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_network("mlp_tanh")

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.inner(x)
            return self.last

    grid, method = fe.vmap(make_problem(Keeps()), x0=x0s(5)), fe.sgd(lr=0.5)
    for _ in range(2):
        assert_current(grid, method)
    assert len(traced) == 1


def test_a_loss_that_a_callback_changes_is_solved_again_uncompiled(
    traced: list[Trace], said: pytest.LogCaptureFixture
) -> None:
    grid = fe.vmap(make_problem(loss=by_environment()[0]), x0=x0s(9))

    def callback(state: fe.State, info: fe.Info) -> None:
        os.environ["POWER"] = "3"

    with pytest.warns(UserWarning, match="compiled steps are out of date: 4 answers") as caught:
        found = fe.solve(
            grid, fe.sgd(lr=0.1), max_steps=3, compile=True, chunk_size=4, callback=callback
        )
    assert len(caught) == 1
    assert (found.status == fe.Status.MAX_STEPS).all()  # type: ignore[union-attr]
    assert not compiled._CODE  # the next search compiles afresh


def test_code_that_is_wrong_is_not_believed(
    traced: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    def miscompiles(graph: Any, tensors: Any, options: Any = None) -> Any:
        def code(*inputs: Tensor) -> list[Tensor]:
            return [out * 1.5 if out.is_floating_point() else out for out in graph(*inputs)]

        return code

    monkeypatch.setattr(torch._inductor, "compile", miscompiles)
    grid = fe.vmap(make_problem(), x0=x0s(5), target=targets(5))
    with pytest.warns(UserWarning, match="compiled steps are out of date: 5 answers"):
        assert_current(grid, fe.sgd(lr=0.5), atol=0.02)


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float32), (1e6, F64), (1e-6, F64)])
def test_rounding_is_not_a_difference(
    traced: list[Trace], monkeypatch: pytest.MonkeyPatch, scale: float, dtype: torch.dtype
) -> None:
    eps = torch.finfo(dtype).eps

    def rounds(graph: Any, tensors: Any, options: Any = None) -> Any:
        def code(*inputs: Tensor) -> list[Tensor]:
            return [out * (1.0 + 4 * eps) if out.is_floating_point() else out for out in graph(*inputs)]

        return code

    monkeypatch.setattr(torch._inductor, "compile", rounds)
    problem = make_problem(loss=lambda w, t: scale * distance(w, t, 2))
    grid = fe.vmap(fe.cast(dtype=dtype)(problem), x0=x0s(5).to(dtype))
    found = fe.solve(grid, fe.levenberg_marquardt(), max_steps=8, atol=10 * eps, compile=True)
    again = grid[0].evaluate(found.x[0], grid[0].args)[1]
    assert_close(found.loss[0], again[0], rtol=1e-2, atol=1e-9 * scale)
    assert (found.error[found.hit] <= 10 * eps).all()
