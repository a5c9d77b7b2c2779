"""Ctrl-C: what was found stays, and every row says how far it came."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.engine.solve import answer
from funcexplain.networks import network as interrupts
from funcexplain.networks.network import deferred_interrupts
from tests.grids import assert_padded, targets, without_nan, x0s
from tests.helpers import assert_close, assert_same, make_network, make_problem

ROWS, CHUNK = 8, 3
SETTINGS: dict[str, Any] = {"max_steps": 30, "atol": 0.1, "chunk_size": CHUNK}


def method() -> fe.Optimizer:
    return fe.sgd(lr=20.0, momentum=0.9)


def grid() -> fe.Problem:
    return fe.vmap(make_problem(), x0=x0s(ROWS), target=targets(ROWS))


class Interrupts:
    """A callback that ends the search in the given step."""

    def __init__(self, step: int, how: Any = KeyboardInterrupt) -> None:
        self.left, self.how = step, how

    def __call__(self, state: fe.State, info: fe.Info) -> None:
        self.left -= 1
        if self.left == 0:
            if self.how is signal.SIGINT:
                signal.raise_signal(signal.SIGINT)  # it takes effect at the end of the step
            else:
                raise self.how


def assert_interrupted(found: fe.Solution, whole: fe.Solution) -> tuple[int, int, int]:
    """Rows have ended as they would have, are on their way, or never began; returns the numbers."""
    status = torch.as_tensor(found.status)
    begun = found.num_steps > 0
    ended = status != fe.Status.INTERRUPTED
    on_way, never = ~ended & begun, ~ended & ~begun
    assert_close(without_nan(found[ended]), without_nan(whole[ended]))
    assert_padded(found)
    problem = grid()
    for row in on_way.nonzero()[:, 0].tolist():
        answer = found[row]
        assert answer.x.isfinite().all()
        _, (loss, weights) = problem[row].evaluate(answer.x, problem[row].args)
        assert_close((answer.loss, answer.weights), (loss, weights), rtol=1e-9)
        assert_close(answer.history, whole[row].history[: len(answer.history)])
        assert_close(answer.history[-1], answer.loss)
    for field in (found.x, found.weights, found.loss, found.history):
        assert field[never].isnan().all()
    assert on_way.sum() <= CHUNK
    return int(ended.sum()), int(on_way.sum()), int(never.sum())


@pytest.mark.parametrize("how", [KeyboardInterrupt, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 2, 20, 31, 32, 40, 50])
def test_an_interrupted_grid_keeps_what_it_found(
    step: int, how: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fe.solve(grid(), method(), **SETTINGS)
    found = fe.solve(grid(), method(), **SETTINGS, callback=Interrupts(step, how))
    ended, on_way, never = assert_interrupted(found, whole)
    if step < 3:
        assert (ended, on_way, never) == (0, CHUNK, ROWS - CHUNK)
    if step > 40:
        assert ended > 0
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"interrupted: {ended} of {ROWS} rows have ended"


def test_an_interruption_inside_of_the_network_is_one() -> None:
    inner, p = fe.functionalize(make_network("mlp_tanh"))
    calls: list[int] = []

    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 34:
            raise KeyboardInterrupt
        return inner(p, x)

    problem = fe.vmap(make_problem((apply, p)), x0=x0s(ROWS), target=targets(ROWS))
    whole = fe.solve(grid(), method(), **SETTINGS)
    ended, on_way, never = assert_interrupted(fe.solve(problem, method(), **SETTINGS), whole)
    assert ended > 0
    assert on_way + never > 0


def test_an_interruption_while_rows_change_places_loses_none() -> None:
    steps: list[fe.Info] = []

    def encode(x: Tensor) -> Tensor:
        if steps:  # the rows that come second
            raise KeyboardInterrupt
        return x

    changed = fe.reparametrize(encode, lambda z: z)(make_problem())
    problem = fe.vmap(changed, x0=x0s(ROWS), target=targets(ROWS))
    found = fe.solve(problem, method(), **SETTINGS, callback=lambda state, info: steps.append(info))
    whole = fe.solve(grid(), method(), **SETTINGS)
    ended, on_way, never = assert_interrupted(found, whole)
    assert ended >= 1
    assert (ended + on_way, never) == (CHUNK, ROWS - CHUNK)


def test_rows_that_memory_sent_back_have_not_begun() -> None:
    # What was recorded of their histories goes with them.
    network, steps = make_network("mlp_tanh").eval(), list[int]()

    def weights(x: Tensor) -> Tensor:
        if len(steps) == 3 and len(x) > 2:
            raise MemoryError
        return network(x)

    def callback(state: fe.State, info: fe.Info) -> None:
        steps.append(len(info.loss))
        if len(steps) == 5:
            raise KeyboardInterrupt

    problem = fe.vmap(make_problem(fe.opaque(weights)), x0=x0s(ROWS), target=targets(ROWS))
    found = fe.solve(problem, method(), **{**SETTINGS, "chunk_size": 4}, callback=callback)
    assert steps == [4, 4, 4, 2, 2]
    assert found.num_steps.tolist() == [2, 2, 0, 0, 0, 0, 0, 0]
    assert_padded(found)


@pytest.mark.parametrize("how", [KeyboardInterrupt, signal.SIGINT])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_an_interrupted_question_keeps_what_it_found(keep: Any, how: Any) -> None:
    problem = make_problem()
    whole = fe.solve(problem, max_steps=30, callback=lambda *_: None)  # steps in place round otherwise
    found = fe.solve(problem, max_steps=30, keep=keep, callback=Interrupts(7, how))
    assert (found.status, int(found.num_steps)) == (fe.Status.INTERRUPTED, 7)
    assert isinstance(found.status, fe.Status)
    assert "interrupted" in found.status.sentence
    assert_same(found.history, whole.history[:7])
    _, (loss, weights) = problem.evaluate(found.x, problem.args)
    assert_close((found.loss, found.weights), (loss, weights))


def test_a_question_that_is_interrupted_at_once_answers_its_start() -> None:
    def apply(p: Any, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    problem = make_problem((apply, {}))
    found = fe.solve(problem)
    assert_same(found.x, problem.args["x0"])
    assert (found.status, int(found.num_steps), len(found.history)) == (fe.Status.INTERRUPTED, 0, 0)
    assert found.loss.isnan()
    assert found.weights.isnan().all()
    none = fe.solve(fe.vmap(problem, x0=x0s(3)))
    assert none.num_steps.eq(0).all()
    assert none.loss.isnan().all()
    assert torch.as_tensor(none.status).eq(fe.Status.INTERRUPTED).all()


def test_other_exceptions_of_a_callback_pass_through() -> None:
    for problem in (make_problem(), grid()):
        with pytest.raises(ZeroDivisionError):
            fe.solve(problem, callback=Interrupts(2, ZeroDivisionError))


@pytest.mark.parametrize("size", [None, 4])
def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(size: int | None) -> None:
    # In the middle, torch.func's levels are not to be left.
    steps = calls = 0

    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        nonlocal calls
        if steps == 2:
            calls += 1
            signal.raise_signal(signal.SIGINT)
        return torch.softmax(x.mean((0, 1)), -1)

    def count(state: Any, info: fe.Info) -> None:
        nonlocal steps
        steps += 1

    question = make_problem((apply, {}))
    problem = question if size is None else fe.vmap(question, x0=x0s(size))
    found = fe.solve(problem, max_steps=9, callback=count)
    assert torch.as_tensor(found.status).eq(fe.Status.INTERRUPTED).all()
    assert torch.as_tensor(found.num_steps).eq(3).all()
    assert calls == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_does_not_wait() -> None:
    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return torch.softmax(x.mean((0, 1)), -1)

    found = fe.solve(make_problem((apply, {})), max_steps=9)
    assert (found.status, int(found.num_steps)) == (fe.Status.INTERRUPTED, 0)


PRESS = signal.SIGINT


def press(*_: Any) -> None:
    signal.raise_signal(PRESS)


def interrupted(found: fe.Solution) -> list[bool]:
    return (torch.as_tensor(found.status).flatten() == fe.Status.INTERRUPTED).tolist()


class Pressed(nn.Module):
    """Presses in one of its calls."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.inner, self.calls, self.at = make_network("mlp_tanh").eval(), 0, at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            press()
        return self.inner(x)


