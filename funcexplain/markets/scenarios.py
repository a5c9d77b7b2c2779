"""Scenarios: the search over whitened shocks to the returns behind a window.

    z  -->  returns = model.decode(z, r0)  -->  channels = features(returns)  -->  x

All channels of a window are functions of one path of prices. Searched separately, they contradict each
other; here the search moves the path, so that they agree by construction: prices stay positive,
volatilities non-negative, and the assets move together according to a model of returns. `scenario`
shocks the past days behind a window, `ahead` the coming days. `shocked` and `replay` construct
scenarios, and `outcome` evaluates the network's weights in them.

Models are in `models`, starts and distances from history in `starts` and `turbulence`, covariances in
`covariances`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from funcexplain.engine.reweighting import map_points
from funcexplain.markets.ahead import ahead as ahead
from funcexplain.markets.features import features as market_features
from funcexplain.markets.masks import factors as factors
from funcexplain.markets.masks import reached as reached
from funcexplain.markets.masks import shock_mask as shock_mask
from funcexplain.markets.models import Model
from funcexplain.markets.paths import base_returns as base_returns
from funcexplain.markets.paths import invert
from funcexplain.markets.paths import prices_of as prices_of
from funcexplain.markets.shocked import (
    Features,
    Inverse,
    check_functions,
    check_history,
    check_model,
    search_shocks,
)
from funcexplain.markets.starts import Nearest as Nearest
from funcexplain.markets.starts import bootstrap as bootstrap
from funcexplain.markets.starts import nearest_dates as nearest_dates
from funcexplain.markets.turbulence import turbulence as turbulence
from funcexplain.markets.turbulence import turbulence_of as turbulence_of
from funcexplain.markets.whatif import Outcome as Outcome
from funcexplain.markets.whatif import outcome as outcome
from funcexplain.markets.whatif import replay as replay
from funcexplain.markets.whatif import shocked as shocked
from funcexplain.problems.checks import check_like, check_tensor
from funcexplain.problems.law import check_law, free_shocks
from funcexplain.problems.problem import Problem, check_problem
from funcexplain.problems.transforms import Transform
from funcexplain.solutions.matching import check_answer, repeat_for_draws
from funcexplain.solutions.solution import Solution

__all__ = [
    "Nearest",
    "Outcome",
    "ahead",
    "base_returns",
    "bootstrap",
    "factors",
    "nearest_dates",
    "outcome",
    "prices_of",
    "reached",
    "replay",
    "returns_of",
    "scenario",
    "shock_mask",
    "shocked",
    "shocks",
    "turbulence",
    "turbulence_of",
]


def scenario(
    returns: Tensor,
    cov: Tensor | Model,
    *,
    free: Tensor | None = None,
    features: Features | None = None,
    inverse: Inverse | None = None,
) -> Transform:
    """Search over whitened shocks to the returns behind the window: ``x = features(r0 + F z)``.

    For a standard normal ``z``, each day's shocks to the free assets have the covariance of these
    assets: ``F F' = cov`` with the frozen rows and columns removed (see `factors`). Other laws of the
    shocks, such as heavy tails and a volatility that follows the path, are in
    ``funcexplain.markets.models``. Frozen returns stay bit-equal, and their ``z`` has no gradient. ``z``
    is zero at the reference window, to rounding.

    It must be the first change of variables of a problem. ``fe.freeze`` before or after it keeps entries
    of the window, such as a whole channel, at the reference; these entries no longer agree with the
    returns, unless no free shock reaches them (see `reached`). Map windows together with their returns,
    ``fe.vmap(problem, x0=w, reference=w, returns=r)``, starts with ``x0``, masks of shocks with
    ``factor=factors(cov, masks)``, and the data of other models with ``**fe.models.stack(...)``.

    Args:
        returns: daily log returns ``r0`` behind the reference window, ``(L + span - 1, A)``, from
            `base_returns`.
        cov: covariance of the assets' daily log returns, ``(A, A)``, positive definite; see
            ``funcexplain.markets.covariances``. Or a model of ``fe.models``; a covariance is short for
            ``fe.models.normal(cov)``.
        free: bool, True = free, ``(L + span - 1, A)``, or ``(1, A)`` for all days; see `shock_mask`.
            Default: all.
        features: differentiable function from returns to the window's channels. Default: the
            ``features`` of the markets, with the span that the number of returns implies.
        inverse: function ``(window, returns) -> returns`` that recovers the returns from a window, and
            takes undetermined ones from the given ones. Computes the start of the search from ``x0``;
            ``lambda window, returns: returns`` always starts at ``r0``. Required with ``features``.

    Returns:
        A transform; it adds ``args["returns"]`` and the model's data, ``args["factor"]`` for a
        covariance.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if shapes do not fit, ``cov`` is not positive definite, the history of a model does
            not end with the returns, the features of the returns are not the problem's reference, or
            the search space was transformed before.

    Example:
        >>> import torch, funcexplain as fe
        >>> from funcexplain.markets import covariances, features
        >>> prices = (0.01 * torch.randn(300, 2)).cumsum(0).exp()
        >>> windows, last_days = features.windows(prices, lookback=10, span=5)
        >>> r0 = fe.scenarios.base_returns(prices, last_days[-1], lookback=10, span=5)
        >>> cov = covariances.sample(features.log_returns(prices))
        >>> layers = torch.nn.Flatten(), torch.nn.Linear(60, 2), torch.nn.Softmax(-1)
        >>> network = torch.nn.Sequential(*layers)
        >>> p = fe.problem(network, torch.tensor([0.6, 0.4]), windows[-1], loss=fe.losses.kl)
        >>> solution = fe.solve(fe.scenarios.scenario(r0, cov)(p), fe.adam(lr=0.1), max_steps=20)
        >>> bool((solution.x[2] >= 0).all())  # volatilities
        True

    References:
        T. Breuer, M. Jandacka, K. Rheinberger, M. Summer (2009), How to Find Plausible, Severe, and
        Useful Stress Scenarios, https://www.ijcb.org/journal/ijcb09q3a7.htm
    """
    returns = check_tensor("scenario", "returns", returns)
    if returns.ndim != 2:
        raise ValueError(
            f"scenario: returns must have shape (days, assets), got {tuple(returns.shape)}; map "
            "those of several windows: fe.vmap(problem, x0=..., reference=..., returns=...)"
        )
    model = check_model("scenario", cov, returns)
    data = model.data(len(returns), free=free)
    if free is not None and len(free) not in (1, len(returns)):
        raise ValueError(
            f"scenario: free must have shape {tuple(returns.shape)}, one flag for each of the returns, "
            f"or (1, {returns.shape[1]}) for all days, got {len(free)} days"
        )
    check_functions("scenario", features, inverse)
    check_history("scenario", model, returns)

    def transform(problem: Problem) -> Problem:
        reference = check_problem("scenario", problem).args["reference"]
        given = check_like("scenario", "returns", returns, reference, "x0")
        compute = features or _with_span(given, reference)
        return search_shocks("scenario", problem, given, model, data, compute, inverse or invert)

    return transform


def shocks(solution: Solution, problem: Problem) -> Tensor:
    """Whitened shocks of an answer, in daily sigmas: its search point.

    Args:
        solution: the answer of ``problem``, or of its rows.
        problem: the question or grid, in which `scenario` is the only change of variables.

    Returns:
        Shocks ``z``, shape ``(*rows, L + span - 1, A)``; zero where frozen.

    Raises:
        TypeError: if ``problem`` is not a Problem, or ``solution`` not a Solution.
        ValueError: if `scenario` was not applied, or the solution's rows are not the problem's.

    Example:
        >>> import funcexplain as fe
        >>> from funcexplain.markets.features import features
        >>> r0, cov = 0.01 * torch.randn(9, 2), torch.eye(2) * 1e-4
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 2))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), features(r0, span=5))
        >>> p = scenario(r0, cov)(p)
        >>> shocks(fe.solve(p, max_steps=3), p).shape
        torch.Size([9, 2])
    """
    if not isinstance(solution, Solution):
        raise TypeError(f"shocks: solution must be a Solution, got {type(solution).__name__}")
    if check_problem("shocks", problem).normal is None:
        raise ValueError("shocks: problem must have the transform scenario, got one without it")
    problem = repeat_for_draws(solution, problem)
    if solution.shape != problem.shape:
        raise ValueError(
            f"shocks: solution must answer the rows of problem {problem.shape}, got those of "
            f"{solution.shape}"
        )
    check_answer("shocks", solution, problem)
    free = free_shocks(problem)
    return torch.where(free, solution.z, 0.0)  # noise of a start may be left where nothing is free


def returns_of(solution: Solution, problem: Problem) -> Tensor:
    """Daily log returns behind the windows of an answer, including fixed past days.

    Args:
        solution: the answer of ``problem``, or of its rows.
        problem: the question or grid, made by `scenario` or `ahead`.

    Returns:
        Returns, shape ``(*rows, L + span - 1, A)``.

    Raises:
        TypeError, ValueError: as `shocks`, and if the search space was changed since.

    Example:
        >>> import funcexplain as fe
        >>> from funcexplain.markets.features import features
        >>> r0, cov = 0.01 * torch.randn(9, 2), torch.eye(2) * 1e-4
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 2))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), features(r0, span=5))
        >>> p = scenario(r0, cov)(p)
        >>> torch.equal(returns_of(fe.solve(p, max_steps=0), p), r0)
        True
    """
    z = shocks(solution, problem)
    check_law("returns_of", problem)
    problem = repeat_for_draws(solution, problem)
    assert problem.returns is not None
    # Parameters would be copied for every row, and no path needs them.
    data = {name: value for name, value in problem.args.items() if name != "params"}
    return map_points(problem.returns, replace(problem, args=data), z)


def _with_span(returns: Tensor, reference: Tensor) -> Features:
    """The standard features, with the span that the number of returns implies."""
    channels, lookback, num_assets = reference.shape[-3:]
    span = len(returns) - lookback + 1
    if (channels, num_assets) != (3, returns.shape[1]) or span < 2:
        raise ValueError(
            f"scenario: returns must have shape (L + span - 1, A), span >= 2, for a window of shape "
            f"(3, L, A), got {tuple(returns.shape)} for {(channels, lookback, num_assets)}; a window of "
            "other channels needs features=... and inverse=..."
        )
    return partial(market_features, span=span)
