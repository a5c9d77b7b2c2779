"""What a target is made of: rows of numbers that say what is measured of the weights, and the bounds.

The targets themselves, in portfolio language, are in `targets`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.problems.checks import as_index, check_is_tensor, check_number, check_tensor
from funcexplain.problems.criterion import GOALS, LINEAR

Asset = int | str
_SHOWN = 8  # weights of a vector in a repr


class Book(NamedTuple):
    """What a target has to know of the portfolio.

    Attributes:
        like: weights, for their number, dtype and device, ``(A,)``.
        assets: names of the assets, where they have some.
        today: the weights that are held now, where something is asked from there.
    """

    like: Tensor
    assets: tuple[str, ...] | None = None
    today: Tensor | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Target:
    """A target, or several that are to be met together (`all_of`).

    Attributes:
        call: the call that made it, its repr.
        rows: from a `Book` to numbers ``(K, A + 3)``, see `criterion`.
        from_today: whether it needs today's weights, and was not given them.
        weights: from a book to the one allocation that meets it, where only one does.
    """

    call: str
    rows: Callable[[Book], Tensor]
    from_today: bool = False
    weights: Callable[[Book], Tensor] | None = None

    def residual(
        self,
        weights: Tensor,
        *,
        today: Tensor | None = None,
        assets: Sequence[str] | None = None,
    ) -> Tensor:
        """How far what is measured lies from where it should, zero exactly where the target is met.

        Args:
            weights: allocation, shape ``(A,)``, or several that lead with their rows.
            today: the weights held now, ``(A,)``, where the target is measured from there.
            assets: names of the assets, where the target calls them by name.

        Returns:
            One number for each thing that is measured, ``(K,)``; positive where it is too large.

        Raises:
            TypeError: if weights are no floating tensor, or today's weights are missing.
            ValueError: if an asset is unknown.

        Example:
            >>> import funcexplain as fe
            >>> fe.targets.at_least(0, 0.5).residual(torch.tensor([0.25, 0.75]))
            tensor([-0.2500])
        """
        check_is_tensor("residual", "weights", weights)
        like = weights.detach()[(0,) * (weights.ndim - 1)]
        measured, nearest = GOALS.compare(
            weights, self.rows(Book(like, None if assets is None else tuple(assets), today))
        )
        return measured - nearest

    def loss(
        self,
        weights: Tensor,
        *,
        today: Tensor | None = None,
        assets: Sequence[str] | None = None,
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
        """Whether the target is met, ``max |residual| <= atol``.

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
        return self.residual(weights, today=today, assets=assets).abs().amax(-1) <= atol

    def __repr__(self) -> str:
        return self.call


def goal_rows(
    book: Book,
    coefficients: Tensor,
    kind: int = LINEAR,
    *,
    lower: float | Tensor = -math.inf,
    upper: float | Tensor = math.inf,
) -> Tensor:
    """Numbers of several goals of one kind, from their coefficients ``(K, A)``."""
    bounds = [
        (bound if isinstance(bound, Tensor) else torch.tensor(bound, dtype=torch.float64)).expand(
            len(coefficients)
        )
        for bound in (lower, upper)
    ]
    kinds = torch.full((len(coefficients),), float(kind))
    return torch.cat(
        [coefficients.to(book.like), *(column[:, None].to(book.like) for column in (kinds, *bounds))],
        dim=1,
    )


def of_asset(where: str, asset: Asset, lower: float, upper: float, *told: float) -> Target:
    """One asset's weight within bounds; ``told`` are the numbers of the call."""
    key = check_asset(where, asset)

    def rows(book: Book) -> Tensor:
        unit = torch.eye(len(book.like))[place_of(where, key, book)]
        return goal_rows(book, unit[None], lower=lower, upper=upper)

    return Target(f"{where}({', '.join(map(repr, (asset, *told)))})", rows)


def of_allocation(call: str, allocation: Callable[[Book], Tensor], from_today: bool = False) -> Target:
    """One whole allocation."""

    def rows(book: Book) -> Tensor:
        wanted = allocation(book)
        return goal_rows(book, torch.eye(len(wanted)), lower=wanted, upper=wanted)

    return Target(call, rows, from_today, allocation)


def check_asset(where: str, asset: Any) -> Asset:
    """Refuse what is neither number nor name."""
    if isinstance(asset, str):
        return asset
    index = as_index(asset)
    if index is None:
        raise TypeError(f"{where}: asset must be a number or a name, got {type(asset).__name__}")
    return index


def place_of(where: str, asset: Asset, book: Book) -> int:
    """The number of an asset."""
    count = len(book.like)
    if isinstance(asset, int):
        if not -count <= asset < count:
            raise ValueError(f"{where}: asset must be one of {count}, 0 to {count - 1}, got {asset}")
        return asset % count
    if book.assets is None:
        raise ValueError(
            f"{where}: asset {asset!r} is a name, and the assets have none here; give them to the "
            "problem, as in fe.problem(network, target, x0, assets=[...]), or number the asset"
        )
    if asset not in book.assets:
        raise ValueError(f"{where}: asset must be one of {', '.join(book.assets)}, got {asset!r}")
    return book.assets.index(asset)


def check_vector(where: str, name: str, value: Any) -> Tensor:
    """Refuse what is no allocation ``(A,)``."""
    value = check_tensor(where, name, value)
    if value.ndim != 1 or not len(value):
        raise ValueError(f"{where}: {name} must have shape (A,), got {tuple(value.shape)}")
    return value


def check_today(where: str, today: Any) -> Tensor | None:
    """Refuse today's weights that are no allocation."""
    return None if today is None else check_vector(where, "today", today)


def held_today(where: str, own: Tensor | None, book: Book) -> Tensor:
    """Today's weights: those that the target was given, or those that the book knows."""
    held = own if own is not None else book.today
    if held is None:
        raise TypeError(
            f"{where}: is measured from today's weights, got none; fe.problem takes those that the "
            "network holds at the reference, elsewhere give today=weights"
        )
    check_length(where, "today", held, book)
    return held.to(book.like)


def check_length(where: str, name: str, value: Tensor, book: Book) -> None:
    """Refuse an allocation of another number of assets."""
    if value.shape != book.like.shape:
        raise ValueError(
            f"{where}: {name} must have one weight for each of {len(book.like)} assets, got shape "
            f"{tuple(value.shape)}"
        )


def check_weight(where: str, name: str, value: Any) -> float:
    """Refuse what is no finite number."""
    return check_number(where, name, value, minimum=-math.inf)


def check_bound(name: str, value: Any) -> Tensor:
    """Refuse what is no bound of `between`."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise TypeError(f"between: {name} must be a number or a torch.Tensor, got {value!r}")
        return torch.tensor(float(value), dtype=torch.float64)
    value = check_tensor("between", name, value, infinite=True)
    if value.ndim > 1:
        raise ValueError(f"between: {name} must be a number or (A,), got shape {tuple(value.shape)}")
    return value


def told(value: float | Tensor) -> str:
    """A number or vector as it stands in a call; a long one is cut."""
    if not isinstance(value, Tensor) or not value.ndim:
        return f"{float(value):g}"
    shown = [f"{number:g}" for number in value[:_SHOWN].tolist()]
    return f"[{', '.join([*shown, *(['...'] if len(value) > _SHOWN else [])])}]"


def given(today: Tensor | None) -> str:
    """Today's weights as they stand at the end of a call."""
    return "" if today is None else f", today={told(today)}"
