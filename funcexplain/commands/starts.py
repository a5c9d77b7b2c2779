"""Where the searches of a question start: at the reference, at precedents, and near the reference.

A precedent is a real window before the date of a question that holds its target, or comes near it. Where
the question is free, its start repeats that window or its last returns. Each search then approaches the
reference from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.history import History
from funcexplain.engine.forward import weights_of
from funcexplain.markets.starts import nearest_first
from funcexplain.problems.transforms import add_data

# Windows overlap: one in a few days is enough.
_SPACING = 5


def map_starts(problem: fe.Problem, seeds: Tensor, scale: float) -> fe.Problem:
    """Map a question over starts: the reference, as many precedents as half of all, then noise.

    Args:
        problem: the question.
        seeds: of the noise, one for each start, ``(S,)``.
        scale: standard deviation of the noise.

    Returns:
        The rows; the search points of precedents are ``args["precedents"]``, see `with_precedents`,
        with that of the reference first.
    """
    z, inner = problem.start(problem.args), problem.start
    places, count = torch.arange(len(seeds)), 1 + len(seeds) // 2
    jitter = torch.where(places < count, 0.0, scale).to(z.dtype)

    def start(args: dict[str, Any]) -> Tensor:
        return inner(args) + args["precedents"].index_select(0, args["place"][None])[0]

    data = {"precedents": z.new_zeros(count, *z.shape), "place": places[0]}
    problem = replace(problem, start=start, args=add_data("starts", problem, **data))
    places = torch.where(places < count, places, 0)
    return fe.vmap(fe.jitter(0.0)(problem), seed=seeds, jitter=jitter, place=places, name="start")


def with_precedents(
    problem: fe.Problem,
    history: History,
    chosen: list[int],
    atol: float,
    search_points: Callable[[int, Tensor], Tensor],
) -> fe.Problem:
    """Fill the search points of precedents in, for each date those before it.

    Args:
        problem: rows ``(date, start)``, of several dates, or ``(start,)``.
        history: the windows.
        chosen: position of each date's window.
        atol: maximum error of a window that holds the target.
        search_points: see `Space`.
    """
    filled = problem.args["precedents"].clone()
    dated = filled if len(chosen) > 1 else filled[None]
    places = torch.arange(0, max(chosen), _SPACING)
    windows = history.windows[places]
    rows = [problem[date, 0] for date in range(len(chosen))] if len(chosen) > 1 else [problem[0]]
    weights = weights_of(rows[0], windows, rows[0].args, skip_errors=True)
    errors = torch.func.vmap(problem.criterion.error, (0, None))
    for date, (position, row) in enumerate(zip(chosen, rows, strict=True)):
        before = int((places < position).sum())
        error = errors(weights[:before], row.args["target"]).nan_to_num(nan=torch.inf)
        change = (windows[:before] - row.args["reference"]) / history.scale(position)[1]
        order = nearest_first(error, change.flatten(1).norm(dim=1), atol)[: dated.shape[1] - 1]
        points = search_points(date, places[order])
        # A market beyond what a model can make has no point: that start is the reference.
        dated[date, 1 : 1 + len(order)] = points.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return replace(problem, args={**problem.args, "precedents": filled})
