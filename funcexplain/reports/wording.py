"""Questions and verdicts in sentences, for whoever reads a report and no tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from funcexplain.problems.criterion import LINEAR, TURNOVER
from funcexplain.reports.drawing import Array
from funcexplain.solutions.status import Status

MOST_NAMED = 3
"""Assets or goals that a question names; the others are counted."""

RARE, UNUSUAL = 0.95, 0.75
"""Shares of the history's windows that are no more turbulent, from which on a window is called so."""

IN_RANGE = 0.9
"""Share of entries within the history's range below which a window is not called ordinary."""

STEADY, FRAGILE = 0.01, 0.05
"""What noise adds to the error on average: up to the first steady, from the second on fragile."""


class Judgement(NamedTuple):
    """One card of the verdict.

    Attributes:
        about: what is judged.
        head: the judgement in a word or two.
        text: what it rests on.
        mood: ``"good"``, ``"bad"`` or ``"open"``.
    """

    about: str
    head: str
    text: str
    mood: str


def question(today: Array, target: Array, assets: Sequence[str], day: str = "") -> str:
    """The question in a sentence.

    Args:
        today: weights held now, ``(A,)``.
        target: an allocation ``(A,)``, or goals ``(K, A + 3)`` as in ``problem.args``.
        assets: ``A`` names.
        day: last day of the window, or nothing.

    Returns:
        One sentence.

    Example:
        >>> print(question(np.array([0.75, 0.25]), np.array([0.5, 0.5]), ["EUR", "JPY"], "2026-10-30"))
        What would the market of 2026-10-30 have to look like for the network to hold 50.0% EUR
        (today 75.0%) and 50.0% JPY (today 25.0%)?
    """
    if target.ndim == 2:
        parts = [told for row in target if (told := _goal(row, assets))]
        parts = parts or ["anything"]
    else:
        order = np.argsort(-np.abs(target - today), kind="stable")
        parts = [
            f"{_percent(target[index])} {assets[index]} (today {_percent(today[index])})"
            for index in order
        ]
    if (more := len(parts) - MOST_NAMED) > 1:
        rest = f"{more} more goals" if target.ndim == 2 else f"given weights of {more} more assets"
        parts = [*parts[:MOST_NAMED], rest]
    told = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    of_day = f" of {day}" if day else ""
    return f"What would the market{of_day} have to look like for the network to hold {told}?"


def reached(status: Status, error: float, measured: Mapping[str, float]) -> Judgement:
    """Whether the target is hit, else how near the answer comes.

    Example:
        >>> reached(Status.MAX_STEPS, 0.032, {"gap_closed": 0.85}).head
        'Missed by 3.20 points'
    """
    if status is Status.HIT:
        return Judgement("Is the target reached?", "Reached", f"{status.sentence}", "good")
    text = f"{status.sentence} The largest miss is {_points(error)}."
    if math.isfinite(closed := measured.get("gap_closed", math.nan)):
        text += f" {_percent(closed)} of the gap between today's weights and the target is closed."
    head = f"Missed by {100 * error:.2f} points" if math.isfinite(error) else "No answer"
    return Judgement("Is the target reached?", head, text, "bad")


def unusual(measured: Mapping[str, float]) -> Judgement:
    """How unusual the market of the answer would be.

    Example:
        >>> unusual({"rms_sigmas": 0.4}).head
        'Moved by 0.4 sigmas'
    """
    about = "How unusual would it be?"
    moved = measured.get("rms_sigmas", math.nan)
    size = "" if math.isnan(moved) else f"The root mean square change is {moved:.2g} sigmas."
    share = measured.get("window_turbulence_percentile")
    if share is None:
        missing = "No history was given that would tell how unusual that is."
        head = "Unknown" if math.isnan(moved) else f"Moved by {moved:.2g} sigmas"
        return Judgement(about, head, f"{size} {missing}".strip(), "open")
    text = (
        f"{_percent(share)} of the history's windows are no more turbulent on average, and "
        f"{_percent(measured['turbulence_percentile'])} of its days no more than the last one here. "
        f"{_percent(measured['in_range'])} of the entries lie within the history's 1 to 99% range; "
        f"98% is usual. {size}"
    )
    grades = (("Beyond history", 1.0), ("Rare", RARE), ("Unusual", UNUSUAL), ("Ordinary", -1.0))
    head = next((name for name, least in grades if share >= least), "Unknown")
    if head == "Ordinary" and measured["in_range"] < IN_RANGE:
        head = "Unusual"  # days that are calm together may each hold values that never were
    mood = {"Ordinary": "good", "Unusual": "good", "Unknown": "open"}.get(head, "bad")
    return Judgement(about, head, text, mood)


def stable(measured: Mapping[str, float], noise: float, atol: float) -> Judgement:
    """Whether the answer stands noise, other starts and other models.

    Example:
        >>> stable({"noise_error": 0.002, "invalidation": 0.25}, 0.05, 1e-3).head
        'Steady'
    """
    about, parts, head, mood = "How stable is it?", [], "Unknown", "open"
    error = measured.get("noise_error", math.nan)
    if math.isfinite(error):
        # Not the error itself: an answer that misses without noise may yet stand still under it.
        more = error - measured.get("max_error", 0.0)
        heads = ("Steady", "good") if more <= STEADY else ("Fragile", "bad")
        head, mood = heads if not STEADY < more < FRAGILE else ("Moves a little", "good")
        parts.append(
            f"Under noise of {noise:g} sigmas the target is missed by {_points(error)} on average, and "
            f"in {_percent(measured['invalidation'])} of cases by more than {_points(atol)}."
        )
    if math.isfinite(spread := measured.get("spread", math.nan)):
        parts.append(
            f"Answers from other starts lie {spread:.2g} sigmas apart per entry, and share "
            f"{_percent(measured.get('agreement', math.nan))} of the largest changes."
        )
    if math.isfinite(share := measured.get("ensemble_hit", math.nan)):
        parts.append(f"{_percent(share)} of the other models hit the target at this window.")
    nothing = "It was not measured: neither a history nor a scale says what a sigma is."
    return Judgement(about, head, " ".join(parts) or nothing, mood)


def _goal(row: Array, assets: Sequence[str]) -> str:
    """One goal in words; nothing for one that bounds nothing."""
    coefficients, (kind, lower, upper) = row[:-3], row[-3:]
    if not (np.isfinite(lower) or np.isfinite(upper)):
        return ""
    share = _percent if kind in (LINEAR, TURNOVER) else "{:.3g}".format
    if lower == upper:
        bounds = f"of {share(lower)}"
    elif np.isfinite(lower) and np.isfinite(upper):
        bounds = f"between {share(lower)} and {share(upper)}"
    else:
        bounds = f"of at least {share(lower)}" if np.isfinite(lower) else f"of at most {share(upper)}"
    if kind != LINEAR:
        what = "turnover" if kind == TURNOVER else "concentration (Herfindahl index)"
        return f"a {what} {bounds}"
    named = np.flatnonzero(coefficients)
    names = [
        ("" if coefficients[at] == 1 else f"{coefficients[at]:+g} times ") + assets[at]
        for at in named[: MOST_NAMED + 1]
    ]
    if len(named) > len(names):
        names = [*names[:MOST_NAMED], f"{len(named) - MOST_NAMED} more"]
    together = " together" if len(named) > 1 else ""
    return f"a weight {bounds} in {' and '.join(names)}{together}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if math.isfinite(share) else "an unknown share"


def _points(share: float) -> str:
    return f"{100 * share:.2f} percentage points" if math.isfinite(share) else "an unknown amount"
