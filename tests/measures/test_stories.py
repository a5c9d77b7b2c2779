"""Stories: medoids and silhouettes against their definitions, shares, number of kinds, order."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.measures.draws import read
from funcexplain.measures.stories import medoids_of, silhouette_of
from tests.helpers import assert_same
from tests.markets.market import F64, generator
from tests.measures.draws import exact_draws, question

P: Any = fe  # wrong types are the point of some calls


def distances(size: int, seed: int = 0) -> torch.Tensor:
    points = torch.randn(size, 2, dtype=F64, generator=generator(seed))
    return torch.cdist(points, points)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_medoids_are_the_best_of_all(count: int) -> None:
    table = distances(14, seed=count)
    found = table[medoids_of(table, count)].amin(0).sum()
    best = min(float(table[list(chosen)].amin(0).sum()) for chosen in combinations(range(14), count))
    assert float(found) <= 1.02 * best
    assert len(set(medoids_of(table, count).tolist())) == count


def test_equal_points_have_distinct_medoids() -> None:
    table = torch.zeros(6, 6, dtype=F64)
    assert medoids_of(table, 3).tolist() == [0, 1, 2]
    assert silhouette_of(table, torch.tensor([0, 0, 1, 1, 2, 2])) == 0.0


def test_silhouettes_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    table = distances(40)
    for count in (2, 3, 5):
        labels = table[:, medoids_of(table, count)].argmin(1)
        expected = metrics.silhouette_score(table.numpy(), labels.numpy(), metric="precomputed")
        assert silhouette_of(table, labels) == pytest.approx(expected)
    alone = torch.tensor([0, *[1] * 39])
    expected = metrics.silhouette_score(table.numpy(), alone.numpy(), metric="precomputed")
    assert silhouette_of(table, alone) == pytest.approx(expected)


@pytest.mark.parametrize(("sides", "kinds"), [(1, 1), (2, 2)])
def test_there_are_as_many_kinds_as_regions(sides: int, kinds: int) -> None:
    problem = question(sides=sides, level=3.0)
    draws = exact_draws(problem, 200, sides=sides, beta=3.0)
    found = fe.stories(draws, problem)
    assert len(found.shares) == len(found.medoids) == len(found.moves) == kinds
    assert float(found.shares.sum()) == pytest.approx(1.0)
    if kinds == 1:
        assert found.silhouette != found.silhouette
        return
    along = read("stories", draws, problem, 10, 0).given[:, 2:, 0].sum(1)
    sign = (along[found.labels == 0].mean() < 0).double() * 2 - 1
    right = ((along * sign < 0) == (found.labels == 0)).double().mean()
    assert right > 0.95
    assert 0.4 < float(found.shares[1]) <= float(found.shares[0])


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_kinds_are_of_the_draws(count: int) -> None:
    problem = question()
    draws = exact_draws(problem, 90)
    found = fe.stories(draws, problem, count)
    assert found.labels[found.medoids].tolist() == list(range(count))
    sizes = torch.bincount(found.labels, minlength=count)
    assert_same(found.shares, sizes.double() / 90)
    assert bool((found.shares.diff() <= 0).all())
    markets = read("stories", draws, problem, 2000, 0)
    total = markets.total(markets.given)
    points = total / markets.sigma
    for kind in range(count):
        inside = found.labels == kind
        torch.testing.assert_close(found.moves[kind], total[inside].mean(0))
        costs = torch.cdist(points[inside], points[inside]).sum(1)
        medoid = torch.cdist(points[found.medoids[kind]][None], points[inside]).sum()
        assert float(medoid) <= float(costs.min()) + 1e-5
    assert draws[found.medoids].hit.all()
    order = torch.randperm(90, generator=generator(3))
    again = fe.stories(draws[order], problem, count)
    assert_same(order[again.medoids].sort().values, found.medoids.sort().values)


def test_many_draws_join_the_medoids_of_some() -> None:
    problem = question(sides=2)
    found = fe.stories(exact_draws(problem, 1200, sides=2), problem, 2)
    assert len(found.labels) == 1200
    assert float(found.shares.sum()) == pytest.approx(1.0)
    assert found.medoids.max() > 512


def test_few_draws_are_one_kind() -> None:
    problem = question()
    draws = exact_draws(problem, 4)
    assert fe.stories(draws, problem).shares.tolist() == [1.0]
    with pytest.raises(ValueError, match="stories: count must be at most the number of draws, 4, got 5"):
        fe.stories(draws, problem, 5)
    with pytest.raises(ValueError, match="stories: count"):
        fe.stories(draws, problem, 0)
    with pytest.raises(TypeError, match="stories: count must be an int"):
        P.stories(draws, problem, 2.0)
