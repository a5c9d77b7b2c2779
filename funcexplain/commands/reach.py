"""The reach of a run: the lowest and highest weights over all markets within a radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.outputs import as_json
from funcexplain.commands.question import Query
from funcexplain.engine.reach import Reach
from funcexplain.reports.numbers import format_percent

_SHOWN = 3


def check_one_date(query: Query) -> None:
    """Raise, before anything is searched, unless the question has one date."""
    if len(query.dates) > 1:
        raise ValueError(
            f"question.reach: needs one date, got {len(query.dates)}; name one, or leave reach out"
        )


def find_reach(query: Query, radii: Sequence[float]) -> Reach:
    """The range of every weight within each radius, ``(R, A)``; of several networks, of their mean."""
    measure = None if query.first is None else lambda weights: weights.mean(0)
    return fe.reach(query.from_reference, [*radii], measure=measure)


def reach_sentence(found: Reach, radii: Sequence[float], query: Query) -> str:
    """The widest ranges within the largest radius, as a sentence to print."""
    lower, upper = (end[-1] for end in found)
    widest = (upper - lower).nan_to_num(nan=0.0).argsort(descending=True)[:_SHOWN]
    ranges = [
        f"{query.names[at]} {format_percent(float(lower[at]))} to {format_percent(float(upper[at]))}"
        for at in widest
    ]
    return f"Within {radii[-1]:g} sigmas, searches found weights of {', '.join(ranges)}."


def describe_reach(found: Reach, radii: Sequence[float], query: Query) -> list[dict[str, Any]]:
    """The ranges within each radius as JSON values."""
    return as_json(
        [
            {
                "radius": radius,
                "weights": {
                    name: {"lower": low, "upper": high}
                    for name, low, high in zip(query.names, *(end.tolist() for end in ends), strict=True)
                },
            }
            for radius, *ends in zip(radii, *found, strict=True)
        ]
    )


def recorded_reach(answers: Sequence[Mapping[str, Any]]) -> tuple[list[float], Reach] | None:
    """The radii and their ranges, as `describe_reach` recorded them; None if not."""
    recorded = answers[0].get("reach")
    if not recorded:
        return None

    def column(name: str) -> Tensor:
        ends = [[each[name] for each in one["weights"].values()] for one in recorded]
        values = [[torch.nan if end is None else end for end in row] for row in ends]
        return torch.tensor(values, dtype=torch.float64, device="cpu")

    return [one["radius"] for one in recorded], Reach(column("lower"), column("upper"))
