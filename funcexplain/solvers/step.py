"""One iteration as a pure function: ``make_step(problem, method) -> (init, step)``.

A step evaluates the point it is given, keeps that evaluation where it should be kept, decides whether
the search ends there, and only then moves. `State` is carried round the loop, `Info` is reported. Both
hold tensors alone, and finished rows are held with ``torch.where``, so that a step can be mapped.

Its parts (`make_parts`, `decide`) are apart because a batch of rows takes one backward pass for all of
them; what comes before and after it is mapped, or written for leading rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from funcexplain.problems.checks import check_count, check_number
from funcexplain.problems.criterion import Criterion
from funcexplain.problems.problem import Args, Problem, check_question
from funcexplain.solvers.gauss_newton import (
    LevenbergMarquardt,
    make_damped_parts,
    make_damped_step,
)
from funcexplain.solvers.gradient import Objective, ValueAndGrad, value_and_grad
from funcexplain.solvers.optimizers import Optimizer, adam, check_optimizer
from funcexplain.solvers.state import (
    Info,
    Init,
    Keep,
    Rules,
    State,
    Step,
    begin,
    decide,
    function_key,
    make_objective,
)

Method = Optimizer | LevenbergMarquardt
Move = Callable[[State, Args, Tensor], tuple[Tensor, Any]]


class Parts(NamedTuple):
    """The functions that a step of one row is made of; `decide` puts them together.

    Attributes:
        objective: ``(z, args) -> (value, (loss, weights))``.
        init: ``args -> state``.
        move: ``(state, args, grads) -> (z, optimizer state)``, the next point, projected.
        criterion: how weights are compared with the target.
        key: what the functions are made of; equal keys mean equal functions.
    """

    objective: Objective
    init: Init
    move: Move
    criterion: Criterion
    key: tuple[Any, ...]


def make_step(
    problem: Problem,
    method: Any = None,
    *,
    atol: float | None = None,
    keep: Keep = "last",
    patience: int | None = None,
    rtol: float = 1e-3,
    gradient: Callable[[Objective], ValueAndGrad] = value_and_grad,
) -> tuple[Init, Step]:
    """Make one pure iteration of a search, for whoever writes the loop.

    Args:
        problem: one question. Its ``args`` are not captured; they are given to both functions.
        method: an optimizer, any ``(init, update)`` pair (see `as_optimizer`), or
            `levenberg_marquardt`; default ``adam()``.
        atol: ends the search, and holds the state from then on, where the ``error`` of `Info` is at
            most this (HIT), nothing moves and the gradient is zero (STALLED), or a number is not finite
            (NONFINITE). ``None`` never ends it.
        keep: which evaluated point is kept: the ``"last"`` finite one, or the ``"best"`` in value.
        patience: ends the search as STALLED, too, after so many steps in a row in which the least value
            so far did not fall by ``rtol`` of itself. ``None`` waits for ever. Needs an ``atol``.
        rtol: relative fall that counts.
        gradient: wraps an objective into its value and gradient. The default is torch.func's, through
            which ``torch.func.vmap`` and ``grad`` go. (`levenberg_marquardt` has a Jacobian instead.)

    Returns:
        ``(init, step)`` with ``init(args) -> state`` and ``step(state, args) -> (state, info)``. A step
        makes one forward pass.

    Raises:
        TypeError: if ``problem`` is no Problem or ``method`` no optimizer.
        ValueError: if ``problem`` is a grid of rows, ``atol`` or ``rtol`` is negative, ``patience`` is
            less than one, or ``keep`` is unknown.

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
    rules = Rules(atol, keep, patience, rtol)
    method = check_search("make_step", method, rules)
    if isinstance(method, LevenbergMarquardt):
        damped = make_damped_parts(problem, method, rules)
        return damped.init, make_damped_step(damped, rules)
    parts = make_parts(problem, method, rules)
    differentiate = gradient(parts.objective)

    def step(state: State, args: Args) -> tuple[State, Info]:
        evaluated = differentiate(state.z, args)
        error = parts.criterion.error(evaluated[0][1][1], args["target"])
        return decide(rules, state, error, evaluated, parts.move(state, args, evaluated[1]))

    return parts.init, step


def make_parts(problem: Problem, optimizer: Optimizer, rules: Rules) -> Parts:
    """Make the functions of one row's step; all settings are checked already (`check_search`)."""

    def init(args: Args) -> State:
        return begin(problem, rules, args, optimizer.init)

    def move(state: State, args: Args, grads: Tensor) -> tuple[Tensor, Any]:
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.z)
        if updates.shape != grads.shape or updates.dtype != grads.dtype:
            raise ValueError(
                "method: updates must have the shape and dtype of the search point "
                f"{tuple(grads.shape)} {grads.dtype}, got {tuple(updates.shape)} {updates.dtype}"
            )
        return problem.project(state.z + updates, args), optimizer_state

    key = (function_key(problem), optimizer.update, rules)
    return Parts(make_objective(problem), init, move, problem.criterion, key)


def check_search(where: str, method: Any, rules: Rules) -> Method:
    """Refuse wrong settings of a search; returns the method."""
    if rules.atol is not None:
        check_number(where, "atol", rules.atol, minimum=0.0)
    if not (isinstance(rules.keep, str) and rules.keep in ("last", "best")):
        raise ValueError(f"{where}: keep must be 'last' or 'best', got {rules.keep!r}")
    check_number(where, "rtol", rules.rtol, minimum=0.0)
    if rules.patience is not None:
        if check_count(where, "patience", rules.patience) < 1:
            raise ValueError(f"{where}: patience must be >= 1, or None to wait for ever, got 0")
        if rules.atol is None:
            raise ValueError(f"{where}: patience needs an atol, since without one no search ends")
    if isinstance(method, LevenbergMarquardt):
        return method
    return check_optimizer(where, "method", adam() if method is None else method)
