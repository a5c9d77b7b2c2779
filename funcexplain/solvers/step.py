"""One iteration as a pure function: ``make_step(problem, method) -> (init, step)``.

A step evaluates its point, keeps the evaluation if it is the answer so far, decides whether the search
ends there, and only then moves. `take` implements this for every method, for one row or a batch,
compiled or under torch.func; finished rows are held with ``torch.where``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from funcexplain.problems.checks import check_count, check_number
from funcexplain.problems.problem import Args, Problem, check_question
from funcexplain.solutions.status import Status
from funcexplain.solvers.gradient import (
    is_readable,
    make_objective,
    value_and_grad,
    where_rows,
    with_bound_network,
)
from funcexplain.solvers.optimizers import as_method
from funcexplain.solvers.state import (
    DEFAULT_RTOL,
    Advance,
    BoundMethod,
    Evaluate,
    Evaluation,
    Info,
    Init,
    Iterate,
    Keep,
    Method,
    Objective,
    State,
    Step,
    Stopping,
    Trend,
    ValueAndGrad,
)


def make_step(
    problem: Problem,
    method: Any = None,
    *,
    atol: float | None = None,
    keep: Keep = "last",
    patience: int | None = None,
    rtol: float = DEFAULT_RTOL,
    gradient: Callable[[Objective], ValueAndGrad] = value_and_grad,
) -> tuple[Init, Step]:
    """Make one pure iteration of a search, for writing your own loop.

    Args:
        problem: one question. Its ``args`` are not captured; they are given to both functions.
        method: an optimizer, any ``(init, update)`` pair (see `as_optimizer`), `levenberg_marquardt`, or
            a `Method` of your own; default ``adam()``.
        atol: ends the search, and holds the state from then on, where the ``error`` of `Info` is at
            most this (HIT), nothing moves and the gradient is zero (STALLED), or a number is not finite
            (NONFINITE). ``None`` never ends it.
        keep: which evaluated point is kept: the ``"last"`` finite one, or the ``"best"`` in value.
        patience: also ends the search as STALLED when the best value has not improved by a factor of
            ``rtol`` for this many steps. ``None`` waits indefinitely. Needs an ``atol``.
        rtol: relative improvement that resets the patience. Needs a ``patience``.
        gradient: wraps an objective into its value and gradient. The default is torch.func's, which
            supports ``torch.func.vmap`` and ``grad``. (`levenberg_marquardt` uses a Jacobian instead.)

    Returns:
        ``(init, step)`` with ``init(args) -> state`` and ``step(state, args) -> (state, info)``. A step
        makes one forward pass.

    Raises:
        TypeError: if ``problem`` is not a Problem or ``method`` not a method.
        ValueError: if ``problem`` is a grid of rows, ``atol`` or ``rtol`` is negative, ``patience`` is
            less than one, ``rtol`` comes without it, or ``keep`` is unknown.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> init, step = fe.make_step(p, fe.adam(lr=0.5))
        >>> state, info = step(init(p.args), p.args)
        >>> state.z, info.error
        (tensor([[[ 0.5000, -0.5000]]]), tensor(0.4000))
    """
    check_question("make_step", problem)
    stopping = check_stopping("make_step", atol, keep, patience, rtol)
    bound = bind(as_method("make_step", method), problem, stopping, gradient)
    evaluate = with_bound_network(problem, bound.evaluate)
    return partial(begin, bound), partial(take, bound, evaluate, bound.advance)


def make_plain_step(
    problem: Problem, method: Method, stopping: Stopping, *, pure: bool = True
) -> tuple[Init, Step]:
    """Make the step of one question that no transform maps: with one plain backward pass.

    It costs half of the pure step and supports networks that torch.func rejects. Without ``pure``, it
    may overwrite the method's part of a state.
    """
    bound = bind(method, problem, stopping)
    evaluate = with_bound_network(problem, bound.backward(make_objective(problem)))
    advance = bound.advance if pure else bound.advance_in_place or bound.advance
    return partial(begin, bound), partial(take, bound, evaluate, advance)


def bind(
    method: Method,
    problem: Problem,
    stopping: Stopping,
    gradient: Callable[[Objective], ValueAndGrad] = value_and_grad,
) -> BoundMethod:
    """Bind a method, possibly the user's own, to a problem; with penalties, a hit must settle."""
    if settles(problem, stopping):
        stopping = stopping._replace(settles=True, keep="best")
    bound = method.bind(problem, stopping, gradient)
    if not isinstance(bound, BoundMethod):
        raise TypeError(f"method: bind must return a BoundMethod, got {type(bound).__name__}")
    return bound


