"""The loop, and `run`, its pure face. `engine` drives it for one question and for batches of rows.

Ctrl-C waits for the end of a step: an exception in its middle would leave torch.func's levels out of
balance.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from funcexplain.problems.checks import check_callable, check_count
from funcexplain.problems.problem import Args
from funcexplain.solvers.state import Info, Init, State, Step

# Whether a Ctrl-C was held back.
_asked = False


def iterate(
    step: Step, state: State, args: Args, num_steps: int, ends: Callable[[State, Info], bool]
) -> State:
    """Take ``num_steps`` steps, or fewer if ``ends(state, info)`` is true after one of them."""
    for _ in range(num_steps):
        state, info = step(state, args)
        if ends(state, info):
            break
    return state


def run(init: Init, step: Step, args: Args, num_steps: int) -> tuple[State, Info]:
    """Take a fixed number of steps; pure, so that ``torch.func.vmap`` and ``grad`` go through it.

    Args:
        init: ``args -> state``, from `make_step`.
        step: ``(state, args) -> (state, info)``, from `make_step`.
        args: data of the problem; what a row varies in comes in here.
        num_steps: steps to take, >= 0.

    Returns:
        The state after the last step, and the infos stacked, each of shape ``(num_steps,)``.

    Raises:
        TypeError, ValueError: if ``num_steps`` is not an int >= 0.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> init, step = fe.make_step(p, fe.adam())
        >>> def last(x0):
        ...     return fe.run(init, step, {**p.args, "x0": x0}, num_steps=5)[0].z
        >>> torch.func.vmap(last)(torch.zeros(3, 1, 1, 2)).shape
        torch.Size([3, 1, 1, 2])
    """
    check_callable("run", "init", init)
    check_callable("run", "step", step)
    check_count("run", "num_steps", num_steps)
    infos: list[Info] = []

    def collect(state: State, info: Info) -> bool:
        del state
        infos.append(info)
        return False

    state = iterate(step, init(args), args, num_steps, collect)
    if not infos:
        return state, Info(*(args["x0"].new_zeros(0) for _ in Info._fields))
    return state, Info(*map(torch.stack, zip(*infos, strict=True)))


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Hold back a Ctrl-C until `raise_pending`; a second one interrupts at once.

    Does nothing outside the main thread, or where the caller has a SIGINT handler of their own.
    """
    global _asked
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def hold(number: int, frame: Any) -> None:
        global _asked
        if _asked:
            signal.default_int_handler(number, frame)
        _asked = True

    _asked = False
    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _asked = False


def raise_pending() -> None:
    """Raise the KeyboardInterrupt that was held back, if there is one; in the main thread only."""
    global _asked
    if _asked and threading.current_thread() is threading.main_thread():
        _asked = False
        raise KeyboardInterrupt
