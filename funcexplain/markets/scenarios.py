"""Scenarios: the search over whitened shocks to the returns behind a window.

    z  -->  returns = r0 + F z  -->  channels = features(returns)  -->  x

All channels of a window are functions of one path of prices. Searched over one by one they contradict
each other; here the search moves the path, so that they agree by construction: prices stay positive,
volatilities non-negative, and the assets move together as their covariance says. A unit of `z` is one
daily sigma. Which shocks are free is decided by the factor `F`, whose frozen rows and columns are zero.

Starts and distances from history are in `starts` and `turbulence`, covariances in `covariances`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from funcexplain.markets.features import features as market_features
from funcexplain.markets.masks import factors as factors
from funcexplain.markets.masks import reached as reached
from funcexplain.markets.masks import shock_mask as shock_mask
from funcexplain.markets.paths import base_returns as base_returns
from funcexplain.markets.paths import invert
from funcexplain.markets.paths import prices_of as prices_of
from funcexplain.markets.starts import Nearest as Nearest
from funcexplain.markets.starts import bootstrap as bootstrap
from funcexplain.markets.starts import nearest_dates as nearest_dates
from funcexplain.markets.turbulence import turbulence as turbulence
from funcexplain.markets.turbulence import turbulence_of as turbulence_of
from funcexplain.problems.checks import (
    check_like,
    check_tensor,
)
from funcexplain.problems.coordinates import reparametrize
from funcexplain.problems.grid import mapped_dims, take, varying_dims
from funcexplain.problems.problem import Args, Map, Problem, check_problem
from funcexplain.problems.transforms import Transform, add_data
from funcexplain.solutions.solution import Solution

Features = Callable[[Tensor], Tensor]
Inverse = Callable[[Tensor, Tensor], Tensor]


def scenario(
    returns: Tensor,
    cov: Tensor,
    *,
    free: Tensor | None = None,
    features: Features | None = None,
    inverse: Inverse | None = None,
) -> Transform:
    """Search over whitened shocks to the returns behind the window: ``x = features(r0 + F z)``.

    On each day the shocks of the assets that are free have the covariance of these assets where ``z`` is
    standard normal, whatever else is frozen: ``F F' = cov`` with frozen rows and columns struck out (see
    `factors`). Frozen returns stay as they are, bit for bit, and their ``z`` has no gradient. ``z`` is
    zero at the reference window, to rounding.

    It is the first change of variables of a problem. ``fe.freeze`` before or behind it holds entries of
    the window, such as a whole channel, at the reference: these then agree with the returns no longer,
    unless no free shock reaches them (see `reached`). Windows are mapped with the returns behind them,
    ``fe.vmap(problem, x0=w, reference=w, returns=r)``, starts by ``x0`` alone, masks of shocks by
    ``factor=factors(cov, masks)``.

    Args:
        returns: daily log returns ``r0`` behind the reference window, ``(L + span - 1, A)``, as
            `base_returns` cuts them out of prices.
        cov: covariance of the assets' daily log returns, ``(A, A)``, positive definite; see
            ``funcexplain.markets.covariances``.
        free: bool, True = free to be shocked, ``(L + span - 1, A)``, or ``(1, A)`` for all days alike;
            see `shock_mask`. Default: all.
        features: differentiable function from returns to the window's channels. Default: the
            ``features`` of the markets, with the span that the number of returns implies.
        inverse: function ``(window, returns) -> returns`` that reads the returns off a window: what the
            window leaves open is taken from the given ones. It finds where the search starts, given
            ``x0``; ``lambda window, returns: returns`` always starts at ``r0``. Needed where
            ``features`` are given.

    Returns:
        A transform; its data are ``args["returns"]`` and ``args["factor"]``.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if shapes do not fit, ``cov`` is not positive definite, the features of the returns
            are not the problem's reference, or the search space was changed before.

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
            f"scenario: returns must have shape (days, assets), got {tuple(returns.shape)}; those of "
            "more windows are mapped: fe.vmap(problem, x0=..., reference=..., returns=...)"
        )
    cov = check_like("scenario", "cov", cov, returns, "returns")
    if cov.shape != 2 * returns.shape[1:]:
        raise ValueError(
            f"scenario: cov must have shape {tuple(2 * returns.shape[1:])}, one row and column for each "
            f"asset of returns, got {tuple(cov.shape)}"
        )
    factor = factors(cov, free)
    if len(factor) not in (1, len(returns)):
        raise ValueError(
            f"scenario: free must have shape {tuple(returns.shape)}, one flag for each of the returns, "
            f"or (1, {returns.shape[1]}) for all days alike, got {len(factor)} days"
        )
    if (features is None) != (inverse is None):
        raise TypeError(
            "scenario: features and inverse must be given together, got one of them; inverse=lambda "
            "window, returns: returns starts the search at the returns themselves"
        )
    for name, function in (("features", features), ("inverse", inverse)):
        if function is not None and not callable(function):
            raise TypeError(f"scenario: {name} must be callable, got {type(function).__name__}")

    def changed(problem: Problem) -> Problem:
        reference = check_problem("scenario", problem).args["reference"]
        given = check_like("scenario", "returns", returns, reference, "x0")
        compute = features or _with_span(given, reference)
        args = add_data("scenario", problem, returns=given, factor=factor)
        _check_base(problem, given, compute)
        return reparametrize(*_pair(compute, inverse or invert))(replace(problem, args=args))

    return changed


