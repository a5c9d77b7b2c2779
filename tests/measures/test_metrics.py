"""Measures of single rows: each equals its twin in numpy, row by row, however rows are put together."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.measures import plausibility, proximity
from funcexplain.measures.metrics import DESCRIPTIONS, Metrics
from tests.grids import models, targets, x0s
from tests.helpers import (
    ASSETS,
    CHANNELS,
    LOOKBACK,
    NETWORKS,
    assert_close,
    assert_same,
    clone_args,
    make_network,
    make_problem,
    params,
)

DAYS = 110
SETTINGS: dict[str, Any] = {"nearest": 3, "tolerance": 0.1, "draws": 3, "noise": 0.2, "top": 7}


@cache
def history() -> torch.Tensor:
    """Days whose returns are correlated, with fat tails, and one asset that follows another."""
    generator = torch.Generator().manual_seed(5)
    draws = torch.randn(CHANNELS, DAYS, ASSETS, generator=generator, dtype=torch.float64).pow(3)
    days = draws + draws[:, :, :1]
    days[0, :, 3] = 2.0 * days[0, :, 0]
    return days


@cache
def grid() -> fe.Problem:
    """Rows (target 2, date 2, start 3)."""
    problem = fe.standardize(0.1, 0.7)(fe.freeze(make_problem()))
    starts = fe.vmap(problem, x0=x0s(3), name="start")
    dates = fe.vmap(starts, reference=x0s(2, seed=50), name="date")
    return fe.vmap(dates, target=targets(2))


@cache
def answer() -> fe.Solution:
    return fe.solve(grid(), fe.sgd(lr=2.0), max_steps=8, atol=0.05)


@cache
def measured() -> Metrics:
    return fe.evaluate(answer(), grid(), history(), models=models(3), **SETTINGS)


def facts_twin(returns: np.ndarray) -> np.ndarray:
    """Volatility, pair correlation, excess kurtosis, autocorrelation of (L, A), by their definitions."""
    moving = returns[:, returns.std(0) > 0]
    d = moving - moving.mean(0)
    corr = np.corrcoef(moving.T)
    upper = corr[np.triu_indices(len(corr), 1)]
    kurtosis = (d**4).mean(0) / (d**2).mean(0) ** 2 - 3
    auto = (d[:-1] * d[1:]).sum(0) / (d**2).sum(0)
    return np.array([np.sqrt(returns.var(0, ddof=1).mean()), upper.mean(), kurtosis.mean(), auto.mean()])


def twin(row: tuple[int, ...]) -> dict[str, float]:
    """The measures of one row against the history, in numpy."""
    question = grid()[row]
    x, reference = answer().x[row].numpy(), question.args["reference"].numpy()
    weights, target = answer().weights[row].numpy(), question.args["target"].numpy()
    today = question.objective(question.args["reference"], question.args)[1].numpy()
    days = history().numpy()
    sigma = np.array([channel.std(ddof=1) for channel in days])[:, None, None]
    d = x - reference
    s = np.abs(d / sigma)
    center = np.sort(days, axis=1)[:, (DAYS - 1) // 2][:, None]  # the lower median, as torch's
    mad = np.sort(np.abs(days - center), axis=1)[:, (DAYS - 1) // 2][:, None]
    pairs = np.abs(s.ravel()[:, None] - s.ravel()[None]).sum()
    mean, inverse = days[0].mean(0), np.linalg.pinv(np.cov(days[0].T), rcond=1e-10)
    rank = np.linalg.matrix_rank(inverse)

    def turbulence(returns: np.ndarray) -> float:
        # Asset 3 has always moved twice as much as asset 0: another day is infinitely far away.
        if abs((returns - mean) @ [2, 0, 0, -1, 0]) > 1e-4:
            return math.inf
        return float((returns - mean) @ inverse @ (returns - mean) / rank)

    count = DAYS - LOOKBACK + 1
    windows = np.stack([days[:, t : t + LOOKBACK] for t in range(count)])
    distances = np.sort(np.sqrt((((windows - x) / sigma) ** 2).mean((1, 2, 3))))
    low, high = np.quantile(days, [0.01, 0.99], axis=1)[:, :, None]
    usual = np.mean([facts_twin(window[0]) for window in windows], axis=0)
    facts = facts_twin(x[0])
    return {
        "hit": float(np.abs(weights - target).max() <= 0.05),
        "max_error": np.abs(weights - target).max(),
        "total_variation": np.abs(weights - target).sum() / 2,
        "kl": (target * np.log(target / weights)).sum(),
        "gap_closed": 1 - np.abs(weights - target).sum() / np.abs(today - target).sum(),
        "l1": np.abs(d).sum(),
        "l2": np.linalg.norm(d),
        "linf": np.abs(d).max(),
        "rms_sigmas": np.sqrt((s**2).mean()),
        "mad_distance": (np.abs(d) / mad).mean(),
        "changed_share": (s > 0.1).mean(),
        "assets_touched": (s > 0.1).any((0, 1)).sum(),
        "days_touched": (s > 0.1).any((0, 2)).sum(),
        "channels_touched": (s > 0.1).any((1, 2)).sum(),
        "gini": pairs / (2 * s.size * s.sum()),  # mean absolute difference over twice the mean
        "turbulence": turbulence(x[0, -1]),
        "nearest_windows": distances[:3].mean(),
        "in_range": ((x >= low) & (x <= high)).mean(),
        "volatility_ratio": facts[0] / usual[0],
        "correlation_gap": facts[1] - usual[1],
        "kurtosis_gap": facts[2] - usual[2],
        "autocorrelation_gap": facts[3] - usual[3],
    }


@pytest.mark.parametrize("row", list(np.ndindex(2, 2, 3)), ids=str)
def test_measures_of_a_row_equal_their_twins(row: tuple[int, ...]) -> None:
    expected = twin(row)
    for name, value in expected.items():
        found = float(measured()[name][row])
        assert found == pytest.approx(value, rel=1e-8, abs=1e-10), name


def test_every_measure_is_described_and_has_the_shape_of_the_rows() -> None:
    assert measured().names == tuple(measured().descriptions)
    assert measured().names == tuple(name for name in DESCRIPTIONS if name != "log10_chance")
    assert all(value.shape == (2, 2, 3) for value in measured().values())
    assert all("\n" not in text and len(text) < 90 for text in DESCRIPTIONS.values())
    assert measured().dims == answer().dims
    with pytest.raises(KeyError, match="no measure 'l3'; there are hit, max_error"):
        measured()["l3"]


@pytest.mark.parametrize("chunk_size", [1, 5, 1000])
def test_measures_do_not_depend_on_the_chunk(chunk_size: int) -> None:
    again = fe.evaluate(answer(), grid(), history(), models=models(3), chunk_size=chunk_size, **SETTINGS)
    for name in measured():
        assert_close(again[name].double(), measured()[name].double(), rtol=1e-10, atol=1e-10)


def test_measures_hold_no_more_memory_than_they_are() -> None:
    for name in set(measured()) - {"spread"}:  # one number for all starts
        value = measured()[name]
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size(), name


def test_one_question_is_measured_as_its_row() -> None:
    alone = fe.evaluate(answer()[1, 0, 2], grid()[1, 0, 2], history(), models=models(3), **SETTINGS)
    over_starts = {"diversity", "spread", "agreement"}
    assert set(alone) == set(measured()) - over_starts
    for name in alone:
        assert alone[name].shape == ()
        expected = measured()[name][1, 0, 2].double()
        assert_close(alone[name].double(), expected, rtol=1e-10, atol=1e-10)


def test_nothing_of_the_callers_is_touched() -> None:
    state, args, past = torch.get_rng_state(), clone_args(grid().args), history().clone()
    before = clone_args(answer()._tensors())
    fe.evaluate(answer(), grid(), history(), models=models(2), **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(grid().args, args)
    assert_same(answer()._tensors(), before)
    assert torch.equal(history(), past)


def test_what_is_not_known_is_left_out() -> None:
    problem = make_problem()
    solution = fe.solve(problem, max_steps=3)
    plain = fe.evaluate(solution, problem)
    assert "rms_sigmas" not in plain
    assert "noise_error" not in plain
    assert "turbulence" not in plain
    assert plain["changed_share"] == (solution.x != problem.args["reference"]).double().mean()
    known = fe.evaluate(solution, problem, scale=2.0, draws=0)
    assert set(known) == set(plain) | {"rms_sigmas"}
    assert known["rms_sigmas"] == proximity.rms((solution.x - problem.args["reference"]) / 2)


def test_the_sigma_is_given_or_of_the_history_or_of_standardize() -> None:
    change = (answer().x - grid().args["reference"][:, None]).square().mean((-1, -2, -3)).sqrt()
    assert_close(fe.evaluate(answer(), grid(), draws=0)["rms_sigmas"], change / 0.7)
    assert_close(fe.evaluate(answer(), grid(), scale=2.0, draws=0)["rms_sigmas"], change / 2)
    assert not torch.allclose(measured()["rms_sigmas"], change / 0.7)


def test_a_sigma_of_each_row_is_that_of_the_row() -> None:
    problem = fe.standardize(0.0, 1.0)(make_problem())
    stds = torch.tensor([0.5, 2.0], dtype=torch.float64)
    rows = fe.vmap(problem, std=stds)
    solution = fe.solve(rows, max_steps=2)
    together = fe.evaluate(solution, rows, history(), scale=None, draws=2)
    alone = fe.evaluate(solution, rows, draws=2)
    for row in range(2):
        one = fe.evaluate(solution[row], rows[row], draws=2)
        for name in one:
            assert_close(alone[name][row].double(), one[name].double(), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(together["rms_sigmas"], alone["rms_sigmas"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_of_other_dtypes_are_measured_in_double(dtype: torch.dtype) -> None:
    problem = fe.vmap(make_problem(dtype=dtype), target=targets(2, dtype))
    found = fe.evaluate(fe.solve(problem, max_steps=2), problem, history().to(dtype))
    assert {value.dtype for value in found.values()} <= {torch.float64, torch.int64, torch.bool}


def test_rows_that_are_not_finite_do_not_touch_others() -> None:
    starts = x0s(3)
    starts[1] = math.nan
    rows = fe.vmap(make_problem(), x0=starts)
    solution = fe.solve(rows, max_steps=2)
    found = fe.evaluate(solution, rows, history(), **SETTINGS)
    without = torch.tensor([0, 2])
    fewer = fe.vmap(make_problem(), x0=starts[without])
    others = fe.evaluate(solution[without], fewer, history(), **SETTINGS)
    for name in found:
        assert_close(found[name][without].double(), others[name].double(), rtol=1e-9, atol=1e-10)
    assert found["max_error"][1].isnan()
    assert found["rarity"][1].isnan()
    assert found["invalidation"][1] == 1.0


@pytest.mark.parametrize("name", params(NETWORKS))
def test_answers_of_every_network_are_measured(name: str) -> None:
    problem = fe.vmap(make_problem(name), target=targets(2))
    solution = fe.solve(problem, max_steps=1)
    found = fe.evaluate(solution, problem, history(), draws=1, noise=0.0)
    errors = (solution.weights - problem.args["target"]).abs().amax(-1)
    assert_close(found["max_error"], errors)
    assert_close(found["noise_error"], errors, rtol=1e-10)


def test_a_consensus_is_measured_over_its_models() -> None:
    problem = fe.consensus(fe.vmap(make_problem(), params=models(2)))
    solution = fe.solve(problem, max_steps=2)
    found = fe.evaluate(solution, problem, scale=1.0)
    assert found["max_error"] == (solution.weights - problem.args["target"]).abs().max()


def test_the_history_measures_itself_as_usual() -> None:
    generator = torch.Generator().manual_seed(7)
    days = torch.randn(2, 500, 4, generator=generator, dtype=torch.float64)
    past = plausibility.summarize(days, lookback=10)
    assert plausibility.summarize(days[:, :4], lookback=2).usual.mean.isnan().all()  # 4 days, 4 assets
    window = days[:, 100:110]
    assert plausibility.nearest_windows(window, past, past.sigma, 1) == 0.0
    inside = [
        plausibility.in_range(days[:, t : t + 10], past.lower, past.upper) for t in range(0, 500, 10)
    ]
    assert float(torch.stack(inside).mean()) == pytest.approx(0.98, abs=0.005)


def test_what_never_moves_is_left_out_or_infinitely_far() -> None:
    returns = history()[0, :LOOKBACK].clone()
    returns[:, 2] = 0.1
    np.testing.assert_allclose(plausibility.stylized_facts(returns), facts_twin(returns.numpy()))
    assert plausibility.stylized_facts(torch.ones(1, 3)).isnan().all()
    assert plausibility.stylized_facts(torch.ones(4, 3))[1:].isnan().all()
    change, mad = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert proximity.mad_distance(change, mad) == 0.5
    assert proximity.mad_distance(change.flip(-1), mad) == math.inf
    assert proximity.gini(torch.zeros(1, 2, 2)).isnan()


def test_measures_are_read_as_a_table() -> None:
    lines = repr(measured()).splitlines()
    assert lines[0].split() == ["median", "minimum", "maximum"]
    for line, (name, text) in zip(lines[1:], measured().descriptions.items(), strict=True):
        assert line.startswith(name)
        assert line.endswith(text)
    pytest.importorskip("pandas")
    table = measured().to_pandas()
    assert table.index.names == ["target", "date", "start"]
    for name in measured():
        np.testing.assert_array_equal(table[name].to_numpy(), measured()[name].flatten().numpy())
    alone = fe.evaluate(answer()[0, 0, 0], grid()[0, 0, 0], scale=1.0).to_pandas()
    assert len(alone) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"history": [1.0]}, TypeError, "evaluate: history must be a torch.Tensor"),
        ({"history": torch.zeros(2, 40, 4)}, ValueError, r"history must have shape \(2, days, 5\)"),
        ({"history": torch.zeros(2, 6, 5)}, ValueError, "with more than 6 days"),
        ({"history": torch.full((2, 9, 5), math.nan)}, ValueError, "history must be finite"),
        ({"scale": 0.0}, ValueError, "evaluate: scale must be > 0"),
        ({"scale": "one"}, TypeError, "evaluate: scale must be a number or a"),
        ({"tolerance": -1}, ValueError, "evaluate: tolerance must be finite and >= 0"),
        ({"noise": math.inf}, ValueError, "evaluate: noise must be finite"),
        ({"draws": -1}, ValueError, "evaluate: draws must be >= 0"),
        ({"seed": 0.5}, TypeError, "evaluate: seed must be an int"),
        ({"nearest": 0}, ValueError, "evaluate: nearest must be >= 1"),
        ({"top": 0}, ValueError, "evaluate: top must be >= 1"),
        ({"chunk_size": 0}, ValueError, "evaluate: chunk_size must be >= 1"),
        ({"atol": None}, TypeError, "evaluate: atol must be a number"),
        ({"along": "begin"}, ValueError, r"evaluate: along must be names among .* got \['begin'\]"),
        ({"models": [1]}, TypeError, r"models must be parameters .* fe\.stack\(models\)\[1\]"),
    ],
    ids=repr,
)
def test_wrong_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fe.evaluate(answer(), grid(), **arguments)


def test_answers_and_questions_that_differ_are_refused() -> None:
    with pytest.raises(TypeError, match="evaluate: problem must be a Problem, got Solution"):
        fe.evaluate(answer(), answer())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="evaluate: solution must be a Solution, got Problem"):
        fe.evaluate(grid(), grid())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must have the rows \(2, 3\) .* got \(2, 2, 3\)"):
        fe.evaluate(answer(), grid()[:, 0])
    with pytest.raises(ValueError, match="expected at least one row"):
        fe.evaluate(answer()[:0], grid()[:0])
    with pytest.raises(TypeError, match="must be of the problem's dtype and device"):
        fe.evaluate(answer(), fe.cast(dtype=torch.float32)(grid()))
    one = {name: leaf[0] for name, leaf in models(2).items()}
    with pytest.raises(ValueError, match="models must lead with one number of models"):
        fe.evaluate(answer(), grid(), models=one)
    with pytest.raises(TypeError, match="models must be parameters of the problem's network"):
        fe.evaluate(answer(), grid(), models=fe.stack([make_network("conv_no_norm")])[1])
