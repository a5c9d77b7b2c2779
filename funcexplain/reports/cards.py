"""The verdict on an answer in cards: reached, how likely, how unusual, how stable, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from funcexplain.markets.periods import DAY, next_of
from funcexplain.measures.agreement import Agreement
from funcexplain.reports.numbers import (
    format_chance,
    format_interval,
    format_percent,
    format_points,
)
from funcexplain.reports.reason import Reason, describe_reason
from funcexplain.solutions.html import Html, element
from funcexplain.solutions.probability import Probability
from funcexplain.solutions.status import Status

STEADY, FRAGILE = 0.01, 0.05
"""Mean increase of the error under noise: steady up to the first, fragile from the second."""

EXPLAINED = 0.1
"""An attribution whose parts miss the change by more than this share of it explains nothing."""


class Judgement(NamedTuple):
    """One card of the verdict.

    Attributes:
        about: the question that it answers.
        head: the answer in a word or two.
        text: the reasons.
        mood: ``"good"``, ``"bad"`` or ``"open"``.
    """

    about: str
    head: str
    text: str
    mood: str


def reached(
    status: Status,
    error: float,
    measured: Mapping[str, float],
    exception: str = "",
    *,
    already: bool = False,
) -> Judgement:
    """Whether the target is reached; if not, how near, why the search ended, and what would help.

    Args:
        status: how the search ended.
        error: largest miss of a weight.
        measured: measures by name.
        exception: the network's error that ended the search, or empty.
        already: whether the target holds at the reference.

    Returns:
        The card.

    Example:
        >>> reached(Status.MAX_STEPS, 0.032, {"gap_closed": 0.85}).head
        'Missed by 3.20 points'
    """
    about = "Is the target reached?"
    if status.is_hit:
        head = "Held already" if already else "Reached"
        return Judgement(about, head, f"The largest miss is {format_points(error)}.", "good")
    head = f"Missed by {100 * error:.2f} points" if math.isfinite(error) else "No answer"
    parts = [_ENDED[status]]
    if exception:
        parts.append(f"The error: {exception}.")
    if math.isfinite(closed := measured.get("gap_closed", math.nan)):
        parts.append(f"{format_percent(closed)} of the gap to today's weights is closed.")
    parts += [_HELP[status]] if status in _HELP else []
    return Judgement(about, head, " ".join(parts), "bad")


_ENDED = {
    Status.STALLED: "The search ended at the nearest point around; no small change comes nearer.",
    Status.MAX_STEPS: "The search took all of its steps.",
    Status.NONFINITE: "The network's weights were not finite on the way.",
    Status.INTERRUPTED: "The search was interrupted.",
    Status.FAILED: "The network raised an error on the way.",
}
_HELP = {
    Status.STALLED: "Other starts, or a target nearer to today's weights, may help.",
    Status.MAX_STEPS: "More steps, or other starts, may help.",
    Status.INTERRUPTED: "Run it again to its end.",
}


def likely(chance: Probability, ahead: int = 0, period: str = DAY) -> Judgement:
    """How likely it is that the network holds the target.

    Example:
        >>> import torch
        >>> one = torch.tensor(1.0)
        >>> p = Probability(0.031 * one, 0.003 * one, 0.026 * one, 0.037 * one, one, one, one[None],
        ...                 Status.HIT, ("subset",), ("",))
        >>> likely(p, ahead=10).text
        'Over the next 10 trading days; 95% interval 2.60% to 3.70%. About once in 32 such periods.'
    """
    about = "How likely is it?"
    estimate, low, high = (float(v) for v in (chance.estimate, chance.lower, chance.upper))
    days = f"Over {next_of(ahead, period)}; " if ahead else ""
    if not math.isfinite(estimate) and not math.isfinite(high):
        return Judgement(about, "Unknown", chance.message, "open")
    if not estimate > 0.0:
        text = f"{days}none of the markets drawn holds the target."
        return Judgement(about, f"Below {format_chance(high)}", text[:1].upper() + text[1:], "bad")
    text = f"{days}95% interval {format_interval(low, high)}."
    if often := _how_often(estimate):
        text += f" About {often}."
    return Judgement(about, format_chance(estimate), text, "good" if estimate >= 0.01 else "bad")


def likelihood_sentence(chance: Probability, ahead: int, period: str = DAY) -> str:
    """The same in a sentence, for a terminal.

    Example:
        >>> import torch
        >>> one = torch.tensor(1.0)
        >>> p = Probability(0.031 * one, 0.003 * one, 0.026 * one, 0.037 * one, one, one, one[None],
        ...                 Status.HIT, ("subset",), ("",))
        >>> likelihood_sentence(p, 10)
        'Probability over the next 10 trading days: 3.10% (95% interval 2.60% to 3.70%), about once ...'
    """
    estimate, low, high = (float(v) for v in (chance.estimate, chance.lower, chance.upper))
    when = f"over {next_of(ahead, period)}"
    if not math.isfinite(estimate) or estimate <= 0.0:
        never = "it never happened among the markets drawn"
        return f"Probability {when}: below {format_chance(high)}; {never}."
    often = f", about {found}" if (found := _how_often(estimate)) else ""
    interval = format_interval(low, high)
    return f"Probability {when}: {format_chance(estimate)} (95% interval {interval}){often}."


def _how_often(estimate: float) -> str:
    """The frequency of what has this probability; empty if it is large or tiny."""
    return f"once in {1 / estimate:,.0f} such periods" if 1e-4 <= estimate < 0.3 else ""


def stable(
    measured: Mapping[str, float], noise: float, atol: float, *, probed: bool = True
) -> Judgement:
    """Whether the answer is robust to noise, other starts and other models.

    ``probed`` is whether the network was evaluated under noise.

    Example:
        >>> stable({"noise_error": 0.002, "invalidation": 0.25}, 0.05, 1e-3).head
        'Steady'
    """
    about, parts, head, mood = "How sure is it?", [], "Unknown", "open"
    error = measured.get("noise_error", math.nan)
    if math.isfinite(error):
        # Not the error itself: an answer that misses without noise may still be robust to it.
        more = error - measured.get("max_error", 0.0)
        heads = ("Steady", "good") if more <= STEADY else ("Fragile", "bad")
        head, mood = heads if not STEADY < more < FRAGILE else ("Moves a little", "good")
        miss = format_points(error)
        parts.append(f"Noise of {noise:g} standard deviations makes it miss by {miss} on average.")
    if math.isfinite(held := measured.get("held_0.1", math.nan)):
        text = f"Under noise of 0.1 the target holds in {format_percent(held)}"
        moved = measured.get("today_moves_0.1", math.nan)
        also = f"; today's weights move by {format_points(moved)}" if math.isfinite(moved) else ""
        parts.append(f"{text} of draws{also}.")
    if not probed:
        parts.append("It was not measured under noise, since the network was not evaluated.")
    if math.isfinite(measured.get("spread", math.nan)):
        share = format_percent(measured.get("agreement", math.nan))
        parts.append(f"Answers from other starts share {share} of the largest changes.")
    if math.isfinite(models := measured.get("ensemble_hit", math.nan)):
        parts.append(f"{format_percent(models)} of the other models hit the target at this window.")
    unmeasured = "Not measured: that needs the size of a standard deviation, from a history or a scale."
    return Judgement(about, head, " ".join(parts) or unmeasured, mood)


def whose(found: Agreement) -> Judgement:
    """Whether an answer is about the market or one network: the others at the first one's answer.

    It is about the market if more than half of the others also hold the target, and about the first
    network if none does and the median share of the gap that they close is below half.

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
    if float(others.mean()) > 0.5:
        head, mood = "The market's", "good"
    elif bool(others.any()) or middle >= 0.5:
        head, mood = "Some networks'", "open"
    else:
        head, mood = "One network's", "bad"
    text = (
        f"At the answer of the first network alone, {int(found.held.sum())} of {size} networks hold the "
        f"target; the others close {format_percent(middle)} of their gap to it (median)."
    )
    return Judgement(about, head, text, mood)


def why(reason: Reason | None, assets: Sequence[str], weights: Sequence[str] | None = None) -> Judgement:
    """The card on the weight that changes most; ``weights`` are named like the assets by default."""
    about = "Why?"
    if reason is None:
        text = "Not measured: the network was not evaluated, or not at every window on the way."
        return Judgement(about, "Unknown", text, "open")
    row = reason.parts[reason.main]
    if not abs(row).any():
        return Judgement(about, "Nothing moves", "The data are those without shocks.", "open")
    if reason.error > EXPLAINED * abs(reason.change[reason.main]):
        text = "The network jumps, so the change of its weights cannot be split over the data."
        return Judgement(about, "Unknown", text, "open")
    head = f"Mostly the data of {assets[abs(row).argmax()]}"
    return Judgement(about, head, describe_reason(reason, assets, weights), "good")


def cards(judgements: Sequence[Judgement]) -> Html:
    """Cards side by side."""
    boxes = []
    for about, head, text, mood in judgements:
        parts = element("h2", about), element("b", head), element("p", text)
        boxes.append(element("div", *parts, class_=f"card {mood}"))
    return element("div", *boxes, class_="cards")
