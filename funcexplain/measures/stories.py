"""Stories: the few kinds of market among draws at which the target holds.

Draws are points, the cumulative moves of all assets in ordinary standard deviations. k-medoids clusters
them; the silhouette chooses the number of kinds, and whether there is more than one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.measures.draws import NUM_SAMPLES, Markets, read
from funcexplain.networks.noise import fold_in, normal
from funcexplain.problems.checks import check_positive
from funcexplain.problems.problem import Problem
from funcexplain.solutions.solution import Solution

MAX_STORIES = 5
_CLUSTERED = 512  # draws; others join the nearest medoid
_REPLICATIONS, _MARGIN = 9, 1.1  # draws of a chain are a little alike


class Stories(NamedTuple):
    """Kinds of market, the most frequent first.

    Attributes:
        shares: share of the draws of each kind, ``(K,)``; they sum to one.
        medoids: number of the draw in the middle of each kind, int64, ``(K,)``; ``draws[medoids]`` are
            their windows.
        labels: kind of each draw, int64, ``(N,)``.
        moves: mean cumulative log return of each kind, ``(K, A)``.
        silhouette: how well kinds are separated, in [-1, 1]; NaN for a single one.
    """

    shares: Tensor
    medoids: Tensor
    labels: Tensor
    moves: Tensor
    silhouette: float


def stories(
    draws: Solution,
    problem: Problem,
    count: int | None = None,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> Stories:
    """Divide the markets at which the target holds into at most five kinds.

    k-medoids of the cumulative moves of all assets, each in standard deviations of its moves in ordinary
    markets. The number of kinds maximizes the mean silhouette. Since k-medoids divides a single cloud,
    too, there is one kind unless the silhouette is a tenth higher than those of nine samples of a normal
    law with the draws' mean and covariance.

    Args:
        draws: markets at which the target holds, from `sample`.
        problem: their question.
        count: number of kinds. Default: 1 to 5, by the silhouette; one for fewer than ten draws.
        num_samples: number of ordinary markets that measure the standard deviations.
        seed: seed of the ordinary markets and of the normal samples, with ``args["seed"]``.

    Returns:
        Share, medoid and mean moves of each kind.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the solution is not draws of this question, its search point has no law, or there
            are fewer draws than kinds.

    Example:
        >>> import torch, funcexplain as fe
        >>> base, cov = torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
        >>> far = lambda params, x: x[0, 0].square()     # either way
        >>> p = fe.problem((far, {}), fe.targets.at_least(0, 9.0), base[None], leverage=float("inf"))
        >>> window, path = lambda r: r[None], lambda x, r: x[0]
        >>> p = fe.scenarios.scenario(base, cov, features=window, inverse=path)(p)
        >>> found = fe.stories(fe.sample(p, 200), p)
        >>> len(found.shares), found.moves[:, 0].sign().sum(), round(float(found.shares.sum()), 6)
        (2, tensor(0., dtype=torch.float64), 1.0)

    References:
        L. Kaufman, P. J. Rousseeuw (1990), Finding Groups in Data, chapters 2 and 3,
        https://doi.org/10.1002/9780470316801

        P. J. Rousseeuw (1987), Silhouettes, https://doi.org/10.1016/0377-0427(87)90125-7
    """
    markets = read("stories", draws, problem, num_samples, seed)
    size = len(markets.given)
    if count is not None and check_positive("stories", "count", count) > size:
        raise ValueError(f"stories: count must be at most the number of draws, {size}, got {count}")
    return stories_of(markets, fold_in(problem.args["seed"], seed), count)


def stories_of(markets: Markets, seed: Tensor, count: int | None = None) -> Stories:
    """`stories` of markets that were read."""
    total = markets.total(markets.given)
    points = total / markets.sigma
    spread = torch.linspace(0, len(points) - 1, min(len(points), _CLUSTERED), dtype=torch.float64)
    chosen = spread.round().long().to(points.device)
    medoids, silhouette = _divide(points[chosen], count, seed)
    medoids = chosen[medoids]
    labels = _distances(points, points[medoids]).argmin(1)
    sizes = torch.bincount(labels, minlength=len(medoids))
    order = sizes.argsort(descending=True, stable=True)
    medoids, sizes, labels = medoids[order], sizes[order], order.argsort()[labels]
    means = torch.stack([total[labels == kind].mean(0) for kind in range(len(medoids))])
    return Stories(sizes.double() / len(points), medoids, labels, means, silhouette)


def medoids_of(distances: Tensor, count: int) -> Tensor:
    """Partition around medoids: the points whose distances to their nearest medoid have a low sum.

    Adds the best next medoid until there are enough; then makes the best swap of a medoid for another
    point as long as it helps.

    Args:
        distances: between all points, ``(N, N)``.
        count: number of medoids.

    Returns:
        Numbers of the medoids, rising, int64, ``(count,)``.
    """
    nearest, medoids = torch.full_like(distances[0], torch.inf), list[int]()
    while len(medoids) < count:
        costs = torch.minimum(distances, nearest).sum(1)
        costs[medoids] = torch.inf
        medoids.append(int(costs.argmin()))
        nearest = torch.minimum(nearest, distances[medoids[-1]])
    while True:
        before, best = nearest.sum(), (nearest.sum(), -1, -1)
        for place in range(count):
            rest = [medoid for medoid in medoids if medoid != medoids[place]]
            kept = distances[rest].amin(0) if rest else torch.full_like(nearest, torch.inf)
            cost, point = torch.minimum(distances, kept).sum(1).min(0)
            if cost < best[0]:
                best = cost, place, int(point)
        if not best[0] < before * (1 - 1e-12):  # rounding must not swap endlessly
            return torch.tensor(sorted(medoids), device=distances.device)
        medoids[best[1]] = best[2]
        nearest = distances[medoids].amin(0)


def silhouette_of(distances: Tensor, labels: Tensor) -> float:
    """The mean over points of ``(b - a) / max(a, b)``.

    ``a`` is the mean distance to the others of the own kind, ``b`` that to the nearest other kind; a
    point alone counts zero.
    """
    members = torch.nn.functional.one_hot(labels).to(distances)
    sizes = members.sum(0)
    sums = distances @ members
    own, number = members.bool(), torch.arange(len(labels), device=labels.device)
    within = sums[number, labels] / (sizes[labels] - 1).clamp(min=1)
    beside = torch.where(own, torch.inf, sums / sizes).amin(1)
    scores = (beside - within) / torch.maximum(beside, within).clamp(min=torch.finfo(sums.dtype).tiny)
    return float(torch.where(sizes[labels] > 1, scores, 0.0).mean())


def _distances(points: Tensor, others: Tensor) -> Tensor:
    """Distances between points and others, exact where they are equal."""
    return torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")


def _divide(points: Tensor, count: int | None, seed: Tensor) -> tuple[Tensor, float]:
    """Medoids of points, and the mean silhouette."""
    if count is not None:
        return _cluster(_distances(points, points), count)
    if len(points) < 2 * MAX_STORIES:
        return _cluster(_distances(points, points), 1)
    found = _best(points)
    centered = points - points.mean(0)
    values, vectors = torch.linalg.eigh(centered.mT @ centered / (len(points) - 1))
    root = vectors * values.clamp(min=0.0).sqrt()
    for replication in range(_REPLICATIONS):
        noise = normal(fold_in(seed, replication), points.shape, points.dtype) @ root.mT
        if found[1] <= _MARGIN * _best(noise)[1]:
            return _cluster(_distances(points, points), 1)
    return found


def _best(points: Tensor) -> tuple[Tensor, float]:
    """The division of points with the highest silhouette."""
    distances = _distances(points, points)
    found = [_cluster(distances, count) for count in range(2, MAX_STORIES + 1)]
    return max(found, key=lambda pair: pair[1])


def _cluster(distances: Tensor, count: int) -> tuple[Tensor, float]:
    """Medoids of points and the mean silhouette, NaN for a single one."""
    medoids = medoids_of(distances, count)
    if count == 1:
        return medoids, float("nan")
    return medoids, silhouette_of(distances, distances[:, medoids].argmin(1))
