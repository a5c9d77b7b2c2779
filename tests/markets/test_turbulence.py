"""Turbulence: its formula, its percentiles on real windows, and what it does to a search."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.markets.features import log_returns
from funcexplain.markets.prices import ecb
from tests.helpers import assert_close, assert_gradient
from tests.markets.market import ASSETS, LOOKBACKS, covariance, made_returns, scenario_problem

S = fe.scenarios
HISTORY = made_returns(300)


def test_it_is_the_distance_by_hand() -> None:
    returns, history = made_returns(6, seed=1), HISTORY.numpy()
    inverse = np.linalg.inv(np.cov(history.T))
    expected = [
        (day - history.mean(0)) @ inverse @ (day - history.mean(0)) / ASSETS for day in returns.numpy()
    ]
    assert_close(S.turbulence_of(returns, HISTORY), torch.tensor(expected), rtol=1e-10)
    own = S.turbulence_of(returns, HISTORY, 4 * torch.from_numpy(np.cov(history.T)))
    assert_close(own, torch.tensor(expected) / 4, rtol=1e-10)
    shaped = S.turbulence_of(returns.view(2, 3, ASSETS), HISTORY)
    assert_close(shaped.flatten(), torch.tensor(expected), rtol=1e-10)


def test_its_mean_over_the_history_is_one() -> None:
    # To the 299 by which the covariance was divided.
    assert float(S.turbulence_of(HISTORY, HISTORY).mean()) == pytest.approx(299 / 300)


def test_percentiles_of_real_windows_are_uniform() -> None:
    """Kolmogorov and Smirnov's distance of every other window's percentiles among the rest."""
    returns = log_returns(ecb())
    days = S.turbulence_of(returns, returns)
    of_windows = days[: len(days) // 40 * 40].view(-1, 20).mean(1)
    among, asked = of_windows[0::2], of_windows[1::2]
    percentiles = (among <= asked[:, None]).double().mean(1).sort().values
    steps = torch.arange(len(asked) + 1).double() / len(asked)
    distance = torch.maximum(steps[1:] - percentiles, percentiles - steps[:-1]).max()
    # The distance that a hundredth of all pairs of samples of one distribution exceeds.
    assert float(distance) < 1.63 * (1 / len(among) + 1 / len(asked)) ** 0.5
    # The test can fail: windows of doubled moves are not among them.
    doubled = (among <= 4 * asked[:, None]).double().mean(1).sort().values
    assert torch.maximum(steps[1:] - doubled, doubled - steps[:-1]).max() > 0.5


def test_a_duplicate_changes_nothing_unless_it_goes_its_own_way() -> None:
    """An asset that moves three times as much as another, and one that never moves."""

    def widen(days: torch.Tensor) -> torch.Tensor:
        return torch.cat([days, 3.0 * days[..., :1], torch.full_like(days[..., :1], 0.1)], -1)

    returns, history = made_returns(6, seed=1), HISTORY
    wide = widen(returns)
    expected = S.turbulence_of(returns, history)
    assert_close(S.turbulence_of(wide, widen(history)), expected, rtol=1e-9)
    single = S.turbulence_of(wide.float(), widen(history).float())
    assert_close(single.double(), expected, rtol=1e-4)
    for asset in (0, ASSETS, ASSETS + 1):
        apart = wide.clone()
        apart[0, asset] += 0.01 * HISTORY.std()
        found = S.turbulence_of(apart, widen(history))
        assert found[0] == torch.inf
        assert_close(found[1:], expected[1:], rtol=1e-9)
    # Units of single assets do not matter: only one that moves on its own has a distance.
    units = torch.tensor([1.0, 1e-7, 1.0, 1e5], dtype=torch.float64)
    assert_close(S.turbulence_of(returns * units, history * units), expected, rtol=1e-9)
    with pytest.raises(ValueError, match=r"^turbulence: cov must be positive definite"):
        S.turbulence(widen(history))


def test_evaluate_measures_the_same() -> None:
    history = torch.cat([HISTORY, HISTORY[:, :1]], 1)[None]  # asset 4 duplicates asset 0
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(15, 5), torch.nn.Softmax(-1))
    x0 = torch.stack([history[:, :3], history[:, 3:6]]).flip(
        2
    )  # no real windows, whose date it would be
    x0[1, 0, -1, 4] += 0.01
    rows = fe.vmap(fe.problem(network.double(), torch.full((5,), 0.2).double(), x0[0]), x0=x0)
    found = fe.evaluate(fe.solve(rows, max_steps=0), rows, history)
    days = S.turbulence_of(x0[:, 0], history[0])
    assert_close(found["turbulence"], days[:, -1])
    assert found["turbulence"][0] < 10
    assert found["turbulence"][1] == torch.inf
    assert found["joint_tail"][1] == 0.0
    assert "inf" in repr(found)


def test_the_penalty_is_the_mean_over_days_of_a_channel() -> None:
    x = torch.stack([made_returns(6, seed=2), made_returns(6, seed=3)])
    for channel in (0, 1):
        penalty = S.turbulence(HISTORY, channel=channel)
        expected = S.turbulence_of(x[channel], HISTORY).mean()
        assert_close(penalty(x, torch.rand_like(x)), expected)
        assert_gradient(lambda x: penalty(x, x), x, torch.func.grad(lambda x: penalty(x, x))(x))  # noqa: B023


@pytest.mark.parametrize("lookback", LOOKBACKS)
def test_stronger_penalties_give_calmer_answers(lookback: int) -> None:
    penalty = S.turbulence(HISTORY, covariance())
    problem = fe.penalize(penalty, strength=0.0)(scenario_problem(lookback))
    grid = fe.vmap(problem, turbulence=torch.tensor([0.0, 0.01, 0.1, 1.0]).double())
    solution = fe.solve(grid, fe.adam(lr=0.05), max_steps=100)
    found = [float(penalty(x, x)) for x in solution.x]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.5 * found[0]


def test_it_follows_the_problem_to_other_dtypes() -> None:
    penalty = S.turbulence(HISTORY)
    x = made_returns(6, seed=2)[None]
    assert penalty(x.float(), x.float()).dtype is torch.float32
    assert_close(penalty(x.float(), x.float()).double(), penalty(x, x), rtol=1e-4)


@pytest.mark.parametrize("name", ["turbulence_of", "turbulence"])
@pytest.mark.parametrize(
    ("history", "cov", "error", "message"),
    [
        (
            HISTORY[0],
            None,
            ValueError,
            "history must have shape (days, assets) with at least 2 days",
        ),
        (
            HISTORY[:3],
            None,
            ValueError,
            "cov must be positive definite, got one that is not; more observations",
        ),
        (
            HISTORY,
            covariance()[:2, :2],
            ValueError,
            "cov must have shape (4, 4), one row and column for",
        ),
        (HISTORY, covariance().float(), TypeError, "cov must have the dtype and device of history"),
        (HISTORY, covariance().triu(), ValueError, "cov must be symmetric"),
        (HISTORY.numpy(), None, TypeError, "history must be a torch.Tensor"),
    ],
)
def test_wrong_histories_raise(
    name: str, history: Any, cov: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{name}: {re.escape(message)}"):
        S.turbulence_of(HISTORY, history, cov) if name == "turbulence_of" else S.turbulence(history, cov)


def test_other_assets_and_channels_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^turbulence_of: returns must have one column for each of the 4"
    ):
        S.turbulence_of(HISTORY[:, :3], HISTORY)
    with pytest.raises(ValueError, match=r"^turbulence: channel must be >= 0"):
        S.turbulence(HISTORY, channel=-1)
