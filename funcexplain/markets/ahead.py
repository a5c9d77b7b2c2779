"""Scenarios of the coming days: the window that ends some days after the last price."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from funcexplain.markets.features import features as market_features
from funcexplain.markets.features import log_returns
from funcexplain.markets.models import Model, filtered_history
from funcexplain.markets.paths import invert
from funcexplain.markets.prices import Prices
from funcexplain.markets.shocked import (
    Features,
    Inverse,
    check_functions,
    check_history,
    check_model,
    differs,
    search_shocks,
)
from funcexplain.problems.checks import (
    check_count,
    check_like,
    check_number,
    check_positive,
    check_shape,
)
from funcexplain.problems.grid import varying_dims
from funcexplain.problems.problem import Problem, check_problem
from funcexplain.problems.transforms import Transform


def ahead(
    prices: Prices | Tensor,
    days: int = 10,
    *,
    drift: float | Tensor = 0.0,
    model: Model | None = None,
    free: Tensor | None = None,
    span: int = 20,
    features: Features | None = None,
    inverse: Inverse | None = None,
) -> Transform:
    """Search over shocks to the coming days: the window that ends ``days`` after the last price.

    The past is fixed, and at ``z = 0`` every coming day has the return ``drift``. That window becomes
    the problem's ``x0`` and ``reference``.

    Args:
        prices: a price history up to today, or positive prices of shape ``(T, A)``.
        days: number of coming days, at most ``L + span - 1``.
        drift: log return of a coming day without shocks, a number or one for each asset, ``(A,)``.
        model: a model of ``fe.models``, of the problem's dtype. Default: ``filtered_history`` of the
            log returns of ``prices``.
        free: shocks that are free (True), bool, ``(days, A)``, or ``(1, A)`` for all days. Default: all.
        span: days that momentum and volatility look back.
        features: as in `scenario`, of the returns of ``L + span - 1`` days.
        inverse: as in `scenario`.

    Returns:
        A transform of a problem whose ``x0`` is today's window, the one that ends on the last price. It
        adds data as `scenario` does.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if there are too few prices, too many days, a drift of another length, an ``x0`` or
            ``reference`` that is neither today's window nor the one ahead, or as in `scenario`.
        ModuleNotFoundError: if the default model needs scipy, and it is not installed.

    Example:
        >>> import torch, funcexplain as fe
        >>> from funcexplain.markets.features import windows
        >>> prices = (0.01 * torch.randn(300, 2)).cumsum(0).exp()
        >>> today = windows(prices, lookback=10, span=5)[0][-1]
        >>> layers = torch.nn.Flatten(), torch.nn.Linear(60, 2), torch.nn.Softmax(-1)
        >>> network = torch.nn.Sequential(*layers)
        >>> p = fe.problem(network, torch.tensor([0.6, 0.4]), today, loss=fe.losses.kl)
        >>> p = fe.scenarios.ahead(prices, days=3, span=5)(p)
        >>> solution = fe.solve(p, fe.adam(lr=0.1), max_steps=20)
        >>> torch.equal(solution.x[0, :-3], today[0, 3:])  # returns of the past
        True
    """
    past = log_returns(prices)
    count = check_positive("ahead", "days", days)
    check_functions("ahead", features, inverse)
    if check_count("ahead", "span", span) < 1 and features is None:
        check_positive("ahead", "span", span)

    def transform(problem: Problem) -> Problem:
        args = check_problem("ahead", problem).args
        x0, num_days = args["x0"], args["x0"].shape[-2] + span - 1
        if count > num_days:
            raise ValueError(
                f"ahead: days must be at most lookback + span - 1 = {num_days}, got {count}; a window "
                "shows only as many"
            )
        if len(past) < num_days:
            raise ValueError(
                f"ahead: prices must have at least {num_days + 1} days for windows of "
                f"{x0.shape[-2]} days with a span of {span}, got {len(past) + 1}"
            )
        history = past.to(x0)
        if history.shape[1] != x0.shape[-1]:
            raise ValueError(
                f"ahead: prices must have one column for each of the {x0.shape[-1]} assets of x0, got "
                f"{history.shape[1]}"
            )
        law = check_model("ahead", filtered_history(history) if model is None else model, history)
        known = history[len(history) + count - num_days :]
        check_history("ahead", law, known)
        base = torch.cat([known, _check_drift(drift, history).expand(count, -1)])
        flags = torch.zeros_like(base, dtype=torch.bool)
        flags[-count:] = True if free is None else _check_flags(free, base[-count:])
        data = law.data(num_days, free=flags, ahead=count)
        compute = features or partial(market_features, span=span)
        moved = _move(problem, today=compute(history[-num_days:]), ahead=compute(base))
        return search_shocks("ahead", moved, base, law, data, compute, inverse or invert)

    return transform


def _move(problem: Problem, *, today: Tensor, ahead: Tensor) -> Problem:
    """The problem with the window ahead as start and reference, which must be that or today's."""
    for name in ("x0", "reference"):
        if varying_dims(problem.dims, name):
            raise ValueError(
                f"ahead: problem must have one {name}, got a grid mapped over several; apply ahead "
                f"first, then map: fe.vmap(problem, {name}=...)"
            )
        given = problem.args[name]
        for window in (today, ahead):
            check_like("ahead", "features(returns)", window, given, "x0")
            check_shape("ahead", "features(returns)", window, given.shape, "that of x0")
        count = min(int(differs(window, given).sum()) for window in (today, ahead))
        if count:
            raise ValueError(
                f"ahead: {name} must be today's window, which ends on the last price, or the one ahead, "
                f"but at least {count} of {given.numel()} features differ; windows(prices, lookback, "
                "span)[0][-1] is today's, and features=... computes other channels"
            )
    return replace(problem, args={**problem.args, "x0": ahead, "reference": ahead})


def _check_drift(drift: float | Tensor, history: Tensor) -> Tensor:
    """The drift of each asset, ``(A,)``."""
    if not isinstance(drift, Tensor):
        return torch.full_like(history[0], check_number("ahead", "drift", drift, minimum=-1.0))
    drift = check_like("ahead", "drift", drift, history, "x0")
    meaning = "one return for each asset, or be a number"
    return check_shape("ahead", "drift", drift, history.shape[1:], meaning)


def _check_flags(free: Tensor, coming: Tensor) -> Tensor:
    """The flags of the coming days."""
    kind = free.dtype if isinstance(free, Tensor) else type(free).__name__
    if kind is not torch.bool:
        raise TypeError(f"ahead: free must be a bool tensor (True = free), got {kind}")
    if free.shape not in (coming.shape, (1, coming.shape[1])):
        raise ValueError(
            f"ahead: free must have shape {tuple(coming.shape)}, one flag for each of the days to come, "
            f"or (1, {coming.shape[1]}) for all of them, got {tuple(free.shape)}"
        )
    return free
