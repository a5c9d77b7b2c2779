"""Wrong settings of scenarios are refused, and named."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.markets.features import features
from funcexplain.markets.paths import invert
from tests.markets.market import (
    LOOKBACKS,
    base,
    covariance,
    question,
)

S: Any = fe.scenarios  # wrong types are the point of some calls
LONG = LOOKBACKS[0]


X0 = question(LONG).args["x0"]
R0, COV = base(LONG), covariance()


def ask(problem: fe.Problem | None = None, **changes: Any) -> fe.Problem:
    arguments: dict[str, Any] = {"returns": R0, "cov": COV, **changes}
    return S.scenario(**arguments)(question(LONG) if problem is None else problem)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "array": (lambda: ask(returns=R0.numpy()), TypeError, "scenario: returns must be a torch.Tensor"),
    "stack": (
        lambda: ask(returns=R0[None]),
        ValueError,
        "scenario: returns must have shape (days, asse",
    ),
    "dtype": (
        lambda: ask(returns=R0.float(), cov=COV.float()),
        TypeError,
        "scenario: returns must have the dtype and device of x0",
    ),
    "cov dtype": (lambda: ask(cov=COV.float()), TypeError, "scenario: cov must have the dtype and dev"),
    "cov shape": (lambda: ask(cov=COV[:2, :2]), ValueError, "scenario: cov must have shape (4, 4)"),
    "cov not square": (
        lambda: S.factors(COV[:2]),
        ValueError,
        "factors: cov must be square, got (2, 4)",
    ),
    "singular": (
        lambda: ask(cov=torch.ones_like(COV)),
        ValueError,
        "factors: cov must be positive definite",
    ),
    "skew": (lambda: ask(cov=COV.triu()), ValueError, "factors: cov must be symmetric"),
    "floats": (lambda: ask(free=torch.ones(1, 4)), TypeError, "factors: free must be a bool tensor (Tr"),
    "free assets": (
        lambda: ask(free=torch.ones(1, 3, dtype=torch.bool)),
        ValueError,
        "factors: free must have shape (days, 4), one flag for each day and asset, got (1, 3)",
    ),
    "free days": (
        lambda: ask(free=torch.ones(5, 4, dtype=torch.bool)),
        ValueError,
        "scenario: free must have shape (12, 4), one flag for each of the returns, or (1, 4) for all",
    ),
    "half a pair": (
        lambda: ask(features=features),
        TypeError,
        "scenario: features and inverse must be given together, got one of them",
    ),
    "no function": (
        lambda: ask(features=3, inverse=invert),
        TypeError,
        "scenario: features must be call",
    ),
    "another day": (
        lambda: ask(returns=base(LONG, seed=1)),
        ValueError,
        "scenario: returns must be those behind the reference window, but ",
    ),
    "too few days": (
        lambda: ask(returns=R0[5:]),
        ValueError,
        "scenario: returns must have shape (L + sp",
    ),
    "features' shape": (
        lambda: ask(features=lambda r: r, inverse=invert),
        ValueError,
        "scenario: features(returns) must have shape (3, 8, 4), that of x0, got (12, 4)",
    ),
    "units": (
        lambda: ask(fe.standardize(0.0, 0.02)(question(LONG))),
        ValueError,
        "scenario: problem must be searched over windows, got one with a transformed search space",
    ),
    "mapped": (
        lambda: ask(fe.vmap(question(LONG), x0=X0[None], reference=X0[None])),
        ValueError,
        "scenario: problem must have one reference, got a grid",
    ),
    "bounds before": (
        lambda: ask(fe.box(-5.0, 5.0)(question(LONG))),
        ValueError,
        "scenario: problem must be searched over windows",
    ),
    "twice": (lambda: ask(ask()), ValueError, "scenario: args already hold ['factor', 'returns'] from"),
    "no problem": (lambda: S.scenario(R0, COV)(3), TypeError, "scenario: problem must be a Problem"),
    "mask days": (
        lambda: S.shock_mask(3, 2, last_days=4),
        ValueError,
        "shock_mask: last_days must be a",
    ),
    "mask asset": (
        lambda: S.shock_mask(3, 2, assets=[2]),
        ValueError,
        "shock_mask: assets must be belo",
    ),
    "mask name": (
        lambda: S.shock_mask(3, 2, assets=["EUR"]),
        TypeError,
        "shock_mask: assets must be in",
    ),
    "mask of none": (lambda: S.shock_mask(0, 2), ValueError, "shock_mask: num_days must be >= 1"),
    "reached": (
        lambda: S.reached(torch.ones(3, 2, dtype=torch.bool), 4),
        ValueError,
        "reached: free must have shape (L + span - 1, A) with at least lookback = 4 days, got (3, 2)",
    ),
    "no solution": (lambda: S.shocks(X0, ask()), TypeError, "shocks: solution must be a Solution"),
    "no scenario": (
        lambda: S.shocks(fe.solve(ask(), max_steps=0), question(LONG)),
        ValueError,
        "shocks: problem must have the transform scenario",
    ),
    "other rows": (
        lambda: S.shocks(fe.solve(ask(), max_steps=0), fe.vmap(ask(), seed=torch.arange(2))),
        ValueError,
        "shocks: solution must answer the rows of problem (2,), got those of ()",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_settings_raise(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call()
