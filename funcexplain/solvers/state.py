"""What a search carries, when it ends and which point it keeps: the same for every method.

`State` is carried round the loop, `Info` is reported. Both hold tensors alone, and finished rows are
held with ``torch.where``, so that a step can be mapped. All functions take one row, or rows that lead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.solution import Status
from funcexplain.solvers.gradient import Objective
from funcexplain.solvers.optimizers import is_readable


class Iterate(NamedTuple):
    """A point of the search with its evaluation."""

    z: Tensor
    value: Tensor
    loss: Tensor
    weights: Tensor


class Trend(NamedTuple):
    """Whether the value still falls: the least so far, and the steps since it fell by enough."""

    least: Tensor
    waited: Tensor


class State(NamedTuple):
    """What the loop carries.

    Attributes:
        z: point that is evaluated next.
        optimizer: state of the optimizer.
        kept: the evaluated point that would be the answer now.
        status: a `Status` code; MAX_STEPS as long as the search goes on.
        num_steps: updates taken.
        trend: a `Trend` where ``patience`` is given, else an empty tuple.
    """

    z: Tensor
    optimizer: Any
    kept: Iterate
    status: Tensor
    num_steps: Tensor
    trend: Trend | tuple[()]

    @property
    def done(self) -> Tensor:
        """Whether the search has ended, a bool scalar."""
        return self.status != Status.MAX_STEPS


class Info(NamedTuple):
    """What a step reports of the point before its update; scalars.

    Attributes:
        loss: misfit.
        value: what is minimized, loss plus penalties.
        grad_norm: Euclidean norm of the gradient in the search space.
        error: largest ``|weights - target|``, of goals the largest ``|residual|``.
    """

    loss: Tensor
    value: Tensor
    grad_norm: Tensor
    error: Tensor


Init = Callable[[Args], State]
Step = Callable[[State, Args], tuple[State, Info]]
Keep = Literal["last", "best"]
# The value, loss and weights of a point; and the gradient there.
Scored = tuple[Tensor, tuple[Tensor, Tensor]]
Evaluated = tuple[Scored, Tensor]


class Rules(NamedTuple):
    """When a search ends, and which point it answers with; see `make_step`."""

    atol: float | None = None
    keep: Keep = "last"
    patience: int | None = None
    rtol: float = 1e-3


def make_objective(problem: Problem) -> Objective:
    """From a search point to ``(value, (loss, weights))``; NaN where its window is not finite."""

    def objective(z: Tensor, args: Args) -> Scored:
        x = problem.decode(z, args)
        unknown = problem.criterion.weights_like(args["target"])
        value, scored = where_finite(x, unknown, lambda x: problem.evaluate(x, args))
        return sum((cost(z, args) for cost in problem.costs), start=value), scored

    return objective


def begin(problem: Problem, rules: Rules, args: Args, carry: Callable[[Tensor], Any]) -> State:
    """The state before the first step; ``carry`` makes the method's own from the start."""
    # A copy: whoever works in place on it must not reach the problem's own start.
    z = problem.start(args).clone()
    # Nothing is evaluated yet: a value of NaN gives way to whatever comes first.
    unknown = torch.full_like(problem.criterion.weights_like(args["target"]), torch.nan)
    kept = Iterate(z, unknown.sum(), unknown.sum(), unknown)
    going = torch.full((), int(Status.MAX_STEPS), device=z.device)
    none = torch.zeros_like(going)
    trend = () if rules.patience is None else Trend(unknown.sum(), none)
    return State(z, carry(z), kept, going, none, trend)


def function_key(problem: Problem) -> tuple[Any, ...]:
    """What a problem's functions are made of; equal keys mean equal functions."""
    functions = (problem.apply, problem.loss, problem.decode, problem.project)
    return (*functions, problem.penalties, problem.costs, problem.criterion)


