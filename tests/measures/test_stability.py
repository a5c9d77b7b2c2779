"""Measures over starts, noise and other models: each equals its twin, a loop over rows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.measures import stability
from funcexplain.networks.noise import normal
from tests.grids import models, x0s
from tests.helpers import SHAPE, make_problem
from tests.measures.test_metrics import SETTINGS, answer, grid, history, measured

ROWS = list(np.ndindex(2, 2, 3))


def changes(row: tuple[int, ...]) -> np.ndarray:
    """Changes of a row in sigmas, flat."""
    sigma = history().flatten(1).std(1)[:, None, None]
    return ((answer().x[row] - grid()[row].args["reference"]) / sigma).flatten().numpy()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_starts_are_compared_as_by_hand(row: tuple[int, ...]) -> None:
    group = [changes((*row[:2], start)) for start in range(3)]
    own, others = group[row[2]], [c for start, c in enumerate(group) if start != row[2]]
    diversity = np.mean([np.sqrt(((own - other) ** 2).mean()) for other in others])
    top = [set(np.argsort(-np.abs(c))[:7]) for c in (own, *others)]
    agreement = np.mean([len(top[0] & other) / len(top[0] | other) for other in top[1:]])
    spread = np.sqrt(np.var(group, axis=0, ddof=1).mean())
    found = {name: float(measured()[name][row]) for name in ("diversity", "spread", "agreement")}
    expected = {"diversity": diversity, "spread": spread, "agreement": agreement}
    assert found == pytest.approx(expected, rel=1e-10)


def test_starts_are_compared_along_dimensions_by_name() -> None:
    found = fe.evaluate(answer(), grid(), history(), along=["start", "target"], **SETTINGS)
    for row in [(0, 1, 2), (1, 0, 0)]:
        others = [(t, row[1], s) for t, s in itertools.product(range(2), range(3))]
        others.remove(row)
        distances = [np.sqrt(((changes(row) - changes(other)) ** 2).mean()) for other in others]
        assert float(found["diversity"][row]) == pytest.approx(np.mean(distances), rel=1e-10)
    single = fe.evaluate(answer(), grid(), history(), along="date", **SETTINGS)
    assert torch.equal(single["spread"][:, 0], single["spread"][:, 1])
    assert "spread" not in fe.evaluate(answer(), grid(), history(), along=[], **SETTINGS)


def test_close_answers_are_distinguished() -> None:
    points = 1e6 + 1e-6 * torch.randn(
        4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    expected = [
        np.mean([np.sqrt(((p - q) ** 2).mean()) for j, q in enumerate(points.numpy()) if j != i])
        for i, p in enumerate(points.numpy())
    ]
    np.testing.assert_allclose(stability.diversity(points), expected, rtol=1e-9)


@pytest.mark.parametrize("size", [0.0, 0.1, 1e6 + 1 / 3])
def test_the_same_answer_from_all_starts_is_no_diversity(size: float) -> None:
    point = size + size * torch.randn(500, dtype=torch.float64)
    assert not stability.diversity(point.expand(77, -1)).any()


@pytest.mark.parametrize("near", [1e-3, 1e-6, 1e-9, 0.0])
def test_near_answers_beside_one_far_away_are_compared_exactly(near: float) -> None:
    points = torch.randn(300, dtype=torch.float64) + near * torch.randn(20, 300, dtype=torch.float64)
    points[-1] += torch.randn(300, dtype=torch.float64)
    lengths = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    expected = lengths.sum(-1) / 19 / 300**0.5
    torch.testing.assert_close(stability.diversity(points), expected, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("pairs", [1, 20, 1 << 20])
def test_groups_are_compared_piece_by_piece(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(9, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points[4, 2] = math.inf
    kept = torch.arange(9) != 4
    monkeypatch.setattr(stability, "_PAIRS", pairs)
    others = torch.cdist(points[kept], points[kept]) / 30**0.5
    torch.testing.assert_close(stability.diversity(points)[kept], others.sum(-1) / 7)
    same = stability.overlap(points, 5)
    assert same.isnan().tolist() == (~kept).tolist()
    torch.testing.assert_close(same[kept], stability.overlap(points[kept], 5))


def test_rows_without_others_have_nothing_to_be_compared_with() -> None:
    one = torch.ones(1, 4)
    assert stability.diversity(one).isnan().all()
    assert stability.spread(one).isnan()
    assert stability.overlap(one, 2).isnan().all()
    holed = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [3.0, 2.0]])
    assert stability.spread(holed) == stability.spread(holed[[0, 2]])
    assert stability.overlap(holed, 1).isnan().tolist() == [False, True, False]


def errors_by_hand(row: tuple[int, ...], x: torch.Tensor, **changed: Any) -> float:
    question = grid()[row]
    args = {**question.args, **changed}
    return float((question.objective(x, args)[1] - args["target"]).abs().max())


@pytest.mark.parametrize("row", ROWS[::3], ids=str)
def test_noise_moves_free_entries_as_by_hand(row: tuple[int, ...]) -> None:
    scale = 0.2 * history().flatten(1).std(1)[:, None, None]
    mask = grid().args["mask"]
    errors = []
    for seed in range(3):
        noise = normal(torch.tensor(seed), SHAPE, torch.float64)
        errors.append(errors_by_hand(row, answer().x[row] + scale * noise * mask))
    assert float(measured()["noise_error"][row]) == pytest.approx(np.mean(errors), rel=1e-10)
    middle = sorted(errors)[1]
    found = fe.evaluate(answer(), grid(), history(), **{**SETTINGS, "atol": middle * 1.0001})
    assert float(found["invalidation"][row]) == pytest.approx(1 / 3)


def test_seeds_choose_the_noise() -> None:
    first, again, other = (
        fe.evaluate(answer(), grid(), seed=seed, **SETTINGS)["noise_error"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not (first == other).any()
    still = fe.evaluate(answer(), grid(), noise=0.0, draws=1)
    torch.testing.assert_close(still["noise_error"], still["max_error"])


@pytest.mark.parametrize("row", ROWS[1::3], ids=str)
def test_other_models_are_asked_as_by_hand(row: tuple[int, ...]) -> None:
    stacked = models(3)
    errors = [
        errors_by_hand(row, answer().x[row], params={n: p[model] for n, p in stacked.items()})
        for model in range(3)
    ]
    assert float(measured()["ensemble_error"][row]) == pytest.approx(np.mean(errors), rel=1e-10)
    middle = sorted(errors)[1]
    found = fe.evaluate(answer(), grid(), models=stacked, draws=0, atol=middle * 1.0001)
    assert float(found["ensemble_hit"][row]) == pytest.approx(2 / 3)


def test_an_ensemble_may_be_asked_about_its_own_rows() -> None:
    stacked = models(3)
    rows = fe.vmap(fe.vmap(make_problem(), x0=x0s(2)), params=stacked)
    solution = fe.solve(rows, fe.sgd(lr=20.0), max_steps=200, atol=1e-3)
    found = fe.evaluate(solution, rows, models=stacked)
    assert (found["ensemble_hit"] >= solution.hit.double() / 3 - 1e-12).all()
    assert found["ensemble_error"].shape == (3, 2)


def test_goals_are_measured_by_what_they_look_at() -> None:
    wanted = [0.3, 0.5, 0.7]
    wish = fe.vmap(make_problem(), target=[fe.targets.at_least(0, w) for w in wanted])
    solution = fe.solve(wish, max_steps=1)
    found = fe.evaluate(solution, wish, scale=1.0, draws=2, noise=0.0)
    short = (torch.tensor(wanted, dtype=torch.float64) - solution.weights[:, 0]).clamp_min(0)
    torch.testing.assert_close(found["max_error"], short)
    torch.testing.assert_close(found["noise_error"], short)
