"""The move of each asset's price at an answer: in numbers, a sentence, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from funcexplain.markets.periods import DAY, count_of, next_of
from funcexplain.reports.drawing import Array
from funcexplain.reports.numbers import format_percent, format_signed, join, share_of
from funcexplain.solutions.html import Html, element, table

MAX_NAMED = 3
"""Maximum number of assets that a sentence names."""

MAX_LINES = 30
"""Maximum number of assets in a table; the csv files of a run have all of them."""

NAMED_SHARE = 0.5
"""An asset is named if its move differs by at least this share of the largest difference."""


class PriceMoves(NamedTuple):
    """Price moves over the shocked days, as fractions, one number for each asset ``(A,)``.

    Attributes:
        days: number of shocked days, from the first on which prices differ; 0 if none do.
        actual: move of the price without shocks.
        scenario: move of the price at the answer.
        percentile: share of real spans of the same length with a smaller move; None without history.
        low, high: 5 and 95 % quantile of the moves over draws; None without draws.
        falls: share of draws in which the price falls; None without draws.
    """

    days: int
    actual: Array
    scenario: Array
    percentile: Array | None = None
    low: Array | None = None
    high: Array | None = None
    falls: Array | None = None

    @property
    def difference(self) -> Array:
        """Move at the answer minus the move without shocks."""
        return self.scenario - self.actual

    @property
    def order(self) -> Array:
        """Assets by the size of their difference, largest first."""
        return np.argsort(-np.abs(self.difference), kind="stable")


def measure_moves(
    actual: Array, scenario: Array, returns: Array | None = None, draws: Array | None = None
) -> PriceMoves:
    """Measure the moves between two price paths.

    Args:
        actual: prices without shocks, ``(D, A)``.
        scenario: prices at the answer, ``(D, A)``.
        returns: log returns of the history, ``(days, A)``.
        draws: log returns over the shocked days, one for each market drawn, ``(draws, A)``.

    Returns:
        The moves from the day before the first one at which the paths differ to the last.

    Example:
        >>> actual = np.array([[1.0, 4.0], [2.0, 4.0], [2.0, 4.0]])
        >>> moves = measure_moves(actual, np.array([[1.0, 4.0], [2.0, 4.0], [1.5, 5.0]]))
        >>> moves.days, moves.scenario
        (1, array([-0.25,  0.25]))
    """
    first = first_shocked_day(actual, scenario)
    days = len(actual) - first
    before, moved = (path[-1] / path[first - 1] - 1.0 for path in (actual, scenario))
    if not days:
        still = np.zeros(actual.shape[-1])
        return PriceMoves(0, still, still)
    percentile = low = high = falls = None
    if returns is not None and len(returns) >= days:
        total = np.concatenate([np.zeros((1, returns.shape[1])), np.nan_to_num(returns).cumsum(0)])
        real = np.expm1(total[days:] - total[:-days])
        percentile = (real < moved).mean(0)
    if draws is not None and len(draws):
        drawn = np.expm1(draws)
        low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
        falls = (drawn < 0.0).mean(0)
    return PriceMoves(days, before, moved, percentile, low, high, falls)


def first_shocked_day(actual: Array, scenario: Array) -> int:
    """Number of the first day at which two price paths differ beyond rounding; all days if none.

    Each path is seen from its first price, so this is at least 1.

    Example:
        >>> first_shocked_day(np.ones((3, 1)), np.array([[1.0], [1.0], [2.0]]))
        2
    """
    gap = np.log(scenario / scenario[0]) - np.log(actual / actual[0])
    differs = (np.abs(gap) > 1e-6).any(1)
    return int(differs.argmax()) if differs.any() else len(actual)


def describe_moves(
    moves: PriceMoves,
    assets: Sequence[str],
    *,
    ahead: int = 0,
    last: str = "",
    period: str = DAY,
) -> str:
    """The moves that differ most from those without shocks, in a sentence.

    Args:
        moves: the moves.
        assets: ``A`` names.
        ahead: number of shocked days that are still to come.
        last: date of the last day, or empty.
        period: of the prices.

    Returns:
        A sentence without its period, to be continued or ended.

    Example:
        >>> moves = PriceMoves(5, np.zeros(2), np.array([-0.06, 0.001]))
        >>> describe_moves(moves, ["NOK", "JPY"], ahead=5)
        'over the next 5 trading days NOK falls by 6.00%; JPY moves by at most 0.10%'
        >>> describe_moves(moves._replace(actual=np.array([0.01, 0.0])), ["NOK", "JPY"])
        'over 5 trading days NOK falls by 6.00% (actually +1.00%); JPY differs by at most 0.10 points'
    """
    order, size = moves.order, np.abs(moves.difference)
    named = [at for at in order if size[at] >= NAMED_SHARE * size[order[0]]][:MAX_NAMED]
    others = [at for at in order if at not in named]
    parts = [_describe_move(moves, at, assets[at], at == named[0], ahead=ahead) for at in named]
    if ahead:
        when = f"over {next_of(moves.days, period)}"
    else:
        when = f"over {count_of(moves.days, period)}" + (f" to {last}" if last else "")
    text = f"{when} {join(parts)}"
    if not others:
        return text
    if len(others) == 1:
        who, verbs = assets[others[0]], ("moves", "differs")
    else:
        who, verbs = f"the other {len(others)} assets", ("move", "differ")
    if ahead:
        largest = np.abs(moves.scenario[others]).max()
        return f"{text}; {who} {verbs[0]} by at most {format_percent(largest)}"
    return f"{text}; {who} {verbs[1]} by at most {100 * size[others].max():.2f} points"


def _describe_move(moves: PriceMoves, at: int, name: str, first: bool, *, ahead: int) -> str:
    """The move of one asset; with its range over draws, and the move without shocks unless ahead."""
    move = float(moves.scenario[at])
    text = f"{name} {'falls' if move < 0 else 'rises'} by {format_percent(abs(move))}"
    notes = [] if ahead else [f"actually {format_signed(float(moves.actual[at]))}"]
    if moves.low is not None and moves.high is not None:
        low, high = (format_signed(float(bound[at])) for bound in (moves.low, moves.high))
        notes.append(f"{'in 90% of the markets drawn ' if first else ''}{low} to {high}")
    return f"{text} ({'; '.join(notes)})" if notes else text


def moves_table(moves: PriceMoves, assets: Sequence[str], *, ahead: int = 0) -> Html:
    """The move of every asset, the largest differences first."""
    if not moves.days:
        return element("p", "No price moves.")
    heads = ["asset", "without shocks" if ahead else "actual", "in the scenario", "difference, points"]
    columns = [
        [format_signed(float(value)) for value in moves.actual],
        [format_signed(float(value)) for value in moves.scenario],
        [f"{100 * value:+.2f}" for value in moves.difference],
    ]
    if moves.percentile is not None:
        heads.append("percentile in history")
        columns.append([f"{100 * value:.2f}" for value in moves.percentile])
    if moves.falls is not None and moves.low is not None and moves.high is not None:
        heads += ["5 to 95% of draws", "share of draws that fall"]
        bounds = zip(moves.low, moves.high, strict=True)
        columns.append([f"{format_signed(low)} to {format_signed(high)}" for low, high in bounds])
        columns.append([share_of(float(value)) for value in moves.falls])
    lines = [[assets[at], *(column[at] for column in columns)] for at in moves.order[:MAX_LINES]]
    body = table(heads, lines, range(1, len(heads)))
    if (more := len(assets) - MAX_LINES) > 0:
        return Html(body + element("p", f"{more} more assets differ less.", class_="note"))
    return body
