"""Plausibility of answers given the history up to their dates, for all rows of a date together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funcexplain.markets.turbulence import day_turbulence
from funcexplain.measures.paths import Paths, known_days
from funcexplain.measures.plausibility import (
    Past,
    facts_of_windows,
    in_range,
    nearest_windows,
    stylized_facts,
    summarize,
)
from funcexplain.measures.rarity import (
    KINDS,
    Layout,
    Rarity,
    Record,
    fair_scores,
    judge,
    read,
    share_of,
)
from funcexplain.problems.problem import Args, Problem

Measured = dict[str, Tensor]

WORST = "worst "
"""Prefix of the measures of the worst statistic."""


class Market:
    """A history that shows each row only the days up to its date; read once for each date."""

    def __init__(self, history: Tensor, lookback: int) -> None:
        self.history, self.lookback = history.double(), lookback
        self.facts = facts_of_windows(self.history, lookback)
        self.records: dict[Layout, Record] = {}
        self.pasts: dict[int, Past] = {}
        self.ends: dict[int, int] = {}  # by row: days up to its date

    def past(self, end: int) -> Past:
        """The summary of the first days."""
        if end not in self.pasts:
            self.pasts[end] = summarize(self.history[:, :end], self.lookback, self.facts)
        return self.pasts[end]

    def record(self, layout: Layout) -> Record:
        """All real paths of some days."""
        if layout not in self.records:
            self.records[layout] = read(self.history[0], layout)
        return self.records[layout]

    def dates(self, problem: Problem, args: Args, free: list[int]) -> list[tuple[int, int]]:
        """Days of history that each row may know, see `known_days`."""
        references = args["reference"].expand(len(free), *args["reference"].shape[-3:])
        found = list[tuple[int, int]]()
        for row, count in enumerate(free):  # rows that follow one another often share their date
            same = row > 0 and count == free[row - 1] and references[row].equal(references[row - 1])
            found.append(found[-1] if same else known_days(self.history, references[row], count))
        return found


def measure_dated(
    market: Market,
    x: Tensor,
    paths: Paths,
    dates: list[tuple[int, int]],
    scale: Tensor | None,
    nearest: int,
) -> Measured:
    """Measures of rows ``(B, C, L, A)`` against the history up to the date of each."""
    ends = [end for end, _ in dates]
    values = _by_date(ends, lambda end, part: _plausibility(market.past(end), x[part], scale, nearest))
    keys = [(known, free) for (_, known), free in zip(dates, paths.free, strict=True)]
    return values | _by_date(keys, lambda key, part: _rarity(market, paths, key, part))


def _plausibility(past: Past, x: Tensor, scale: Tensor | None, nearest: int) -> Measured:
    """Measures of `plausibility` for rows of one date."""
    sigma = past.sigma if scale is None else scale

    def measure(x: Tensor) -> Measured:
        facts = stylized_facts(x[0])
        gaps = facts - past.facts
        return {
            "turbulence": day_turbulence(x[0, -1], past.usual),
            "nearest_windows": nearest_windows(x, past, sigma, nearest),
            "in_range": in_range(x, past.lower, past.upper),
            "volatility_ratio": facts[0] / past.facts[0],
            "correlation_gap": gaps[1],
            "kurtosis_gap": gaps[2],
            "autocorrelation_gap": gaps[3],
        }

    return torch.func.vmap(measure)(x.double())


def _rarity(market: Market, paths: Paths, key: tuple[int, int], part: Tensor) -> Measured:
    """Measures of `rarity` for rows of one date, and of the real paths behind them.

    An answer is judged by what it makes more extreme: a calm that it leaves is not its own. So is a path
    to come without shocks, which no real path is as calm as.
    """
    known, free = key
    record = market.record(Layout(paths.answer.shape[1], market.lookback, free))
    both = judge(record, torch.cat([paths.answer[part], paths.reference[part]]), known)
    halves: Any = zip(*(v.chunk(2) for v in both[:-1]), [both.statistics] * 2, strict=True)
    answer, today = (Rarity(*half) for half in halves)
    own = (answer.tails < today.tails) | answer.tails.isnan()
    tails = torch.where(own, answer.tails, 0.0)
    share = share_of(fair_scores(record, known), tails.amin(1))
    values = {"rarity": share, "rarity_today": today.share}
    families = {
        "move": ("rise", "fall"),
        "joint": ("joint",),
        "volatility": ("volatility", "calm"),
        "correlation": ("correlation", "dispersion"),
    }
    for name, kinds in families.items():
        columns = [place for place, each in enumerate(answer.statistics) if each.kind in kinds]
        values[f"{name}_tail"] = 10 ** answer.tails[:, columns].amin(1)
    worst = tails.argmin(1, keepdim=True)
    labels = [(KINDS.index(kind), days, asset) for kind, days, asset in answer.statistics]
    chosen = torch.tensor(labels, device=worst.device)[worst[:, 0]]
    details = dict(zip(("kind", "days", "asset"), chosen.unbind(1), strict=True))
    details["value"], details["today"] = (each.values.gather(1, worst)[:, 0] for each in (answer, today))
    details["tail"] = tails.gather(1, worst)[:, 0]  # 0 where it makes nothing more extreme
    details["paths"] = answer.paths
    return values | {WORST + name: value for name, value in details.items()}


def _by_date(keys: list[Any], measure: Callable[[Any, Tensor], Measured]) -> Measured:
    """Measure the rows of each key together."""
    parts: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        parts.setdefault(key, []).append(row)
    found = [measure(key, torch.tensor(part, device="cpu")) for key, part in parts.items()]
    order = torch.tensor([row for part in parts.values() for row in part], device="cpu")
    order = order.argsort()
    return {name: torch.cat([each[name] for each in found])[order] for name in found[0]}
