"""What if: given returns are met, the others are their conditional mean, and replays are scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.markets.features import log_returns, windows
from funcexplain.markets.prices import Prices
from tests.helpers import assert_close, make_problem
from tests.markets import market

F64 = torch.float64
LOOKBACK, DAYS = market.LOOKBACKS[0], 4
NAMES = ("EUR", "JPY", "GBP", "CHF")


def prices(days: int = 320) -> Prices:
    values = market.made_prices(days).numpy()
    dates = np.arange("2020-01-01", days, dtype="datetime64[D]")
    return Prices(values, dates[: len(values)], NAMES, "made")


def question(model: fe.models.Model | None = None, **settings: Any) -> fe.Problem:
    today = windows(prices(), LOOKBACK, market.SPAN)[0][-1]
    p = fe.problem(market.network(LOOKBACK), market.target(), today, assets=NAMES)
    model = model or fe.models.normal(market.covariance())
    return fe.scenarios.ahead(prices(), DAYS, model=model, span=market.SPAN, **settings)(p)


def moves(problem: fe.Problem, z: Tensor, days: int) -> Tensor:
    return fe.scenarios.outcome(problem, z).returns[-days:].sum(0)


def test_other_assets_follow_by_the_conditional_mean() -> None:
    problem, cov = question(drift=1e-3), market.covariance()
    z = fe.scenarios.shocked(problem, {"JPY": -0.05, 3: 0.02}, days=2)
    total = torch.tensor([-0.05, 0.02], dtype=F64).log1p()
    chosen = [1, 3]
    by = torch.linalg.solve(cov[chosen][:, chosen], total - 2e-3)
    assert_close(moves(problem, z, 2), 2e-3 + cov[:, chosen] @ by, rtol=1e-8, atol=1e-12)
    assert (z[:-2] == 0.0).all()
    outcome = fe.scenarios.outcome(problem, torch.stack([z, torch.zeros_like(z)]))
    assert_close(outcome.x[1], problem.args["reference"], rtol=1e-9)
    with torch.no_grad():
        assert_close(outcome.weights, market.network(LOOKBACK)(outcome.x), rtol=1e-9)


def test_other_assets_can_be_left_alone() -> None:
    problem = question()
    z = fe.scenarios.shocked(problem, {"EUR": 0.03}, others="unchanged")
    returns = fe.scenarios.outcome(problem, z).returns
    assert_close(returns[-DAYS:, 0], torch.full((DAYS,), np.log1p(0.03) / DAYS, dtype=F64), rtol=1e-8)
    assert_close(returns[:, 1:], problem.args["returns"][:, 1:], atol=1e-12)
    nothing = fe.scenarios.shocked(problem, {"EUR": 0.0}, others="unchanged")
    assert (nothing == 0.0).all()


@pytest.mark.parametrize("name", ["student_t", "filtered_history"])
@pytest.mark.parametrize("others", ["conditional", "unchanged"])
def test_other_models_have_the_given_returns_too(name: str, others: Any) -> None:
    pytest.importorskip("scipy")
    history = log_returns(prices())
    made = {
        "student_t": lambda: fe.models.student_t(market.covariance(), 4.0),
        "filtered_history": lambda: fe.models.filtered_history(history, volatility=(0.06, 0.93), df=6.0),
    }
    problem = question(made[name]())
    z = fe.scenarios.shocked(problem, {"GBP": -0.08}, others=others)
    found = moves(problem, z, DAYS)
    assert_close(found[2], torch.tensor(np.log1p(-0.08), dtype=F64), rtol=1e-6)
    if others == "unchanged":
        assert found[[0, 1, 3]].abs().max() < 1e-8


def test_a_replay_repeats_history_in_today_s_sigmas() -> None:
    problem, history = question(), log_returns(prices())
    z = fe.scenarios.replay(problem, prices(), "2020-03-02", "2020-03-04")
    first = int(np.searchsorted(prices().dates[1:], np.datetime64("2020-03-02")))
    found = fe.scenarios.outcome(problem, z).returns[-3:]

    def volatility(returns: Tensor) -> Tensor:
        weights = 0.94 ** torch.arange(len(returns) - 1, -1, -1, dtype=F64)
        return ((weights[:, None] * returns**2).sum(0) / weights.sum()).sqrt()

    ratio = volatility(history) / volatility(history[:first])
    assert_close(found, history[first : first + 3] * ratio, rtol=1e-8, atol=1e-12)
    plain = fe.scenarios.replay(problem, prices(), "2020-03-02", "2020-03-04", scaled=False)
    returns = fe.scenarios.outcome(problem, plain).returns
    assert_close(returns[-3:], history[first : first + 3], rtol=1e-8, atol=1e-12)
    assert_close(returns[:-3], problem.args["returns"][:-3], atol=1e-14)


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"shocks": {"USD": -0.1}}, "asset must be one of EUR, JPY, GBP, CHF, got 'USD'"),
        (ValueError, {"shocks": {4: -0.1}}, "asset must be one of 4"),
        (ValueError, {"shocks": {"EUR": -1.0}}, r"shocks\['EUR'\] must be"),
        (TypeError, {"shocks": {"EUR": "-5%"}}, r"shocks\['EUR'\] must be"),
        (ValueError, {"shocks": {"EUR": 0.1, 0: 0.1}}, "0 is given twice"),
        (TypeError, {"shocks": {}}, "shocks must be a dict"),
        (TypeError, {"shocks": [("EUR", 0.1)]}, "shocks must be a dict"),
        (ValueError, {"days": 5}, "days must be at most 4, the free days, got 5"),
        (ValueError, {"days": 0}, "days must be"),
        (ValueError, {"others": "alone"}, "others must be"),
    ],
    ids=range(10),
)
def test_bad_shocks_are_refused(error: type[Exception], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(error, match=f"shocked: .*{message}"):
        fe.scenarios.shocked(question(), **{"shocks": {"EUR": -0.05}, **arguments})


@pytest.mark.parametrize(
    ("error", "start", "end", "message"),
    [
        (ValueError, "2020-03-02", "2020-03-09", "start to end must be 1 to 4 trading days, .*got 8"),
        (ValueError, "2020-03-04", "2020-03-02", "start and end must be in order"),
        (ValueError, "2019-03-02", "2020-03-02", "start and end must be in order, within 2020-01-02"),
        (ValueError, "2030-01-01", "2030-01-02", "start and end must be in order"),
        (ValueError, "March", "2020-03-02", "start must be a date"),
        (TypeError, 20200302, "2020-03-02", "start must be a date"),
        (ValueError, "2020-01-05", "2020-01-06", "at least 20 days must be before start"),
    ],
    ids=range(7),
)
def test_bad_replays_are_refused(error: type[Exception], start: Any, end: str, message: str) -> None:
    with pytest.raises(error, match=f"replay: {message}"):
        fe.scenarios.replay(question(), prices(), start, end)


def test_what_has_no_law_or_is_frozen_is_refused() -> None:
    free = torch.tensor([[True, True, False, True]])
    with pytest.raises(ValueError, match=r"shocked: .*'GBP' is frozen"):
        fe.scenarios.shocked(question(free=free), {"GBP": 0.1})
    with pytest.raises(ValueError, match="shocked: problem must have a standard normal"):
        fe.scenarios.shocked(make_problem(), {0: 0.1})
    with pytest.raises(ValueError, match="shocked: problem must be one question"):
        fe.scenarios.shocked(fe.vmap(question(), seed=torch.arange(2)), {0: 0.1})
    with pytest.raises(TypeError, match="replay: prices must be Prices"):
        fe.scenarios.replay(question(), torch.ones(3, 4), "2020-03-02", "2020-03-02")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outcome: z must have shape"):
        fe.scenarios.outcome(question(), torch.zeros(3, 4, dtype=F64))
