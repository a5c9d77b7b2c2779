"""Check that a solution answers a problem, before it is measured or refined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from funcexplain.problems.grid import RowDim, varying_dims
from funcexplain.problems.problem import Problem, check_search
from funcexplain.solutions.solution import Solution


def check_answer(where: str, solution: Any, problem: Any) -> Problem:
    """Raise unless a solution has the rows, windows, weights, dtype and device of a problem.

    Returns:
        The problem, repeated for every draw of a solution that `sample` made.
    """
    check_search(where, problem)
    if not isinstance(solution, Solution):
        raise TypeError(f"{where}: solution must be a Solution, got {type(solution).__name__}")
    problem = repeat_for_draws(solution, problem)
    x0, target = problem.args["x0"], problem.args["target"]
    along = len(varying_dims(problem.dims, "target"))
    assets = tuple(problem.criterion.weights_like(target).shape[along:])
    # One row is enough: a solution may be stored in files.
    sample = solution.sample
    window, weights = tuple(sample.x.shape[1:]), tuple(sample.weights.shape[1:])
    expected = tuple(x0.shape[-3:])
    if (solution.shape, window, weights) != (problem.shape, expected, assets):
        raise ValueError(
            f"{where}: solution must have the rows {problem.shape} and windows {expected} of the "
            f"problem, and weights {assets}, got {solution.shape}, {window} and {weights}; pick the "
            "same rows of both"
        )
    if (sample.x.dtype, sample.x.device) != (x0.dtype, x0.device):
        raise TypeError(
            f"{where}: solution must be of the problem's dtype and device ({x0.dtype}, {x0.device}), "
            f"got {sample.x.dtype}, {sample.x.device}; fe.cast moves a problem"
        )
    return problem


def repeat_for_draws(solution: Solution, problem: Problem) -> Problem:
    """The problem with one row for each market, if the solution holds several of this one question."""
    if problem.dims or solution.dims not in (("draw",), ("alternative",)):
        return problem
    return replace(problem, dims=(RowDim(*solution.dims, len(solution.num_steps), frozenset()),))