def settles(problem: Problem, stopping: Stopping) -> bool:
    """Whether a hit must settle: with penalties, the first hit is not the one of smallest value."""
    return bool(problem.penalties or problem.costs) and (stopping.atol or 0.0) > 0.0


def begin(bound: BoundMethod, args: Args) -> State:
    """The state before the first step."""
    problem = bound.problem
    # A copy, so that in-place updates cannot modify the problem's start.
    z = problem.start(args).clone()
    # Nothing is evaluated yet: a value of NaN gives way to the first evaluation.
    unknown = torch.full_like(problem.criterion.weights_like(args["target"]), torch.nan)
    kept = Iterate(z, unknown.sum(), unknown.sum(), unknown)
    going = torch.full((), int(Status.MAX_STEPS), device=z.device)
    zero = torch.zeros_like(going)
    trend = () if bound.stopping.patience is None else Trend(unknown.sum(), zero)
    return State(z, bound.init(z, args), kept, going, zero, trend)


def take(
    bound: BoundMethod,
    evaluate: Evaluate,
    advance: Callable[[State, Args, Evaluation], Advance],
    state: State,
    args: Args,
) -> tuple[State, Info]:
    """Take one step: evaluate, advance, decide.

    Args:
        bound: the method, bound to its problem.
        evaluate: its evaluation, of one row, or of a batch of rows.
        advance: its advance, of the same rows.
        state: of one row, or of a batch that leads with its rows.
        args: data of the same rows.

    Returns:
        The next state and what to report.
    """
    evaluation = evaluate(state.z, args)
    rows, atol = state.status.ndim, bound.stopping.atol
    error = bound.problem.criterion.error(evaluation.weights, args["target"], rows, atol)
    advanced = advance(state, args, evaluation)
    if not isinstance(advanced, Advance):
        raise TypeError(f"method: advance must return an Advance, got {type(advanced).__name__}")
    if (advanced.z.shape, advanced.z.dtype) != (state.z.shape, state.z.dtype):
        raise ValueError(
            f"method: advance must keep the shape and dtype of z {tuple(state.z.shape)} "
            f"{state.z.dtype}, got {tuple(advanced.z.shape)} {advanced.z.dtype}"
        )
    kept_hits = None
    if bound.stopping.settles and atol is not None:
        known = bound.problem.criterion.error(state.kept.weights, args["target"], rows, atol)
        kept_hits = known <= atol
    return decide(bound.stopping, state, error, kept_hits, evaluation, advanced)


def decide(
    stopping: Stopping,
    state: State,
    error: Tensor,
    kept_hits: Tensor | None,
    evaluation: Evaluation,
    advance: Advance,
) -> tuple[State, Info]:
    """Keep a point where it should be kept, end the search where it ends, else move on.

    Args:
        stopping: when the search ends.
        state: of one row, or of a batch that leads with its rows.
        error: largest distance from the target.
        kept_hits: whether the kept point hits, where a hit must settle; else None.
        evaluation: of ``state.z``.
        advance: the method's reaction to it.

    Returns:
        The next state and what to report.
    """
    value, rows, trend = advance.value, state.status.ndim, state.trend
    here = Iterate(state.z, value, evaluation.loss, evaluation.weights)
    if isinstance(trend, Trend):
        improved = ~(value >= trend.minimum - stopping.rtol * trend.minimum.abs())
        waited = torch.where(improved, 0, trend.waited + 1)
        trend = Trend(torch.where(improved, value, trend.minimum), waited)
    following = State(advance.z, advance.carried, here, state.status, state.num_steps + 1, trend)
    if kept_hits is None and is_readable(value):
        norms = torch.linalg.vector_norm(advance.grads.flatten(rows), dim=-1)
        if _all_move_on(stopping, following, advance, norms, error):
            return following, Info(advance.loss, value, norms, error)

    going, grad_norm = state.status == Status.MAX_STEPS, _norm(advance.grads, rows)
    info = Info(advance.loss, value, grad_norm.to(advance.grads.dtype), error)
    finite = value.isfinite()
    here_hits = hit = finite & (error <= (-1.0 if stopping.atol is None else stopping.atol))
    status = state.status
    if stopping.atol is not None:
        # An update of zero alone may be that of a schedule, or of a bound that is pushed against.
        stalled = grad_norm == 0
        if not is_readable(stalled) or stalled.any():
            stalled = stalled & ~(advance.z != state.z).flatten(rows).any(-1)
        if isinstance(trend, Trend) and stopping.patience is not None:
            stalled = stalled | (trend.waited >= stopping.patience)
        if kept_hits is not None:
            hit = (hit | kept_hits) & stalled
        # The later line overrules the earlier.
        verdict = torch.where(stalled, int(Status.STALLED), status)
        verdict = torch.where(finite & grad_norm.isfinite(), verdict, int(Status.NONFINITE))
        verdict = torch.where(hit, int(Status.HIT), verdict)
        status = torch.where(going, verdict, status)

    moves, lower = status == Status.MAX_STEPS, value < advance.best
    if kept_hits is not None:  # the hit of lowest value
        better: bool | Tensor = (here_hits & ~kept_hits) | ((here_hits | ~kept_hits) & lower)
    else:
        better = here_hits | lower if stopping.keep == "best" else True
    replaces = going & ((finite & better) | advance.best.isnan())
    earlier = state.kept._replace(value=advance.best)
    kept = Iterate(*(where_rows(replaces, *pair) for pair in zip(here, earlier, strict=True)))
    z, num_steps = where_rows(moves, advance.z, state.z), state.num_steps + moves
    return following._replace(z=z, kept=kept, status=status, num_steps=num_steps), info


