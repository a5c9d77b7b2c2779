"""Questions and verdicts of a report in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from funcexplain.measures.agreement import Agreement
from funcexplain.measures.rarity import KINDS
from funcexplain.problems.criterion import LINEAR, TURNOVER
from funcexplain.reports.drawing import Array
from funcexplain.reports.precedents import NEAR, Precedents
from funcexplain.solutions.status import Status

MAX_NAMED = 3
"""Maximum number of assets or goals that a question names; the others are counted."""

RARE, UNUSUAL = 0.1, 0.25
"""An answer is called so if at most this share of real paths was as extreme."""

RARE_CHANCE, UNUSUAL_CHANCE = 0.01, 0.1
"""An answer is called so if the chance of its shocks is at most this."""

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


def grade(measured: Mapping[str, float], worst: Mapping[str, float], found: Precedents | None) -> str:
    """How unusual an answer is: the worst of its rarity, its chance and its precedents.

    - Beyond history: rare, with a statistic beyond that of every real path; or a chance below one in the
      number of real paths, while no real window holds the target
    - Rare, Unusual: the share of real paths as extreme is at most `RARE` or `UNUSUAL`, or the chance of
      the shocks at most `RARE_CHANCE` or `UNUSUAL_CHANCE`
    - Unusual, too, if no real window comes near the target, or less than `IN_RANGE` of the entries are
      within the history's range
    - Ordinary: none of these
    - Unknown: neither share nor chance is known

    Args:
        measured: measures by name.
        worst: of the worst statistic, see `Metrics.worst`.
        found: precedents of the target.

    Returns:
        The grade.

    Example:
        >>> grade({"rarity": 0.5}, {}, None), grade({"rarity": 0.5, "log10_chance": -2.5}, {}, None)
        ('Ordinary', 'Rare')
    """
    share, chance = measured.get("rarity", math.nan), 10 ** measured.get("log10_chance", math.nan)
    if math.isnan(share) and math.isnan(chance):
        return "Unknown"
    unheard_of = chance * (worst.get("paths", math.nan) + 1) < 1 and found is not None and not found.held
    if unheard_of or (share <= RARE and _as_extreme(worst) == 0):
        return "Beyond history"
    if share <= RARE or chance <= RARE_CHANCE:
        return "Rare"
    far = (found is not None and not found.near) or measured.get("in_range", 1.0) < IN_RANGE
    return "Unusual" if far or share <= UNUSUAL or chance <= UNUSUAL_CHANCE else "Ordinary"


def unusual(
    measured: Mapping[str, float],
    worst: Mapping[str, float] | None = None,
    found: Precedents | None = None,
    *,
    assets: Sequence[str] = (),
    hit: bool = True,
) -> Judgement:
    """How unusual the market of an answer would be; an answer that misses the target has no grade.

    Example:
        >>> unusual({"rms_sigmas": 0.4}).head
        'Moved by 0.4 sigmas'
    """
    about = "How unusual would it be?"
    if not hit:
        return Judgement(about, "Not graded", "The target is not reached at this market.", "open")
    worst = worst or {}
    head, parts = grade(measured, worst, found), []
    if worst and not math.isnan(worst["tail"]):
        parts.append(statistic(worst, assets))
    if not math.isnan(share := measured.get("rarity", math.nan)):
        today = measured.get("rarity_today", math.nan)
        parts.append(
            f"In the worst of such statistics {_percent(share)} of real paths were as extreme when they "
            f"happened (as the actual one: {_percent(today)})."
        )
    elif "rarity" in measured:
        parts.append("How rare its path is remains unknown: the history up to its date is too short.")
    if not math.isnan(chance := measured.get("log10_chance", math.nan)):
        parts.append(
            f"Normal shocks as large along their direction have a chance of {format_chance(chance)}."
        )
    if found is not None:
        parts.append(precedent(found))
    if "in_range" in measured:
        parts.append(
            f"{_percent(measured['in_range'])} of the entries are within the history's 1 to 99% range; "
            "98% is usual."
        )
    moved = measured.get("rms_sigmas", math.nan)
    if not math.isnan(moved):
        parts.append(f"The root mean square change is {moved:.2g} sigmas.")
    if "rarity" not in measured:
        parts.append("How unusual the path is cannot be judged without a market history.")
        if head == "Unknown" and not math.isnan(moved):
            head = f"Moved by {moved:.2g} sigmas"
    mood = {"Ordinary": "good", "Unusual": "good", "Rare": "bad", "Beyond history": "bad"}
    return Judgement(about, head, " ".join(parts), mood.get(head, "open"))


def statistic(worst: Mapping[str, float], assets: Sequence[str]) -> str:
    """The worst statistic of an answer in a sentence, with that of the actual path.

    Example:
        >>> worst = {"kind": 1, "days": 20, "asset": 0, "value": 0.1, "today": 0.02, "tail": -2.0,
        ...          "paths": 399}
        >>> print(statistic(worst, ["EUR"]))
        EUR falls by 9.5% within 20 days (actually: 2.0%), as much as in 3 of 399 real paths.
        >>> statistic(worst | {"kind": 6, "value": 9.0, "tail": -3.0}, ["EUR"])
        'All assets move together by 9.0 sigmas within 20 days (actually: 0.0), farther than in any ...'
    """
    kind, days, asset = KINDS[int(worst["kind"])], int(worst["days"]), int(worst["asset"])
    if math.isinf(worst["value"]):
        return "Assets that always moved together move apart, or one that never moved moves."
    sign = {"calm": -1, "dispersion": -1}.get(kind, 1)
    name = "The mean of all assets" if asset < 0 else assets[asset]
    within = f"within {days} days" if days > 1 else "in a day"
    text, show, high, low = {
        "rise": (f"{name} rises by {{}} {within}", lambda v: _percent(math.expm1(v)), "much", "more"),
        "fall": (f"{name} falls by {{}} {within}", lambda v: _percent(-math.expm1(-v)), "much", "more"),
        "joint": (
            f"All assets move together by {{}} sigmas {within}",
            "{:.1f}".format,
            "far",
            "farther",
        ),
        "volatility": (f"The volatility {within} is {{}} a day", _percent, "high", "higher"),
        "calm": (f"The volatility {within} is {{}} a day", _percent, "low", "lower"),
        "correlation": (f"The mean correlation {within} is {{}}", "{:.2f}".format, "high", "higher"),
        "dispersion": (f"The mean correlation {within} is {{}}", "{:.2f}".format, "low", "lower"),
    }[kind]
    value, today = (show(sign * worst[which]) for which in ("value", "today"))
    count, paths = _as_extreme(worst), int(worst["paths"])
    compared = f"as {high} as in {count:,} of" if count else f"{low} than in any of"
    return f"{text.format(value)} (actually: {today}), {compared} {paths:,} real paths."


def precedent(found: Precedents) -> str:
    """How many real windows hold a target, or come near it.

    Example:
        >>> from torch import tensor
        >>> precedent(Precedents(tensor([9]), tensor([0.031]), tensor([1.0]), 0, 0, 3900, 3919))
        'None of 3,900 real windows comes within 2 percentage points of the target.'
    """
    if found.held:
        return f"{found.held:,} of {found.total:,} real windows hold the target."
    points = f"within {100 * NEAR:g} percentage points of the target"
    if found.near:
        return f"None of {found.total:,} real windows holds the target; {found.near:,} come {points}."
    return f"None of {found.total:,} real windows comes {points}."


def format_chance(log10: float) -> str:
    """A chance given by its base-10 logarithm.

    Example:
        >>> format_chance(math.log10(0.25)), format_chance(-4.0), format_chance(-9.3)
        ('25.0%', '1 in 10,000', '1 in 10^9.3')
    """
    if log10 > -2.0:
        return f"{100 * 10**log10:.1f}%"
    return f"1 in {10**-log10:,.0f}" if log10 > -7.0 else f"1 in 10^{-log10:.1f}"


def _as_extreme(worst: Mapping[str, float]) -> int | None:
    """Number of real paths whose value of the worst statistic was as extreme; None if unknown."""
    if not worst or math.isnan(worst["tail"]):
        return None
    return max(0, round(10 ** worst["tail"] * (worst["paths"] + 1)) - 1)


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


def whose(found: Agreement) -> Judgement:
    """Whether the story is the market's or one network's: what others make of the first one's answer.

    It is the market's if at least half of the others hold the target, too, and the first one's alone if
    none does and they close less than half of their gap in the median.

    Args:
        found: of one question, the network that answered it first.

    Example:
        >>> import torch
        >>> held, closed = torch.tensor([True, False, False]), torch.tensor([1.0, 0.1, -0.2])
        >>> card = whose(Agreement(held, 1.0 - closed, closed))
        >>> card.head, card.text
        ("One network's", 'At the answer of the first network alone, 1 of 3 networks hold the ...')
    """
    about, size = "Whose story is it?", len(found.held)
    if not bool(found.held[0]):
        return Judgement(about, "Unknown", "The first network alone does not hold the target.", "open")
    others, closed = found.held[1:].double(), found.gap_closed[1:].double()
    middle = float(closed.nanmedian())
    if float(others.mean()) >= 0.5:
        head, mood = "The market's", "good"
    elif bool(others.any()) or middle >= 0.5:
        head, mood = "Some networks'", "open"
    else:
        head, mood = "One network's", "bad"
    text = (
        f"At the answer of the first network alone, {int(found.held.sum())} of {size} networks hold the "
        f"target; the others close {_percent(middle)} of their gap to it (median)."
    )
    return Judgement(about, head, text, mood)


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
