"""Several networks: whether the others hold the target at the answer of the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

import funcexplain as fe
from funcexplain.commands.execution import solve_or_raise
from funcexplain.commands.inputs import Inputs, make_method, refinement_settings, solve_settings
from funcexplain.measures.agreement import Agreement


def ask_the_first(inputs: Inputs, consequence: str) -> tuple[fe.Solution, Agreement] | None:
    """Answer the question for the first network alone, and ask the others at its answer.

    Args:
        inputs: of the run.
        consequence: of Ctrl-C.

    Returns:
        The answers of each date and the measures of all networks, or None if there is only one.
    """
    method, problem = inputs.config.method, inputs.query.first
    if problem is None:
        return None
    solution = solve_or_raise(
        problem, make_method(method), consequence, refinement_settings(method), **solve_settings(method)
    )
    found = fe.agreement(solution, problem, [inputs.network, *inputs.others], atol=method.atol)
    return solution, found


def describe_agreement(solution: fe.Solution, found: Agreement, row: int) -> dict[str, Any]:
    """The agreement of networks with the first one's answer on a date, as JSON values."""
    names = ("held", "error", "gap_closed")
    values = {name: getattr(found, name).view(len(found.held), -1)[:, row].tolist() for name in names}
    return {"reached": bool(solution.hit.flatten()[row]), **values}


def agreement_of(summary: Mapping[str, Any]) -> Agreement | None:
    """The agreement of networks in a summary of one date; None otherwise."""
    values = summary["answers"][0].get("agreement")
    if values is None or len(summary["answers"]) > 1:
        return None
    error, closed = (
        torch.tensor(
            [math.nan if value is None else value for value in values[name]], dtype=torch.float64
        )
        for name in ("error", "gap_closed")
    )
    return Agreement(torch.tensor(values["held"]), error, closed)
