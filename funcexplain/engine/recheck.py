"""The weights of an answer are the network's at its window, alone: rows are checked when they end.

A network may treat a row by what its batch holds (``if x.abs().max() > 6``), at windows that a trial
before the search did not reach. All weights are computed again in batches of another composition, rows
of similar size together, and some by the network alone; where any differ, every row is computed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from funcexplain.engine.batching import Batched
from funcexplain.engine.outputs import Outputs
from funcexplain.engine.trial import row_of
from funcexplain.networks.network import bound
from funcexplain.networks.rounding import agree, coarsest_eps
from funcexplain.problems.grid import take_rows, varying_dims
from funcexplain.problems.problem import Problem
from funcexplain.solutions.solution import Solution, Status

# Rows that are computed alone, rows in a batch of another composition, rows that are looked at together.
_ALONE, _TOGETHER, _PART = 16, 128, 1024


def rows_to_repeat(
    grid: Problem,
    batched: Batched,
    outputs: Outputs,
    rows: Tensor,
    solved: Callable[[int], Solution],
) -> Tensor:
    """The rows whose weights are not the network's, or that ended by what other rows did to them.

    Args:
        grid: the rows' problem.
        batched: the functions that solved them.
        outputs: their answers.
        rows: their numbers.
        solved: solves a row alone.
    """
    known = rows[_in_parts(rows, lambda part: outputs.weights[part].flatten(1).isfinite().all(1))]
    some = torch.linspace(0, len(known) - 1, min(_ALONE, len(known)), dtype=torch.float64)
    if _differ_alone(grid, outputs, known[some.long().to(rows.device)]).numel() or _differ_together(
        grid, batched, outputs, known
    ):
        wrong = _differ_alone(grid, outputs, known)
    else:
        wrong = rows[:0]
    # Of rows that ended in trouble, one shows whether it is their own.
    troubled = rows[(outputs.status[rows] == Status.NONFINITE) | (outputs.status[rows] == Status.FAILED)]
    if len(rows) > 1 and len(troubled):
        number = int(troubled[0])
        try:
            own = int(solved(number).status) == int(outputs.status[number])
        except Exception:  # at its start
            own = True
        if not own:
            wrong = torch.cat([wrong, troubled]).unique()
    return wrong


def _differ_together(grid: Problem, batched: Batched, outputs: Outputs, rows: Tensor) -> bool:
    """Whether any weights differ in batches of another composition."""
    sizes = _in_parts(rows, lambda part: outputs.x[part].flatten(1).abs().amax(1))
    eps = coarsest_eps(grid.args, outputs.weights)
    for part in rows[sizes.argsort()].split(_TOGETHER):
        args = take_rows(grid.dims, grid.args, part)
        try:
            weights = batched.weights(outputs.x[part], args)
        except Exception:  # a batch of this composition fails, which says nothing of these answers
            return True
        if not agree(weights, outputs.weights[part], eps, rows=1):
            return True
    return False


def _differ_alone(grid: Problem, outputs: Outputs, rows: Tensor) -> Tensor:
    """The rows whose weights the network alone does not hold at their windows."""
    eps = coarsest_eps(grid.args)
    shared = not varying_dims(grid.dims, "params")
    differing = []
    with bound(grid.apply, grid.args["params"]) if shared else nullcontext():
        for number in rows.tolist():
            row = row_of(grid, number)
            try:
                _, (_, weights) = row.evaluate(outputs.x[number], row.args)
            except Exception:
                differing.append(number)
                continue
            if not agree(weights, outputs.weights[number], eps):
                differing.append(number)
    return torch.tensor(differing, dtype=torch.int64, device=rows.device)


def _in_parts(rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A number for each row, without copies of all windows."""
    return torch.cat([function(part) for part in rows.split(_PART)])
