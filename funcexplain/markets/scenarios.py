"""Scenarios: the search over whitened shocks to the returns behind a window.

    z  -->  returns = model.decode(z, r0)  -->  channels = features(returns)  -->  x

All channels of a window are functions of one path of prices. Searched separately, they contradict each
other; here the search moves the path, so that they agree by construction: prices stay positive,
volatilities non-negative, and the assets move together according to a model of returns. `scenario`
asks about the past, the days behind a window; `ahead` about the days to come.

Models are in `models`, starts and distances from history in `starts` and `turbulence`, covariances in
`covariances`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from funcexplain.markets.features import features as market_features
from funcexplain.markets.features import log_returns
from funcexplain.markets.masks import factors as factors
from funcexplain.markets.masks import reached as reached
from funcexplain.markets.masks import shock_mask as shock_mask
from funcexplain.markets.models import Data, Model, filtered_history, normal
from funcexplain.markets.paths import base_returns as base_returns
from funcexplain.markets.paths import invert
from funcexplain.markets.paths import prices_of as prices_of
from funcexplain.markets.prices import Prices
from funcexplain.markets.starts import Nearest as Nearest
from funcexplain.markets.starts import bootstrap as bootstrap
from funcexplain.markets.starts import nearest_dates as nearest_dates
from funcexplain.markets.turbulence import turbulence as turbulence
from funcexplain.markets.turbulence import turbulence_of as turbulence_of
from funcexplain.problems.checks import (
    check_callable,
    check_like,
    check_number,
    check_positive,
    check_shape,
    check_tensor,
)
from funcexplain.problems.coordinates import reparametrize
from funcexplain.problems.grid import mapped_dims, take_rows, varying_dims
from funcexplain.problems.problem import Args, Problem, check_problem
from funcexplain.problems.transforms import Transform, add_data
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution

__all__ = [
    "Nearest",
    "ahead",
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
            ``funcexplain.markets.covariances``. Or a model of ``fe.models``: a covariance stands for
            ``fe.models.normal(cov)``.
        free: bool, True = free, ``(L + span - 1, A)``, or ``(1, A)`` for all days; see `shock_mask`.
            Default: all.
        features: differentiable function from returns to the window's channels. Default: the
            ``features`` of the markets, with the span that the number of returns implies.
        inverse: function ``(window, returns) -> returns`` that recovers the returns from a window, and
            takes undetermined ones from the given ones. It computes the start of the search from ``x0``;
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
    model = _check_model("scenario", cov, returns)
    data = model.data(len(returns), free=free)
    if free is not None and len(free) not in (1, len(returns)):
        raise ValueError(
            f"scenario: free must have shape {tuple(returns.shape)}, one flag for each of the returns, "
            f"or (1, {returns.shape[1]}) for all days, got {len(free)} days"
        )
    _check_functions("scenario", features, inverse)
    _check_history("scenario", model, returns)

    def transform(problem: Problem) -> Problem:
        reference = check_problem("scenario", problem).args["reference"]
        given = check_like("scenario", "returns", returns, reference, "x0")
        compute = features or _with_span(given, reference)
        return _search("scenario", problem, given, model, data, compute, inverse or invert)

    return transform


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
    """Search over shocks to the days to come: the window that ends ``days`` after the last price.

    The past is fixed, and ``z`` is zero where every day to come has the return ``drift``. That window
    becomes the problem's ``x0`` and ``reference``.

    Args:
        prices: a price history up to today, or positive prices of shape ``(T, A)``.
        days: days to come, at most ``L + span - 1``.
        drift: log return of a day to come without shocks, a number or one for each asset, ``(A,)``.
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
    check_positive("ahead", "span", span)
    _check_functions("ahead", features, inverse)

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
        law = _check_model("ahead", filtered_history(history) if model is None else model, history)
        known = history[len(history) + count - num_days :]
        _check_history("ahead", law, known)
        base = torch.cat([known, _check_drift(drift, history).expand(count, -1)])
        flags = torch.zeros_like(base, dtype=torch.bool)
        flags[-count:] = True if free is None else _check_flags(free, base[-count:])
        data = law.data(num_days, free=flags, ahead=count)
        compute = features or partial(market_features, span=span)
        moved = _move(problem, today=compute(history[-num_days:]), ahead=compute(base))
        return _search("ahead", moved, base, law, data, compute, inverse or invert)

    return transform


