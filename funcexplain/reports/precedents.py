"""The real windows of the history whose allocation is closest to a target, as a baseline."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.forward import weights_of
from funcexplain.problems.problem import Problem
from funcexplain.problems.stacks import windows


class Precedents(NamedTuple):
    """Real windows, the nearest to the target first.

    Attributes:
        days_ago: days from the end of the history to the last day of each, ``(k,)``.
        error: its error at each, as `Solution.error`, ``(k,)``.
        change: root mean square distance of each from the reference, in sigmas, ``(k,)``.
        total: number of windows in the history.
    """

    days_ago: Tensor
    error: Tensor
    change: Tensor
    total: int


def precedents(problem: Problem, history: Tensor, scale: float | Tensor, count: int = 3) -> Precedents:
    """Evaluate the network at every window of the history, and keep the nearest to the target.

    Args:
        problem: one question.
        history: features of every day, ``(C, days, A)``.
        scale: one sigma.
        count: number of windows to keep.

    Returns:
        At most ``count`` windows; those where the network fails or is not finite come last.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> history = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]]])
        >>> precedents(p, history, 1.0, count=2).days_ago
        tensor([2, 0])
    """
    args = problem.args
    stack = windows(history.to(args["x0"]), args["x0"].shape[-2])

    weights = weights_of(problem, stack, args, skip_errors=True)
    errors = torch.func.vmap(problem.criterion.error, (0, None))(weights, args["target"])
    errors = errors.nan_to_num(nan=torch.inf)
    nearest = errors.argsort(stable=True)[:count]
    change = ((stack[nearest] - args["reference"]) / scale).square().flatten(1).mean(1).sqrt()
    return Precedents(len(stack) - 1 - nearest, errors[nearest], change, len(stack))