def last_call(ask: Callable[[fe.Problem], object]) -> fe.Problem:
    """A question whose network presses in the last call of a function."""
    apply, params = fe.functionalize(Pressed())
    problem = make_problem((apply, params))
    network: Any = apply
    ask(problem)  # for the first time, which is when batches of rows are tried
    network.module.calls = 0
    ask(problem)
    network.module.at, network.module.calls = network.module.calls, 0
    return problem


LAST: dict[str, Callable[[fe.Problem], fe.Solution]] = {
    "no step": lambda p: fe.solve(p, max_steps=0),
    "out of budget": lambda p: fe.solve(p, max_steps=3),
    "a hit": lambda p: fe.solve(p, max_steps=3, atol=1.0),
    "a grid": lambda p: fe.solve(fe.vmap(p, x0=x0s(3)), max_steps=2),
    "closest": lambda p: fe.closest(p, atol=1.0, max_steps=3, refinements=2),
    "closest, not refined": lambda p: fe.closest(p, atol=1.0, max_steps=3, refinements=0),
    "closest of a grid": lambda p: fe.closest(fe.vmap(p, x0=x0s(3)), atol=1.0, refinements=2),
}


@pytest.mark.parametrize("name", LAST)
def test_a_press_in_the_last_call_of_the_network_is_reported(name: str) -> None:
    problem = last_call(LAST[name])
    found = LAST[name](problem)
    assert interrupted(found)[-1]
    assert found.x.isfinite().all()
    assert found.weights.isfinite().all()
    with pytest.raises(KeyboardInterrupt):
        fe.solve(problem, max_steps=1)
    assert not any(interrupted(fe.solve(problem, max_steps=1)))  # one press, one exception


