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
from funcexplain.solvers.state import Info, Iterate, Rules, State, Step, Trend, norm
from funcexplain.solvers.step import Parts


def make_plain_step(parts: Parts, rules: Rules) -> Step:
    """Make the step of one question, with one ordinary backward pass; the end must end the loop."""
    atol, keep, patience, rtol = rules
    differentiate = backward_value_and_grad(parts.objective)

    def step(state: State, args: Args) -> tuple[State, Info]:
        (value, (loss, weights)), grads = differentiate(state.z, args)
        measured, nearest = parts.criterion.compare(weights, args["target"])
        error = torch.linalg.vector_norm((measured - nearest).flatten(), ord=torch.inf)
        grad_norm = norm(grads)
        info = Info(loss, value, grad_norm.to(grads.dtype), error)
        slope = float(grad_norm)
        finite = math.isfinite(value)
        # In the tensor's own precision, as for many rows.
        hit = finite and atol is not None and bool(error <= atol)
        kept = state.kept
        if (finite and (keep == "last" or hit or value < kept.value)) or kept.value.isnan():
            kept = Iterate(state.z, value, loss, weights)
        trend, patient = state.trend, True
        if isinstance(trend, Trend) and patience is not None:
            fell = not value >= trend.least - rtol * trend.least.abs()
            trend = Trend(value, trend.waited * 0) if fell else Trend(trend.least, trend.waited + 1)
            patient = int(trend.waited) < patience
        if hit:
            end = Status.HIT
        elif atol is not None and not (finite and math.isfinite(slope)):
            end = Status.NONFINITE
        else:
            z, moved = parts.move(state, args, grads)
            if atol is None or (patient and (slope != 0.0 or not torch.equal(z, state.z))):
                return State(z, moved, kept, state.status, state.num_steps + 1, trend), info
            end = Status.STALLED
        status = torch.full_like(state.status, int(end))
        return state._replace(kept=kept, status=status, trend=trend), info

    return step
