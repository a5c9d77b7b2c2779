"""The decisions of a step on plain numbers, for one question that no transform maps or differentiates.

The same decisions as those of `step`, in Python's ``if`` instead of ``torch.where``: of one question,
where every tensor operation costs microseconds whatever its size, they take a third of the time. The
tests hold both to the same answers.
"""

from __future__ import annotations

import math

import torch

from funcexplain.problems.problem import Args
from funcexplain.solutions.solution import Status
from funcexplain.solvers.gradient import backward_value_and_grad
from funcexplain.solvers.step import Info, Iterate, Parts, Rules, State, Step, Trend, norm


def make_plain_step(parts: Parts, rules: Rules) -> Step:
    """Make the step of one question, with one ordinary backward pass; the end must end the loop."""
    atol, keep, patience, rtol = rules
    assert atol is not None
    differentiate = backward_value_and_grad(parts.objective)

    def step(state: State, args: Args) -> tuple[State, Info]:
        (value, (loss, weights)), grads = differentiate(state.z, args)
        error = (weights - args["target"]).abs().amax()
        slope = norm(grads)
        info = Info(loss, value, slope.to(grads.dtype), error)
        now, best = float(value), float(state.kept.value)
        finite = math.isfinite(now)
        hit = finite and bool(error <= atol)  # in the tensor's own precision, as for many rows
        kept = state.kept
        if math.isnan(best) or (finite and (keep == "last" or hit or now < best)):
            kept = Iterate(state.z, value, loss, weights)
        trend, patient = state.trend, True
        if isinstance(trend, Trend) and patience is not None:
            fell = not value >= trend.least - rtol * trend.least.abs()
            trend = Trend(value, trend.waited * 0) if fell else Trend(trend.least, trend.waited + 1)
            patient = int(trend.waited) < patience
        state = state._replace(kept=kept, trend=trend)
        if hit:
            return _ended(state, Status.HIT), info
        if not (finite and math.isfinite(slope)):
            return _ended(state, Status.NONFINITE), info
        z, moved = parts.move(state, args, grads)
        if not patient or (slope == 0 and torch.equal(z, state.z)):
            return _ended(state, Status.STALLED), info
        return state._replace(z=z, optimizer=moved, num_steps=state.num_steps + 1), info

    return step


def _ended(state: State, status: Status) -> State:
    return state._replace(status=torch.full_like(state.status, int(status)))
