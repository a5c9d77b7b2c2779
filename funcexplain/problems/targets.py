"""Targets in the language of portfolios: ``at_least("EUR", 0.3)``, a sector's sum, a limit on turnover.

Each says what is measured of the weights and where it should lie. Its ``residual`` is how far off that
is, zero where the target is met. `problem` takes one in place of an allocation, and `vmap` a list of
them, one for each row. Assets are named by number, or by name where the problem has ``assets``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from funcexplain.problems import checks, goals
from funcexplain.problems.criterion import CONCENTRATION, TURNOVER
from funcexplain.problems.goals import Asset, Book, Target


def exact(weights: Tensor) -> Target:
    """This allocation, ``w = weights``; the same as giving `problem` the tensor itself.

    Args:
        weights: allocation to reach, shape ``(A,)``.

    Returns:
        A target.

    Raises:
        TypeError, ValueError: if it is no finite floating vector.

    Example:
        >>> exact(torch.tensor([0.5, 0.5])).residual(torch.tensor([0.25, 0.75]))
        tensor([-0.2500,  0.2500])
    """
    own = goals.check_vector("exact", "weights", weights)

    def allocation(book: Book) -> Tensor:
        goals.check_length("exact", "weights", own, book)
        return own.to(book.like)

    return goals.of_allocation(f"exact({goals.told(own)})", allocation)


def at_least(asset: Asset, w: float) -> Target:
    """At least so much in one asset, ``w_k >= w``.

    Args:
        asset: number or name.
        w: its least weight.

    Returns:
        A target.

    Raises:
        TypeError, ValueError: if ``asset`` is neither number nor name, or ``w`` no finite number.

    Example:
        >>> at_least(0, 0.5).residual(torch.tensor([0.25, 0.75]))
        tensor([-0.2500])
    """
    return goals.of_asset("at_least", asset, goals.check_weight("at_least", "w", w), math.inf, w)


def at_most(asset: Asset, w: float) -> Target:
    """At most so much in one asset, ``w_k <= w``.

    Args:
        asset: number or name.
        w: its largest weight.

    Returns:
        A target.

    Raises:
        TypeError, ValueError: as `at_least`.

    Example:
        >>> at_most(1, 0.5).residual(torch.tensor([0.25, 0.75]))
        tensor([0.2500])
    """
    return goals.of_asset("at_most", asset, -math.inf, goals.check_weight("at_most", "w", w), w)


def exit(asset: Asset) -> Target:  # noqa: A001 (the word of the trade; called as targets.exit)
    """Nothing in one asset, ``w_k = 0``: neither long nor short.

    Args:
        asset: number or name.

    Returns:
        A target.

    Raises:
        TypeError: if ``asset`` is neither number nor name.

    Example:
        >>> exit(1).residual(torch.tensor([0.25, 0.75]))
        tensor([0.7500])
    """
    return goals.of_asset("exit", asset, 0.0, 0.0)


def between(lower: float | Tensor, upper: float | Tensor) -> Target:
    """Every weight within bounds, ``lower <= w <= upper``.

    Args:
        lower: number, or one for each asset, ``(A,)``; ``-inf`` for none.
        upper: likewise, ``inf`` for none.

    Returns:
        A target.

    Raises:
        TypeError: if a bound is neither number nor floating tensor.
        ValueError: if one is NaN or not of that shape, or lower > upper.

    Example:
        >>> between(0.3, torch.tensor([1.0, 0.5])).residual(torch.tensor([0.25, 0.75]))
        tensor([-0.0500,  0.2500])
    """
    least, most = (
        goals.check_bound(name, value) for name, value in (("lower", lower), ("upper", upper))
    )
    if least.ndim and most.ndim and least.shape != most.shape:
        raise ValueError(
            f"between: lower and upper must have one shape, got {tuple(least.shape)} and "
            f"{tuple(most.shape)}"
        )
    if bool((least > most).any()):
        raise ValueError(
            f"between: lower must be <= upper, got {goals.told(lower)} and {goals.told(upper)}"
        )

    def rows(book: Book) -> Tensor:
        for name, bound in (("lower", least), ("upper", most)):
            if bound.ndim:
                goals.check_length("between", name, bound, book)
        return goals.goal_rows(book, torch.eye(len(book.like)), lower=least, upper=most)

    return Target(f"between({goals.told(lower)}, {goals.told(upper)})", rows)


def top(asset: Asset) -> Target:
    """The largest position, ``w_k >= w_j`` for every other asset; a tie counts.

    Args:
        asset: number or name.

    Returns:
        A target.

    Raises:
        TypeError: if ``asset`` is neither number nor name.

    Example:
        >>> top(0).residual(torch.tensor([0.25, 0.75, 0.0]))
        tensor([-0.5000,  0.0000])
    """
    key = goals.check_asset("top", asset)

    def rows(book: Book) -> Tensor:
        place, identity = goals.place_of("top", key, book), torch.eye(len(book.like))
        others = torch.arange(len(identity)) != place
        return goals.goal_rows(book, identity[place] - identity[others], lower=0.0)

    return Target(f"top({asset!r})", rows)


def group(
    assets: Sequence[Asset],
    w: float | None = None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Target:
    """So much in several assets together, a sector's sum: ``sum(w_k) = w``, or within bounds.

    Args:
        assets: numbers or names, none twice.
        w: their weight together; or instead of it, one or both bounds.
        at_least: their least weight together.
        at_most: their largest weight together.

    Returns:
        A target.

    Raises:
        TypeError: if assets are no sequence of numbers or names.
        ValueError: if there is none, one twice, no number or too many, or at_least > at_most.

    Example:
        >>> group([0, 2], 0.5).residual(torch.tensor([0.25, 0.75, 0.0]))
        tensor([-0.2500])
    """
    if isinstance(assets, str | bytes) or not isinstance(assets, Sequence):
        raise TypeError(f"group: assets must be a list of numbers or names, got {type(assets).__name__}")
    keys = [goals.check_asset("group", asset) for asset in assets]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(f"group: assets must be at least one, and none twice, got {list(assets)}")
    if (w is None) == (at_least is None and at_most is None):
        raise ValueError("group: expected either w or at_least and at_most (one or both)")
    least, most = (w, w) if w is not None else (at_least, at_most)
    lower = (
        -math.inf
        if least is None
        else goals.check_weight("group", "w" if w is not None else "at_least", least)
    )
    upper = (
        math.inf
        if most is None
        else goals.check_weight("group", "w" if w is not None else "at_most", most)
    )
    if lower > upper:
        raise ValueError(f"group: at_least must be <= at_most, got {at_least!r} and {at_most!r}")

    def rows(book: Book) -> Tensor:
        places = [goals.place_of("group", key, book) for key in keys]
        return goals.goal_rows(
            book, torch.eye(len(book.like))[places].sum(0)[None], lower=lower, upper=upper
        )

    given = {"w": w, "at_least": at_least, "at_most": at_most}
    told = "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)
    return Target(f"group({list(assets)!r}{told})", rows)


def shift(asset: Asset, delta: float, *, today: Tensor | None = None) -> Target:
    """Today's weights with one asset's changed by ``delta``, funded pro rata by the others.

    ``w_k = t_k + delta`` and ``w_j = t_j (1 - delta / (sum(t) - t_k))`` for the others. It is one
    allocation, to be reached as `exact` is.

    Args:
        asset: number or name.
        delta: what is added to its weight; 0.05 are five percentage points.
        today: weights held now, ``(A,)``. Default: those that the network holds at the reference.

    Returns:
        A target.

    Raises:
        TypeError, ValueError: for what is no asset, number or vector.

    Example:
        >>> shift(0, 0.2).residual(torch.tensor([0.5, 0.5, 0.0]), today=torch.tensor([0.2, 0.4, 0.4]))
        tensor([ 0.1000,  0.2000, -0.3000])
    """
    key, own = goals.check_asset("shift", asset), goals.check_today("shift", today)
    checks.check_number("shift", "delta", delta, minimum=-math.inf)

    def allocation(book: Book) -> Tensor:
        place, held = goals.place_of("shift", key, book), goals.held_today("shift", own, book)
        chosen = torch.arange(len(held), device=held.device) == place
        others = torch.where(chosen, 0.0, held)
        if others.sum() == 0:
            raise ValueError(f"shift: the other assets must hold something to fund {asset!r}, got 0")
        return torch.where(chosen, held + delta, held - delta * others / others.sum())

    return goals.of_allocation(
        f"shift({asset!r}, {delta!r}{goals.given(today)})", allocation, own is None
    )


def turnover(at_most: float, *, today: Tensor | None = None) -> Target:
    """Not far from today's weights: one-sided turnover ``sum(|w - t|) / 2 <= at_most``.

    Args:
        at_most: largest share of the portfolio that changes hands, >= 0.
        today: weights held now, ``(A,)``. Default: those that the network holds at the reference.

    Returns:
        A target.

    Raises:
        TypeError, ValueError: if ``at_most`` is no number >= 0, or ``today`` no vector.

    Example:
        >>> turnover(0.1).residual(torch.tensor([0.25, 0.75]), today=torch.tensor([0.5, 0.5]))
        tensor([0.1500])
    """
    most, own = (
        checks.check_number("turnover", "at_most", at_most, minimum=0.0),
        goals.check_today("turnover", today),
    )

    def rows(book: Book) -> Tensor:
        return goals.goal_rows(book, goals.held_today("turnover", own, book)[None], TURNOVER, upper=most)

    return Target(f"turnover({at_most!r}{goals.given(today)})", rows, own is None)


def concentration(at_most: float) -> Target:
    """Spread over assets: Herfindahl index ``sum(w**2) <= at_most``; ``1 / n`` is that of n equal ones.

    Args:
        at_most: largest index, > 0.

    Returns:
        A target.

    Raises:
        TypeError, ValueError: if ``at_most`` is no number > 0.

    Example:
        >>> concentration(0.5).residual(torch.tensor([0.25, 0.75]))
        tensor([0.1250])

    References:
        O. C. Herfindahl (1950), Concentration in the Steel Industry; A. O. Hirschman (1964), The
        Paternity of an Index, https://www.jstor.org/stable/1818582
    """
    most = checks.check_number("concentration", "at_most", at_most, minimum=0.0, strict=True)

    def rows(book: Book) -> Tensor:
        return goals.goal_rows(book, torch.zeros(1, len(book.like)), CONCENTRATION, upper=most)

    return Target(f"concentration({at_most!r})", rows)


def all_of(*targets: Target) -> Target:
    """Several targets together.

    Args:
        targets: at least one.

    Returns:
        A target that is met where all of them are.

    Raises:
        TypeError: if one is no target.
        ValueError: if there is none.

    Example:
        >>> all_of(at_least(0, 0.5), exit(2)).residual(torch.tensor([0.25, 0.5, 0.25]))
        tensor([-0.2500,  0.2500])
    """
    for index, target in enumerate(targets):
        if not isinstance(target, Target):
            raise TypeError(
                f"all_of: targets[{index}] must be a target, as fe.targets.at_least(0, 0.3) is, got "
                f"{type(target).__name__}; an allocation is one as fe.targets.exact(weights)"
            )
    if not targets:
        raise ValueError("all_of: expected at least one target, got none")

    def rows(book: Book) -> Tensor:
        return torch.cat([target.rows(book) for target in targets])

    calls = ", ".join(target.call for target in targets)
    return Target(f"all_of({calls})", rows, any(target.from_today for target in targets))
