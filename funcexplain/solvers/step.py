"""One iteration as a pure function: ``make_step(problem, method) -> (init, step)``.

A step evaluates the point it is given, keeps that evaluation where it should be kept, decides whether
the search ends there, and only then moves. `State` is carried round the loop, `Info` is reported. Both
hold tensors alone, and finished rows are held with ``torch.where``, so that a step can be mapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from funcexplain.problems.checks import check_number
from funcexplain.problems.problem import Args, Problem, check_problem
from funcexplain.solutions.solution import Status
from funcexplain.solvers.gradient import Objective, ValueAndGrad, value_and_grad
from funcexplain.solvers.optimizers import Optimizer, adam, check_optimizer


class Iterate(NamedTuple):
    """A point of the search with its evaluation."""

    z: Tensor
    value: Tensor
    loss: Tensor
    weights: Tensor


class State(NamedTuple):
    """What the loop carries.

    Attributes:
        z: point that is evaluated next.
        optimizer: state of the optimizer.
        kept: the evaluated point that would be the answer now.
        status: a `Status` code; MAX_STEPS as long as the search goes on.
        num_steps: updates taken.
    """

    z: Tensor
    optimizer: Any
    kept: Iterate
    status: Tensor
    num_steps: Tensor

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
        error: largest ``|weights - target|``.
    """

    loss: Tensor
    value: Tensor
    grad_norm: Tensor
    error: Tensor


Init = Callable[[Args], State]
Step = Callable[[State, Args], tuple[State, Info]]
Keep = Literal["last", "best"]


def make_step(
    problem: Problem,
    method: Any = None,
    *,
    atol: float | None = None,
    keep: Keep = "last",
    gradient: Callable[[Objective], ValueAndGrad] = value_and_grad,
) -> tuple[Init, Step]:
    """Make one pure iteration of a search, for whoever writes the loop.

    Args:
        problem: the question. Its ``args`` are not captured; they are given to both functions.
        method: an optimizer, or any ``(init, update)`` pair (see `as_optimizer`); default ``adam()``.
        atol: ends the search, and holds the state from then on, where ``max |weights - target| <=
            atol`` (HIT), nothing moves and the gradient is zero (STALLED), or a number is not finite
            (NONFINITE). ``None`` never ends it.
        keep: which evaluated point is kept: the ``"last"`` finite one, or the ``"best"`` in value.
        gradient: wraps an objective into its value and gradient. The default is torch.func's, through
            which ``torch.func.vmap`` and ``grad`` go.

    Returns:
        ``(init, step)`` with ``init(args) -> state`` and ``step(state, args) -> (state, info)``. A step
        makes one forward pass.

    Raises:
        TypeError: if ``problem`` is no Problem or ``method`` no optimizer.
        ValueError: if ``atol`` is negative or ``keep`` is unknown.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> init, step = fe.make_step(p, fe.adam(lr=0.5))
        >>> state, info = step(init(p.args), p.args)
        >>> state.z, info.error
        (tensor([[[ 0.5000, -0.5000]]]), tensor(0.4000))
    """
    optimizer = check_search("make_step", problem, method, 0.0 if atol is None else atol, keep)

    def objective(z: Tensor, args: Args) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return problem.evaluate(problem.decode(z, args), args)

    differentiate = gradient(objective)

    def init(args: Args) -> State:
        # A copy: whoever works in place on it must not reach the problem's own start.
        z = problem.start(args).clone()
        # Nothing is evaluated yet: a value of NaN gives way to whatever comes first.
        unknown = torch.full_like(args["target"], torch.nan)
        kept = Iterate(z, unknown.sum(), unknown.sum(), unknown)
        going = torch.full((), int(Status.MAX_STEPS), device=z.device)
        return State(z, optimizer.init(z), kept, going, torch.zeros_like(going))

    def step(state: State, args: Args) -> tuple[State, Info]:
        (value, (loss, weights)), grads = differentiate(state.z, args)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.z)
        if updates.shape != grads.shape or updates.dtype != grads.dtype:
            raise ValueError(
                "method: updates must have the shape and dtype of the search point "
                f"{tuple(grads.shape)} {grads.dtype}, got {tuple(updates.shape)} {updates.dtype}"
            )
        z = problem.project(state.z + updates, args)

        info = Info(
            loss=loss,
            value=value,
            grad_norm=torch.linalg.vector_norm(grads),
            error=(weights - args["target"]).abs().amax(),
        )
        finite = value.isfinite() & state.z.isfinite().all()
        hit = finite & (info.error <= (-1.0 if atol is None else atol))
        better = hit | (value < state.kept.value) if keep == "best" else True
        replaces = ~state.done & ((finite & better) | state.kept.value.isnan())
        status = state.status
        if atol is not None:
            # The later line overrules the earlier.
            # An update of zero alone may be that of a schedule, or of a bound that is pushed against.
            still = (z == state.z).all() & (info.grad_norm == 0)
            verdict = torch.where(still, int(Status.STALLED), status)
            verdict = torch.where(finite & grads.isfinite().all(), verdict, int(Status.NONFINITE))
            verdict = torch.where(hit, int(Status.HIT), verdict)
            status = torch.where(state.done, status, verdict)

        here = Iterate(state.z, value, loss, weights)
        moves = status == Status.MAX_STEPS
        state = State(
            z=torch.where(moves, z, state.z),
            optimizer=optimizer_state,
            kept=Iterate(*(torch.where(replaces, *pair) for pair in zip(here, state.kept, strict=True))),
            status=status,
            num_steps=state.num_steps + moves,
        )
        return state, info

    return init, step


def check_search(where: str, problem: Any, method: Any, atol: Any, keep: Any) -> Optimizer:
    """Refuse wrong settings of a search; returns the optimizer."""
    check_problem(where, problem)
    check_number(where, "atol", atol, least=0.0)
    if not (isinstance(keep, str) and keep in ("last", "best")):
        raise ValueError(f"{where}: keep must be 'last' or 'best', got {keep!r}")
    return check_optimizer(where, "method", adam() if method is None else method)
