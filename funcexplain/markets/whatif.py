"""What if: the search point of a given market, such as a fall of one asset, or a replay of history.

These are forward questions: given a scenario, what does the network hold? A scenario fixes some returns;
the others follow from the law of returns. Its search point has minimum norm: it is the likeliest market
with the fixed returns. In a normal model, the other returns have their conditional mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcexplain.engine.forward import weights_of
from funcexplain.markets.features import log_returns
from funcexplain.markets.periods import count_of, period_of
from funcexplain.markets.prices import Prices
from funcexplain.markets.selection import days_between
from funcexplain.problems.checks import check_like, check_number, check_positive
from funcexplain.problems.criterion import Asset, Portfolio, find_asset
from funcexplain.problems.law import check_law
from funcexplain.problems.problem import Problem, check_question

Others = Literal["conditional", "unchanged"]
# Of a volatility: its decay by day (RiskMetrics), and how many days it is estimated from at least.
_DECAY, _MINIMUM_DAYS = 0.94, 20
_MAX_STEPS = 100


class Outcome(NamedTuple):
    """The results at search points, with the leading dimensions of these.

    Attributes:
        x: windows ``(C, L, A)``.
        returns: daily log returns behind them, ``(D, A)``.
        weights: the network's weights, ``(A,)``.
    """

    x: Tensor
    returns: Tensor
    weights: Tensor


def shocked(
    problem: Problem,
    shocks: Mapping[Asset, float],
    days: int | None = None,
    *,
    others: Others = "conditional",
) -> Tensor:
    """The search point of a market with given moves of some assets: ``{"EUR": -0.05}`` is -5 %.

    Over the last ``days`` days the price of each asset changes by its shock. The other returns are those
    of the likeliest such market; in a normal model, their conditional mean. With ``others="unchanged"``
    the other assets keep their returns without shocks, and each shock is spread evenly.

    Args:
        problem: a question made by `ahead` or `scenario`.
        shocks: change of price by name or number of the asset, above -1.
        days: number of days over which prices change. Default: all free days.
        others: ``"conditional"`` or ``"unchanged"``.

    Returns:
        Search point ``(D, A)``; see `outcome` for its window and weights.

    Raises:
        TypeError: for another type.
        ValueError: if an asset is unknown or frozen, a shock is not above -1, there are too many days,
            the search point has no law (see `Problem.law`), or no market has these returns.

    Example:
        >>> import torch, funcexplain as fe
        >>> from funcexplain.markets.features import windows
        >>> prices = (0.01 * torch.randn(300, 2).double()).cumsum(0).exp()
        >>> today = windows(prices, lookback=10, span=5)[0][-1]
        >>> layers = torch.nn.Flatten(), torch.nn.Linear(60, 2).double(), torch.nn.Softmax(-1)
        >>> p = fe.problem(torch.nn.Sequential(*layers), torch.ones(2).double() / 2, today)
        >>> model = fe.models.normal(1e-4 * torch.eye(2).double())
        >>> p = fe.scenarios.ahead(prices, days=5, span=5, model=model)(p)
        >>> z = shocked(p, {0: -0.05})
        >>> outcome(p, z).returns[-5:].sum(0).expm1()
        tensor([-0.0500,  0.0000], dtype=torch.float64)
    """
    free = _free("shocked", problem)
    if not isinstance(shocks, Mapping) or not shocks:
        raise TypeError(
            "shocked: shocks must be a dict of changes by asset, such as {'EUR': -0.05}, got "
            f"{shocks!r}"
        )
    if others not in ("conditional", "unchanged"):
        raise ValueError(f"shocked: others must be 'conditional' or 'unchanged', got {others!r}")
    available = int(free.any(1).sum())
    count = available if days is None else check_positive("shocked", "days", days)
    if count > available:
        raise ValueError(f"shocked: days must be at most {available}, the free days, got {count}")
    portfolio = Portfolio(problem.args["x0"][0, 0], problem.assets)
    moves: dict[int, float] = {}
    for name, change in shocks.items():
        asset = find_asset("shocked", name, portfolio)
        change = check_number("shocked", f"shocks[{name!r}]", change, minimum=-1.0, strict=True)
        if asset in moves or not bool(free[-count:, asset].all()):
            reason = "is given twice" if asset in moves else "is frozen on these days"
            raise ValueError(f"shocked: shocks must be of different free assets, but {name!r} {reason}")
        moves[asset] = float(np.log1p(change))
    assets, base = list(moves), _returns(problem)
    total = base.new_tensor(list(moves.values()))
    if others == "conditional":
        return _likeliest("shocked", problem, lambda path: path[-count:, assets].sum(0), total)
    path = base.clone()
    path[-count:, assets] = total / count
    return _point_of("shocked", problem, path, free)


def replay(
    problem: Problem, prices: Prices, start: str | date, end: str | date, *, scaled: bool = True
) -> Tensor:
    """The search point of a market that repeats the returns of history between two dates.

    The returns of the days from ``start`` to ``end``, both included, are those of the last days of the
    path. Each asset's are multiplied by the ratio of its volatility today to that before ``start``
    (exponentially weighted, decay 0.94), so that a crisis is as large, in sigmas, as it was.

    Args:
        problem: a question made by `ahead` or `scenario`.
        prices: the history; its last day is today.
        start: first day, such as ``"2020-03-02"``.
        end: last day.
        scaled: whether returns are scaled to today's volatility.

    Returns:
        Search point ``(D, A)``; see `outcome`.

    Raises:
        TypeError: for another type.
        ValueError: if dates are outside of the data or in the wrong order, the replay is longer than
            the free days, fewer than 20 days are before it, the assets are not those of the problem,
            the search point has no law, or the model has no such market.

    Example:
        >>> import torch, funcexplain as fe
        >>> from funcexplain.markets.features import log_returns, windows
        >>> from funcexplain.markets.prices import ecb
        >>> prices = ecb()
        >>> today = windows(prices, lookback=20, span=20)[0][-1]
        >>> count = len(prices.assets)
        >>> linear = torch.nn.Linear(60 * count, count).double()
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), linear, torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.ones(count).double() / count, today)
        >>> model = fe.models.normal(1e-4 * torch.eye(count).double())
        >>> p = fe.scenarios.ahead(prices, days=5, model=model)(p)
        >>> replay(p, prices, "2020-03-09", "2020-03-12").shape
        torch.Size([39, 16])
    """
    free = _free("replay", problem)
    if not isinstance(prices, Prices):
        raise TypeError(f"replay: prices must be Prices, with dates, got {type(prices).__name__}")
    first, last = (_date(name, value) for name, value in (("start", start), ("end", end)))
    days = prices.dates[1:]  # of the returns
    chosen = torch.from_numpy(days_between(days, first, last))
    if not (days[0].astype(first.dtype) <= first <= last <= days[-1]):
        raise ValueError(
            f"replay: start and end must be in order, within {days[0]} ... {days[-1]}, the days of "
            f"prices, got {first} and {last}"
        )
    base = _returns(problem)
    history = log_returns(prices).to(base)
    if history.shape[1] != base.shape[1]:
        raise ValueError(
            f"replay: prices must have the {base.shape[1]} assets of the problem, got {history.shape[1]}"
        )
    episode, before = history[chosen], history[: int(np.searchsorted(days, first))]
    available = int(free.all(1).sum())
    if not 0 < len(episode) <= available:
        limit = count_of(available, period_of(prices.dates))
        raise ValueError(
            f"replay: start to end must be 1 to {limit}, as many as are free, got {len(episode)}; "
            f"fe.scenarios.ahead(prices, days={max(1, len(episode))}) has enough"
        )
    if scaled:
        if len(before) < _MINIMUM_DAYS:
            raise ValueError(
                f"replay: at least {_MINIMUM_DAYS} days must be before start, to scale by their "
                f"volatility, got {len(before)}; pass scaled=False"
            )
        then, now = _volatility(before), _volatility(history)
        episode = episode * torch.where(then > 0.0, now / then, 1.0)
    path = base.clone()
    path[-len(episode) :] = episode
    return _point_of("replay", problem, path, free)


def outcome(problem: Problem, z: Tensor) -> Outcome:
    """The window, the returns and the network's weights at search points.

    Args:
        problem: a question made by `ahead` or `scenario`.
        z: search points ``(..., D, A)``, such as ``torch.stack`` of those of `shocked` and `replay`.

    Returns:
        The outcome, with the leading dimensions of ``z``.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if the shape does not fit, or the search point has no law.

    Example:
        >>> import funcexplain as fe
        >>> from funcexplain.markets.features import features
        >>> r0, cov = 0.01 * torch.randn(9, 2), torch.eye(2) * 1e-4
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 2))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), features(r0, span=5))
        >>> outcome(fe.scenarios.scenario(r0, cov)(p), torch.zeros(4, 9, 2)).weights.shape
        torch.Size([4, 2])
    """
    free, args = _free("outcome", problem), problem.args
    z = check_like("outcome", "z", z, args["x0"], "x0")
    if z.shape[-2:] != free.shape:
        raise ValueError(
            f"outcome: z must have shape (..., {free.shape[0]}, {free.shape[1]}), that of the search "
            f"point, got {tuple(z.shape)}"
        )
    assert problem.returns is not None
    points, lead = z.reshape(-1, *free.shape), z.shape[:-2]
    needed = {name: value for name, value in args.items() if name != "params"}
    x, returns = (
        torch.func.vmap(function, (0, None))(points, needed)
        for function in (problem.decode, problem.returns)
    )
    weights = weights_of(problem, x, args)
    return Outcome(*(each.reshape(*lead, *each.shape[1:]) for each in (x, returns, weights)))


def _free(where: str, problem: Any) -> Tensor:
    """Which shocks are free, ``(D, A)``; raises unless the problem is one scenario."""
    check_question(where, problem)
    check_law(where, problem)
    factor = problem.args.get("factor", problem.args.get("mixing"))
    free: Tensor = factor.diagonal(dim1=-2, dim2=-1) != 0
    return free.expand_as(problem.args["returns"])


def _returns(problem: Problem) -> Tensor:
    """The returns without shocks, ``(D, A)``."""
    base: Tensor = problem.args["returns"]
    return base


def _point_of(where: str, problem: Problem, path: Tensor, free: Tensor) -> Tensor:
    """The search point of a path that differs from the one without shocks on free days alone."""
    moved = (path != _returns(problem)) & free
    days = int((~moved.any(1)).int().cumprod(0).sum())  # before the first that moves
    later = free & (torch.arange(len(path), device=path.device) >= days)[:, None]
    return _likeliest(where, problem, lambda returns: returns[later], path[later])


def _likeliest(
    where: str, problem: Problem, fixed: Callable[[Tensor], Tensor], values: Tensor
) -> Tensor:
    """The search point of minimum norm whose path has these values: ``min |z|``, ``fixed(r(z)) = v``.

    Each step goes to the point of minimum norm where the linearized values are these; it is halved while
    they come no nearer. With returns linear in ``z``, the first step is exact.
    """
    returns, args = problem.returns, problem.args
    assert returns is not None
    needed = {name: value for name, value in args.items() if name != "params"}

    def found(z: Tensor) -> tuple[Tensor, Tensor]:
        now = fixed(returns(z, needed))
        return now, now

    z = torch.zeros_like(_returns(problem))
    if not values.numel():
        return z
    scale = values.abs().amax().clamp_min(1e-6)
    tolerance = 1e-9 if z.dtype == torch.float64 else 1e-5
    for _ in range(_MAX_STEPS):
        jacobian, now = torch.func.jacrev(found, has_aux=True)(z)
        flat = jacobian.flatten(1).double()
        wanted = (values - now).double() + flat @ z.flatten().double()
        # The transpose last: what the values do not depend on stays at zero, to the bit.
        least = flat.mT @ (torch.linalg.pinv(flat @ flat.mT, hermitian=True) @ wanted)
        step = least.to(z.dtype).view(z.shape) - z
        misfit = (now - values).abs().amax()
        if bool(misfit <= tolerance * scale) and bool(step.norm() <= 1e-4 * (1.0 + z.norm())):
            return z
        size = 1.0
        while size > 1e-4 and not bool(
            (found(z + size * step)[0] - values).abs().amax() <= misfit.clamp_min(tolerance * scale)
        ):
            size *= 0.5
        z = z + size * step
    if bool((found(z)[0] - values).abs().amax() <= 1e3 * tolerance * scale):
        return z
    raise ValueError(
        f"{where}: no market of this model was found with these returns; the nearest differs by "
        f"{float((found(z)[0] - values).abs().amax()):.2g} in a log return"
    )


def _volatility(returns: Tensor) -> Tensor:
    """Exponentially weighted volatility of each asset at the end of some days, ``(A,)``."""
    ages = torch.arange(len(returns) - 1, -1, -1, dtype=returns.dtype, device=returns.device)
    weights = _DECAY**ages
    return (weights @ returns.square() / weights.sum()).sqrt()


def _date(name: str, value: Any) -> Any:
    """A day, ``datetime64[D]``, or a time of day."""
    if not isinstance(value, str | date | np.datetime64):
        raise TypeError(f"replay: {name} must be a date, such as '2020-03-02', got {value!r}")
    try:
        found = np.datetime64(str(value))
    except ValueError:
        raise ValueError(f"replay: {name} must be a date, such as '2020-03-02', got {value!r}") from None
    return found if found.dtype > np.dtype("M8[D]") else found.astype("M8[D]")
