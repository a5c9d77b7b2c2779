"""THE loop, and its three faces: `run` (pure), `solve` (an answer), `explain` (one call).

A step evaluates first and moves then. `solve` therefore takes one step more than it moves: the last one
evaluates the point that the answer holds, so that its weights and loss belong to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from funcexplain.networks.functional import Apply
from funcexplain.problems import losses
from funcexplain.problems.checks import check_count
from funcexplain.problems.problem import Args, Loss, Problem, problem
from funcexplain.problems.transforms import freeze
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.check import check_gradient
from funcexplain.solvers.gradient import backward_value_and_grad
from funcexplain.solvers.step import Info, Init, Keep, State, Step, check_search, make_step

Callback = Callable[[State, Info], object]


def _iterate(
    step: Step, state: State, args: Args, num_steps: int, ends: Callable[[State, Info], bool]
) -> State:
    """Take ``num_steps`` steps, or fewer if ``ends(state, info)`` says so after one of them."""
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
        TypeError, ValueError: if ``num_steps`` is no int >= 0.

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
    check_count("run", "num_steps", num_steps)
    infos: list[Info] = []

    def collect(state: State, info: Info) -> bool:
        del state
        infos.append(info)
        return False

    state = _iterate(step, init(args), args, num_steps, collect)
    if not infos:
        return state, Info(*(args["x0"].new_zeros(0) for _ in Info._fields))
    return state, Info(*map(torch.stack, zip(*infos, strict=True)))


def solve(
    problem: Problem,
    method: Any = None,
    *,
    max_steps: int = 100,
    atol: float = 0.0,
    keep: Keep = "last",
    callback: Callback | None = None,
    check: bool = False,
) -> Solution:
    """Answer a question: search until the network holds the target, or the budget is used up.

    The network is evaluated once a step, and once more at the end.

    Args:
        problem: the question.
        method: an optimizer, or any ``(init, update)`` pair (see `as_optimizer`); default ``adam()``.
        max_steps: most updates to take, >= 0.
        atol: the target is hit where ``max |weights - target| <= atol``; the search ends there.
        keep: the answer is the ``"last"`` evaluated point, or the ``"best"`` one in value. A hit is
            always kept, and a point that is not finite never.
        callback: ``callback(state, info)`` after every step, for progress; what it returns is ignored.
        check: compare the gradient with a central difference first (`check_gradient`, one direction),
            and warn where they differ by more than 5 %.

    Returns:
        The solution; its ``status`` says how the search ended. Numerical trouble is a status, too.

    Raises:
        TypeError: for something that is no problem, optimizer, number or function.
        ValueError: for a negative ``max_steps`` or ``atol``, or an unknown ``keep``.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(p, fe.adam(lr=0.1), atol=1e-3)
        Solution(status=HIT, loss=..., num_steps=..., x=(1, 1, 2) torch.float32)
    """
    method = check_search("solve", problem, method, atol, keep)
    check_count("solve", "max_steps", max_steps)
    if callback is not None and not callable(callback):
        raise TypeError(f"solve: callback must be callable, got {type(callback).__name__}")
    if check:
        found = check_gradient(problem, rtol=0.05, num_directions=1)
        if not found.ok:
            warnings.warn(f"solve: {found!r}", stacklevel=2)
    init, step = make_step(problem, method, atol=atol, keep=keep, gradient=backward_value_and_grad)
    args, infos = problem.args, list[Info]()

    def ends(state: State, info: Info) -> bool:
        infos.append(info)
        if callback is not None:
            callback(state, info)
        return bool(state.done)

    with torch.no_grad():
        state = _iterate(step, init(args), args, max_steps, ends)
        taken = state.num_steps
        if not state.done:
            state, _ = step(state, args)
        if state.status == Status.STALLED and taken == 0 and args["mask"].any():
            warnings.warn(
                "solve: no gradient reaches the input, so x stays as it is; fe.check_gradient(problem) "
                "tells whether the network ignores its input or something in it has no gradient",
                stacklevel=2,
            )
        losses_before = [info.loss for info in infos]
        history = torch.stack(losses_before) if infos else args["x0"].new_zeros(0)
        return Solution(
            x=problem.decode(state.kept.z, args),
            weights=state.kept.weights,
            loss=state.kept.loss,
            history=history[: int(taken)],
            num_steps=taken,
            status=Status(int(state.status)),
        )


def explain(
    network: nn.Module | tuple[Apply, Any],
    target: Tensor,
    x0: Tensor,
    *,
    loss: Loss = losses.mse,
    mask: Tensor | None = None,
    reference: Tensor | None = None,
    method: Any = None,
    max_steps: int = 100,
    atol: float = 0.0,
    keep: Keep = "last",
    callback: Callback | None = None,
) -> Solution:
    """Ask and answer in one call: what would the market have to look like for this portfolio?

    The same as `problem`, then `freeze` where a mask is given, then `solve`. The search is in units of
    x: where channels are as small as daily returns, ``lr`` must be, too, or see `standardize`.

    Args:
        network: module from ``(n_samples, C, L, A)`` to weights ``(n_samples, A)``, or a pair
            ``(apply, params)`` for one window.
        target: allocation to reach, shape ``(A,)``.
        x0: window where the search starts, shape ``(C, L, A)``.
        loss: misfit ``(weights, target) -> scalar``.
        mask: bool, shape ``(C, L, A)``; True = free to change, False stays at the reference.
        reference: window that frozen entries keep. Default: ``x0``.
        method: an optimizer; default ``adam()``.
        max_steps: most updates to take.
        atol: the search ends where ``max |weights - target| <= atol``.
        keep: ``"last"`` or ``"best"`` evaluated point.
        callback: ``callback(state, info)`` after every step.

    Returns:
        The solution.

    Raises:
        TypeError, ValueError: as `problem` and `solve` do.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> solution = fe.explain(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2), atol=1e-3)
        >>> solution.status.sentence
        'The target is hit: every weight is within atol of it.'
    """
    question = problem(network, target, x0, loss=loss, mask=mask, reference=reference)
    if mask is not None:
        question = freeze(question)
    return solve(question, method, max_steps=max_steps, atol=atol, keep=keep, callback=callback)
