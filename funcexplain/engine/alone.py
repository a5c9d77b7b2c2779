"""One row alone: its network is bound once, differentiated plainly, and never mapped."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from funcexplain.engine.execution import Execution
from funcexplain.engine.progress import Meter, Reporter
from funcexplain.networks.checks import is_out_of_memory
from funcexplain.networks.network import bound
from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.loop import iterate
from funcexplain.solvers.state import Info, Method, State, Stopping
from funcexplain.solvers.step import make_plain_step, status_at_end

_logger = logging.getLogger("funcexplain")


class _FailureError(Exception):
    """The network failed at a window that the search chose; the error is the cause."""


class FailsAtStartError(Exception):
    """The network failed at the start window of a row of this number; the error is the cause."""


def status_of(error: BaseException) -> Status:
    """The status of a row whose network raises; a failed factorization is numerical trouble."""
    return Status.NONFINITE if isinstance(error, torch.linalg.LinAlgError) else Status.FAILED


def describe(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def solve_alone(problem: Problem, method: Method, stopping: Stopping, execution: Execution) -> Solution:
    """Answer one question.

    An error of the network at the start window is raised; at a later one it ends the search at the best
    point so far.
    """
    max_steps, every, *_, callback = execution
    args, losses_before = problem.args, list[Tensor]()
    meter = Meter(callback, 1) if isinstance(callback, Reporter) else None
    if meter:
        meter.begin(chunk_size=1)
    state, code, exceptions = None, None, {}

    def ends(latest: State, info: Info) -> bool:
        nonlocal state
        state = latest
        losses_before.append(info.loss)
        if callback is not None:
            callback(latest, info)
        return int(latest.status) != Status.MAX_STEPS

    with bound(problem.apply, args["params"]):
        init, step = make_plain_step(problem, method, stopping, pure=callback is not None)

        def attempt(state: State, args: Args) -> tuple[State, Info]:
            try:
                return step(state, args)
            except Exception as error:
                at_start = not int(state.num_steps) and status_of(error) is Status.FAILED
                if at_start or is_out_of_memory(error):
                    raise
                raise _FailureError from error

        state = init(args)
        try:
            state = iterate(attempt, state, args, max_steps, ends)
            num_steps = state.num_steps
            if int(state.status) == Status.MAX_STEPS:
                state, _ = attempt(state, args)
        except _FailureError as failure:
            error: Any = failure.__cause__
            num_steps, code, exceptions = state.num_steps, status_of(error), {0: describe(error)}
        except KeyboardInterrupt:
            num_steps, code = state.num_steps, Status.INTERRUPTED
            _logger.warning(f"interrupted after {int(num_steps)} steps")
    ended = status_at_end(problem, stopping, state, args["target"])
    status = Status(int(ended)) if code is None else code
    if meter:
        if status is not Status.INTERRUPTED:
            meter.add(1, int(status is Status.HIT))
        meter.end()
    recorded = losses_before[: int(num_steps) : every] if every else []
    return Solution(
        x=problem.decode(state.kept.z, args),
        z=state.kept.z,
        weights=state.kept.weights,
        loss=state.kept.loss,
        history=torch.stack(recorded) if recorded else args["x0"].new_zeros(0),
        num_steps=num_steps,
        status=status,
        error=problem.criterion.error(state.kept.weights, args["target"]),
        exceptions=exceptions,
    )
