"""One answer in detail: pictures of its changes, and the largest of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcexplain.engine.forward import weights_of
from funcexplain.problems.problem import Problem
from funcexplain.reports import plots
from funcexplain.reports.drawing import Array, as_array
from funcexplain.reports.inputs import Labels
from funcexplain.reports.numbers import ROUNDING
from funcexplain.reports.page import picture
from funcexplain.reports.pictures.weights import asset_bounds
from funcexplain.reports.precedents import date_of
from funcexplain.solutions.html import Html, element, table
from funcexplain.solutions.solution import Solution

MAX_CHANGES = 20
"""Maximum number of entries in the table of the largest changes."""


class Row(NamedTuple):
    """One row in plain arrays.

    Attributes:
        today: weights held today, ``(A,)``; for a consensus the mean over models.
        target: an allocation ``(A,)``, or goals ``(K, A + 3)``.
        weights: weights reached, ``(A,)``, as ``today``.
        x: the answer, ``(C, L, A)``.
        reference: the window it is compared with.
        sigma: one sigma of each entry, in the shape of x.
        unit: unit of a change divided by ``sigma``.
        met: whether the target holds at the reference, which is the answer.
    """

    today: Array
    target: Array
    weights: Array
    x: Array
    reference: Array
    sigma: Array
    unit: str
    met: bool


def select_row(one: Solution, question: Problem, sigma: Tensor | None, unit: str) -> Row:
    """Convert one answer to arrays, and evaluate the network at its reference."""
    args = question.args
    (today,) = weights_of(question, args["reference"][None], args)
    if sigma is None:
        sigma = args.get("std", torch.ones((), device="cpu"))
    x, reference, size = as_array(one.x), as_array(args["reference"]), one.weights.shape[-1]
    sigmas = np.broadcast_to(as_array(sigma), x.shape)
    return Row(
        today=as_array(today).reshape(-1, size).mean(0),
        target=single_target(args["target"], size),
        weights=as_array(one.weights).reshape(-1, size).mean(0),
        x=x,
        reference=reference,
        sigma=sigmas,
        unit=unit,
        met=bool(one.hit) and bool((np.abs(x - reference) <= ROUNDING * sigmas).all()),
    )


def sigma_of(problem: Problem, history: Tensor | None, scale: Any) -> tuple[Tensor | None, str]:
    """One sigma of an answer, as in `evaluate`, and its unit; None for each problem's own."""
    if scale is not None:
        return torch.as_tensor(scale, device="cpu"), "standard deviations"
    if history is not None:
        days = history[:, : date_of(problem, history)]
        return days.double().flatten(1).std(1)[:, None, None], "standard deviations"
    return None, "standard deviations" if "std" in problem.args else "units of the window"


def row_pictures(row: Row, labels: Labels) -> list[Html]:
    """The changes, and their sum per asset."""
    heat = plots.plot_changes(
        row.x,
        row.reference,
        scale=row.sigma,
        assets=labels.assets,
        channels=labels.channels,
        dates=labels.dates,
        unit=row.unit,
        period=labels.period,
    )
    cumulative = plots.plot_cumulative(row.x, row.reference, scale=row.sigma, assets=labels.assets)
    return [
        picture(heat, f"Change of every entry of the window, in {row.unit}; largest assets first."),
        picture(cumulative, "Share of the squared change that each asset contributes, largest first."),
    ]


def changes_table(row: Row, labels: Labels) -> Html:
    """The largest changes: date, asset, channel, both values, and the change in sigmas."""
    change = (row.x - row.reference) / row.sigma
    flat = np.abs(np.nan_to_num(change)).ravel()
    lines = []
    for number in np.argsort(-flat, kind="stable")[:MAX_CHANGES]:
        if flat[number] == 0.0:
            break
        channel, day, asset = at = np.unravel_index(number, change.shape)
        names = (labels.days[day], labels.assets[asset], labels.channels[channel])
        lines.append((*names, f"{row.reference[at]:.4g}", f"{row.x[at]:.4g}", f"{change[at]:+.2f}"))
    if not lines:
        return element("p", "Nothing changes.")
    unit = "standard deviations" if row.unit == "standard deviations" else "change"
    return table(("date", "asset", "channel", "from", "to", unit), lines, numbers=(3, 4, 5))


def single_target(given: Tensor, size: int) -> Array:
    """One target: for a consensus the first model's; goals that fix every weight are an allocation."""
    target = as_array(given)
    if target.shape[-1] == size:
        return target.reshape(-1, size)[0]
    goals = target.reshape(-1, *target.shape[-2:])[0]
    lower, upper = asset_bounds(goals)
    return lower if len(goals) == size and bool((lower == upper).all()) else goals
