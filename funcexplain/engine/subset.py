"""Subset simulation: a rare event as a sequence of events that are not rare.

The chance that an error is at most ``atol`` is a product of conditional chances, of errors at most
``b_1 > b_2 > ... > atol``, each about a tenth. Points of one level start Markov chains that sample the
next. A move ``sqrt(1 - s**2) u + s noise`` keeps the standard normal law; one that leaves the level is
rejected.

References:
    S.-K. Au, J. L. Beck (2001), Estimation of Small Failure Probabilities in High Dimensions by Subset
    Simulation, https://doi.org/10.1016/S0266-8920(01)00019-4;
    I. Papaioannou, W. Betz, K. Zwirglmaier, D. Straub (2015), MCMC Algorithms for Subset Simulation,
    https://doi.org/10.1016/j.probengmech.2015.06.006;
    A. Lee, N. Whiteley (2018), Variance Estimation in the Particle Filter,
    https://doi.org/10.1093/biomet/asy028
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from funcexplain.networks.noise import fold_in, normal

SHARE = 0.1
"""Share of a level's points that begin the next level."""
_ACCEPTANCE = 0.35  # of moves, to which their size is adapted
_FEWEST = 10  # points that begin a level, at least


T = TypeVar("T")
Search = Generator[Tensor, Tensor, T]
"""Yields points ``(B, n)`` and is sent their errors ``(B,)``, infinite where they are unknown.

So the points of many searches can be judged together.
"""


class Level(NamedTuple):
    """The state once a level is sampled.

    Attributes:
        threshold: maximum error of the event whose chance is estimated.
        log_probability: natural logarithm of its chance.
        variance: of the estimate, relative to its square.
        points: those of the level at which the event happens, ``(B, n)``; none if no threshold below
            that of the level before is found, or the level has the same error nearly everywhere.
        errors: at these points, ``(B,)``.
        size: size of the next moves, ``s``.
    """

    threshold: float
    log_probability: float
    variance: float
    points: Tensor
    errors: Tensor
    size: float


class Chains(NamedTuple):
    """Markov chains within a level.

    Attributes:
        points: where they are, ``(B, n)``.
        errors: there, ``(B,)``.
        threshold: maximum error of the level.
        size: size of moves, ``0 < s <= 1``.
        acceptance: share of chains that made the last move.
    """

    points: Tensor
    errors: Tensor
    threshold: float
    size: float
    acceptance: float = 0.0


def climb(
    like: Tensor, atol: float, num_points: int, seed: Tensor, stop: Callable[[Level], bool]
) -> Search[Level]:
    """Sample level after level, down to errors of at most ``atol`` or until no lower one is found.

    Args:
        like: the zero point, ``(n,)``.
        atol: maximum error of the event.
        num_points: of each level.
        seed: seed of all noise, scalar int64.
        stop: called with each level; returns whether it is the last one.

    Returns:
        The last level.
    """
    points = normal(fold_in(seed, 0), (num_points, len(like)), like.dtype)
    errors, origins = (yield points), torch.arange(num_points, device=points.device)
    count, variance = num_points, 0.0
    level = Level(math.inf, 0.0, 0.0, points, errors, 1.0)
    for number in itertools.count(1):
        threshold = _next_threshold(errors, atol)
        hit = errors <= threshold
        points, errors, origins = points[hit], errors[hit], origins[hit]
        share = len(points) / len(hit)
        if not share:
            level = level._replace(points=points, errors=errors)
            stop(level)
            break
        variance += (1.0 - share) / (share * len(hit)) * (1.0 + _correlation(hit, count))
        # Levels are not independent: points that descend from the same one count as one.
        lineage = (origins.bincount().double() / len(origins)).square().sum() - 1.0 / num_points
        log_probability = level.log_probability + math.log(share)
        relative = max(variance, float(lineage))
        level = Level(threshold, log_probability, relative, points, errors, level.size)
        if stop(level) or threshold <= atol:
            break
        count, chains = len(points), Chains(points, errors, threshold, level.size)
        visited, stream = [chains], fold_in(seed, number)
        for step in range(1, max(2, round(num_points / count))):
            chains = adapt((yield from move(chains, fold_in(stream, step))), step)
            visited.append(chains)
        level = level._replace(size=chains.size)
        points = torch.cat([each.points for each in visited])
        errors = torch.cat([each.errors for each in visited])
        origins = origins.repeat(len(visited))
    return level


def complete(judge: Callable[[Tensor], Tensor], search: Search[T]) -> T:
    """Run one search; ``judge`` maps points to errors."""
    errors: Any = None
    while True:
        try:
            points = search.send(errors)
        except StopIteration as end:
            return end.value
        errors = judge(points)


def move(chains: Chains, seed: Tensor, fixed: Tensor | None = None) -> Search[Chains]:
    """Move every chain once, or leave it where it is; not along a ``fixed`` unit vector, if given."""
    points, size = chains.points, chains.size
    noise = normal(seed, points.shape, points.dtype)
    proposal = math.sqrt(1.0 - size**2) * points + size * noise
    if fixed is not None:
        proposal = proposal + ((points - proposal) @ fixed)[:, None] * fixed
    errors = yield proposal
    accepted = errors <= chains.threshold
    return chains._replace(
        points=torch.where(accepted[:, None], proposal, points),
        errors=torch.where(accepted, errors, chains.errors),
        acceptance=float(accepted.double().mean()),
    )


def adapt(chains: Chains, step: int) -> Chains:
    """Adapt the size of moves to the acceptance at which chains mix fastest, by ever smaller changes."""
    change = math.exp((chains.acceptance - _ACCEPTANCE) / math.sqrt(step))
    return chains._replace(size=min(1.0, chains.size * change))


def _next_threshold(errors: Tensor, atol: float) -> float:
    """The threshold that a tenth of the errors meet; below all errors if there is none.

    Where most points have the same error, it is the largest error below that.
    """
    threshold = errors.sort().values[max(1, round(SHARE * len(errors))) - 1]
    if bool(threshold <= atol):
        return atol
    if bool(threshold.isinf()) or 2 * int((errors <= threshold).sum()) > len(errors):
        lower = errors[errors < threshold]
        if len(lower) < _FEWEST:
            return -math.inf
        threshold = lower.amax()
    return float(threshold) if bool(threshold > atol) else atol


def _correlation(hit: Tensor, count: int) -> float:
    """Sum of the autocorrelations of hits along ``count`` chains, Au and Beck's ``gamma``."""
    steps = hit.view(-1, count).double()
    length, share = len(steps), float(steps.mean())
    total = 0.0
    for lag in range(1, length):
        covariance = float((steps[lag:] * steps[:-lag]).mean()) - share**2
        total += 2.0 * (1.0 - lag / length) * covariance / max(share * (1.0 - share), 1e-12)
    return max(0.0, total)