def _all_move_on(
    stopping: Stopping, following: State, advance: Advance, norms: Tensor, error: Tensor
) -> bool:
    """Whether every row keeps its point and moves on, as in most steps.

    What holds single rows would cost more than the rest of a step of few rows.
    """
    value, trend, patience = advance.value, following.trend, stopping.patience
    low, high, total = norms, norms, value
    if norms.ndim:
        (low, high), total, error = norms.aminmax(), value.sum(), error.amin()
    return (
        # NaN is neither above zero nor below infinity.
        (float(low) > 0.0 and float(high) < math.inf and math.isfinite(total))
        and (stopping.atol is None or bool(error > stopping.atol))
        and bool((following.status == Status.MAX_STEPS).all())
        and (stopping.keep == "last" or not bool((value >= advance.best).any()))
        and (patience is None or not trend or not bool((trend.waited >= patience).any()))
    )


def status_at_end(problem: Problem, stopping: Stopping, state: State, target: Tensor) -> Tensor:
    """Statuses of finished searches: out of budget, a hit that did not settle is still a hit."""
    if not settles(problem, stopping) or stopping.atol is None:
        return state.status
    rows, atol = state.status.ndim, stopping.atol
    hit = problem.criterion.error(state.kept.weights, target, rows, atol) <= atol
    return torch.where(hit & (state.status == Status.MAX_STEPS), int(Status.HIT), state.status)


def check_stopping(where: str, atol: Any, keep: Any, patience: Any, rtol: Any) -> Stopping:
    """Raise unless the stopping settings are valid."""
    if atol is not None:
        atol = check_number(where, "atol", atol, minimum=0.0)
    if not (isinstance(keep, str) and keep in ("last", "best")):
        raise ValueError(f"{where}: keep must be 'last' or 'best', got {keep!r}")
    if patience is not None:
        if check_count(where, "patience", patience) < 1:
            raise ValueError(f"{where}: patience must be >= 1, or None to wait indefinitely, got 0")
        if atol is None:
            raise ValueError(f"{where}: patience needs an atol, since without one no search ends")
    rtol = check_number(where, "rtol", rtol, minimum=0.0)
    if patience is None and rtol != DEFAULT_RTOL:
        raise ValueError(
            f"{where}: rtol has no effect without patience, got rtol={rtol!r}; set patience, or use "
            "atol for the tolerance of a hit"
        )
    return Stopping(atol, "best" if keep == "best" else "last", patience, rtol)


def _norm(t: Tensor, rows: int = 0) -> Tensor:
    """Euclidean norm of each row, in float64 where squares overflow or vanish."""
    flat = t.flatten(rows)
    norms = torch.linalg.vector_norm(flat, dim=-1)
    if is_readable(norms):
        low, high = map(float, norms.aminmax()) if rows else [float(norms)] * 2
        if low > 0.0 and high < math.inf:  # NaN is neither
            return norms
    return torch.linalg.vector_norm(flat, dim=-1, dtype=torch.float64)
