"""The path of returns behind an answer, and the days of history known on its date.

A question about a past date must not see later prices. Its date is the last day of the reference window
in the history, or, if the free days of the window are still to come, the last day before them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.problems.grid import mapped_dims
from funcexplain.problems.problem import Args, Problem


class Paths(NamedTuple):
    """Paths of ``B`` rows.

    Attributes:
        answer: returns behind the answer, ``(B, D, A)``.
        reference: returns behind the reference, ``(B, D, A)``.
        free: number of last days from the first one on that may move, for each row.
        shocks: standard normal shocks of the answer, ``(B, D, A)``; None where there are none.
    """

    answer: Tensor
    reference: Tensor
    free: list[int]
    shocks: Tensor | None


def paths_of(problem: Problem, x: Tensor, args: Args, z: Tensor | None = None) -> Paths:
    """The paths behind answers ``(B, C, L, A)`` with the rows' args, as from `take_rows`.

    Their search points ``z`` may be left out for references. In a scenario the path has all shocked
    days. Elsewhere, and in a scenario whose last returns are not the first channel of the window, it is
    that channel.
    """
    rows, dims = len(x), mapped_dims(problem.dims, args)

    def entry(name: str, ndim: int) -> Tensor:
        value: Tensor = args[name]
        return value if dims[name] is not None else value.expand(rows, *value.shape[-ndim:])

    reference = entry("reference", 3)[:, 0]
    if problem.law and problem.returns:
        needed = {name: value for name, value in args.items() if name != "params"}
        along = (0, mapped_dims(problem.dims, needed))
        if z is None:
            z = torch.func.vmap(problem.encode, along)(x, needed)
        base, factor = entry("returns", 2), entry("factor" if "factor" in args else "mixing", 3)
        shocks = torch.where(factor.diagonal(dim1=-2, dim2=-1) != 0, z, 0.0)
        moved = torch.func.vmap(problem.returns, along)(z, needed)
        if _same(base[:, -x.shape[2] :], reference) and _same(moved[:, -x.shape[2] :], x[:, 0]):
            free = (factor.diagonal(dim1=-2, dim2=-1) != 0).any(-1).expand(rows, base.shape[1])
            return Paths(moved, base, _last(free), shocks)
    # A mask that `freeze` does not apply keeps nothing.
    free = (entry("mask", 3) | (x != entry("reference", 3))).any(-1).any(1)
    return Paths(x[:, 0], reference, _last(free), None)


def known_days(history: Tensor, reference: Tensor, free: int) -> tuple[int, int]:
    """Days of a history ``(C, days, A)`` up to the question's date, and those before its free days.

    Args:
        history: features of every day.
        reference: window, ``(C, L, A)``.
        free: number of last days that may move.

    Returns:
        Both numbers; all days where the history does not hold the reference.

    Example:
        >>> history = torch.arange(10.0).view(1, 10, 1)
        >>> known_days(history, history[:, 2:6], free=2)
        (6, 4)
        >>> known_days(history, torch.tensor([2.0, 3.0, 4.0, 0.0]).view(1, 4, 1), free=1)
        (5, 5)
        >>> known_days(history, torch.zeros(1, 4, 1), free=4)
        (10, 10)
    """
    lookback = reference.shape[1]
    if (end := _end(history, reference)) is not None:
        return end, max(0, end - free)
    # Features of coming days do not follow from known prices, those before them do.
    before = reference[:, : lookback - free] if free < lookback else reference[:, :0]
    end = _end(history, before) if before.shape[1] else None
    return (history.shape[1],) * 2 if end is None else (end, end)


def _end(history: Tensor, window: Tensor) -> int | None:
    """Number of days up to the end of the first real window that equals one, to rounding."""
    days = window.shape[1]
    tolerance = 8 * torch.finfo(window.dtype).eps * window.abs().amax((1, 2), keepdim=True)
    ends = ((history[:, days - 1 :] - window[:, -1:]).abs() <= tolerance).all(2).all(0).nonzero()
    for place in ends.flatten().tolist():
        if bool(((history[:, place : place + days] - window).abs() <= tolerance).all()):
            return int(place) + days
    return None


def _last(free: Tensor) -> list[int]:
    """Number of days from the first free one on, for each row ``(B, D)``; all where none is."""
    days = free.shape[1]
    return [days - int(first) for first in free.int().argmax(1)]


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether returns agree to rounding, where they are known."""
    if found.shape != expected.shape:
        return False
    close = torch.isclose(
        found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().nan_to_num().amax())
    )
    return bool((close | found.isnan() | expected.isnan()).all())
