"""All answers of a grid in a report: their order, counts, quantiles, pictures, a table of the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from funcexplain.markets import scenarios
from funcexplain.problems.problem import Problem
from funcexplain.reports import plots
from funcexplain.reports.drawing import Array
from funcexplain.reports.numbers import format_number
from funcexplain.reports.page import picture
from funcexplain.solutions.html import Html, element, table
from funcexplain.solutions.solution import Solution, Status

BEST_ROWS = 10
"""Number of rows of a grid that are listed."""
MAX_LINES = 500
"""Maximum number of rows whose losses are drawn; more would be indistinguishable."""

_QUANTILES = {"minimum": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "maximum": 1.0}


def change_size(
    solution: Solution, problem: Problem, metrics: Mapping[str, Tensor]
) -> tuple[Tensor, str]:
    """The size of every row's change, and its unit.

    Of a problem with a law it is the length of the shocks, ``|z|``: the smallest is the likeliest.
    Else it is the root mean square change, or the length of the change where one sigma is unknown.
    """
    if problem.law:
        shocks = scenarios.shocks(solution, problem).double()
        return shocks.flatten(len(problem.dims)).norm(dim=-1), "standard deviations together"
    if "rms_sigmas" in metrics:
        return metrics["rms_sigmas"].double(), "standard deviations"
    return metrics["l2"].double(), "units of the window"


def main_assets(change: Array) -> Array:
    """The asset with the largest share of the squared change of each window, ``(N, C, L, A) -> (N,)``.

    Example:
        >>> main_assets(np.array([[[[0.0, -2.0], [1.0, 0.0]]]]))
        array([1])
    """
    return np.square(np.nan_to_num(change)).sum((1, 2)).argmax(1)


def rank_rows(hit: Tensor, size: Tensor, error: Tensor) -> Tensor:
    """The rank of each row, lowest for the best: hits by size, then misses by error.

    Example:
        >>> hit = torch.tensor([False, True, True])
        >>> rank_rows(hit, torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.1, 0.0, 0.0])).argmin()
        tensor(2)
    """
    size, error = (values.double().nan_to_num(nan=math.inf).cpu() for values in (size, error))
    finite = size[size.isfinite()]
    behind = float(finite.max()) + 1.0 if len(finite) else 0.0
    return torch.where(hit.cpu(), size.clamp(max=behind), behind + error)


def best_first(rank: Tensor, count: int = BEST_ROWS) -> list[tuple[int, ...]]:
    """Indices of the rows of lowest rank, the best first."""
    order = rank.flatten().argsort(stable=True)[:count].tolist()
    return [tuple(map(int, np.unravel_index(row, rank.shape))) for row in order] if rank.ndim else [()]


def overview(
    solution: Solution,
    problem: Problem,
    size: tuple[Tensor, str],
    order: Sequence[tuple[int, ...]],
    coords: Mapping[str, Sequence[str]],
) -> list[Html]:
    """All answers in numbers and pictures, and the best of them in a table."""
    distance, unit = size
    error, steps = solution.error, solution.num_steps  # read once: a solution may be stored in files
    spread = [("largest miss", error), (f"size of the change, {unit}", distance), ("steps", steps)]
    flat = [tensor.flatten().cpu() for tensor in (distance, error, solution.hit)]
    tradeoff = plots.plot_tradeoff(*flat[:2], hit=flat[2], labels=_strengths(problem), unit=unit)
    best = int(np.ravel_multi_index(order[0], solution.shape))
    drawn = _drawn_rows(math.prod(solution.shape), best)
    losses = plots.plot_history(
        solution.flat(drawn).history,
        best=int((drawn == best).nonzero()),
        hit=flat[2][drawn],
        rows="answer",
    )
    which = "every search" if len(drawn) == len(flat[1]) else f"{len(drawn)} of {len(flat[1])} searches"
    status, lines = solution.codes, []
    for index in order[:BEST_ROWS]:
        name, count = Status(int(status[index])).name, str(int(steps[index]))
        numbers = (format_number(error[index]), format_number(distance[index]))
        labels = [coords[dim][at] if dim in coords else str(at)
                  for dim, at in zip(solution.dims, index, strict=True)]  # fmt: skip
        lines.append([*labels, name, *numbers, count])
    (_, searches), *summary = solution._summary()
    heads, first = [*solution.dims, "status", "largest miss", unit, "steps"], len(solution.dims)
    return [
        table((), [("searches", searches), *summary], numbers=(1,)),
        table(
            ["over all answers", *_QUANTILES],
            ([name, *format_quantiles(values)] for name, values in spread),
            range(1, 1 + len(_QUANTILES)),
        ),
        picture(tradeoff, "Every answer: the size of its change and how close it comes."),
        picture(losses, f"Loss of {which} at each step, on a logarithmic scale."),
        element("h3", f"The best {len(lines)} answers"),
        element("p", "Those that reach their target come first, by the size of their change, then "
                "the others by their largest miss. Numbers count from 0.", class_="note"),
        table(heads, lines, range(first + 1, first + 4)),
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
