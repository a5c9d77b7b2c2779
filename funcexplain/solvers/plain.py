"""The decisions of a step on plain numbers, for one question that no transform maps or differentiates.

The same decisions as those of `step`, in Python's ``if`` instead of ``torch.where``: of one question,
where every tensor operation costs microseconds whatever its size, they take a third of the time. The
tests hold both to the same answers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.solution import Status
from funcexplain.solvers.optimizers import Optimizer
from funcexplain.solvers.step import (
    Advance,
    Evaluated,
    Info,
    Iterate,
    Rules,
    State,
    Trend,
    apply_update,
    largest,
)


def make_plain_advance(problem: Problem, optimizer: Optimizer, rules: Rules) -> Advance:
    """Make ``advance`` of `Parts` for one question; it must not be called again after the end."""
    atol, keep, patience, rtol = rules
    assert atol is not None

    def advance(state: State, args: Args, evaluated: Evaluated) -> tuple[State, Info]:
        (value, (loss, weights)), grads = evaluated
        error = largest(weights - args["target"])
        info = Info(loss, value, torch.linalg.vector_norm(grads), error)
        now, best, slope = float(value), float(state.kept.value), float(info.grad_norm)
        finite = math.isfinite(now) and _is_finite(state.z)
        hit = finite and float(error) <= atol
        kept = state.kept
        if math.isnan(best) or (finite and (keep == "last" or hit or now < best)):
            kept = Iterate(state.z, value, loss, weights)
        trend, patient = state.trend, True
        if isinstance(trend, Trend) and patience is not None:
            fell = not now >= float(trend.least) - rtol * abs(float(trend.least))
            trend = Trend(value, trend.waited * 0) if fell else Trend(trend.least, trend.waited + 1)
            patient = int(trend.waited) < patience
        state = state._replace(kept=kept, trend=trend)
        if hit:
            return _ended(state, Status.HIT), info
        if not (finite and (math.isfinite(slope) or _is_finite(grads))):
            return _ended(state, Status.NONFINITE), info
        z, moved = apply_update(problem, optimizer, state, args, grads)
        if not patient or (slope == 0.0 and torch.equal(z, state.z)):
            return _ended(state, Status.STALLED), info
        return state._replace(z=z, optimizer=moved, num_steps=state.num_steps + 1), info

    return advance


def _ended(state: State, status: Status) -> State:
    return state._replace(status=torch.full_like(state.status, int(status)))


def _is_finite(t: Tensor) -> bool:
    return math.isfinite(float(largest(t)))
