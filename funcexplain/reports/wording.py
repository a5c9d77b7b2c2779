"""Questions and verdicts of a report in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from funcexplain.problems.criterion import LINEAR, TURNOVER
from funcexplain.reports.drawing import Array
from funcexplain.solutions.status import Status

MAX_NAMED = 3
"""Maximum number of assets or goals that a question names; the others are counted."""

RARE, UNUSUAL = 0.95, 0.75
"""A window is called so if at least this share of the history's windows is not more turbulent."""

IN_RANGE = 0.9
"""Minimum share of entries within the history's range for a window to be called ordinary."""

STEADY, FRAGILE = 0.01, 0.05
"""Mean increase of the error under noise: steady up to the first, fragile from the second."""


class Judgement(NamedTuple):
    """One card of the verdict.

    Attributes:
        about: what is judged.
        head: the judgement in a word or two.
        text: the reasons.
        mood: ``"good"``, ``"bad"`` or ``"open"``.
    """

    about: str
    head: str
    text: str
    mood: str


def question(today: Array, target: Array, assets: Sequence[str], day: str = "") -> str:
    """The question in a sentence.

    Args:
        today: weights at the reference, ``(A,)``.
        target: an allocation ``(A,)``, or goals ``(K, A + 3)`` as in ``problem.args``.
        assets: ``A`` names.
        day: last day of the window, or empty.

    Returns:
        One sentence.

    Example:
        >>> print(question(np.array([0.75, 0.25]), np.array([0.5, 0.5]), ["EUR", "JPY"], "2026-10-30"))
        What would the market of 2026-10-30 have to look like for the network to hold 50.0% EUR
        (today 75.0%) and 50.0% JPY (today 25.0%)?
    """
    if target.ndim == 2:
        parts = [text for row in target if (text := _format_goal(row, assets))]
        parts = parts or ["anything"]
    else:
        order = np.argsort(-np.abs(target - today), kind="stable")
        parts = [
            f"{_percent(target[index])} {assets[index]} (today {_percent(today[index])})"
            for index in order
        ]
    if (more := len(parts) - MAX_NAMED) > 1:
        rest = f"{more} more goals" if target.ndim == 2 else f"given weights of {more} more assets"
        parts = [*parts[:MAX_NAMED], rest]
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    of_day = f" of {day}" if day else ""
    return f"What would the market{of_day} have to look like for the network to hold {text}?"


def reached(
    status: Status, error: float, measured: Mapping[str, float], exception: str = ""
) -> Judgement:
    """Whether the target is hit, else by how much it is missed, and the error that ended the search.

    Example:
        >>> reached(Status.MAX_STEPS, 0.032, {"gap_closed": 0.85}).head
        'Missed by 3.20 points'
    """
    if status.is_hit:
        return Judgement("Is the target reached?", "Reached", status.sentence, "good")
    cause = f" The error: {exception}." if exception else ""
    text = f"{status.sentence}{cause} The largest miss is {_points(error)}."
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
        missing = "How unusual that is cannot be judged without a market history."
        head = "Unknown" if math.isnan(moved) else f"Moved by {moved:.2g} sigmas"
        return Judgement(about, head, f"{size} {missing}".strip(), "open")
    compared = "How turbulent it would be is unknown."
    if not math.isnan(share):
        compared = (
            f"{_percent(share)} of historical windows were no more turbulent on average, and "
            f"{_percent(measured['turbulence_percentile'])} of days no more than the last one here."
        )
    if math.isinf(measured.get("window_turbulence", 0.0)):
        compared += " Assets that always moved together move apart, or one that never moved moves."
    text = (
        f"{compared} {_percent(measured['in_range'])} of the entries are within the history's 1 to 99% "
        f"range; 98% is usual. {size}"
    )
    grades = (("Beyond history", 1.0), ("Rare", RARE), ("Unusual", UNUSUAL), ("Ordinary", -1.0))
    head = next((name for name, minimum in grades if share >= minimum), "Unknown")
    if head == "Ordinary" and measured["in_range"] < IN_RANGE:
        head = "Unusual"  # calm days may still hold values outside of the range
    mood = {"Ordinary": "good", "Unusual": "good", "Unknown": "open"}.get(head, "bad")
    return Judgement(about, head, text, mood)


def stable(
    measured: Mapping[str, float], noise: float, atol: float, *, probed: bool = True
) -> Judgement:
    """Whether the answer is robust to noise, other starts and other models.

    ``probed`` is whether the network was evaluated under noise.

    Example:
        >>> stable({"noise_error": 0.002, "invalidation": 0.25}, 0.05, 1e-3).head
        'Steady'
    """
    about, parts, head, mood = "How stable is it?", [], "Unknown", "open"
    error = measured.get("noise_error", math.nan)
    if math.isfinite(error):
        # Not the error itself: an answer that misses without noise may still be robust to it.
        more = error - measured.get("max_error", 0.0)
        heads = ("Steady", "good") if more <= STEADY else ("Fragile", "bad")
        head, mood = heads if not STEADY < more < FRAGILE else ("Moves a little", "good")
        parts.append(
            f"Under noise of {noise:g} sigmas the target is missed by {_points(error)} on average, and "
            f"in {_percent(measured['invalidation'])} of cases by more than {_points(atol)}."
        )
    if not probed:
        parts.append("It was not measured under noise, since the network was not evaluated.")
    if math.isfinite(spread := measured.get("spread", math.nan)):
        parts.append(
            f"Answers from different starts differ by {spread:.2g} sigmas per entry, and share "
            f"{_percent(measured.get('agreement', math.nan))} of the largest changes."
        )
    if math.isfinite(share := measured.get("ensemble_hit", math.nan)):
        parts.append(f"{_percent(share)} of the other models hit the target at this window.")
    unmeasured = "Not measured: that needs the size of a sigma, from a market history or a scale."
    return Judgement(about, head, " ".join(parts) or unmeasured, mood)


def _format_goal(row: Array, assets: Sequence[str]) -> str:
    """One goal in words; empty for one without bounds."""
    coefficients, (kind, lower, upper) = row[:-3], row[-3:]
    if not (np.isfinite(lower) or np.isfinite(upper)):
        return ""
    number = _percent if kind in (LINEAR, TURNOVER) else "{:.3g}".format
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


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if math.isfinite(share) else "an unknown share"


def _points(share: float) -> str:
    return f"{100 * share:.2f} percentage points" if math.isfinite(share) else "an unknown amount"
