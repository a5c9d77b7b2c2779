"""The comparison of weights with a target, and `Target`, from which the tensor in ``args`` is encoded.

A target in ``args`` is a tensor, so that rows may vary in it: one allocation, ``(A,)``, or K goals,
``(K, A + 3)``. Each goal is a row of numbers: A coefficients, a kind, a lower and an upper bound. The
public functions that make a `Target` are in `targets`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.networks.pickling import Unpicklable
from funcexplain.problems.checks import (
    as_index,
    check_is_dense,
    check_is_tensor,
    check_names,
    check_number,
    check_tensor,
)

Asset = int | str
# Kinds of goals: what is measured of weights w, with coefficients v.
LINEAR = 0  # sum(v * w)
TURNOVER = 1  # sum(|w - v|) / 2
CONCENTRATION = 2  # sum(w**2)
ORDER = 3  # sum(v * w) as well, but never within a tolerance of an upset order: it must be > 0
_MAX_SHOWN = 8  # entries of a vector in a repr
_ROUNDING = 4  # units of precision


class Criterion(NamedTuple):
    """How weights are compared with a target; both may have a leading row dimension.

    Attributes:
        compare: ``(weights, target) -> (measured, nearest)``: the values that the target bounds, and the
            nearest values that meet it. The target is hit where both are equal.
        bounds: ``target -> (lower, upper, strict)``, the bounds of these values, and where no tolerance
            applies.
        weights_like: from a target to a tensor of the shape of the weights.
        ndim: number of dimensions of one target.
        from_today: whether the target was made from the weights at the reference.
        level: share of several weights, such as those of a consensus, that must hold the target.
    """

    compare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    bounds: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    weights_like: Callable[[Tensor], Tensor]
    ndim: int
    from_today: bool = False
    level: float = 1.0

    def error(self, weights: Tensor, target: Tensor, rows: int = 0, atol: float | None = None) -> Tensor:
        """Maximum distance between the measured and the nearest values, for each row.

        Of several weights, the ``level`` quantile of the distances: with ``k = ceil(level * M)``, the
        ``k``-th smallest.

        Args:
            weights: allocation ``(A,)``, of all models of a consensus ``(M, A)``.
            target: as in ``args``.
            rows: number of leading row dimensions, 0 or 1.
            atol: tolerance of the error. A violated order has no tolerance: its error is then above
                ``atol``.
        """
        measured, nearest = self.compare(weights, target)
        distance = (measured - nearest).abs()
        if atol is not None and self.ndim == GOALS.ndim:
            upset = (target[..., -3] == ORDER) & (measured <= 0.0)
            above = torch.nextafter(
                torch.full_like(distance, atol), torch.full_like(distance, torch.inf)
            )
            distance = torch.where(upset, torch.maximum(distance, above), distance)
        if self.level == 1.0:
            return distance.flatten(rows).amax(-1)
        sizes = distance.amax(-1)
        place = math.ceil(self.level * sizes.shape[-1] - 1e-9) - 1
        return sizes.sort(-1).values[..., place]  # NaN is last, as a miss


def _compare_allocations(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return weights, target


def _compare_goals(weights: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    coefficients, kind, lower, upper = goals[..., :-3], goals[..., -3], goals[..., -2], goals[..., -1]
    w = weights.unsqueeze(-2)
    difference = w - coefficients
    # At today's weights themselves, rounding would decide on the slope: there it is zero.
    rounding = _ROUNDING * torch.finfo(w.dtype).eps * coefficients.abs()
    fixed = difference.detach()
    traded = 0.5 * torch.where(fixed.abs() > rounding, difference, fixed).abs().sum(-1)
    nonlinear = torch.where(kind == TURNOVER, traded, w.square().sum(-1))
    linear = (kind == LINEAR) | (kind == ORDER)
    measured = torch.where(linear, (coefficients * w).sum(-1), nonlinear)
    return measured, torch.minimum(torch.maximum(measured, lower), upper)


def _bound_allocations(target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return target, target, torch.zeros_like(target, dtype=torch.bool)


def _bound_goals(goals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return goals[..., -2], goals[..., -1], goals[..., -3] == ORDER


EXACT = Criterion(_compare_allocations, _bound_allocations, lambda target: target, ndim=1)
GOALS = Criterion(_compare_goals, _bound_goals, lambda goals: goals[..., 0, :-3], ndim=2)


class Portfolio(NamedTuple):
    """Facts about the portfolio that targets need.

    Attributes:
        like: weights that give the number of assets, dtype and device, ``(A,)``.
        assets: names of the assets, if they have names.
        today: current weights ``(A,)``, if known.
    """

    like: Tensor
    assets: tuple[str, ...] | None = None
    today: Tensor | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Target(Unpicklable):
    """A target, or several that must be met together (`all_of`).

    Attributes:
        call: the call that made it, as its repr.
        rows: from a `Portfolio` to goals ``(K, A + 3)``.
        from_today: whether it needs today's weights from the portfolio.
        weights: from a portfolio to the only allocation that meets the target, if there is only one.
    """

    call: str
    rows: Callable[[Portfolio], Tensor]
    from_today: bool = False
    weights: Callable[[Portfolio], Tensor] | None = None

    def residual(
        self, weights: Tensor, *, today: Tensor | None = None, assets: Sequence[str] | None = None
    ) -> Tensor:
        """Signed distance of each measured value from its bounds, zero exactly where the target is met.

        Args:
            weights: allocation, shape ``(A,)``, or several with leading row dimensions.
            today: current weights, ``(A,)``, for targets that are measured from them.
            assets: names of the assets, for targets that use names.

        Returns:
            One number for each measured value, ``(K,)``; positive where the value is too large.

        Raises:
            TypeError: if weights are not a tensor, or today's weights are missing.
            ValueError: if an asset is unknown.

        Example:
            >>> import funcexplain as fe
            >>> fe.targets.at_least(0, 0.5).residual(torch.tensor([0.25, 0.75]))
            tensor([-0.2500])
        """
        measured, nearest = GOALS.compare(weights, self._goals(weights, today, assets))
        return measured - nearest

    def _goals(self, weights: Tensor, today: Tensor | None, assets: Sequence[str] | None) -> Tensor:
        check_is_tensor("residual", "weights", weights)
        check_is_dense("residual", "weights", weights)
        if weights.ndim < 1 or not weights.is_floating_point():
            raise TypeError(
                "residual: weights must be floating, of shape (A,) or (rows, A), got "
                f"{weights.dtype} of shape {tuple(weights.shape)}"
            )
        like = weights.detach()[(0,) * (weights.ndim - 1)]
        names = check_names("residual", assets, len(like))
        return self.rows(Portfolio(like, names, check_today("residual", today)))

    def loss(
        self, weights: Tensor, *, today: Tensor | None = None, assets: Sequence[str] | None = None
    ) -> Tensor:
        """Mean of squared residuals, ``mean(residual**2)``.

        Args:
            weights: allocation, shape ``(A,)``.
            today: see `residual`.
            assets: see `residual`.

        Returns:
            Scalar, zero exactly where the target is met.

        Example:
            >>> import funcexplain as fe
            >>> fe.targets.at_least(0, 0.5).loss(torch.tensor([0.25, 0.75]))
            tensor(0.0625)
        """
        return self.residual(weights, today=today, assets=assets).square().mean(-1)

    def hit(
        self,
        weights: Tensor,
        *,
        atol: float = 1e-3,
        today: Tensor | None = None,
        assets: Sequence[str] | None = None,
    ) -> Tensor:
        """Whether the target is met, ``max |residual| <= atol``; the order of `top` without tolerance.

        Args:
            weights: allocation, shape ``(A,)``.
            atol: tolerance.
            today: see `residual`.
            assets: see `residual`.

        Returns:
            Bool scalar.

        Example:
            >>> import funcexplain as fe
            >>> fe.targets.at_least(0, 0.5).hit(torch.tensor([0.4995, 0.5005]))
            tensor(True)
        """
        atol = check_number("hit", "atol", atol, minimum=0.0)
        goals = self._goals(weights, today, assets)
        return GOALS.error(weights, goals, weights.ndim - 1, atol) <= atol

    def __repr__(self) -> str:
        return self.call


def encode_goals(
    portfolio: Portfolio,
    coefficients: Tensor,
    kind: int = LINEAR,
    *,
    lower: float | Tensor = -math.inf,
    upper: float | Tensor = math.inf,
) -> Tensor:
    """Goals ``(K, A + 3)`` of one kind, from their coefficients ``(K, A)``."""
    like, count = portfolio.like, len(coefficients)
    columns = [
        (c.to(like) if isinstance(c, Tensor) else like.new_full((), c)).expand(count)[:, None]
        for c in (float(kind), lower, upper)
    ]
    return torch.cat([coefficients.to(like), *columns], dim=1)


def unit_vectors(portfolio: Portfolio) -> Tensor:
    """Coefficients of each asset's weight, ``(A, A)``."""
    return torch.diag(torch.ones_like(portfolio.like))


