"""Alternatives: markets that hold the target, nearly as likely as the likeliest and very different."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from funcexplain.engine.draws import solution_of
from funcexplain.engine.event import Event, check_event, forwards_only
from funcexplain.measures.draws import NUM_SAMPLES, Markets, read, returns_at
from funcexplain.measures.stories import MAX_STORIES
from funcexplain.problems.checks import check_number, check_positive
from funcexplain.problems.problem import Problem
from funcexplain.solutions.draws import Mixing
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution

_HALVINGS = 6  # of a step after which the target does not hold


def alternatives(
    answer: Solution,
    draws: Solution,
    problem: Problem,
    *,
    likelihood: float = 0.1,
    count: int = MAX_STORIES,
    atol: float = 1e-3,
) -> Solution:
    """Find markets at least ``likelihood`` times as likely as an answer, and as different as possible.

    From the answer, for example of `closest`, candidates move towards every draw, along the shocks that
    change the assets' cumulative moves, as far as the density allows and the target holds. The candidate
    farthest from all chosen ones, in standard deviations of ordinary moves, is added next.

    Args:
        answer: a market at which the target holds; the first of the result.
        draws: others, from `sample`.
        problem: the question of both.
        likelihood: minimum density, as a share of the answer's, in (0, 1].
        count: maximum number of markets.
        atol: as in `sample`.

    Returns:
        A solution with the row dimension ``alternative``, with fewer rows if no further candidate
        differs.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a solution is not of this question, its search point has no law, or the answer
            does not hold the target.

    Example:
        >>> import torch, funcexplain as fe
        >>> base, cov = torch.zeros(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
        >>> first = lambda params, x: x[0, 0]
        >>> p = fe.problem((first, {}), fe.targets.at_least(0, 2.0), base[None], leverage=float("inf"))
        >>> window, path = lambda r: r[None], lambda x, r: x[0]
        >>> p = fe.scenarios.scenario(base, cov, features=window, inverse=path)(p)
        >>> found = fe.alternatives(fe.closest(p), fe.sample(p, 100), p, count=3)
        >>> z = found.z[:, 0]           # 2 sigmas of the first asset; 2.1 of the others are as likely
        >>> bool((z.square().sum(1) <= 4.0 + 4.61).all()), bool(z[:, 1:].norm(dim=1).max() > 2.0)
        (True, True)

    References:
        Y. Kopeliovich, A. Novosyolov, D. Satchkov, B. Schachter (2015), Robust Risk Estimation and
        Hedging: A Reverse Stress Testing Approach, Journal of Derivatives 22 (4),
        https://doi.org/10.3905/jod.2015.22.4.010

        T. F. Gonzalez (1985), Clustering to Minimize the Maximum Intercluster Distance,
        https://doi.org/10.1016/0304-3975(85)90224-5
    """
    markets = read("alternatives", draws, problem, NUM_SAMPLES, 0)
    if check_answer("alternatives", answer, problem).dims:
        raise ValueError(f"alternatives: answer must be one market, got rows {answer.shape}; pick one")
    atol = check_event("alternatives", problem, atol, 0, None)
    count = check_positive("alternatives", "count", count)
    likelihood = check_number("alternatives", "likelihood", likelihood, minimum=0.0)
    if not 0.0 < likelihood <= 1.0:
        raise ValueError(f"alternatives: likelihood must be in (0, 1], got {likelihood:g}")
    event = Event(problem, atol)
    best = event.free(answer.z[None])[0]
    with forwards_only(problem):
        if not float(event(best[None])) <= atol:
            raise ValueError("alternatives: answer must hold the target, got one that misses it")
        steps = _towards(event, best, event.free(draws.z), markets)
        points = _as_far_as_allowed(event, best, steps, -2.0 * math.log(likelihood), atol)
        places = markets.total(returns_at(problem, event.search_points(points))) / markets.sigma
        chosen = _farthest_first(places, count)
        found = solution_of(event, points[chosen], atol, Mixing(*[math.nan] * 6))  # type: ignore[arg-type]
    values: dict[str, Any] = {field.name: getattr(found, field.name) for field in fields(Solution)}
    return Solution(**{**values, "dims": ("alternative",)})


def _towards(event: Event, best: Tensor, points: Tensor, markets: Markets) -> Tensor:
    """Steps from the best point to others, without what changes no cumulative move; float64."""

    def moves(point: Tensor) -> Tensor:
        return markets.total(returns_at(event.problem, event.search_points(point[None])))[0]

    slopes = torch.func.jacrev(moves)(best).double()
    return (points - best).double() @ (torch.linalg.pinv(slopes) @ slopes).mT


def _as_far_as_allowed(event: Event, best: Tensor, steps: Tensor, room: float, atol: float) -> Tensor:
    """The best point, then those along steps whose ``|z|**2`` is at most ``room`` more."""
    start = best.double()
    along, size = steps @ start, steps.square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    scale = ((along.square() + size * room).sqrt() - along).clamp(min=0.0) / size
    limit = start.square().sum() + room
    for _ in range(_HALVINGS):
        points = (start + scale[:, None] * steps).to(best)
        inside = points.double().square().sum(1) <= limit * (1 + 1e-6)
        fits = (event(points) <= atol) & inside
        scale = torch.where(fits, scale, 0.5 * scale)
    return torch.cat([best[None], points[fits]])


def _farthest_first(places: Tensor, count: int) -> list[int]:
    """The first place, then always the one farthest from those chosen, unless it is one of them."""
    chosen, away = [0], (places - places[0]).norm(dim=1)
    while len(chosen) < count and float(away.max()) > 1e-6:
        chosen.append(int(away.argmax()))
        away = torch.minimum(away, (places - places[chosen[-1]]).norm(dim=1))
    return chosen
