"""An answer in a sentence: the moves of the market, and the kind of answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from funcexplain.markets.periods import DAY
from funcexplain.reports.drawing import Array
from funcexplain.reports.moves import MAX_NAMED, PriceMoves, describe_moves
from funcexplain.reports.numbers import ROUNDING, format_percent, format_points, join
from funcexplain.reports.wording import met
from funcexplain.solutions.status import Status


def describe_answer(
    status: Status,
    error: float,
    sigmas: Array,
    moves: PriceMoves | None,
    assets: Sequence[str],
    *,
    law: bool,
    ahead: int = 0,
    last: str = "",
    period: str = DAY,
) -> str:
    """Describe the market at an answer.

    Args:
        status: how the search ended.
        error: largest miss of a weight.
        sigmas: the change of the window, in sigmas or its own units, ``(C, L, A)``.
        moves: of the prices, if they are known.
        assets: ``A`` names.
        law: whether the search has a law, under which the closest answer is the likeliest.
        ahead: number of shocked days that are still to come.
        last: date of the last day, or empty.
        period: of the prices.

    Returns:
        A sentence or two.

    Example:
        >>> moves = PriceMoves(5, np.zeros(2), np.array([-0.06, 0.001]))
        >>> describe_answer(Status.CLOSEST, 1e-4, np.ones((1, 1, 2)), moves, ["NOK", "JPY"], law=True,
        ...                 ahead=5)
        'In the likeliest market found, over the next 5 trading days NOK falls by 6.00%; ...'
    """
    if not np.isfinite(sigmas).all():
        return "The search found no answer."
    changes = np.square(sigmas).sum((0, 1))
    if (np.abs(sigmas) <= ROUNDING).all():
        if not status.is_hit:
            return f"The search did not move: the target is missed by {format_points(error)}."
        return met(ahead)
    what = "market" if law or moves is not None else "window"
    if not status.is_hit:
        begin = (
            f"Not reached: the nearest {what} found misses the target by {format_points(error)}. There"
        )
    elif status is Status.CLOSEST:
        begin = f"In the {'likeliest' if law else 'closest'} {what} found"
    else:
        begin = f"In one {what} that does it"
    if moves is not None and moves.days:
        return f"{begin}, {describe_moves(moves, assets, ahead=ahead, last=last, period=period)}."
    share = changes / changes.sum()
    order = np.argsort(-share, kind="stable")[:MAX_NAMED]
    named = [f"{format_percent(share[at])} in the data of {assets[at]}" for at in order if share[at] > 0]
    return f"{begin}, the squared change is {join(named)}."
