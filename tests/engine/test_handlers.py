"""Ctrl-C meets handlers of the caller's own, threads and other processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import funcexplain as fe
from tests.engine.test_interruption import CHUNK, PRESS, grid, interrupted, last_call, press
from tests.helpers import make_problem


class StopError(Exception):
    """Raised by a handler."""


def stop(number: int, frame: Any) -> None:
    raise StopError


def stop_search(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Any]]:
    """Installs handlers, until the test ends."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_a_handler_of_the_callers_own_is_called_for_every_press(handle: Any) -> None:
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        seen.append(number)

    handle(note)
    found = fe.solve(grid(), max_steps=3, callback=press)
    assert seen == [PRESS] * 4
    assert not any(interrupted(found))
    assert signal.getsignal(signal.SIGINT) is note
    fe.solve(grid(), max_steps=0, callback=lambda *_: [press() for _ in range(3)])  # type: ignore[func-returns-value]
    assert seen == [PRESS] * 7


def test_what_the_callers_handler_raises_reaches_the_caller(handle: Any) -> None:
    handle(stop)
    for problem in (grid(), make_problem()):
        with pytest.raises(StopError):
            fe.solve(problem, callback=press)
        with pytest.raises(StopError):
            fe.closest(last_call(lambda p: fe.closest(p, atol=1.0)), atol=1.0)
    handle(stop_search)
    assert all(interrupted(fe.solve(grid(), callback=press, chunk_size=CHUNK)))
    assert signal.getsignal(signal.SIGINT) is stop_search
    with pytest.raises(KeyboardInterrupt):
        fe.solve(make_problem())


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL], ids=str)
def test_a_handler_of_the_system_stays(handle: Any, handler: Any) -> None:
    handle(handler)
    seen: list[Any] = []
    found = fe.solve(
        make_problem(), max_steps=2, callback=lambda *_: seen.append(signal.getsignal(signal.SIGINT))
    )
    assert {*seen} == {handler}
    assert signal.getsignal(signal.SIGINT) is handler
    assert interrupted(found) == [False]


def test_a_handler_that_a_callback_installs_stays(handle: Any) -> None:
    held: list[Any] = []

    def install(*_: Any) -> None:
        held.append(handle(stop))

    fe.solve(make_problem(), max_steps=1, callback=install)
    assert signal.getsignal(signal.SIGINT) is stop
    # The one that it replaced is the search's, which is over: it is what it replaced itself.
    handle(held[0])
    with pytest.raises(KeyboardInterrupt):
        press()
    assert interrupted(fe.solve(make_problem(), callback=press)) == [True]


def test_a_search_in_a_thread_is_not_the_one_that_a_press_ends() -> None:
    began, may_end = threading.Event(), threading.Event()

    def callback(*_: Any) -> None:
        began.set()
        may_end.wait(60)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fe.solve, make_problem(), max_steps=2, callback=callback)
        began.wait(60)
        with pytest.raises(KeyboardInterrupt):
            press()
        assert interrupted(fe.solve(make_problem(), max_steps=2, callback=press)) == [True]
        may_end.set()
        assert interrupted(future.result()) == [False]
        # Nor does a search there use up the exception of the next one here.
        pool.submit(fe.solve, make_problem(), max_steps=1).result()
    with pytest.raises(KeyboardInterrupt):
        fe.solve(make_problem())


PROGRAM = """
import torch, funcexplain as fe
torch.set_num_threads(1)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
grid = fe.vmap(p, x0=torch.randn(50, 1, 1, 2))
told = False
def tell(state, info):
    global told
    if not told:
        print("ready", flush=True)
        told = True
solution = fe.solve(grid, fe.sgd(lr=1e-3), max_steps=10**6, history=False, chunk_size=5, callback=tell)
codes = solution.status.tolist()
print(codes.count(4), int((solution.num_steps > 0).sum()), bool(solution.x[:5].isfinite().all()))
"""


def test_a_signal_from_outside_ends_a_long_search() -> None:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == "50 5 True\n"
    assert "interrupted: 0 of 50 rows have ended" in err
