"""One row of a report: what was asked of it, its pictures and its largest changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcexplain.problems.problem import Problem
from funcexplain.reports import plots
from funcexplain.reports.drawing import Array, plain
from funcexplain.reports.page import Html, element, picture, table
from funcexplain.reports.pictures.weights import bounds_of
from funcexplain.solutions.answer import Answer

MOST_CHANGES = 20
"""Entries in the table of the largest changes."""


class Labels(NamedTuple):
    """Names of what a window holds; days are text."""

    channels: list[str]
    days: list[str]
    assets: list[str]


class Row(NamedTuple):
    """One row in plain arrays.

    Attributes:
        name: of the row; nothing for one question.
        today: weights at the reference, ``(A,)``; of a consensus the mean of the models'.
        target: an allocation ``(A,)``, or goals ``(K, A + 3)``.
        weights: weights reached, ``(A,)``, as ``today``.
        x: the answer, ``(C, L, A)``.
        reference: what it is compared with.
        sigma: one sigma of each entry, broadcasts to x.
        unit: what ``sigma`` is one of.
    """

    name: str
    today: Array
    target: Array
    weights: Array
    x: Array
    reference: Array
    sigma: Array
    unit: str


def row_of(
    answer: Answer, problem: Problem, index: tuple[int, ...], sigma: Tensor | None, unit: str
) -> Row:
    """Pick one row and ask the network what it holds today."""
    found, asked = answer[index] if index else answer, problem[index] if index else problem
    args = asked.args
    with torch.no_grad():
        _, (_, today) = asked.evaluate(args["reference"], args)
    if sigma is None:
        sigma = args.get("std", torch.ones(()))
    size = found.x.shape[-1]
    return Row(
        name=", ".join(f"{name} {at}" for name, at in zip(answer.dims, index, strict=True)),
        today=plain(today).reshape(-1, size).mean(0),
        target=_target(plain(args["target"]), size),
        weights=plain(found.weights).reshape(-1, size).mean(0),
        x=plain(found.x),
        reference=plain(args["reference"]),
        sigma=np.broadcast_to(plain(sigma), tuple(found.x.shape)),
        unit=unit,
    )


def pictures_of(row: Row, labels: Labels, dates: list[str] | None, prices: Any) -> list[Html]:
    """The allocation, the changes, who carries them, and prices where there are some."""
    allocation = plots.plot_weights(row.today, row.target, row.weights, assets=labels.assets)
    heat = plots.plot_changes(
        row.x,
        row.reference,
        scale=row.sigma,
        assets=labels.assets,
        channels=labels.channels,
        dates=dates,
        unit=row.unit,
    )
    carried = plots.plot_cumulative(row.x, row.reference, scale=row.sigma, assets=labels.assets)
    asked = "target" if row.target.ndim == 1 else "bounds"
    shown = [
        picture(allocation, f"Weights held today and reached, and their {asked}, in percent."),
        picture(heat, f"Change of every entry of the window, in {row.unit}; largest assets first."),
        picture(carried, "Share of the change that each asset carries, largest first."),
    ]
    if prices is not None:
        paths = plots.plot_prices(*prices, assets=labels.assets)
        shown.append(picture(paths, "Prices as they were, dashed, and in the scenario, solid."))
    return shown


def changes_of(row: Row, labels: Labels) -> Html:
    """The largest changes: when, of what, from where to where, and in sigmas."""
    moved = (row.x - row.reference) / row.sigma
    flat = np.abs(np.nan_to_num(moved)).ravel()
    lines = []
    for place in np.argsort(-flat, kind="stable")[:MOST_CHANGES]:
        if flat[place] == 0.0:
            break
        channel, day, asset = at = np.unravel_index(place, moved.shape)
        names = (labels.days[day], labels.assets[asset], labels.channels[channel])
        lines.append((*names, f"{row.reference[at]:.4g}", f"{row.x[at]:.4g}", f"{moved[at]:+.2f}"))
    if not lines:
        return element("p", "Nothing changes.")
    unit = "sigmas" if row.unit == "standard deviations" else "change"
    return table(("date", "asset", "channel", "from", "to", unit), lines, numbers=(3, 4, 5))


def _target(target: Array, size: int) -> Array:
    """One target: of a consensus the first model's; goals that fix every weight are an allocation."""
    if target.shape[-1] == size:
        return target.reshape(-1, size)[0]
    goals = target.reshape(-1, *target.shape[-2:])[0]
    lower, upper = bounds_of(goals)
    return lower if len(goals) == size and bool((lower == upper).all()) else goals
