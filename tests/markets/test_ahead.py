"""Laws of scenarios ahead: the past is fixed, the days to come are shocked from today's state."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.markets.features import features, log_returns
from funcexplain.markets.paths import base_returns, invert
from tests.helpers import assert_close, assert_same
from tests.markets.market import ASSETS, F64, SPAN, generator, target
from tests.markets.test_models import (
    DAYS,
    LONG,
    LOOKBACK,
    MODELS,
    M,
    history,
    model_of,
    question,
    window,
)


def prices() -> Tensor:
    return torch.cat([torch.zeros(1, ASSETS, dtype=F64), history().cumsum(0)]).exp()


def today() -> Tensor:
    return window(history()[-DAYS:])


def ask(x0: Tensor | None = None, **settings: Any) -> fe.Problem:
    x0 = today() if x0 is None else x0
    arguments = {"prices": prices().to(x0.dtype), "days": 3, "span": SPAN, **settings}
    return fe.scenarios.ahead(**arguments)(question(x0))


@pytest.mark.parametrize("name", [*MODELS, "default"])
@pytest.mark.parametrize("days", [1, 3, DAYS])
def test_the_past_is_fixed_and_the_days_to_come_are_shocked(name: str, days: int) -> None:
    problem = ask(days=days, model=None if name == "default" else model_of(name), drift=0.002)
    past, coming = history()[LONG - DAYS + days :], torch.full((days, ASSETS), 0.002, dtype=F64)
    base = torch.cat([past, coming])
    assert_close(problem.args["returns"], base)
    assert_same(problem.args["reference"], problem.args["x0"])
    assert_close(problem.args["x0"], window(base))
    z = torch.randn(DAYS, ASSETS, dtype=F64, generator=generator(16))
    x = problem.decode(z, problem.args)
    fixed = max(LOOKBACK - days, 0)
    assert_same(x[:, :fixed], problem.args["x0"][:, :fixed])
    assert (x[0, fixed:] != problem.args["x0"][0, fixed:]).all()
    slopes = torch.func.grad(lambda z: problem.decode(z, problem.args).sum())(z)
    assert (slopes[:-days] == 0).all()
    assert (slopes[-days:] != 0).all()


def test_the_volatility_of_the_days_to_come_starts_from_todays() -> None:
    model = model_of("RiskMetrics")
    problem = ask(model=model)
    z = torch.zeros(DAYS, ASSETS, dtype=F64)
    z[-3] = 0.5
    moved = invert(problem.decode(z, problem.args), problem.args["returns"])[-3]
    data = model.data(1, ahead=1)
    expected = model.decode(z[-3:-2], torch.zeros(1, ASSETS, dtype=F64), data)
    assert_close(moved, expected[0], rtol=1e-8, atol=1e-12)
    variance = history().square().mean(0)
    for day in history():
        variance = 0.06 * day.square() + 0.94 * variance
    assert_close(data["variance"], variance, rtol=1e-10)


def test_it_begins_from_todays_window_or_the_one_ahead() -> None:
    model, drift = model_of("student_t"), torch.tensor([0.001, 0.0, -0.001, 0.002], dtype=F64)
    first = ask(model=model, drift=drift)
    again = ask(first.args["x0"], model=model, drift=drift)
    assert_same(*({**p.args, "params": None} for p in (first, again)))
    assert_close(first.args["returns"][-3:], drift.expand(3, -1))


def test_it_asks_of_chosen_assets_and_of_features_of_ones_own() -> None:
    free = torch.tensor([[True, False, False, True]])
    problem = ask(model=model_of("normal"), free=free)
    z = torch.ones(DAYS, ASSETS, dtype=F64)
    moved = invert(problem.decode(z, problem.args), problem.args["returns"])
    assert_close(moved[:, 1:3], problem.args["returns"][:, 1:3], rtol=1e-9, atol=1e-13)
    layers = torch.nn.Flatten(), torch.nn.Linear(LOOKBACK * ASSETS, ASSETS), torch.nn.Softmax(-1)
    network = torch.nn.Sequential(*layers).double()
    own = fe.problem(network, target(), history()[None, -LOOKBACK:])
    settings: Any = {"features": lambda r: r[None], "inverse": lambda x, r: x[0]}
    own = fe.scenarios.ahead(prices(), days=2, span=1, model=model_of("normal"), **settings)(own)
    assert_close(own.args["x0"][0, :-2], history()[-LOOKBACK + 2 :])
    assert (own.args["x0"][0, -2:] == 0).all()


def test_float32_questions_take_prices_of_float64() -> None:
    x0 = today().float()
    problem = fe.scenarios.ahead(prices(), 3, span=SPAN)(question(x0))
    assert {
        v.dtype for k, v in problem.args.items() if k in ("x0", "returns", "margins", "variance")
    } == {torch.float32}
    assert fe.solve(problem, fe.adam(lr=0.1), max_steps=3).x.isfinite().all()


def test_real_prices_ahead() -> None:
    from funcexplain.markets.prices import ecb

    shown, span = ecb(), 20
    x0 = features(base_returns(shown, torch.tensor(len(shown.values) - 1), 20, span), span)
    layer = torch.nn.Linear(3 * 20 * 16, 16)
    net = torch.nn.Sequential(torch.nn.Flatten(), layer, torch.nn.Softmax(-1)).double()
    problem = fe.scenarios.ahead(shown)(fe.problem(net, torch.full((16,), 1 / 16, dtype=F64), x0))
    assert_same(problem.args["returns"][:-10], log_returns(shown)[-29:])
    assert (problem.args["returns"][-10:] == 0).all()


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "days": (
        lambda: ask(days=13),
        ValueError,
        "ahead: days must be at most lookback + span - 1 = 12",
    ),
    "no days": (lambda: ask(days=0), ValueError, "ahead: days must be >= 1"),
    "drift": (
        lambda: ask(drift=torch.zeros(3, dtype=F64)),
        ValueError,
        "ahead: drift must have shape (4,), one return for each asset, or be a number, got (3,)",
    ),
    "drift's type": (lambda: ask(drift="up"), TypeError, "ahead: drift must be a number"),
    "drift not finite": (lambda: ask(drift=math.inf), ValueError, "ahead: drift must be finite"),
    "another window": (
        lambda: ask(window(history()[-DAYS - 1 : -1])),
        ValueError,
        "ahead: x0 must be today's window, which ends on the last price, or the one ahead, but at least",
    ),
    "few prices": (
        lambda: ask(prices=prices()[-9:]),
        ValueError,
        "ahead: prices must have at least 13 days for windows of 8 days with a span of 5, got 9",
    ),
    "few for the model": (
        lambda: ask(prices=prices()[-99:]),
        ValueError,
        "filtered_history: returns must have at least 250 days, got 98",
    ),
    "other assets": (
        lambda: ask(prices=prices()[:, :3]),
        ValueError,
        "ahead: prices must have one column for each of the 4 assets of x0, got 3",
    ),
    "flags": (
        lambda: ask(free=torch.ones(2, ASSETS, dtype=torch.bool)),
        ValueError,
        "ahead: free must have shape (3, 4), one flag for each of the days to come, or (1, 4) for all",
    ),
    "floats": (lambda: ask(free=torch.ones(3, ASSETS)), TypeError, "ahead: free must be a bool tensor"),
    "half a pair": (
        lambda: ask(features=features),
        TypeError,
        "ahead: features and inverse must be given together, got one of them",
    ),
    "history of the model": (
        lambda: ask(model=M.filtered_history(history()[:-1])),
        ValueError,
        "ahead: the history of the model filtered_history must end with the 9 known returns",
    ),
    "mapped": (
        lambda: fe.scenarios.ahead(prices(), 3, span=SPAN)(
            fe.vmap(question(today()), x0=today()[None].expand(2, -1, -1, -1))
        ),
        ValueError,
        "ahead: problem must have one x0, got a grid mapped over several; apply ahead first",
    ),
    "units": (
        lambda: fe.scenarios.ahead(prices(), 3, span=SPAN)(fe.standardize(0.0, 0.02)(question(today()))),
        ValueError,
        "ahead: problem must be searched over windows, got one with a transformed search space",
    ),
    "twice": (
        lambda: fe.scenarios.ahead(prices(), 3, span=SPAN, model=model_of("normal"))(
            ask(model=model_of("normal"))
        ),
        ValueError,
        "ahead: args already hold ['factor', 'returns'] from an earlier transform",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_settings_raise(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()
