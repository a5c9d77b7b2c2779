"""Three estimators of the probability of an event; each reports its estimate as it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.closest import closest
from funcexplain.engine.event import Event
from funcexplain.engine.subset import SHARE, Level, Search, climb
from funcexplain.networks.noise import fold_in, normal
from funcexplain.problems.grid import RowDim
from funcexplain.solutions.solution import Status

_QUANTILE = 1.959963984540054  # of the normal law, for intervals of 95 %
_ZERO = -math.log(0.05)  # no hit in n draws: the chance is below 3 / n in 95 of 100 cases
_BATCH = 4096  # points drawn at once
# The pilot: points of a level, and the share of all forward passes that it may take.
_PILOT, _PILOT_SHARE = 300, 0.25
# Levels, of a tenth each, that the estimate may need beyond those of the pilot, and the share of the
# budget that is used where it needs more.
_MARGIN, _OVERDRAWN = 0.5, 1.35
_OFTEN = 0.03  # from this chance on, plain draws need no more forward passes than levels
# Importance sampling: searches for closest points, the share of draws around today, and how far apart
# points are that count as two.
_STARTS, _PLAIN, _APART = 8, 0.1, 0.5


class Estimate(NamedTuple):
    """A current estimate; see `Probability`."""

    estimate: float = math.nan
    standard_error: float = math.nan
    lower: float = 0.0
    upper: float = 1.0
    status: Status = Status.MAX_STEPS
    levels: tuple[float, ...] = ()
    method: str = ""
    reason: str = ""


Report = Callable[[Estimate], None]
"""Receives the estimate so far."""


def monte_carlo(event: Event, atol: float, budget: int, seed: Tensor, report: Report) -> Search[None]:
    """The share of plain draws that hit, with Wilson's interval."""
    hits = drawn = 0
    while drawn < budget:
        count = min(_BATCH, budget - drawn)
        points = normal(fold_in(seed, drawn), (count, len(event.like)), event.like.dtype)
        hits += int(((yield points) <= atol).sum())
        drawn += count
        report(_of_counts(hits, drawn))


def subset(event: Event, atol: float, budget: int, seed: Tensor, report: Report) -> Search[None]:
    """Subset simulation; a pilot chooses the number of points per level for the budget."""
    _, share, _ = yield from pilot(event, atol, budget, seed)
    yield from _levels(event, atol, budget, seed, share, report)


def auto(event: Event, atol: float, budget: int, seed: Tensor, report: Report) -> Search[None]:
    """Plain draws if the event is frequent or levels do not reach it, else subset simulation."""
    reached, share, rises = yield from pilot(event, atol, budget, seed)
    used, where = event.num_forwards, "near" if reached else "below"
    found = f"a pilot of {used} forward passes put the chance {where} {share:.1g}"

    def because(method: str, why: str) -> Report:
        return lambda known: report(known._replace(method=method, reason=f"{found}, {why}."))

    if (reached and share >= _OFTEN) or not rises:
        why = "often enough to count plain draws" if rises else "and found no way to the target"
        plain = because("monte_carlo", why)
        yield from monte_carlo(event, atol, max(1, budget - used), fold_in(seed, 2), plain)
    else:
        why = "too rare for plain draws; importance sampling may miss regions that levels find"
        yield from _levels(event, atol, budget, seed, share, because("subset", why))


def importance(event: Event, atol: float, budget: int, seed: Tensor, report: Report) -> Search[None]:
    """Importance sampling from unit normals around the closest points, and some plain draws."""
    centers = _closest_points(event, atol, seed)
    if not len(centers):
        reason = "no search found a market that meets the target, so plain draws were counted."

        def plain(known: Estimate) -> None:
            report(known._replace(method="monte_carlo", reason=reason))

        left = max(1, budget - event.num_forwards)
        yield from monte_carlo(event, atol, left, fold_in(seed, 2), plain)
        return
    rarity = torch.special.log_ndtr(-centers.norm(dim=1)).softmax(0)
    centers = torch.cat([torch.zeros_like(centers[:1]), centers])
    shares = torch.cat([rarity.new_tensor([_PLAIN]), (1.0 - _PLAIN) * rarity])
    half_squares = 0.5 * centers.square().sum(1)
    drawn, total, squares = 0, 0.0, 0.0
    while drawn < max(1, budget - event.num_forwards + drawn):
        count = min(_BATCH, max(1, budget - event.num_forwards))
        # The k-th component gets its share of every batch.
        places = (torch.arange(count, dtype=shares.dtype, device=shares.device) + 0.5) / count
        chosen = torch.searchsorted(shares.cumsum(0), places).clamp(max=len(shares) - 1)
        noise = normal(fold_in(fold_in(seed, 4), drawn), (count, len(event.like)), torch.float64)
        points = centers[chosen] + noise
        hit = (yield points.to(event.like.dtype)) <= atol
        ratios = (points @ centers.T - half_squares + shares.log()).logsumexp(1).neg().exp()
        weights = torch.where(hit, ratios, 0.0)
        drawn, total = drawn + count, total + float(weights.sum())
        squares += float(weights.square().sum())
        if total == 0.0:
            report(Estimate(upper=min(1.0, _ZERO / (_PLAIN * drawn))))
        else:
            mean = total / drawn
            report(_of_relative(mean, max(squares / drawn / mean**2 - 1.0, 0.0) / drawn))


