"""All rows of a grid in a report: counts, quantiles, two pictures, and a table of the best rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from funcexplain.measures.metrics import Metrics
from funcexplain.problems.problem import Problem
from funcexplain.reports import plots
from funcexplain.reports.page import picture
from funcexplain.solutions.html import Html, element, table
from funcexplain.solutions.solution import Solution, Status

BEST_ROWS = 10
"""Number of rows of a grid that are listed."""
MAX_LINES = 500
"""Maximum number of rows whose losses are drawn; more would be indistinguishable."""

_QUANTILES = {"minimum": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "maximum": 1.0}


def best_first(solution: Solution, metrics: Metrics) -> list[tuple[int, ...]]:
    """Indices of the best rows: hits by their distance from today's market, then the others by error."""
    if not solution.dims:
        return [()]
    hit = solution.hit.flatten().cpu()
    distance, error = _distance(metrics)[0].flatten().cpu(), solution.error.flatten().cpu().double()
    rank = torch.where(hit, distance, error).nan_to_num(nan=math.inf)
    order = np.lexsort((rank.numpy(), ~hit.numpy()))[:BEST_ROWS]
    return [tuple(map(int, np.unravel_index(row, solution.shape))) for row in order]


def _distance(metrics: Metrics) -> tuple[Tensor, str]:
    """The distance from today's market, and its unit."""
    if "rms_sigmas" in metrics:
        return metrics["rms_sigmas"], "sigmas"
    return metrics["l2"], "units of the window"


def overview(
    solution: Solution, problem: Problem, metrics: Metrics, order: Sequence[tuple[int, ...]]
) -> list[Html]:
    """All rows in numbers and pictures, and the best of them in a table."""
    distance, unit = _distance(metrics)
    error, steps = solution.error, solution.num_steps  # read once: a solution may be stored in files
    spread = [("largest error", error), (f"distance from today's market, {unit}", distance),
              ("steps", steps)]  # fmt: skip
    flat = [tensor.flatten().cpu() for tensor in (distance, error, solution.hit)]
    tradeoff = plots.plot_tradeoff(*flat[:2], hit=flat[2], labels=_strengths(problem), unit=unit)
    best = int(np.ravel_multi_index(order[0], solution.shape))
    drawn = _drawn_rows(math.prod(solution.shape), best)
    losses = plots.plot_history(
        solution.flat(drawn).history, best=int((drawn == best).nonzero()), hit=flat[2][drawn], rows="row"
    )
    which = "every row" if len(drawn) == len(flat[1]) else f"{len(drawn)} of {len(flat[1])} rows"
    status, lines = solution.codes, []
    for index in order:
        name, count = Status(int(status[index])).name, str(int(steps[index]))
        numbers = (format_number(error[index]), format_number(distance[index]))
        lines.append([*map(str, index), name, *numbers, count])
    heads, size = [*solution.dims, "status", "largest error", unit, "steps"], len(solution.dims)
    return [
        element("h2", "All rows"),
        table((), solution._summary(), numbers=(1,)),
        table(
            ["over rows", *_QUANTILES],
            ([name, *format_quantiles(values)] for name, values in spread),
            range(1, 1 + len(_QUANTILES)),
        ),
        picture(tradeoff, "Every row: its distance from today's market and how close it comes."),
        picture(losses, f"Loss of {which} at each step of the search, on a logarithmic scale."),
        element("h2", f"The best {len(lines)} rows"),
        element("p", "Hits come first, sorted by their distance from today's market, then misses, "
                "sorted by error. Rows are counted from 0.", class_="note"),
        table(heads, lines, range(size + 1, size + 4)),
    ]  # fmt: skip


def format_quantiles(values: Tensor) -> list[str]:
    """Minimum, 25, 50, 75 and 95 % quantile and maximum of the finite values, as text."""
    known = values.flatten().double().cpu()
    known = known[known.isfinite()]
    if not len(known):
        return ["unknown"] * len(_QUANTILES)
    # By sorting: torch.quantile refuses more than 16 million numbers.
    known = known.sort().values
    return [format_number(known[round(share * (len(known) - 1))]) for share in _QUANTILES.values()]


def format_number(value: Tensor | float) -> str:
    """A number with three digits."""
    return f"{float(value):.3g}"


def _drawn_rows(rows: int, best: int) -> Tensor:
    """Numbers of the rows whose losses are drawn: all, or an even selection and the best."""
    some = (
        torch.linspace(0, rows - 1, min(rows, MAX_LINES), dtype=torch.float64, device="cpu")
        .round()
        .long()
    )
    return torch.cat([some, some.new_tensor([best])]).unique()


def _strengths(problem: Problem) -> list[str] | None:
    """Names of the rows of a Pareto path: one dimension, along which one number varies."""
    if len(problem.dims) != 1:
        return None
    (dim,) = problem.dims
    entries = ((name, problem.args[name]) for name in dim.varying)
    tensors = [(name, entry) for name, entry in entries if isinstance(entry, Tensor)]
    strengths = [(n, t) for n, t in tensors if t.shape == (dim.size,) and t.is_floating_point()]
    if len(strengths) != 1:
        return None
    ((name, values),) = strengths
    return [f"{name} {float(value):.3g}" for value in values]
