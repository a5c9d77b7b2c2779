"""The real windows of the history that come nearest to a target, as a baseline."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.forward import weights_of
from funcexplain.markets.starts import nearest_first
from funcexplain.measures.paths import known_days, paths_of
from funcexplain.problems.problem import Problem
from funcexplain.problems.stacks import windows

NEAR = 0.02
"""Maximum error of a window that comes near the target: two percentage points."""


class Precedents(NamedTuple):
    """Real windows up to the date of a question.

    First those that hold the target, by distance from the reference; then the others, by distance from
    the target.

    Attributes:
        days: days of history up to the last one of each, ``(k,)``.
        error: its error at each, as `Solution.error`, ``(k,)``.
        change: root mean square distance of each from the reference, in sigmas, ``(k,)``.
        held: number of windows that hold the target within ``atol``.
        near: number of windows with an error of at most `NEAR`, or ``atol`` if larger.
        total: number of windows.
        known: days of history up to the date.
    """

    days: Tensor
    error: Tensor
    change: Tensor
    held: int
    near: int
    total: int
    known: int


def precedents(
    problem: Problem, history: Tensor, scale: float | Tensor, count: int = 3, atol: float = 1e-3
) -> Precedents:
    """Evaluate the network at every window of the history up to the question's date.

    Args:
        problem: one question.
        history: features of every day, ``(C, days, A)``; the date is where it holds the reference.
        scale: one sigma.
        count: number of windows to keep.
        atol: maximum error of a window that holds the target.

    Returns:
        At most ``count`` windows; those where the network fails or is not finite come last.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.full((1, 1, 2), 0.5))
        >>> history = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]]])
        >>> precedents(p, history, 1.0, count=2).days
        tensor([1, 3])
    """
    args, lookback = problem.args, problem.args["x0"].shape[-2]
    history = history.to(args["x0"])
    known = date_of(problem, history)
    stack = windows(history[:, :known], lookback)
    weights = weights_of(problem, stack, args, skip_errors=True)
    errors = torch.func.vmap(problem.criterion.error, (0, None))(weights, args["target"])
    errors = errors.nan_to_num(nan=torch.inf)
    changes = ((stack - args["reference"]) / scale).square().flatten(1).mean(1).sqrt()
    order = nearest_first(errors, changes, atol)[:count]
    held, near = (int((errors <= limit).sum()) for limit in (atol, max(NEAR, atol)))
    return Precedents(order + lookback, errors[order], changes[order], held, near, len(stack), known)


def date_of(problem: Problem, history: Tensor) -> int:
    """Days of a history up to the date of a question."""
    reference = problem.args["reference"]
    return known_days(history, reference, paths_of(problem, reference[None], problem.args).free[0])[0]
