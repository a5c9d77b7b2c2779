"""How unusual an answer is, graded and in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from funcexplain.measures.rarity import KINDS
from funcexplain.reports.cards import Judgement
from funcexplain.reports.numbers import format_chance, format_percent
from funcexplain.reports.precedents import NEAR, Precedents

GRADES = ("Beyond history", "Rare", "Unusual", "Ordinary")
"""How unusual an answer is, by `grade`; the least likely first."""

RARE, UNUSUAL = 0.1, 0.25
"""An answer is called so if at most this share of real paths was as extreme."""

BEYOND_CHANCE, RARE_CHANCE, UNUSUAL_CHANCE = 1e-6, 0.01, 0.1
"""An answer is called beyond history, rare or unusual if the chance of its shocks is at most this."""

IN_RANGE = 0.9
"""Minimum share of entries within the history's range for a window to be called ordinary."""


def met(ahead: int = 0) -> str:
    """The remedy for a target that holds without any change, over coming days or today."""
    if ahead:
        return "The network will hold this without any shock; nothing has to happen."
    return "The network holds this today; nothing has to change."


def grade(measured: Mapping[str, float], worst: Mapping[str, float], found: Precedents | None) -> str:
    """Grade how unusual an answer is, by the worst of its rarity, its chance and its precedents.

    - Beyond history: rare, with a statistic beyond that of every real path; or a chance of at most
      `BEYOND_CHANCE`, or below one in the number of real paths while no real window holds the target
    - Rare, Unusual: the share of real paths as extreme is at most `RARE` or `UNUSUAL`, or the chance of
      the shocks at most `RARE_CHANCE` or `UNUSUAL_CHANCE`
    - Also Unusual: no real window comes near the target, or less than `IN_RANGE` of the entries are
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
    if unheard_of or chance <= BEYOND_CHANCE or (share <= RARE and _as_extreme(worst) == 0):
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
    unit: str = "day",
    hit: bool = True,
    nearest: str = "",
    estimated: bool = False,
) -> Judgement:
    """How unusual the market of an answer would be; an answer that misses the target has no grade.

    Args:
        measured: measures by name.
        worst: of the worst statistic, see `Metrics.worst`.
        found: precedents of the target.
        assets: ``A`` names.
        unit: what a day is, such as ``"week"``.
        hit: whether the target is reached.
        nearest: date of the nearest precedent, or empty.
        estimated: whether ``log10_chance`` is the target's probability, which another card shows.

    Returns:
        The card.

    Example:
        >>> unusual({"rms_sigmas": 0.4}).head
        'Unknown'
    """
    about = "How unusual would it be?"
    if not hit:
        return Judgement(about, "Not graded", "The target is not reached at this market.", "open")
    worst = worst or {}
    head, parts = grade(measured, worst, found), []
    if worst and worst["tail"] < 0.0:
        parts.append(statistic(worst, assets, unit))
    if not math.isnan(share := measured.get("rarity", math.nan)):
        parts.append(f"{format_percent(share)} of real paths were as extreme in some way.")
    elif "rarity" in measured:
        parts.append("How rare its path is remains unknown: the history up to its date is too short.")
    if not estimated and not math.isnan(chance := measured.get("log10_chance", math.nan)):
        parts.append(
            f"Normal shocks as large along their direction have a chance of {format_chance(10**chance)}."
        )
    if found is not None:
        parts.append(precedent(found) + (f" The nearest ends on {nearest}." if nearest else ""))
    if not parts:
        parts.append("This cannot be judged without a market history.")
    mood = {"Ordinary": "good", "Unusual": "good", "Rare": "bad", "Beyond history": "bad"}
    return Judgement(about, head, " ".join(parts), mood.get(head, "open"))


def statistic(worst: Mapping[str, float], assets: Sequence[str], unit: str = "day") -> str:
    """The worst statistic of an answer in a sentence, with that of the actual path.

    Example:
        >>> worst = {"kind": 1, "days": 20, "asset": 0, "value": 0.1, "today": 0.02, "tail": -2.0,
        ...          "paths": 399}
        >>> print(statistic(worst, ["EUR"]))
        EUR falls by 9.52% within 20 days (without the change: 1.98%), as much as in 3 of 399 real paths.
        >>> statistic(worst | {"kind": 6, "value": 9.0, "tail": -3.0}, ["EUR"])
        'All assets move together by 9.0 standard deviations within 20 days (without the ...'
    """
    kind, days, asset = KINDS[int(worst["kind"])], int(worst["days"]), int(worst["asset"])
    if math.isinf(worst["value"]):
        return "Assets that always moved together move apart, or one that never moved moves."
    sign = {"calm": -1, "dispersion": -1}.get(kind, 1)
    name = "The mean of all assets" if asset < 0 else assets[asset]
    each = f"an {unit}" if unit == "hour" else f"a {unit}"
    within = f"within {days} {unit}s" if days > 1 else f"in {each}"
    text, show, high, low = {
        "rise": (
            f"{name} rises by {{}} {within}",
            lambda v: format_percent(math.expm1(v)),
            "much",
            "more",
        ),
        "fall": (
            f"{name} falls by {{}} {within}",
            lambda v: format_percent(-math.expm1(-v)),
            "much",
            "more",
        ),
        "joint": (
            f"All assets move together by {{}} standard deviations {within}",
            "{:.1f}".format,
            "far",
            "farther",
        ),
        "volatility": (f"The volatility {within} is {{}} {each}", format_percent, "high", "higher"),
        "calm": (f"The volatility {within} is {{}} {each}", format_percent, "low", "lower"),
        "correlation": (f"The mean correlation {within} is {{}}", "{:.2f}".format, "high", "higher"),
        "dispersion": (f"The mean correlation {within} is {{}}", "{:.2f}".format, "low", "lower"),
    }[kind]
    value, today = (show(sign * worst[which]) for which in ("value", "today"))
    count, paths = _as_extreme(worst), int(worst["paths"])
    compared = f"as {high} as in {count:,} of" if count else f"{low} than in any of"
    return f"{text.format(value)} (without the change: {today}), {compared} {paths:,} real paths."


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


def _as_extreme(worst: Mapping[str, float]) -> int | None:
    """Number of real paths whose value of the worst statistic was as extreme; None if unknown."""
    if not worst or math.isnan(worst["tail"]):
        return None
    return max(0, round(10 ** worst["tail"] * (worst["paths"] + 1)) - 1)
