"""The question of a report in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from funcexplain.markets.periods import DAY, next_of
from funcexplain.problems.criterion import LINEAR, TURNOVER
from funcexplain.reports.drawing import Array
from funcexplain.reports.numbers import format_percent, join

MAX_NAMED = 3
"""Maximum number of assets or goals that a question names; the others are counted."""


def describe_question(
    today: Array,
    target: Array,
    assets: Sequence[str],
    day: str = "",
    ahead: int = 0,
    period: str = DAY,
) -> str:
    """The question in a sentence.

    Args:
        today: weights at the reference, ``(A,)``.
        target: an allocation ``(A,)``, or goals ``(K, A + 3)`` as in ``problem.args``.
        assets: ``A`` names.
        day: last day of the window, or empty.
        ahead: number of coming days that are shocked.
        period: of the prices.

    Returns:
        One sentence.

    Example:
        >>> now, target = np.array([0.75, 0.25]), np.array([0.5, 0.5])
        >>> print(describe_question(now, target, ["EUR", "JPY"], "2026-10-30"))
        What would the market of 2026-10-30 have to look like for the network to hold 50.00% EUR
        (today 75.00%) and 50.00% JPY (today 25.00%)?
    """
    if target.ndim == 2:
        parts = [text for row in target if (text := _format_goal(row, assets))]
        parts = parts or ["anything"]
    else:
        order = np.argsort(-np.abs(target - today), kind="stable")
        parts = [
            f"{format_percent(target[index])} {assets[index]} (today {format_percent(today[index])})"
            for index in order
        ]
    if (more := len(parts) - MAX_NAMED) > 1:
        rest = f"{more} more goals" if target.ndim == 2 else f"given weights of {more} more assets"
        parts = [*parts[:MAX_NAMED], rest]
    return ask(join(parts), day, ahead, period)


def ask(wish: str, day: str = "", ahead: int = 0, period: str = DAY) -> str:
    """The question for a portfolio in words.

    Example:
        >>> ask("no JPY", "2026-10-30", 10)
        'What would have to happen over the next 10 trading days after 2026-10-30 for the network to ...'
    """
    if ahead:
        begin = f"have to happen over {next_of(ahead, period)}{f' after {day}' if day else ''}"
    else:
        begin = f"the market{f' of {day}' if day else ''} have to look like"
    return f"What would {begin} for the network to hold {wish}?"


def _format_goal(row: Array, assets: Sequence[str]) -> str:
    """One goal in words; empty for one without bounds."""
    coefficients, (kind, lower, upper) = row[:-3], row[-3:]
    if not (np.isfinite(lower) or np.isfinite(upper)):
        return ""
    number = format_percent if kind in (LINEAR, TURNOVER) else "{:.3g}".format
    if lower == upper:
        bounds = f"of {number(lower)}"
    elif np.isfinite(lower) and np.isfinite(upper):
        bounds = f"between {number(lower)} and {number(upper)}"
    else:
        bounds = f"of at least {number(lower)}" if np.isfinite(lower) else f"of at most {number(upper)}"
    if kind != LINEAR:
        quantity = "turnover" if kind == TURNOVER else "concentration (Herfindahl index)"
        return f"a {quantity} {bounds}"
    nonzero = np.flatnonzero(coefficients)
    names = [
        ("" if coefficients[at] == 1 else f"{coefficients[at]:+g} times ") + assets[at]
        for at in nonzero[: MAX_NAMED + 1]
    ]
    if len(nonzero) > len(names):
        names = [*names[:MAX_NAMED], f"{len(nonzero) - MAX_NAMED} more"]
    together = " together" if len(nonzero) > 1 else ""
    return f"a weight {bounds} in {' and '.join(names)}{together}"
