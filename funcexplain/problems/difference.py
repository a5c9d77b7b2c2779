"""Where two networks disagree: a target on the difference of their weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import optree
import torch
from torch import Tensor

from funcexplain.networks.network import bound, deferred_interrupts
from funcexplain.problems import losses
from funcexplain.problems.checks import check_number
from funcexplain.problems.consensus import consensus, first_window
from funcexplain.problems.criterion import EXACT, TURNOVER, Portfolio, Target, encode_goals
from funcexplain.problems.encoding import encode_targets
from funcexplain.problems.grid import varying_dims
from funcexplain.problems.problem import Problem, check_problem, check_question
from funcexplain.problems.problem import problem as make_problem


def difference(problem: Problem, other: Any, by: float | Target = 0.1) -> Problem:
    """Ask at which window two networks, such as a champion and a challenger, disagree by a given amount.

    The result is a question about ``w(x) - v(x)``, the weights of the problem's network minus those of
    the other one; `closest` then answers with the window closest to the reference at which they
    disagree, in a scenario the likeliest market.

    Args:
        problem: a question, or a grid, whose rows are kept; its network, start, reference and transforms
            are kept, too, its target and loss are replaced.
        other: the other network, as in `problem`, or a question about it, of which only the network
            matters.
        by: minimum disagreement ``sum |w - v| / 2``, the share of the portfolio that is held
            differently; or a target for the difference, such as ``fe.targets.at_least("EUR", 0.1)``: the
            first network holds 10 % more in it.

    Returns:
        The question or grid. Weights of its solutions are differences, ``(A,)``.

    Raises:
        TypeError: for another type.
        ValueError: if ``other`` is a grid, a grid has no rows, the networks differ in assets, windows or
            dtype, ``by`` is not positive, or is measured from today's weights, which differ by row.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> other = (lambda params, x: torch.softmax(-x.flatten(), -1), {})
        >>> fe.closest(fe.difference(p, other, by=fe.targets.at_least(0, 0.3))).hit
        tensor(True)
    """
    grid = check_problem("difference", problem)
    if 0 in grid.shape:
        raise ValueError(f"difference: expected at least one row, got a grid of {grid.shape}")
    if grid.dims:
        problem = grid[(0,) * len(grid.dims)]
    if isinstance(by, Target):
        target = by
    else:
        share = check_number("difference", "by", by, minimum=0.0, strict=True)

        def rows(portfolio: Portfolio) -> Tensor:
            none = torch.zeros_like(portfolio.like)[None]
            return encode_goals(portfolio, none, TURNOVER, lower=share)

        target = Target(f"difference by {share:g}", rows)
    if isinstance(other, Problem):
        check_question("difference", other)
    else:
        other = make_problem(other, _uniform(problem), first_window(problem), leverage=math.inf)
    _check_alike(problem, other)
    pair = [
        replace(
            problem,
            apply=each.apply,
            args={**problem.args, "params": each.args["params"], "target": _uniform(problem)},
            criterion=EXACT,
            loss=losses.mse,
        )
        for each in (problem, other)
    ]
    both = consensus(pair)

    def apply(params: Any, x: Tensor) -> Tensor:
        first, second = both.apply(params, x)
        return first - second

    stack, criterion = encode_targets(
        "difference", [target], apply, both.args, problem.assets, leverage=math.inf
    )
    if criterion.from_today and any(dim.varying & {"params", "reference"} for dim in grid.dims):
        raise ValueError(
            "difference: by must not be measured from today's weights, which differ by row, got "
            f"{target.call}; name these: fe.targets.turnover(0.1, today=weights)"
        )

    def repeated(name: str, tree: Any) -> Any:
        sizes = [grid.dims[dim].size for dim in varying_dims(grid.dims, name)]
        return optree.tree_map(lambda leaf: leaf.expand(*sizes, *leaf.shape), tree) if sizes else tree

    params = [grid.args["params"], repeated("params", other.args["params"])]
    return replace(
        both,
        apply=apply,
        loss=losses.mse,
        args={**grid.args, "params": params, "target": repeated("target", stack[0])},
        dims=grid.dims,
        criterion=criterion,
        leverage=math.inf,
    )


def _uniform(problem: Problem) -> Tensor:
    """An allocation of the problem's assets."""
    like = problem.criterion.weights_like(problem.args["target"])
    if like.ndim > 1:
        raise ValueError("difference: problem must ask one network, got a consensus of several")
    return torch.full_like(like, 1.0 / len(like))


def _check_alike(problem: Problem, other: Problem) -> None:
    """Raise unless both networks map the same windows to weights of the same assets."""
    mine, theirs = problem.args["x0"], other.args["x0"]
    if (mine.shape, mine.dtype, mine.device) != (theirs.shape, theirs.dtype, theirs.device):
        raise ValueError(
            f"difference: other must be asked about windows {tuple(mine.shape)} of {mine.dtype} on "
            f"{mine.device}, like problem, got {tuple(theirs.shape)} of {theirs.dtype} on "
            f"{theirs.device}; fe.cast moves a problem"
        )
    if None not in (problem.assets, other.assets) and problem.assets != other.assets:
        raise ValueError(
            f"difference: networks must have the same assets, got {', '.join(problem.assets or ())} and "
            f"{', '.join(other.assets or ())}; name them in the order of the networks"
        )
    shapes = []
    with deferred_interrupts(), torch.no_grad():
        for each in (problem, other):
            with bound(each.apply, each.args["params"]):
                shapes.append(tuple(each.apply(each.args["params"], mine).shape))
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"difference: networks must have the same assets, got weights {shapes[0]} and {shapes[1]}"
        )