def bound_asset(where: str, asset: Asset, lower: float, upper: float, *arguments: float) -> Target:
    """Keep one asset's weight within bounds; ``arguments`` are the other arguments of the call."""
    key = check_asset(where, asset)

    def rows(portfolio: Portfolio) -> Tensor:
        unit = unit_vectors(portfolio)[find_asset(where, key, portfolio)]
        return encode_goals(portfolio, unit[None], lower=lower, upper=upper)

    return Target(f"{where}({', '.join(map(repr, (asset, *arguments)))})", rows)


def reach_allocation(
    call: str, allocation: Callable[[Portfolio], Tensor], from_today: bool = False
) -> Target:
    """Reach one whole allocation."""

    def rows(portfolio: Portfolio) -> Tensor:
        weights = allocation(portfolio)
        return encode_goals(portfolio, unit_vectors(portfolio), lower=weights, upper=weights)

    return Target(call, rows, from_today, allocation)


def find_asset(where: str, asset: Asset, portfolio: Portfolio) -> int:
    """The index of an asset."""
    count = len(portfolio.like)
    if isinstance(asset, int):
        if not -count <= asset < count:
            raise ValueError(f"{where}: asset must be one of {count}, 0 to {count - 1}, got {asset}")
        return asset % count
    if portfolio.assets is None:
        raise ValueError(
            f"{where}: asset must be a number, since the assets have no names here, got {asset!r}; to "
            "use names, pass them to the problem, as in fe.problem(network, target, x0, assets=[...])"
        )
    if asset not in portfolio.assets:
        raise ValueError(f"{where}: asset must be one of {', '.join(portfolio.assets)}, got {asset!r}")
    return portfolio.assets.index(asset)


