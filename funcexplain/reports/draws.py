"""Common features of the draws at which the target holds, in sentences and a section of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcexplain.markets.periods import DAY, unit_of
from funcexplain.markets.scenarios import returns_of
from funcexplain.measures.draws import (
    NUM_SAMPLES,
    Bands,
    Drivers,
    Moves,
    bands_of,
    cumulative,
    drivers_of,
    moves_of,
    read,
)
from funcexplain.measures.stories import Stories, stories_of
from funcexplain.problems.problem import Problem
from funcexplain.reports import plots
from funcexplain.reports.drawing import as_array
from funcexplain.reports.inputs import PricePaths
from funcexplain.reports.moves import MAX_NAMED, first_shocked_day
from funcexplain.reports.numbers import share_of
from funcexplain.reports.page import picture
from funcexplain.solutions.draws import Mixing
from funcexplain.solutions.html import Html, element
from funcexplain.solutions.solution import Solution

RHAT, EFFECTIVE = 1.1, 0.25
"""Shares are called rough beyond this R-hat, or for fewer independent draws than this share of them."""


class Common(NamedTuple):
    """Summaries of draws.

    Attributes:
        number: of draws.
        bands: of all paths.
        moves: over the shocked days.
        drivers: days and assets that the target depends on.
        stories: kinds of market.
        totals: cumulative log returns of the draws, ``(N, A)``.
        mixing: diagnostics of their chains, if known.
    """

    number: int
    bands: Bands
    moves: Moves
    drivers: Drivers
    stories: Stories
    totals: Tensor
    mixing: Mixing | None


def find_common(draws: Solution, problem: Problem) -> Common:
    """All measures of draws, with their defaults."""
    # The same ordinary markets, whichever start of a question found the answer.
    problem = replace(problem, args={**problem.args, "seed": torch.zeros_like(problem.args["seed"])})
    markets = read("report", draws, problem, NUM_SAMPLES, 0)
    return Common(
        len(markets.given),
        bands_of(markets),
        moves_of(markets),
        drivers_of(markets),
        stories_of(markets, problem.args["seed"]),
        markets.total(markets.given),
        getattr(draws, "mixing", None),
    )


def moves_sentence(found: Common, assets: Sequence[str]) -> str:
    """How often the assets that shift most fall, and the range of their moves.

    Example:
        >>> one, levels = torch.ones(1, dtype=torch.float64), torch.tensor([0.05, 0.95])
        >>> fan = Bands(levels, torch.tensor([[[-0.05]], [[0.01]]]), torch.zeros(2, 1, 1), 0)
        >>> found = Common(200, fan, Moves(-0.02 * one, -2 * one, 0.9 * one, 0.5 * one), *[None] * 4)
        >>> moves_sentence(found, ["EUR"])
        'In 200 markets drawn at which the target holds, EUR falls in 90% (ordinary markets: 50%), ...'
    """
    named = list[str]()
    low, high = (found.bands.given[at, -1].expm1() for at in (0, -1))
    width = share_of(float(found.bands.levels[-1] - found.bands.levels[0]))
    for place, at in enumerate(_most_shifted(found.moves)):
        usual = share_of(float(found.moves.ordinary_falls[at]))
        named.append(
            f"{assets[at]} falls in {share_of(float(found.moves.falls[at]))} "
            f"({'ordinary markets: ' if place == 0 else ''}{usual}), "
            f"from {100 * float(low[at]):+.1f}% to {100 * float(high[at]):+.1f}%"
            f"{f' in {width} of them' if place == 0 else ''}"
        )
    return f"In {found.number} markets drawn at which the target holds, {'; '.join(named)}."


def _most_shifted(moves: Moves) -> list[int]:
    """The assets that shift most, at least one, and none that does not move beside another."""
    sigmas = moves.sigmas.abs()
    moving = max(1, int((sigmas > 0).sum()))
    order: list[int] = sigmas.argsort(descending=True, stable=True)[: min(MAX_NAMED, moving)].tolist()
    return order


def mixing_sentence(mixing: Mixing | None, count: int) -> str:
    """Whether shares of draws can be trusted; empty if unknown.

    Example:
        >>> mixing_sentence(Mixing(0.4, 180.0, 1.02, 8, 9000, 32), 256)
        'They are worth about 180 independent draws (R-hat 1.02).'
    """
    if mixing is None:
        return ""
    size, rhat = f"{mixing.effective_sample_size:.0f}", f"R-hat {mixing.rhat:.2f}"
    if mixing.rhat <= RHAT and mixing.effective_sample_size >= EFFECTIVE * count:
        return f"They are worth about {size} independent draws ({rhat})."
    if math.isnan(mixing.rhat):
        return "Whether the chains that drew them mixed is unknown: take the shares as rough."
    return (
        f"The chains that drew them have not mixed ({rhat}, worth {size} draws): the shares are rough."
    )


def stories_sentence(found: Stories, sigma: Tensor, assets: Sequence[str]) -> str:
    """How many kinds of market there are, and the mean moves that set each apart.

    Args:
        found: the kinds.
        sigma: unit of each asset's move, ``(A,)``.
        assets: ``A`` names.

    Example:
        >>> moves = torch.tensor([[0.02, 0.0], [-0.03, 0.0]])
        >>> found = Stories(torch.tensor([0.75, 0.25]), torch.arange(2), torch.zeros(4), moves, 0.6)
        >>> stories_sentence(found, torch.ones(2), ["EUR", "JPY"])
        'They are of 2 kinds: 75% with EUR +2.0% and JPY +0.0% on average; 25% with EUR -3.0% and ...'
    """
    if len(found.shares) == 1:
        return "They are of one kind: their moves do not fall into groups."
    parts: list[str] = []
    for share, mean in zip(found.shares.tolist(), found.moves, strict=True):
        order = (mean / sigma).abs().argsort(descending=True, stable=True)[:2].tolist()
        named = " and ".join(f"{assets[at]} {100 * math.expm1(float(mean[at])):+.1f}%" for at in order)
        parts.append(f"{share_of(share)} with {named}{'' if parts else ' on average'}")
    return f"They are of {len(parts)} kinds: {'; '.join(parts)}."


def drivers_sentence(found: Drivers, first: int, assets: Sequence[str], period: str = DAY) -> str:
    """The return that differs most from that of ordinary markets.

    Example:
        >>> correlation = torch.tensor([[0.0, 0.0], [0.2, -0.6]])
        >>> drivers_sentence(Drivers(correlation, correlation), 1, ["EUR", "JPY"])
        'The clearest sign is JPY on day 1: its return is below that of an ordinary market in 80% ...'
    """
    flat = int(found.correlation.abs().argmax())
    day, asset = divmod(flat, len(assets))
    value = float(found.correlation[day, asset])
    side, share = ("below" if value < 0 else "above"), share_of(0.5 + 0.5 * abs(value))
    return (
        f"The clearest sign is {assets[asset]} on {unit_of(period)} {day - first + 1}: its return is "
        f"{side} that of an ordinary market in {share} of pairs."
    )


def answer_sentence(path: Tensor, found: Common, assets: Sequence[str]) -> str:
    """Whether the answer is typical of the draws, in the asset whose move shifts most.

    Args:
        path: cumulative log returns of the answer, ``(D, A)``.
        found: of the draws.
        assets: ``A`` names.
    """
    at, bands = int(found.moves.sigmas.abs().argmax()), found.bands
    low, high, moved = float(bands.given[0, -1, at]), float(bands.given[-1, -1, at]), float(path[-1, at])
    width = share_of(float(bands.levels[-1] - bands.levels[0]))
    typical = f"within the range of {width} of the draws"
    if not low <= moved <= high:
        typical = f"outside the range of {width} of the draws: it is not typical of them"
    return f"In the closest answer, {assets[at]} moves {100 * math.expm1(moved):+.1f}%, {typical}."


def draws_section(
    found: Common, question: Problem, answer: Solution, assets: Sequence[str], period: str = DAY
) -> list[Html]:
    """The section of a report; with the path of the answer, if it hits."""
    path = answer_path(answer, question, found.bands.first)
    fan = plots.plot_fan(found.bands, assets=assets, answer=path, period=period)
    bars = plots.plot_shifts(found.moves, assets=assets)
    sigma = found.totals.std(0)
    kinds = stories_sentence(found.stories, torch.where(sigma > 0, sigma, 1.0), assets)
    content = [
        element("h2", "What markets in which the target holds have in common"),
        element("p", f"{moves_sentence(found, assets)} {mixing_sentence(found.mixing, found.number)}"),
        *([] if path is None else [element("p", answer_sentence(path, found, assets))]),
        picture(
            fan.axes[0],
            "Paths of the assets that shift most: in the draws, in ordinary markets, and in the answer.",
        ),
        picture(bars, "Mean move of every asset against ordinary markets, and how often it falls."),
        element("p", f"{drivers_sentence(found.drivers, found.bands.first, assets, period)} {kinds}"),
    ]
    if len(found.stories.shares) > 1:
        sides = plots.plot_stories(found.stories, found.totals, assets=assets)
        content.append(picture(sides.axes[0], "Kinds of market, with the share of the draws of each."))
    return content


def shocked_prices(prices: PricePaths, found: Common | None) -> tuple[PricePaths, PricePaths | None]:
    """Price paths from the day before the first shocked one on, and the range of the draws, if any."""
    first, fan = first_shocked_day(*prices), None
    drawn = 0 if found is None else len(prices[0]) - found.bands.given.shape[1] + found.bands.first
    if drawn > 0:  # else the prices do not go back to the first day that is drawn
        first = min(first, drawn)
    actual, scenario = (path[first - 1 :] for path in prices)
    if found is not None and drawn > 0:
        moved = as_array(found.bands.given[[0, -1]])[:, -len(actual) + 1 :]
        low, high = actual[0] * np.exp(np.concatenate([0.0 * moved[:, :1], moved], axis=1))
        fan = low, high
    return (actual, scenario), fan


def answer_path(answer: Solution, question: Problem, first: int) -> Tensor | None:
    """Cumulative log returns of an answer from a first day on, ``(D, A)``; None unless it hits."""
    if not bool(answer.hit):
        return None
    return cumulative(returns_of(answer, question).double()[None], first)[0]
