"""The law of the search point: which transforms keep ``z`` standard normal, and which drop that law.

A scenario maps a standard normal ``z`` to returns. `Problem.law` is "normal" as long as every change of
``decode`` keeps the law, such as `freeze`. After a change of variables, bounds, or a transform that does
not declare it, the law is unknown.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from funcexplain.problems.grid import aligned
from funcexplain.problems.problem import Problem


def keep_law(problem: Problem, changed: Problem) -> Problem:
    """The changed problem; its ``z`` keeps the law that it had before ``decode`` was wrapped."""
    return replace(changed, normal=changed.decode) if problem.law else changed


def drop_law(problem: Problem, changed: Problem, name: str) -> Problem:
    """The changed problem; its ``z`` has no known law after the transform of this name."""
    return replace(changed, altered_by=name) if problem.law else changed


def check_law(where: str, problem: Problem) -> None:
    """Raise unless the search point is standard normal."""
    if problem.law is None:
        reason = "a search over windows, which have none"
        if problem.normal is not None:
            reason = f"another law after {problem.altered_by or 'a transform of your own'}; leave it out"
        raise ValueError(
            f"{where}: problem must have a standard normal search point, as fe.scenarios.scenario or "
            f"fe.scenarios.ahead makes, got {reason}"
        )


def free_shocks(problem: Problem) -> Tensor:
    """Which entries of a scenario's search points are free, bool; it broadcasts over the days."""
    name = "factor" if "factor" in problem.args else "mixing"
    return aligned(problem.dims, problem.args, name, ndim=3).diagonal(dim1=-2, dim2=-1) != 0
