"""Covariances against their numpy twins, and their behavior for few and for old days."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from funcexplain.markets import covariances
from tests.helpers import assert_close
from tests.markets.market import ASSETS, covariance, made_returns


def ledoit_wolf_by_hand(returns: np.ndarray) -> np.ndarray:
    """Ledoit and Wolf (2004), lemmas 3.2 to 3.4, day by day."""
    days, assets = returns.shape
    centered = returns - returns.mean(0)
    sample = centered.T @ centered / days
    mean = np.trace(sample) / assets
    target = mean * np.eye(assets)
    distance = ((sample - target) ** 2).sum()
    error = sum(((np.outer(day, day) - sample) ** 2).sum() for day in centered) / days**2
    shrinkage = min(error, distance) / distance
    return (1 - shrinkage) * sample + shrinkage * target


def test_sample_is_numpys() -> None:
    returns = made_returns(30)
    assert_close(covariances.sample(returns), torch.from_numpy(np.cov(returns.numpy().T)))


@pytest.mark.parametrize("days", [3, 30, 300])
def test_ledoit_wolf_is_the_papers_and_positive_definite_even_of_few_days(days: int) -> None:
    pytest.importorskip("sklearn")
    returns = made_returns(days)
    found = covariances.ledoit_wolf(returns)
    assert_close(found, torch.from_numpy(ledoit_wolf_by_hand(returns.numpy())), rtol=1e-9)
    assert bool((torch.linalg.eigvalsh(found) > 0).all())


def test_ledoit_wolf_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.covariance", None)
    with pytest.raises(ModuleNotFoundError, match=r"^ledoit_wolf: needs .* pip install scikit-learn"):
        covariances.ledoit_wolf(made_returns(5))


@pytest.mark.parametrize("decay", [0.5, 0.94, 0.999])
def test_exponential_is_numpys_with_weights(decay: float) -> None:
    returns = made_returns(50)
    weights = decay ** np.arange(49, -1, -1)
    # numpy's own denominator for aweights is the one that makes independent days unbiased.
    twin = np.cov(returns.numpy().T, aweights=weights)
    assert_close(covariances.exponential(returns, decay), torch.from_numpy(twin))


def test_exponential_approaches_the_sample_as_it_forgets_less() -> None:
    returns = made_returns(50)
    slow = covariances.exponential(returns, 1 - 1e-12)
    assert_close(slow, covariances.sample(returns), rtol=1e-8)
    doubled = torch.cat([returns, 2 * returns])
    last = covariances.exponential(doubled, 0.5)
    assert_close(last, covariances.exponential(2 * returns, 0.5), rtol=1e-8, atol=1e-12)


ESTIMATORS = {"sample": covariances.sample, "exponential": covariances.exponential}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_they_are_symmetric_of_the_dtype_given_and_near_the_truth(name: str) -> None:
    estimate = ESTIMATORS[name]
    cov = estimate(made_returns(400))
    assert_close(cov, cov.mT, rtol=1e-12)
    assert torch.linalg.cholesky_ex(cov).info == 0
    assert cov.shape == (ASSETS, ASSETS)
    assert 0.3 < float(cov.trace() / covariance().trace()) < 3.0
    assert estimate(made_returns(400).float()).dtype is torch.float32


def history(*shape: int) -> Tensor:
    return torch.zeros(*shape)


@pytest.mark.parametrize("name", [*ESTIMATORS, "ledoit_wolf"])
@pytest.mark.parametrize(
    ("returns", "error", "message"),
    [
        (
            history(3),
            ValueError,
            "returns must have shape (days, assets) with at least 2 days and 1 asse",
        ),
        (history(1, 3), ValueError, "returns must have shape (days, assets) with at least 2 days"),
        (history(3, 0), ValueError, "returns must have shape (days, assets) with at least 2 days"),
        (history(3, 2).long(), TypeError, "returns must be floating"),
        (history(3, 2) / 0, ValueError, "returns must be finite"),
        ([[1.0]], TypeError, "returns must be a torch.Tensor, got list"),
    ],
)
def test_wrong_histories_raise(name: str, returns: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{name}: {re.escape(message)}"):
        getattr(covariances, name)(returns)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_other_decays_raise(decay: float) -> None:
    with pytest.raises(ValueError, match=r"^exponential: decay must be"):
        covariances.exponential(made_returns(5), decay)