def find_today(where: str, today: Tensor | None, portfolio: Portfolio) -> Tensor:
    """Today's weights: the target's own, or else the portfolio's."""
    weights = today if today is not None else portfolio.today
    if weights is None:
        raise TypeError(
            f"{where}: today must be the current weights, got none; fe.problem uses the network's "
            "weights at the reference, elsewhere pass today=weights"
        )
    check_length(where, "today", weights, portfolio)
    return weights.to(portfolio.like)


def check_asset(where: str, asset: Any) -> Asset:
    """Raise unless an asset is a number or a name."""
    if isinstance(asset, str):
        return asset
    index = as_index(asset)
    if index is None:
        raise TypeError(f"{where}: asset must be a number or a name, got {type(asset).__name__}")
    return index


def check_vector(where: str, name: str, value: Any) -> Tensor:
    """Raise unless a value is an allocation ``(A,)``."""
    value = check_tensor(where, name, value)
    if value.ndim != 1 or not len(value):
        raise ValueError(f"{where}: {name} must have shape (A,), got {tuple(value.shape)}")
    return value


def check_today(where: str, today: Any) -> Tensor | None:
    """Raise unless today's weights are an allocation or ``None``."""
    return None if today is None else check_vector(where, "today", today)


def check_length(where: str, name: str, value: Tensor, portfolio: Portfolio) -> None:
    """Raise unless a vector has one entry for each asset."""
    if value.shape != portfolio.like.shape:
        raise ValueError(
            f"{where}: {name} must have one weight for each of {len(portfolio.like)} assets, got shape "
            f"{tuple(value.shape)}"
        )


def check_weight(where: str, name: str, value: Any) -> float:
    """Raise unless a value is a finite number."""
    return check_number(where, name, value, minimum=-math.inf)


def check_bound(name: str, value: Any) -> Tensor:
    """Raise unless a value is a number or vector that can be a bound of `between`."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise TypeError(f"between: {name} must be a number or a torch.Tensor, got {value!r}")
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")
    value = check_tensor("between", name, value, infinite=True)
    if value.ndim > 1:
        raise ValueError(f"between: {name} must be a number or (A,), got shape {tuple(value.shape)}")
    return value


def format_value(value: float | Tensor) -> str:
    """A number or vector in the repr of a call; a long vector is cut."""
    if not isinstance(value, Tensor) or not value.ndim:
        return f"{float(value):g}"
    shown = [f"{number:g}" for number in value[:_MAX_SHOWN].tolist()]
    return f"[{', '.join(shown)}{', ...' if len(value) > _MAX_SHOWN else ''}]"


def format_today(today: Tensor | None) -> str:
    """Today's weights as the last argument in the repr of a call."""
    return "" if today is None else f", today={format_value(today)}"