def decide(
    rules: Rules, state: State, error: Tensor, evaluated: Evaluated, moved: tuple[Tensor, Any]
) -> tuple[State, Info]:
    """Keep a point where it should be kept, end the search where it ends, else move on.

    Args:
        rules: settings.
        state: of one row, or of a batch that leads with its rows.
        error: largest distance from the target.
        evaluated: ``((value, (loss, weights)), grads)`` at ``state.z``.
        moved: what `Parts.move` returned.

    Returns:
        The next state and what to report, of one row or of all.
    """
    (value, (loss, weights)), grads = evaluated
    z, optimizer_state = moved
    rows = state.status.ndim
    grad_norm = norm(grads, rows)
    info = Info(loss, value, grad_norm.to(grads.dtype), error)
    finite = value.isfinite()
    hit = finite & (error <= (-1.0 if rules.atol is None else rules.atol))
    trend = state.trend
    if isinstance(trend, Trend):
        trend = _followed(trend, value, rules.rtol)
    status = state.status
    if rules.atol is not None:
        # The later line overrules the earlier.
        # An update of zero alone may be that of a schedule, or of a bound that is pushed against.
        still = grad_norm == 0
        if not is_readable(still) or still.any():
            still = still & ~(z != state.z).flatten(rows).any(-1)
        if isinstance(trend, Trend) and rules.patience is not None:
            still = still | (trend.waited >= rules.patience)
        verdict = torch.where(still, int(Status.STALLED), status)
        verdict = torch.where(finite & grad_norm.isfinite(), verdict, int(Status.NONFINITE))
        verdict = torch.where(hit, int(Status.HIT), verdict)
        status = torch.where(state.done, status, verdict)

    here, moves = Iterate(state.z, value, loss, weights), status == Status.MAX_STEPS
    next_state = State(z, optimizer_state, here, status, state.num_steps + moves, trend)
    if rules.keep == "last" and rules.atol is not None and is_readable(moves) and moves.all():
        return next_state, info  # as nearly always: nothing to hold, and no pass over memory for it
    better = hit | (value < state.kept.value) if rules.keep == "best" else True
    replaces = ~state.done & ((finite & better) | state.kept.value.isnan())
    held = zip(here, state.kept, strict=True)
    kept = Iterate(*(where_rows(replaces, new, old) for new, old in held))
    return next_state._replace(z=where_rows(moves, z, state.z), kept=kept), info


def where_finite(
    x: Tensor, weights_like: Tensor, evaluate: Callable[[Tensor], Scored], rows: int = 0
) -> Scored:
    """Evaluate windows that are finite; value, loss and weights of others are NaN.

    The network never sees the others: some kernels of torch crash on NaN, some solvers raise for all.

    Args:
        x: a window, or windows that lead with their rows.
        weights_like: of the shape of the weights, with the rows in front.
        evaluate: from such windows to ``(value, (loss, weights))``.
        rows: number of leading dimensions, 0 or 1.
    """
    # A sum is the fastest pass over memory that sees every NaN.
    seen = x.detach()
    if is_readable(seen) and math.isfinite(seen.sum()):
        return evaluate(x)
    ok = seen.flatten(rows).sum(-1, dtype=torch.float64).isfinite()  # float32 may have overflowed
    if is_readable(ok) and ok.all():
        return evaluate(x)
    if is_readable(ok) and not ok.any():
        unknown = torch.full_like(weights_like, torch.nan)
        value = unknown.flatten(rows).sum(-1)
        return value, (value, unknown)
    stand_in = x.index_select(0, ok.to(torch.int64).argmax(keepdim=True)) if rows else x
    stand_in = torch.where(stand_in.isfinite(), stand_in, torch.zeros_like(stand_in)).detach()
    value, (loss, weights) = evaluate(where_rows(ok, x, stand_in))
    value, loss, weights = (
        where_rows(ok, t, torch.full_like(t, torch.nan)) for t in (value, loss, weights)
    )
    return value, (loss, weights)


def norm(t: Tensor, rows: int = 0) -> Tensor:
    """Euclidean norm of each row, in float64 where squares overflow or vanish."""
    flat = t.flatten(rows)
    norms = torch.linalg.vector_norm(flat, dim=-1)
    if is_readable(norms):
        least, most = map(float, norms.aminmax()) if rows else [float(norms)] * 2
        if least > 0.0 and most < math.inf:  # NaN is neither
            return norms
    return torch.linalg.vector_norm(flat, dim=-1, dtype=torch.float64)


def where_rows(flags: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``torch.where`` with one flag for each row."""
    return torch.where(flags.view(flags.shape + (1,) * (new.ndim - flags.ndim)), new, old)


def _followed(trend: Trend, value: Tensor, rtol: float) -> Trend:
    """The trend with one more value; against a least value of NaN, which is none yet, any is less."""
    fell = ~(value >= trend.least - rtol * trend.least.abs())
    waited = torch.where(fell, 0, trend.waited + 1)
    return Trend(torch.where(fell, value, trend.least), waited)