def shocks(solution: Solution, problem: Problem) -> Tensor:
    """Whitened shocks of an answer, in daily sigmas: the points of the search space that decode to it.

    Where the lookback is shorter than the span, a window does not tell them all; the shocks are then
    those nearest to none that make the same window (see ``funcexplain.markets.paths.invert``).

    Args:
        solution: the answer of ``problem``, or of its rows.
        problem: the question or grid, in which `scenario` is the only change of variables.

    Returns:
        Shocks ``z``, shape ``(*rows, L + span - 1, A)``; zero where frozen.

    Raises:
        TypeError: if ``problem`` is no Problem, or ``solution`` no Solution.
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
    args = check_problem("shocks", problem).args
    if "factor" not in args:
        raise ValueError("shocks: problem must be one that scenario was applied to, got one without")
    num_rows = len(problem.shape)
    if solution.x.shape[:-3] != problem.shape:
        raise ValueError(
            f"shocks: solution must answer the rows of problem {problem.shape}, got those of "
            f"{tuple(solution.x.shape[:-3])}"
        )
    if not num_rows:
        return problem.encode(solution.x, args)
    needed = {name: value for name, value in args.items() if name != "params"}
    xs = solution.x.flatten(0, num_rows - 1)
    rows = take(problem.dims, needed, torch.arange(len(xs), device=xs.device))
    in_dims = (0, mapped_dims(problem.dims, needed))
    return torch.func.vmap(problem.encode, in_dims)(xs, rows).unflatten(0, problem.shape)


def _pair(compute: Features, inverse: Inverse) -> tuple[Map, Map]:
    """The pair that `reparametrize` takes; all data come from ``args``."""

    def encode(x: Tensor, args: Args) -> Tensor:
        base, factor = args["returns"], args["factor"]
        held = factor.diagonal(dim1=-2, dim2=-1) == 0
        whole = factor + torch.diag_embed(held.to(factor))
        moved = (inverse(x, base) - base).unsqueeze(-1)
        z = torch.linalg.solve_triangular(whole, moved, upper=False).squeeze(-1)
        return torch.where(held, 0.0, z)

    def decode(z: Tensor, args: Args) -> Tensor:
        return compute(args["returns"] + torch.einsum("dij,dj->di", args["factor"], z))

    return encode, decode


def _with_span(returns: Tensor, reference: Tensor) -> Features:
    """The features of the markets; that the returns are longer than the window is what their span is."""
    channels, lookback, num_assets = reference.shape[-3:]
    span = len(returns) - lookback + 1
    if (channels, num_assets) != (3, returns.shape[1]) or span < 2:
        raise ValueError(
            f"scenario: returns must have shape (L + span - 1, A), span >= 2, for a window of shape "
            f"(3, L, A), got {tuple(returns.shape)} for {(channels, lookback, num_assets)}; a window of "
            "other channels needs features=... and inverse=..."
        )
    return partial(market_features, span=span)


def _check_base(problem: Problem, returns: Tensor, compute: Features) -> None:
    """Refuse returns that do not lie behind the reference, and a search space other than windows."""
    if varying_dims(problem.dims, "reference"):
        raise ValueError(
            "scenario: problem must have one reference, got a grid mapped over several; apply scenario "
            "first, then map: fe.vmap(problem, x0=..., reference=..., returns=...)"
        )
    reference = problem.args["reference"]
    found = check_like("scenario", "what features return", compute(returns), reference, "x0")
    if found.shape != reference.shape:
        raise ValueError(
            f"scenario: features must return the shape of x0 {tuple(reference.shape)}, got "
            f"{tuple(found.shape)}"
        )
    # Half of the digits, against the size of each channel: rounding passes, another day does not.
    least = torch.finfo(reference.dtype).eps ** 0.5 * reference.abs().amax((-2, -1), keepdim=True)
    wrong = (found - reference).abs() > least
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"scenario: returns must be those behind the reference window, but {int(wrong.sum())} of "
            f"{wrong.numel()} features differ, the first at {at}: {found[at]:g}, expected "
            f"{reference[at]:g}; base_returns(prices, last_day, lookback, span) cuts them out, and "
            "features=... says how other channels come about"
        )
    if 0 in problem.shape:
        return
    row = problem[(0,) * len(problem.dims)]
    if not torch.equal(row.encode(reference, row.args), reference):
        raise ValueError(
            "scenario: problem must be searched over windows, got one whose search space was changed "
            "before; scenario makes units of its own, so leave standardize out, and put box and "
            "other changes behind it"
        )