def shocks(solution: Solution, problem: Problem) -> Tensor:
    """Whitened shocks of an answer, in daily sigmas: the search points that decode to it.

    If the lookback is shorter than the span, a window does not determine all of them; the result is then
    the smallest shocks with the same window (see ``funcexplain.markets.paths.invert``).

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
    args = check_problem("shocks", problem).args
    if "returns" not in args:
        raise ValueError("shocks: problem must have the transform scenario, got one without it")
    num_rows = len(problem.shape)
    if solution.x.shape[:-3] != problem.shape:
        raise ValueError(
            f"shocks: solution must answer the rows of problem {problem.shape}, got those of "
            f"{tuple(solution.x.shape[:-3])}"
        )
    check_answer("shocks", solution, problem)
    if not num_rows:
        return problem.encode(solution.x, args)
    needed = {name: value for name, value in args.items() if name != "params"}
    xs = solution.x.flatten(0, num_rows - 1)
    rows = take_rows(problem.dims, needed, torch.arange(len(xs), device=xs.device))
    in_dims = (0, mapped_dims(problem.dims, needed))
    return torch.func.vmap(problem.encode, in_dims)(xs, rows).unflatten(0, problem.shape)


def _search(
    where: str,
    problem: Problem,
    base: Tensor,
    model: Model,
    data: Data,
    compute: Features,
    inverse: Inverse,
) -> Problem:
    """The problem, searched over the shocks of a model to a base path; all data come from ``args``."""

    def encode(x: Tensor, args: Args) -> Tensor:
        path = args["returns"]
        return model.encode(inverse(x, path), path, args)

    def decode(z: Tensor, args: Args) -> Tensor:
        return compute(model.decode(z, args["returns"], args))

    args = add_data(where, problem, returns=base, **data)
    _check_base(where, problem, base, compute)
    return reparametrize(encode, decode)(replace(problem, args=args))


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
        count = min(int(_differs(window, given).sum()) for window in (today, ahead))
        if count:
            raise ValueError(
                f"ahead: {name} must be today's window, which ends on the last price, or the one ahead, "
                f"but at least {count} of {given.numel()} features differ; windows(prices, lookback, "
                "span)[0][-1] is today's, and features=... computes other channels"
            )
    return replace(problem, args={**problem.args, "x0": ahead, "reference": ahead})


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


def _check_model(where: str, given: Tensor | Model, returns: Tensor) -> Model:
    """A model of the assets, of the dtype of their returns; a covariance stands for a normal one."""
    cov = given.cov if isinstance(given, Model) else given
    cov = check_like(where, "cov", cov, returns, "returns")
    meaning = "one row and column for each asset of returns"
    check_shape(where, "cov", cov, 2 * returns.shape[1:], meaning)
    return given if isinstance(given, Model) else normal(cov)


def _check_history(where: str, model: Model, known: Tensor) -> None:
    """Raise unless a model that has a history was estimated up to the last known day."""
    if model.history is None:
        return
    last = model.history[max(len(model.history) - len(known), 0) :]
    if len(last) != len(known) or bool(_differs(last, known).any()):
        raise ValueError(
            f"{where}: the history of the model {model.name} must end with the {len(known)} known returns "
            "of the window, got another one; make it of the returns up to the window's last known day"
        )


def _check_functions(where: str, features: Features | None, inverse: Inverse | None) -> None:
    """Raise unless both functions are given, or neither."""
    if (features is None) != (inverse is None):
        raise TypeError(
            f"{where}: features and inverse must be given together, got one of them; inverse=lambda "
            "window, returns: returns starts the search at the returns themselves"
        )
    if features is not None:
        check_callable(where, "features", features)
        check_callable(where, "inverse", inverse)


def _check_drift(drift: float | Tensor, history: Tensor) -> Tensor:
    """The drift of each asset, ``(A,)``."""
    if not isinstance(drift, Tensor):
        return torch.full_like(history[0], check_number("ahead", "drift", drift, minimum=-1.0))
    drift = check_like("ahead", "drift", drift, history, "x0")
    meaning = "one return for each asset, or be a number"
    return check_shape("ahead", "drift", drift, history.shape[1:], meaning)


def _check_flags(free: Tensor, coming: Tensor) -> Tensor:
    """The flags of the days to come."""
    kind = free.dtype if isinstance(free, Tensor) else type(free).__name__
    if kind is not torch.bool:
        raise TypeError(f"ahead: free must be a bool tensor (True = free), got {kind}")
    if free.shape not in (coming.shape, (1, coming.shape[1])):
        raise ValueError(
            f"ahead: free must have shape {tuple(coming.shape)}, one flag for each of the days to come, "
            f"or (1, {coming.shape[1]}) for all of them, got {tuple(free.shape)}"
        )
    return free


def _differs(found: Tensor, expected: Tensor) -> Tensor:
    """Where values differ by more than rounding, relative to the size of each channel."""
    if expected.numel() == 0:
        return torch.zeros_like(expected, dtype=torch.bool)
    # Half of the digits: tolerates rounding, but not another day.
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().amax((-2, -1), keepdim=True)
    return (found - expected).abs() > tolerance


def _check_base(where: str, problem: Problem, returns: Tensor, compute: Features) -> None:
    """Raise unless the returns belong to the reference, and the search space is that of windows."""
    if varying_dims(problem.dims, "reference"):
        raise ValueError(
            f"{where}: problem must have one reference, got a grid mapped over several; apply {where} "
            "first, then map: fe.vmap(problem, x0=..., reference=..., returns=...)"
        )
    reference = problem.args["reference"]
    found = check_like(where, "features(returns)", compute(returns), reference, "x0")
    check_shape(where, "features(returns)", found, reference.shape, "that of x0")
    wrong = _differs(found, reference)
    if bool(wrong.any()):
        index = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{where}: returns must be those behind the reference window, but {int(wrong.sum())} of "
            f"{wrong.numel()} features differ, the first at {index}: {found[index]:g}, expected "
            f"{reference[index]:g}; base_returns(prices, last_day, lookback, span) returns them, and "
            "features=... computes other channels"
        )
    if 0 in problem.shape:
        return
    row = problem[(0,) * len(problem.dims)]
    if not torch.equal(row.encode(reference, row.args), reference):
        raise ValueError(
            f"{where}: problem must be searched over windows, got one with a transformed search space; "
            f"leave standardize out, since {where} has its own units, and apply box and other "
            "transforms after it"
        )
