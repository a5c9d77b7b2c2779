"""All rows of a grid in a report: counts, quantiles, two pictures, and the best rows line by line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from funcexplain.measures.metrics import Metrics
from funcexplain.problems.grid import RowDim, varying_dims
from funcexplain.problems.problem import Problem
from funcexplain.reports import plots
from funcexplain.reports.page import Html, element, picture, table
from funcexplain.reports.summary import QUANTILES, number, quantiles, rows_of
from funcexplain.solutions.answer import Answer, Status

BEST_ROWS = 10
"""Rows of a grid that are listed."""
MOST_DRAWN = 500
"""Rows of a grid whose losses are drawn; of more, no eye follows one."""


def best_first(answer: Answer, metrics: Metrics) -> list[tuple[int, ...]]:
    """Indices of the rows: hits by their distance from today's market, then the others by error."""
    if not answer.dims:
        return [()]
    hit = answer.hit.flatten().cpu()
    distance, error = _distance(metrics)[0].flatten().cpu(), answer.error.flatten().cpu().double()
    rank = torch.where(hit, distance, error).nan_to_num(nan=math.inf)
    order = np.lexsort((rank.numpy(), ~hit.numpy()))[:BEST_ROWS]
    return [tuple(map(int, np.unravel_index(place, answer.shape))) for place in order]


def _distance(metrics: Metrics) -> tuple[Tensor, str]:
    if "rms_sigmas" in metrics:
        return metrics["rms_sigmas"], "sigmas"
    return metrics["l2"], "units of the window"


def overview(
    answer: Answer, problem: Problem, metrics: Metrics, order: Sequence[tuple[int, ...]]
) -> list[Html]:
    """All rows in numbers and pictures, and the best of them line by line."""
    distance, unit = _distance(metrics)
    error, steps = answer.error, answer.num_steps  # read once: an answer may lie in files
    spread = [("largest error", error), (f"distance from today's market, {unit}", distance),
              ("steps", steps)]  # fmt: skip
    heads = ["over rows", *("least", "25%", "median", "75%", "95%", "most")]
    flat = [tensor.flatten().cpu() for tensor in (distance, error, answer.hit)]
    tradeoff = plots.plot_tradeoff(*flat[:2], hit=flat[2], labels=_strengths(problem), unit=unit)
    best = int(np.ravel_multi_index(order[0], answer.shape))
    drawn = _drawn(math.prod(answer.shape), best)
    losses = plots.plot_history(
        answer.flat(drawn).history, best=int((drawn == best).nonzero()), hit=flat[2][drawn], rows="row"
    )
    told = "every row" if len(drawn) == len(flat[1]) else f"{len(drawn)} of {len(flat[1])} rows"
    status, lines = torch.as_tensor(answer.status), []
    for index in order[:BEST_ROWS]:
        cells = [str(Status(int(status[index]))), *(number(value[index]) for value in (error, distance))]
        lines.append([*map(str, index), *cells, str(int(steps[index]))])
    heads_of_rows, size = [*answer.dims, "status", "largest error", unit, "steps"], len(answer.dims)
    return [
        element("h2", "All rows"),
        table((), rows_of(answer), numbers=(1,)),
        table(heads, ([name, *quantiles(v)] for name, v in spread), range(1, 1 + len(QUANTILES))),
        picture(tradeoff, "Every row: its distance from today's market and how near it comes."),
        picture(losses, f"Loss of {told} over the steps of its search, on a logarithmic scale."),
        element("h2", f"The best {len(lines)} rows"),
        element("p", "Hits come first, the nearest to today's market before others; then misses by "
                "their error. Rows are counted from 0.", class_="note"),
        table(heads_of_rows, lines, range(size + 1, size + 4)),
    ]  # fmt: skip


def _drawn(rows: int, best: int) -> Tensor:
    """Numbers of the rows whose losses are drawn: all, or some that lie evenly, and the best."""
    some = torch.linspace(0, rows - 1, min(rows, MOST_DRAWN), dtype=torch.float64).round().long()
    return torch.cat([some, torch.tensor([best])]).unique()


def _strengths(problem: Problem) -> list[str] | None:
    """Names of the rows of a Pareto path: one dimension, along which one number varies."""
    if len(problem.dims) != 1:
        return None
    (dim,) = problem.dims
    numbers = {
        name: problem.args[name] for name in sorted(dim.varying) if _is_strength(problem, dim, name)
    }
    if len(numbers) != 1:
        return None
    ((name, values),) = numbers.items()
    return [f"{name} {float(value):.3g}" for value in values]


def _is_strength(problem: Problem, dim: RowDim, name: str) -> bool:
    value = problem.args[name]
    single = isinstance(value, Tensor) and value.shape == (dim.size,) and value.is_floating_point()
    return single and bool(varying_dims(problem.dims, name))
