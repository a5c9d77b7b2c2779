"""A question on many dates, as a time series: the size of the change and its probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcexplain.problems.grid import take_rows
from funcexplain.problems.problem import Problem
from funcexplain.reports.drawing import Array, as_array
from funcexplain.reports.numbers import ROUNDING, format_chance, format_points
from funcexplain.reports.overview import main_assets
from funcexplain.reports.page import picture
from funcexplain.reports.pictures.dates import plot_dates
from funcexplain.solutions.html import Html, details, element, table
from funcexplain.solutions.probability import Probability
from funcexplain.solutions.solution import Solution

DATE = "date"
"""The dimension whose rows are dates."""

_SHOWN = 12  # dates that are not folded


class Dates(NamedTuple):
    """The best answer of each date.

    Attributes:
        names: the dates.
        rows: numbers of the best rows, in row-major order.
        hit: whether the target is reached.
        already: whether it holds without any change.
        error: largest miss of a weight.
        size: size of the change.
        asset: number of the asset with the largest share of the squared change.
        chance: probability of the target; None if it was not computed.
        unit: of the size.
    """

    names: Sequence[str]
    rows: Array
    hit: Array
    already: Array
    error: Array
    size: Array
    asset: Array
    chance: Array | None
    unit: str = ""


def collect_dates(
    solution: Solution,
    problem: Problem,
    names: Sequence[str],
    rank: Tensor,
    size: tuple[Tensor, str],
    scale: float | Tensor | None,
    probability: Probability | None,
) -> Dates:
    """The best answers of all dates.

    Args:
        solution: rows with a dimension ``date``.
        problem: the grid that it answers.
        names: the dates.
        rank: lowest for the best row, in the rows' shape.
        size: of each row's change, in the rows' shape, and its unit.
        scale: one sigma, broadcastable to a window; None for units of the window.
        probability: of the target on each date, if known.
    """
    axis = solution.dims.index(DATE)
    numbers = np.arange(rank.numel()).reshape(solution.shape)
    ranks = np.moveaxis(as_array(rank).reshape(solution.shape), axis, 0).reshape(len(names), -1)
    places = np.nan_to_num(ranks, nan=np.inf).argmin(1)
    rows = np.moveaxis(numbers, axis, 0).reshape(len(names), -1)[np.arange(len(names)), places]
    number = torch.from_numpy(rows)
    best = solution.flat(number)
    args = take_rows(problem.dims, {"reference": problem.args["reference"]}, number)
    change = as_array(best.x) - as_array(args["reference"])
    if scale is not None:
        change = change / as_array(scale)
    hit = as_array(best.hit).astype(bool)
    already = hit & (np.abs(np.nan_to_num(change)) <= ROUNDING).all((1, 2, 3))
    chance = None
    if probability is not None and probability.dims == (DATE,):
        chance = as_array(probability.estimate)
    error, sizes = as_array(best.error), as_array(size[0]).ravel()[rows]
    return Dates(names, rows, hit, already, error, sizes, main_assets(change), chance, size[1])


def describe_dates(dates: Dates) -> str:
    """On how many dates the target can be reached, in a sentence.

    Example:
        >>> one = np.array([True, False])
        >>> describe_dates(Dates(["a", "b"], one, one, one & False, one, one, one, None))
        'The search reaches the target on 1 of 2 dates.'
    """
    total, hits, already = len(dates.names), int(dates.hit.sum()), int(dates.already.sum())
    text = f"The search reaches the target on {hits} of {total} dates"
    return text + (f"; on {already} of them the network holds it already." if already else ".")


def describe_sizes(dates: Dates) -> str:
    """The changes that reach the target where it does not hold already, in a sentence; empty if none.

    Example:
        >>> hit, size = np.ones(4, bool), np.array([1.0, 2.0, 3.0, 9.0])
        >>> describe_sizes(Dates(list("abcd"), size, hit, ~hit, size, size, size, None, "sigmas"))
        'The median change over these dates is 2.50 sigmas (1.00 to 9.00).'
    """
    sizes = dates.size[dates.hit & ~dates.already]
    if not len(sizes):
        return ""
    median, low, high = (f"{value:.2f}" for value in (np.median(sizes), sizes.min(), sizes.max()))
    return f"The median change over these dates is {median} {dates.unit} ({low} to {high})."


def describe_result(hit: bool, already: bool, error: float | None) -> str:
    """Whether a search reached its target, in a cell of a table.

    Example:
        >>> describe_result(True, True, 0.0), describe_result(False, False, 0.032)
        ('held already', 'missed by 3.20 percentage points')
    """
    if hit:
        return "held already" if already else "reached"
    if error is None or not np.isfinite(error):
        return "no answer"
    return f"missed by {format_points(error)}"


def dates_section(dates: Dates, assets: Sequence[str]) -> list[Html]:
    """The time series as a picture and a table, its latest dates first."""
    series = plot_dates(dates.names, dates.size, dates.hit, chance=dates.chance, unit=dates.unit)
    heads = ["date", "result", f"size, {dates.unit}", "largest change in"]
    lines = []
    for at in reversed(range(len(dates.names))):
        result = describe_result(dates.hit[at], dates.already[at], dates.error[at])
        asset = "" if dates.already[at] else assets[dates.asset[at]]
        lines.append([str(dates.names[at]), result, f"{dates.size[at]:.2f}", asset])
    if dates.chance is not None:
        heads.append("probability")
        for line, chance in zip(lines, dates.chance[::-1], strict=True):
            line.append(format_chance(chance) if np.isfinite(chance) else "unknown")
    numbers = (2, 4)
    found = [
        element("h2", "Date by date"),
        picture(series, "What it would take on each date: the size of the change that was found."),
        table(heads, lines[:_SHOWN], numbers),
    ]
    if len(lines) > _SHOWN:
        found.append(
            details(f"The {len(lines) - _SHOWN} dates before", table(heads, lines[_SHOWN:], numbers))
        )
    return found
