"""Ctrl-C at any moment of any public function.

A profiler counts what Python calls and returns, and presses at a random one of them, so that a seed
repeats a press. By hand, any number of presses: ``python -m tests.engine.presses 10000``.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.clusters.example import build
from funcexplain.networks import network as ctrl_c
from tests.grids import models, targets, x0s
from tests.helpers import assert_untouched, make_network, make_problem, make_target, make_x0, snapshot

NETWORK = make_network("mlp_tanh").train()  # a mode to put back
TWIN = make_network("conv_no_norm")  # the original draws dropout from the global generator
POOL = ThreadPoolExecutor(1)
MODELS = models(2)  # not in an operation: what torch and Python do alone does not survive a press
GRID = fe.vmap(make_problem(NETWORK), x0=x0s(2), target=targets(2))
FOLDER = Path(tempfile.gettempdir())


def branching() -> fe.Problem:
    """Rows that are solved one at a time."""
    inner, params = fe.functionalize(NETWORK)

    def apply(params: Any, x: Tensor) -> Tensor:
        return inner(params, x if x.sum() > 0 else 1.01 * x)

    return fe.vmap(make_problem((apply, params)), x0=x0s(2))


def nested() -> fe.Solution:
    """A search whose callback searches."""
    return fe.solve(GRID, max_steps=2, callback=lambda state, info: fe.solve(GRID[0], max_steps=2))


def in_threads() -> fe.Solution:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        fe.clusters.solve((build, {"rows": 4}), executor=POOL, directory=folder, max_steps=2)
        return fe.clusters.open(folder)[...]


def scenario() -> fe.Problem:
    """A question over the shocks of a market whose returns are the windows."""
    window = make_x0()
    returns = window.flatten(0, 1)
    return fe.scenarios.scenario(
        returns,
        torch.eye(len(window[0, 0]), dtype=window.dtype),
        features=lambda r: r.reshape(window.shape),
        inverse=lambda x, r: x.flatten(0, 1),
    )(fe.problem(NETWORK, fe.targets.at_least(0, 0.3), window))


def search(**settings: Any) -> Callable[[], fe.Solution]:
    """A search of two rows."""
    return lambda: fe.solve(GRID, max_steps=2, **settings)


SLOW, ANSWER, MARKET = branching(), fe.solve(GRID, max_steps=2), scenario()
GOALS = fe.vmap(MARKET, target=[fe.targets.at_least(0, level) for level in (0.3, 0.4)])
NEAR: dict[str, Any] = {"max_steps": 2, "refinements": 2, "atol": 0.2}
OPERATIONS: dict[str, Callable[[], Any]] = {
    "functionalize": lambda: fe.functionalize(NETWORK),
    "problem": lambda: make_problem(NETWORK),
    "goals": lambda: fe.problem(NETWORK, fe.targets.shift(0, 0.1), make_x0()),
    "vmap": lambda: fe.vmap(GRID[0], target=[fe.targets.at_least(0, 0.3), fe.targets.at_most(1, 0.2)]),
    "consensus": lambda: fe.consensus(fe.vmap(GRID[0], params=MODELS)),
    "one question": lambda: fe.solve(GRID[0], max_steps=3),
    "grid": search(),
    "check": search(check=True),
    "by vmap": search(rows="vmap"),
    "in chunks": search(chunk_size=1, method=fe.levenberg_marquardt()),
    "one at a time": lambda: fe.solve(SLOW, max_steps=2),
    "explain": lambda: fe.explain(NETWORK, make_target(), make_x0(), max_steps=2),
    "closest": lambda: fe.closest(GRID[0], **NEAR),
    "closest of a grid": lambda: fe.closest(GRID, **NEAR),
    "probability": lambda: fe.probability(GOALS, num_samples=80),
    "sample": lambda: fe.sample(MARKET, 8, num_chains=4, num_samples=200, atol=0.1),
    "prune": lambda: fe.prune(ANSWER, GRID, atol=1.0),
    "evaluate": lambda: fe.evaluate(ANSWER, GRID, scale=1.0, draws=2),
    "check_gradient": lambda: fe.check_gradient(GRID[0]),
    "gradient_wrt_input": lambda: fe.gradient_wrt_input(
        TWIN, make_target(), make_x0(), n_iter=3, dtype=torch.float64, verbose=False
    ),
    "save": lambda: ANSWER.save(FOLDER / "presses.safetensors"),
    "nested": nested,
    "clusters.solve": in_threads,
}


class Presses:
    """Counts calls and returns of this thread, and presses Ctrl-C at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count = at, 0

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        """Count an event."""
        self.count += 1
        if self.count == self.at:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    def __enter__(self) -> Presses:
        sys.setprofile(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        sys.setprofile(None)


def count_events(name: str) -> int:
    """Calls and returns of an operation."""
    with quiet():  # what is made once, first
        OPERATIONS[name]()
        with Presses() as presses:
            OPERATIONS[name]()
    return presses.count


def quiet() -> Any:
    """Rows that are solved one at a time warn."""
    return warnings.catch_warnings(action="ignore")


def assert_honored(name: str, at: int) -> str:
    """Press in one operation at one event, and return what came of it."""
    ctrl_c._raise_until = 0.0
    before, handler, outcome = snapshot(NETWORK), signal.getsignal(signal.SIGINT), "raised"
    where, presses = f"{name!r} at {at}", Presses(at)
    try:
        with quiet(), presses:
            found = OPERATIONS[name]()
        if presses.count < at:
            return "too late"
        status = getattr(found, "status", None)
        assert status is not None, f"{where}: lost"
        assert (torch.as_tensor(status) == fe.Status.INTERRUPTED).any(), f"{where}: lost"
        outcome = "answered"
    except KeyboardInterrupt:
        pass
    if outcome == "answered":
        try:
            fe.solve(GRID[0], max_steps=1)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError(f"{where}: the next search went on")
    assert signal.getsignal(signal.SIGINT) is handler, f"{where}: another handler"
    assert torch.is_grad_enabled(), f"{where}: another mode"
    assert torch._C._functorch.peek_interpreter_stack() is None, f"{where}: levels are left"
    assert_untouched(before, NETWORK)
    return outcome


if __name__ == "__main__":
    assert threading.current_thread() is threading.main_thread()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    draw, per_operation = random.Random(seed), -(-int(sys.argv[1]) // len(OPERATIONS))
    print(f"seed {seed}, {per_operation} presses in each of {len(OPERATIONS)} operations")
    for name in OPERATIONS:
        events, lost = count_events(name), list[str]()
        outcomes = dict.fromkeys(("raised", "answered", "too late"), 0)
        for _ in range(per_operation):
            try:
                outcomes[assert_honored(name, draw.randint(1, events))] += 1
            except AssertionError as error:
                lost.append(repr(error).splitlines()[0])
                torch.set_grad_enabled(True)
        print(f"{name}: {events} events, {outcomes}, failures {lost}", flush=True)