def test_a_loop_of_searches_ends() -> None:
    done = []

    def loop() -> None:
        for number in range(9):
            callback = press if number == 3 else None
            done.append(fe.solve(make_problem(), callback=callback, max_steps=2))

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert [interrupted(found)[0] for found in done] == [False, False, False, True]


def test_a_later_search_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_GRACE", 0.0)
    for _ in range(2):
        assert interrupted(fe.solve(make_problem(), callback=press)) == [True]


def test_a_press_ends_the_search_and_those_around_it() -> None:
    inner: list[fe.Solution] = []

    def callback(state: fe.State, info: fe.Info) -> None:
        inner.append(fe.solve(make_problem(), max_steps=3, callback=press))

    found = fe.solve(grid(), max_steps=9, callback=callback, chunk_size=CHUNK)
    assert interrupted(inner[0]) == [True]
    assert len(inner) == 1
    assert all(interrupted(found))


def test_the_second_search_of_closest_keeps_its_hits() -> None:
    def ask(problem: fe.Problem, refinements: int = 2) -> fe.Solution:
        return fe.closest(problem, atol=0.1, refinements=refinements)

    found = ask(last_call(ask), 9)
    assert interrupted(found) == [True]
    assert float(found.error) <= 0.1


def test_what_has_no_status_raises() -> None:
    with pytest.raises(KeyboardInterrupt):
        fe.gradient_wrt_input(Pressed(7), make_problem().args["target"].float(), x0s(1)[0].float())

    def none() -> fe.Solution:
        with deferred_interrupts() as hold:
            press()
            return answer(hold, fe.solve(fe.vmap(make_problem(), x0=x0s(3)[:0])))

    with pytest.raises(KeyboardInterrupt):
        none()


def test_a_press_and_an_error_of_the_network_are_a_press() -> None:
    def apply(p: Any, x: Tensor) -> Tensor:
        press()
        raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt):
        fe.solve(make_problem((apply, {})))
