"""Provenance of an answer: settings, seeds, sizes and versions, for reproduction and audit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from funcexplain.problems.problem import Problem
from funcexplain.reports.numbers import format_number
from funcexplain.solutions.archive import versions
from funcexplain.solutions.html import Html, table
from funcexplain.solutions.solution import Solution

NOISE, DRAWS, ATOL = 0.05, 16, 1e-3
"""Settings with which `evaluate` measures stability; the report lists them."""

LEFT_OUT = (
    "noise error",
    "invalidation",
    "held under noise",
    "why the weights change",
    "the real windows nearest to the target",
)
"""Sections that a report without ``probe`` omits."""


def origin_table(
    solution: Solution, problem: Problem, setting_lines: Sequence[tuple[str, str]], probe: bool
) -> Html:
    """Settings, seeds and versions."""
    seed = problem.args["seed"].flatten()
    seeds = str(int(seed[0])) if len(seed) == 1 else f"{len(seed)} from {seed.min()} to {seed.max()}"
    sample = solution.sample
    varying = [f"{dim.name} ({dim.size}): {', '.join(sorted(dim.varying))}" for dim in problem.dims]
    lines = [*setting_lines, ("seed of the problem", seeds)]
    lines += [("what varies", text) for text in varying]
    if not solution.dims:
        lines += [("loss", format_number(solution.loss)), ("steps", str(int(solution.num_steps)))]
    lines += [
        ("window (channels, days, assets)", str(tuple(sample.x.shape[-3:]))),
        ("numbers", f"{sample.x.dtype} on {sample.x.device}"),
        (
            "noise",
            f"noise of {NOISE:g} standard deviations, {DRAWS} draws, seed 0, atol {ATOL:g}",
        )
        if probe
        else ("left out, since the network was not evaluated", ", ".join(LEFT_OUT)),
        *versions().items(),
    ]
    return table((), lines)


def setting_lines(settings: Any) -> list[tuple[str, str]]:
    """Settings as lines of a table."""
    if settings is None:
        return []
    if not isinstance(settings, Mapping):
        raise TypeError(f"report: settings must be a dict, got {type(settings).__name__}")
    return [
        (str(name), value if isinstance(value, str) else json.dumps(value, default=str))
        for name, value in settings.items()
    ]
