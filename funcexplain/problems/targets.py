"""Targets in portfolio language: ``at_least("EUR", 0.3)``, a sector's total, a limit on turnover.

Each function returns a `Target`, which bounds quantities of the weights; its ``residual`` is the
distance from the bounds, zero where the target is met. `problem` accepts a target instead of an
allocation, and `vmap` a list of targets, one for each row. An asset is a number, or a name if the
problem has ``assets``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from funcexplain.problems import checks, criterion
from funcexplain.problems.criterion import Asset, Portfolio, Target

_MARGIN = 0.002

__all__ = [
    *("all_of", "at_least", "at_most", "between", "concentration", "exact", "exit"),
    *("group", "move", "shift", "top", "turnover"),
]


def exact(weights: Tensor) -> Target:
    """This allocation, ``w = weights``; equivalent to passing the tensor itself to `problem`.

    Args:
        weights: allocation to reach, shape ``(A,)``.

    Raises:
        TypeError, ValueError: if it is not a finite floating vector.

    Example:
        >>> exact(torch.tensor([0.5, 0.5])).residual(torch.tensor([0.25, 0.75]))
        tensor([-0.2500,  0.2500])
    """
    own = criterion.check_vector("exact", "weights", weights)

    def allocation(portfolio: Portfolio) -> Tensor:
        criterion.check_length("exact", "weights", own, portfolio)
        return own.to(portfolio.like)

    return criterion.reach_allocation(f"exact({criterion.format_value(own)})", allocation)


def at_least(asset: Asset, w: float) -> Target:
    """One asset's weight is at least ``w``, ``w_k >= w``.

    Args:
        asset: number or name.
        w: its minimum weight.

    Raises:
        TypeError, ValueError: if ``asset`` is neither a number nor a name, or ``w`` is not finite.

    Example:
        >>> at_least(0, 0.5).residual(torch.tensor([0.25, 0.75]))
        tensor([-0.2500])
    """
    lower = criterion.check_weight("at_least", "w", w)
    return criterion.bound_asset("at_least", asset, lower, math.inf, w)


def at_most(asset: Asset, w: float) -> Target:
    """One asset's weight is at most ``w``, ``w_k <= w``.

    Args:
        asset: number or name.
        w: its maximum weight.

    Raises:
        TypeError, ValueError: as `at_least`.

    Example:
        >>> at_most(1, 0.5).residual(torch.tensor([0.25, 0.75]))
        tensor([0.2500])
    """
    upper = criterion.check_weight("at_most", "w", w)
    return criterion.bound_asset("at_most", asset, -math.inf, upper, w)


def exit(asset: Asset) -> Target:  # noqa: A001 (portfolio managers' term; called as targets.exit)
    """No position in one asset, ``w_k = 0``: neither long nor short.

    Args:
        asset: number or name.

    Raises:
        TypeError: if ``asset`` is neither a number nor a name.

    Example:
        >>> exit(1).residual(torch.tensor([0.25, 0.75]))
        tensor([0.7500])
    """
    return criterion.bound_asset("exit", asset, 0.0, 0.0)


def between(lower: float | Tensor, upper: float | Tensor) -> Target:
    """Every weight within bounds, ``lower <= w <= upper``.

    Args:
        lower: number, or one for each asset, ``(A,)``; ``-inf`` for no bound.
        upper: as ``lower``; ``inf`` for no bound.

    Raises:
        TypeError: if a bound is neither a number nor a floating tensor.
        ValueError: if a bound is NaN or has another shape, or lower > upper.

    Example:
        >>> between(0.3, torch.tensor([1.0, 0.5])).residual(torch.tensor([0.25, 0.75]))
        tensor([-0.0500,  0.2500])
    """
    low, high = criterion.check_bound("lower", lower), criterion.check_bound("upper", upper)
    if low.ndim and high.ndim and low.shape != high.shape:
        raise ValueError(
            f"between: lower and upper must have one shape, got {tuple(low.shape)} and "
            f"{tuple(high.shape)}"
        )
    shown = [criterion.format_value(bound) for bound in (lower, upper)]
    if bool((low > high).any()):
        raise ValueError(f"between: lower must be <= upper, got {' and '.join(shown)}")

    def rows(portfolio: Portfolio) -> Tensor:
        for name, bound in (("lower", low), ("upper", high)):
            if bound.ndim:
                criterion.check_length("between", name, bound, portfolio)
        identity = criterion.unit_vectors(portfolio)
        return criterion.encode_goals(portfolio, identity, lower=low, upper=high)

    return Target(f"between({', '.join(shown)})", rows)


def top(asset: Asset, *, margin: float = _MARGIN) -> Target:
    """One asset is the largest position, ``w_k >= w_j + margin`` for every other asset.

    A hit within a tolerance may fall short of the margin, but is never a tie: ``w_k > w_j`` holds.

    Args:
        asset: number or name.
        margin: minimum distance from every other weight, > 0; 0.002 is 0.2 percentage points.

    Raises:
        TypeError: if ``asset`` is neither a number nor a name, or ``margin`` is not a number.
        ValueError: if ``margin`` is not positive.

    Example:
        >>> top(0, margin=0.1).residual(torch.tensor([0.25, 0.75, 0.0]))
        tensor([-0.6000,  0.0000])
    """
    key = criterion.check_asset("top", asset)
    lower = checks.check_number("top", "margin", margin, minimum=0.0, strict=True)

    def rows(portfolio: Portfolio) -> Tensor:
        index, identity = criterion.find_asset("top", key, portfolio), criterion.unit_vectors(portfolio)
        differences = identity[index] - torch.cat([identity[:index], identity[index + 1 :]])
        return criterion.encode_goals(portfolio, differences, criterion.ORDER, lower=lower)

    shown = "" if margin == _MARGIN else f", margin={margin!r}"
    return Target(f"top({asset!r}{shown})", rows)


def group(
    assets: Sequence[Asset],
    w: float | None = None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Target:
    """The total weight of several assets, such as a sector: ``sum(w_k) = w``, or within bounds.

    Args:
        assets: different numbers or names.
        w: their total weight; or instead of it, one or both bounds.
        at_least: their minimum total weight.
        at_most: their maximum total weight.

    Raises:
        TypeError: if assets are not a sequence of numbers or names.
        ValueError: if assets are empty or repeated, ``w`` and bounds are both missing or both given, or
            at_least > at_most.

    Example:
        >>> group([0, 2], 0.5).residual(torch.tensor([0.25, 0.75, 0.0]))
        tensor([-0.2500])
    """
    if isinstance(assets, str | bytes) or not isinstance(assets, Sequence):
        raise TypeError(f"group: assets must be a list of numbers or names, got {type(assets).__name__}")
    keys = [criterion.check_asset("group", asset) for asset in assets]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"group: assets must be one or more different assets, got {list(assets)}")
    if (w is None) == (at_least is None and at_most is None):
        raise ValueError("group: expected either w, or at_least or at_most or both")
    lower = -math.inf if at_least is None else criterion.check_weight("group", "at_least", at_least)
    upper = math.inf if at_most is None else criterion.check_weight("group", "at_most", at_most)
    if w is not None:
        lower = upper = criterion.check_weight("group", "w", w)
    if lower > upper:
        raise ValueError(f"group: at_least must be <= at_most, got {at_least!r} and {at_most!r}")

    def rows(portfolio: Portfolio) -> Tensor:
        indices = [criterion.find_asset("group", key, portfolio) for key in keys]
        members = criterion.unit_vectors(portfolio)[indices].sum(0)
        return criterion.encode_goals(portfolio, members[None], lower=lower, upper=upper)

    arguments = {"w": w, "at_least": at_least, "at_most": at_most}
    shown = "".join(f", {name}={value!r}" for name, value in arguments.items() if value is not None)
    return Target(f"group({list(assets)!r}{shown})", rows)


def shift(asset: Asset, delta: float, *, today: Tensor | None = None) -> Target:
    """Today's weights with one asset's weight changed by ``delta``, funded by the others' gross weight.

    ``w_k = t_k + delta`` and ``w_j = t_j - delta |t_j| / sum_i |t_i|`` over the others: pro rata in a
    long-only portfolio, and defined even if longs and shorts cancel. A single allocation, as in `exact`.

    Args:
        asset: number or name.
        delta: change of its weight; 0.05 is five percentage points.
        today: current weights, ``(A,)``. Default: the network's weights at the reference.

    Raises:
        TypeError, ValueError: if an argument is not an asset, number or vector.

    Example:
        >>> shift(0, 0.2).residual(torch.tensor([0.5, 0.5, 0.0]), today=torch.tensor([0.2, 0.4, 0.4]))
        tensor([ 0.1000,  0.2000, -0.3000])
    """
    key, own = criterion.check_asset("shift", asset), criterion.check_today("shift", today)
    criterion.check_weight("shift", "delta", delta)

    def allocation(portfolio: Portfolio) -> Tensor:
        index = criterion.find_asset("shift", key, portfolio)
        weights = criterion.find_today("shift", own, portfolio)
        chosen = torch.arange(len(weights), device=weights.device) == index
        others = torch.where(chosen, 0.0, weights)
        gross = others.abs().sum()
        if gross == 0:
            raise ValueError(f"shift: the other assets must fund {asset!r}, got no weight in them")
        return torch.where(chosen, weights + delta, weights - delta * others.abs() / gross)

    call = f"shift({asset!r}, {delta!r}{criterion.format_today(today)})"
    return criterion.reach_allocation(call, allocation, own is None)


def move(changes: Mapping[Any, float], *, today: Tensor | None = None) -> Target:
    """Today's weights with those of some assets changed, and the others unchanged: ``w_k = t_k + d_k``.

    A single allocation, as in `exact`. In a fully invested portfolio, the changes must add up to zero.

    Args:
        changes: change of weight by name or number, such as ``{"EUR": 0.05, "JPY": -0.05}``.
        today: current weights, ``(A,)``. Default: the network's weights at the reference.

    Raises:
        TypeError, ValueError: if an argument is not such a dict or vector, or is empty.

    Example:
        >>> move({0: 0.25, 1: -0.25}).residual(torch.tensor([0.5, 0.5]), today=torch.tensor([0.5, 0.5]))
        tensor([-0.2500,  0.2500])
    """
    if not isinstance(changes, Mapping) or not changes:
        raise TypeError(
            "move: changes must be a dict of changes by asset, such as {'EUR': 0.05, 'JPY': -0.05}, got "
            f"{changes!r}"
        )
    keys = [criterion.check_asset("move", asset) for asset in changes]
    deltas = [criterion.check_weight("move", f"changes[{asset!r}]", d) for asset, d in changes.items()]
    own = criterion.check_today("move", today)

    def allocation(portfolio: Portfolio) -> Tensor:
        weights = criterion.find_today("move", own, portfolio)
        indices = [criterion.find_asset("move", key, portfolio) for key in keys]
        if len(set(indices)) < len(indices):
            raise ValueError(f"move: changes must be of different assets, got {list(changes)}")
        places = torch.tensor(indices, device=weights.device)
        return weights.index_add(0, places, weights.new_tensor(deltas))

    shown = f"move({dict(changes)!r}{criterion.format_today(today)})"
    return criterion.reach_allocation(shown, allocation, own is None)


def turnover(at_most: float, *, today: Tensor | None = None) -> Target:
    """One-sided turnover from today's weights is limited, ``sum(|w - t|) / 2 <= at_most``.

    Args:
        at_most: maximum share of the portfolio that is traded, >= 0.
        today: current weights, ``(A,)``. Default: the network's weights at the reference.

    Raises:
        TypeError, ValueError: if ``at_most`` is not a number >= 0, or ``today`` is not a vector.

    Example:
        >>> turnover(0.1).residual(torch.tensor([0.25, 0.75]), today=torch.tensor([0.5, 0.5]))
        tensor([0.1500])
    """
    upper = checks.check_number("turnover", "at_most", at_most, minimum=0.0)
    own = criterion.check_today("turnover", today)

    def rows(portfolio: Portfolio) -> Tensor:
        weights = criterion.find_today("turnover", own, portfolio)
        return criterion.encode_goals(portfolio, weights[None], criterion.TURNOVER, upper=upper)

    return Target(f"turnover({at_most!r}{criterion.format_today(today)})", rows, own is None)


def concentration(at_most: float) -> Target:
    """The Herfindahl index is limited, ``sum(w**2) <= at_most``; n equal weights have ``1 / n``.

    Args:
        at_most: maximum index, > 0.

    Raises:
        TypeError, ValueError: if ``at_most`` is not a number > 0.

    Example:
        >>> concentration(0.5).residual(torch.tensor([0.25, 0.75]))
        tensor([0.1250])

    References:
        O. C. Herfindahl (1950), Concentration in the Steel Industry; A. O. Hirschman (1964), The
        Paternity of an Index, https://www.jstor.org/stable/1818582
    """
    upper = checks.check_number("concentration", "at_most", at_most, minimum=0.0, strict=True)

    def rows(portfolio: Portfolio) -> Tensor:
        zeros = torch.zeros_like(portfolio.like)
        return criterion.encode_goals(portfolio, zeros[None], criterion.CONCENTRATION, upper=upper)

    return Target(f"concentration({at_most!r})", rows)


def all_of(*targets: Target) -> Target:
    """Several targets that must be met together.

    Args:
        targets: at least one.

    Raises:
        TypeError: if one is not a target.
        ValueError: if there are no targets.

    Example:
        >>> all_of(at_least(0, 0.5), exit(2)).residual(torch.tensor([0.25, 0.5, 0.25]))
        tensor([-0.2500,  0.2500])
    """
    for index, target in enumerate(targets):
        if not isinstance(target, Target):
            raise TypeError(
                f"all_of: targets[{index}] must be a target, such as fe.targets.at_least(0, 0.3), got "
                f"{type(target).__name__}; fe.targets.exact(weights) makes one of an allocation"
            )
    if not targets:
        raise ValueError("all_of: expected at least one target, got none")

    def rows(portfolio: Portfolio) -> Tensor:
        return torch.cat([target.rows(portfolio) for target in targets])

    calls = ", ".join(target.call for target in targets)
    return Target(f"all_of({calls})", rows, any(target.from_today for target in targets))