METHODS: dict[str, Callable[[Event, float, int, Tensor, Report], Search[None]]] = {
    "auto": auto,
    "subset": subset,
    "importance": importance,
    "monte_carlo": monte_carlo,
}


def pilot(event: Event, atol: float, budget: int, seed: Tensor) -> Search[tuple[bool, float, bool]]:
    """Whether a small subset simulation reached the event, its probability, and whether levels fell."""
    allowed = _PILOT_SHARE * budget
    level = yield from climb(
        event.like,
        atol,
        min(_PILOT, max(50, int(0.1 * allowed))),
        fold_in(seed, 1),
        lambda level: event.num_forwards >= allowed,
    )
    share, rises = math.exp(level.log_probability), len(level.points) > 0
    reached = rises and level.threshold <= atol
    return reached, share if reached else share**2, rises  # an event that is not reached is rarer


def points_of_a_level(budget: int, share: float) -> int:
    """Number of points per level that uses up the budget if the probability is near ``share``."""
    levels = math.ceil(_MARGIN + math.log(max(share, 1e-300)) / math.log(SHARE))
    return max(20, int(budget / (1.0 + (1.0 - SHARE) * (max(1, levels) - 1))))


def _levels(
    event: Event, atol: float, budget: int, seed: Tensor, share: float, report: Report
) -> Search[None]:
    """Subset simulation within what is left of the budget."""
    count = points_of_a_level(budget - event.num_forwards, share)
    levels: list[float] = []

    def stop(level: Level) -> bool:
        known = _of_relative(math.exp(level.log_probability), level.variance)
        if not levels or level.threshold < levels[-1]:
            levels.append(level.threshold)
        if level.threshold > atol:
            status = Status.MAX_STEPS if len(level.points) else Status.STALLED
            known = Estimate(upper=known.upper, status=status)
        report(known._replace(levels=tuple(levels)))
        return event.num_forwards + (1.0 - SHARE) * count > _OVERDRAWN * budget

    yield from climb(event.like, atol, count, fold_in(seed, 3), stop)


def _closest_points(event: Event, atol: float, seed: Tensor) -> Tensor:
    """Distinct closest points from several starts, ``(K, n)``, nearest first, float64."""
    problem = event.problem
    starts = normal(fold_in(seed, 5), (_STARTS, len(event.like)), event.like.dtype)
    starts[event(starts).isinf()] = 0.0  # of windows that the network refuses
    starts[0] = 0.0
    dim = RowDim("start", _STARTS, frozenset({"start"}))
    searched = replace(
        problem,
        args={**problem.args, "start": event.search_points(starts)},
        start=lambda args: args["start"],
        dims=(dim,),
        penalties=(),
        costs=(),
    )
    found = closest(searched, atol=atol)
    event.num_forwards += int(found.num_steps.sum()) + _STARTS
    points = event.free(found.z[found.hit]).double()
    kept: list[Tensor] = []
    for point in points[points.norm(dim=1).argsort()]:
        if all(float((point - other).norm()) > _APART for other in kept):
            kept.append(point)
    return torch.stack(kept) if kept else points


def _of_counts(hits: int, drawn: int) -> Estimate:
    """The estimate of a number of hits."""
    if not hits:
        return Estimate(upper=min(1.0, _ZERO / drawn))
    share, square = hits / drawn, _QUANTILE**2
    center = (hits + 0.5 * square) / (drawn + square)
    width = _QUANTILE / (drawn + square) * math.sqrt(drawn * share * (1.0 - share) + 0.25 * square)
    smoothed = (hits + 0.5) / (drawn + 1.0)  # not zero where all draws hit
    error = math.sqrt(smoothed * (1.0 - smoothed) / drawn)
    return Estimate(share, error, max(0.0, center - width), min(1.0, center + width), Status.HIT)


def _of_relative(estimate: float, variance: float) -> Estimate:
    """An estimate whose relative variance is known, with a log-normal interval."""
    factor = math.exp(_QUANTILE * math.sqrt(math.log1p(variance)))
    upper = min(1.0, estimate * factor)
    return Estimate(estimate, estimate * math.sqrt(variance), estimate / factor, upper, Status.HIT)
