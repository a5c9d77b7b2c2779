"""Scenarios: the search over whitened shocks to the returns behind a window.

    z  -->  returns = r0 + F z  -->  channels = features(returns)  -->  x

All channels of a window are functions of one path of prices. Searched separately, they contradict each
other; here the search moves the path, so that they agree by construction: prices stay positive,
volatilities non-negative, and the assets move together according to their covariance. A unit of `z` is
one daily sigma. The factor `F` is zero in the rows and columns of frozen shocks.

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
from funcexplain.problems.checks import check_callable, check_like, check_shape, check_tensor
from funcexplain.problems.coordinates import reparametrize
from funcexplain.problems.grid import varying_dims
from funcexplain.problems.law import drop_law
from funcexplain.problems.problem import Args, Map, Problem, check_problem, identity
from funcexplain.problems.transforms import Transform, add_data
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution

__all__ = [
    "Nearest",
    "base_returns",
    "bootstrap",
    "factors",
    "nearest_dates",
    "prices_of",
    "reached",
    "scenario",
    "shock_mask",
    "shocks",
    "turbulence",
    "turbulence_of",
]

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

    For a standard normal ``z``, each day's shocks to the free assets have the covariance of these
    assets: ``F F' = cov`` with the frozen rows and columns removed (see `factors`). Frozen returns stay
    bit-equal, and their ``z`` has no gradient. ``z`` is zero at the reference window, to rounding.

    It must be the first change of variables of a problem. ``fe.freeze`` before or after it keeps entries
    of the window, such as a whole channel, at the reference; these entries no longer agree with the
    returns, unless no free shock reaches them (see `reached`). Map windows together with their returns,
    ``fe.vmap(problem, x0=w, reference=w, returns=r)``, starts with ``x0``, and masks of shocks with
    ``factor=factors(cov, masks)``.

    Args:
        returns: daily log returns ``r0`` behind the reference window, ``(L + span - 1, A)``, from
            `base_returns`.
        cov: covariance of the assets' daily log returns, ``(A, A)``, positive definite; see
            ``funcexplain.markets.covariances``.
        free: bool, True = free, ``(L + span - 1, A)``, or ``(1, A)`` for all days; see `shock_mask`.
            Default: all.
        features: differentiable function from returns to the window's channels. Default: the
            ``features`` of the markets, with the span that the number of returns implies.
        inverse: function ``(window, returns) -> returns`` that recovers the returns from a window, and
            takes undetermined ones from the given ones. It computes the start of the search from ``x0``;
            ``lambda window, returns: returns`` always starts at ``r0``. Required with ``features``.

    Returns:
        A transform; it adds ``args["returns"]`` and ``args["factor"]``.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if shapes do not fit, ``cov`` is not positive definite, the features of the returns
            are not the problem's reference, or the search space was transformed before.

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
    cov = check_like("scenario", "cov", cov, returns, "returns")
    meaning = "one row and column for each asset of returns"
    check_shape("scenario", "cov", cov, 2 * returns.shape[1:], meaning)
    factor = factors(cov, free)
    if len(factor) not in (1, len(returns)):
        raise ValueError(
            f"scenario: free must have shape {tuple(returns.shape)}, one flag for each of the returns, "
            f"or (1, {returns.shape[1]}) for all days, got {len(factor)} days"
        )
    if (features is None) != (inverse is None):
        raise TypeError(
            "scenario: features and inverse must be given together, got one of them; inverse=lambda "
            "window, returns: returns starts the search at the returns themselves"
        )
    if features is not None:
        check_callable("scenario", "features", features)
        check_callable("scenario", "inverse", inverse)

    def transform(problem: Problem) -> Problem:
        reference = check_problem("scenario", problem).args["reference"]
        given = check_like("scenario", "returns", returns, reference, "x0")
        compute = features or _with_span(given, reference)
        args = add_data("scenario", problem, returns=given, factor=factor)
        _check_base(problem, given, compute)
        changed = reparametrize(*_pair(compute, inverse or invert))(replace(problem, args=args))
        changed = replace(changed, normal=changed.decode, altered_by="")
        return drop_law(changed, changed, "clip") if problem.project is not identity else changed

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
    if solution.shape != problem.shape:
        raise ValueError(
            f"shocks: solution must answer the rows of problem {problem.shape}, got those of "
            f"{solution.shape}"
        )
    check_answer("shocks", solution, problem)
    return solution.z


def _pair(compute: Features, inverse: Inverse) -> tuple[Map, Map]:
    """Encode and decode for `reparametrize`; all data come from ``args``."""

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


def _check_base(problem: Problem, returns: Tensor, compute: Features) -> None:
    """Raise unless the returns belong to the reference, and the search space is that of windows."""
    if varying_dims(problem.dims, "reference"):
        raise ValueError(
            "scenario: problem must have one reference, got a grid mapped over several; apply scenario "
            "first, then map: fe.vmap(problem, x0=..., reference=..., returns=...)"
        )
    reference = problem.args["reference"]
    found = check_like("scenario", "features(returns)", compute(returns), reference, "x0")
    check_shape("scenario", "features(returns)", found, reference.shape, "that of x0")
    # Half of the digits, relative to the size of each channel: tolerates rounding, but not another day.
    tolerance = torch.finfo(reference.dtype).eps ** 0.5 * reference.abs().amax((-2, -1), keepdim=True)
    wrong = (found - reference).abs() > tolerance
    if bool(wrong.any()):
        index = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"scenario: returns must be those behind the reference window, but {int(wrong.sum())} of "
            f"{wrong.numel()} features differ, the first at {index}: {found[index]:g}, expected "
            f"{reference[index]:g}; base_returns(prices, last_day, lookback, span) returns them, and "
            "features=... computes other channels"
        )
    if 0 in problem.shape:
        return
    row = problem[(0,) * len(problem.dims)]
    if not torch.equal(row.encode(reference, row.args), reference):
        raise ValueError(
            "scenario: problem must be searched over windows, got one with a transformed search space; "
            "leave standardize out, since scenario has its own units, and apply box and other "
            "transforms after it"
        )
