"""One row of a report: its question, its pictures and its largest changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcexplain.engine.forward import weights_of
from funcexplain.problems.problem import Problem
from funcexplain.reports import plots
from funcexplain.reports.drawing import Array, as_array
from funcexplain.reports.page import picture
from funcexplain.reports.pictures.weights import asset_bounds
from funcexplain.solutions.html import Html, element, table
from funcexplain.solutions.solution import Solution

MAX_CHANGES = 20
"""Maximum number of entries in the table of the largest changes."""


class Labels(NamedTuple):
    """Names of the channels, days and assets of a window, of the weights, and its ``dates`` if known."""

    channels: list[str]
    days: list[str]
    assets: list[str]
    dates: list[str] | None
    weights: list[str]


class Row(NamedTuple):
    """One row in plain arrays.

    Attributes:
        name: of the row; empty for one question.
        today: weights at the reference, ``(A,)``; for a consensus the mean over models.
        target: an allocation ``(A,)``, or goals ``(K, A + 3)``.
        weights: weights reached, ``(A,)``, as ``today``.
        x: the answer, ``(C, L, A)``.
        reference: the window it is compared with.
        sigma: one sigma of each entry, in the shape of x.
        unit: unit of a change divided by ``sigma``.
    """

    name: str
    today: Array
    target: Array
    weights: Array
    x: Array
    reference: Array
    sigma: Array
    unit: str


def select_row(
    solution: Solution, problem: Problem, index: tuple[int, ...], sigma: Tensor | None, unit: str
) -> Row:
    """Select one row, and evaluate the network at its reference."""
    one, question = (solution[index], problem[index]) if index else (solution, problem)
    args = question.args
    (today,) = weights_of(question, args["reference"][None], args)
    if sigma is None:
        sigma = args.get("std", torch.ones((), device="cpu"))
    size = one.weights.shape[-1]
    return Row(
        name=", ".join(f"{name} {at}" for name, at in zip(solution.dims, index, strict=True)),
        today=as_array(today).reshape(-1, size).mean(0),
        target=_target(as_array(args["target"]), size),
        weights=as_array(one.weights).reshape(-1, size).mean(0),
        x=as_array(one.x),
        reference=as_array(args["reference"]),
        sigma=np.broadcast_to(as_array(sigma), tuple(one.x.shape)),
        unit=unit,
    )


def row_pictures(row: Row, labels: Labels, prices: Any) -> list[Html]:
    """The allocation, the changes, their sum per asset, and prices if there are any."""
    allocation = plots.plot_weights(row.today, row.target, row.weights, assets=labels.weights)
    heat = plots.plot_changes(
        row.x,
        row.reference,
        scale=row.sigma,
        assets=labels.assets,
        channels=labels.channels,
        dates=labels.dates,
        unit=row.unit,
    )
    cumulative = plots.plot_cumulative(row.x, row.reference, scale=row.sigma, assets=labels.assets)
    goal = "target" if row.target.ndim == 1 else "bounds"
    pictures = [
        picture(allocation, f"Weights held today and reached, and their {goal}, in percent."),
        picture(heat, f"Change of every entry of the window, in {row.unit}; largest assets first."),
        picture(cumulative, "Share of the change that each asset contributes, largest first."),
    ]
    if prices is not None:
        paths = plots.plot_prices(*prices, assets=labels.assets)
        pictures.append(picture(paths, "Actual prices, dashed, and prices in the scenario, solid."))
    return pictures


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
    unit = "sigmas" if row.unit == "standard deviations" else "change"
    return table(("date", "asset", "channel", "from", "to", unit), lines, numbers=(3, 4, 5))


def _target(target: Array, size: int) -> Array:
    """One target: for a consensus the first model's; goals that fix every weight are an allocation."""
    if target.shape[-1] == size:
        return target.reshape(-1, size)[0]
    goals = target.reshape(-1, *target.shape[-2:])[0]
    lower, upper = asset_bounds(goals)
    return lower if len(goals) == size and bool((lower == upper).all()) else goals
