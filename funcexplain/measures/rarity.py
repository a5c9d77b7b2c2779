"""How rare a path of returns is: its most extreme statistic, compared with real paths.

Each statistic of a path (the moves of every asset over spans of days, the joint move of all assets,
volatility and correlation) is ranked among the same statistic of all real paths before it. With hundreds
of statistics, the worst rank of nearly every path is extreme. So it is ranked in turn among the worst
ranks of real paths, each judged by the history before it: 5 % of these have a share of 5 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.markets.covariances import check_history, sample
from funcexplain.markets.turbulence import Whitening, squared_distance, whitening
from funcexplain.measures.plausibility import stylized_facts
from funcexplain.problems.checks import check_like, check_positive

MARKET = -1
"""The asset of a statistic that is of all assets: of their mean, if it is a move."""

_TAIL_INDEX = 4.0  # beyond history, a tail falls like the fourth power, steeper than most assets' third
_GROWTH = (
    1.1  # the covariance that judges real paths is estimated again when history grew by this factor
)
_MIN_SCORES = 10  # real paths that a share is measured by


MOVES = ("rise", "fall")
FACTS = ("volatility", "correlation", "calm", "dispersion")
KINDS = (*MOVES, *FACTS, "joint")
"""Kinds of statistics; calm is a low volatility, and dispersion a low correlation."""


class Statistic(NamedTuple):
    """A statistic of a path.

    Attributes:
        kind: ``"rise"``, ``"fall"``, ``"joint"``, ``"volatility"``, ``"calm"``, ``"correlation"`` or
            ``"dispersion"``; the larger its value, the more extreme.
        days: days of the span.
        asset: number of the asset, or `MARKET`.
    """

    kind: str
    days: int
    asset: int = MARKET


class Rarity(NamedTuple):
    """How rare paths are, with the leading dimensions of the paths.

    Attributes:
        share: share of real paths, in the later half of history, whose worst statistic ranked as high;
            NaN for fewer than ten.
        tails: of each statistic, log10 of the share of real paths with a value as large, ``(..., K)``:
            from ranks up to the largest value, beyond it continued by a power law.
        values: of each statistic, ``(..., K)``; moves are log returns.
        paths: number of real paths that each statistic is ranked among.
        scores: number of real paths behind ``share``.
        statistics: the ``K`` statistics.
    """

    share: Tensor
    tails: Tensor
    values: Tensor
    paths: Tensor
    scores: Tensor
    statistics: tuple[Statistic, ...]


class Layout(NamedTuple):
    """Days of a path.

    Attributes:
        days: all of them, ``D``.
        lookback: the last ones, which are the window.
        free: the last ones, which a scenario moves.
    """

    days: int
    lookback: int
    free: int

    @property
    def spans(self) -> list[int]:
        """Lengths of the spans that moves are measured over, in days."""
        return sorted({span for span in (1, self.lookback, self.free) if span <= self.days})

    def statistics(self, num_assets: int) -> tuple[Statistic, ...]:
        """The statistics of a path, in the order of their values."""
        assets, window = [*range(num_assets), MARKET], self.lookback
        moves = [
            Statistic(kind, span, asset) for span in self.spans for kind in MOVES for asset in assets
        ]
        joint = [Statistic("joint", span) for span in self.spans]
        return (*moves, *(Statistic(kind, window) for kind in FACTS), *joint)


@dataclass(frozen=True, eq=False)
class Record:
    """All real paths of a history, float64.

    Attributes:
        layout: days of a path.
        returns: the history, ``(T, A)``.
        values: statistics of the paths, but joint moves, ``(N, K - H)`` with ``N = T - D + 1``.
        scores: worst tail of some paths, each judged by the history before its free days, ``(S,)``.
        ends: days of history up to the last day of these paths, ``(S,)``.
    """

    layout: Layout
    returns: Tensor
    values: Tensor
    scores: Tensor
    ends: Tensor


def rarity(
    paths: Tensor,
    history: Tensor,
    *,
    lookback: int | None = None,
    free: int | None = None,
) -> Rarity:
    """Judge paths of returns by the history before them.

    The statistics of a path, over spans of 1, ``lookback`` and ``free`` days that touch the free ones:
    the largest rise and fall of every asset and of their mean, and the largest joint move (Mahalanobis
    distance of the cumulative returns); over the last ``lookback`` days volatility and correlation, both
    high and low.

    Args:
        paths: daily log returns, ``(..., D, A)``.
        history: daily log returns before the first free day of the paths, ``(T, A)``.
        lookback: days of the window at the end of the path. Default: ``D``.
        free: number of last days that differ from what happened. Default: ``D``.

    Returns:
        The shares, with the leading dimensions of ``paths``. NaN where a path is not finite, or the
        history is shorter than two paths or twice the number of assets.

    Raises:
        TypeError: if paths or history are not floating tensors of one dtype, or a number is not an int.
        ValueError: if shapes do not fit, a value is not finite, or a number of days is not in 1 ... D.

    Example:
        >>> history = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> found = rarity(torch.stack([history[:10], torch.full((10, 3), 1.5)]), history)
        >>> found.share < 0.05
        tensor([False,  True])
        >>> found.statistics[int(found.tails[1].argmin())]
        Statistic(kind='joint', days=10, asset=-1)

    References:
        M. Kritzman, Y. Li (2010), Skulls, Financial Turbulence, and Risk Management,
        https://doi.org/10.2469/faj.v66.n5.3

        V. Vovk, A. Gammerman, G. Shafer (2005), Algorithmic Learning in a Random World,
        https://doi.org/10.1007/b106715
    """
    history = check_history("rarity", "history", history)
    paths = check_like("rarity", "paths", paths, history, "history")
    if paths.ndim < 2 or paths.shape[-1] != history.shape[1] or paths.shape[-2] < 1:
        raise ValueError(
            f"rarity: paths must have shape (..., days, {history.shape[1]}), one column for each asset "
            f"of history, got {tuple(paths.shape)}"
        )
    days = paths.shape[-2]
    numbers = {}
    for name, value in {"lookback": lookback, "free": free}.items():
        numbers[name] = days if value is None else check_positive("rarity", name, value)
        if numbers[name] > days:
            raise ValueError(f"rarity: {name} must be in 1 ... {days}, the days of paths, got {value}")
    record = read(history, Layout(days, **numbers))
    found = judge(record, paths.reshape(-1, *paths.shape[-2:]), len(history))
    share, tails, values, count, scores = (
        part.reshape((*paths.shape[:-2], *part.shape[1:])) for part in found[:-1]
    )
    return Rarity(share, tails, values, count, scores, found.statistics)


def read(history: Tensor, layout: Layout) -> Record:
    """Read a history once: the statistics of its paths, and how rare each was at its date."""
    returns = history.double()
    empty = returns.new_empty(0)
    if len(returns) < _shortest(layout, returns):
        return Record(layout, returns, empty, empty, empty)
    values = _values(layout, returns)
    # Paths overlap: one in half their length is enough. They are counted from the first day, so that
    # days added at the end change nothing before.
    first = torch.arange(0, len(values), -(-layout.days // 2), device=returns.device)
    before = first + layout.days - layout.free
    scores, ends, start = [empty], [first[:0]], _shortest(layout, returns)
    while start < len(returns):
        end = max(int(start * _GROWTH), start + 1)
        rows = first[(before >= start) & (before < end)]
        if len(rows):
            upto, usual = int(rows[-1]) + layout.days, _usual(returns[:start])
            table = torch.cat(
                [values[: upto - layout.days + 1], _joint(layout, returns[:upto], usual)], 1
            )
            totals = rows - layout.free + 1  # of the paths that end before the free days
            counts = [
                (table[:total] >= table[row]).sum(0) for row, total in zip(rows, totals, strict=True)
            ]
            means = table.cumsum(0)[totals - 1] / totals[:, None]
            tails = _tails(
                table[rows], torch.stack(counts), totals, table.cummax(0).values[totals - 1], means
            )
            scores.append(tails.amin(1))
            ends.append(rows + layout.days)
        start = end
    return Record(layout, returns, values, torch.cat(scores), torch.cat(ends))


def judge(record: Record, paths: Tensor, known: int) -> Rarity:
    """Judge paths ``(B, D, A)`` by the first ``known`` days of a record."""
    layout, returns = record.layout, record.returns[:known]
    paths, statistics = paths.double(), layout.statistics(returns.shape[1])
    total = torch.full((len(paths),), max(0, len(returns) - layout.days + 1), device=paths.device)
    if len(returns) < _shortest(layout, returns):
        unknown = returns.new_full((len(paths), len(statistics)), torch.nan)
        return Rarity(unknown[:, 0], unknown, unknown, total, torch.zeros_like(total), statistics)
    usual = _usual(returns)
    real = torch.cat(
        [record.values[: len(returns) - layout.days + 1], _joint(layout, returns, usual)], 1
    )

    def measure(path: Tensor) -> Tensor:
        return torch.cat([_values(layout, path), _joint(layout, path, usual)], 1)[0]

    values = torch.func.vmap(measure)(paths)
    counts = torch.stack([(real >= value).sum(0) for value in values])
    tails = _tails(values, counts, total, real.amax(0), real.mean(0))
    tails = torch.where(paths.isfinite().flatten(1).all(1)[:, None], tails, torch.nan)
    scores = fair_scores(record, known)
    share = share_of(scores, tails.amin(1))
    return Rarity(share, tails, values, total, torch.full_like(total, len(scores)), statistics)


def fair_scores(record: Record, known: int) -> Tensor:
    """Worst tails of real paths among the first ``known`` days, ``(S,)``.

    A path with less than half as much history behind it sets records more often, and is left out.
    """
    return record.scores[(record.ends <= known) & (2 * record.ends >= known)]


def share_of(scores: Tensor, worst: Tensor) -> Tensor:
    """Share of real paths, and the one in question, whose worst tail is as low as ``worst`` ``(B,)``."""
    share = (1 + (scores <= worst[:, None]).sum(1)).double() / (1 + len(scores))
    return torch.where(worst.isnan() | (len(scores) < _MIN_SCORES), torch.nan, share)


def log10_chance(shocks: Tensor, free: int = 1) -> Tensor:
    """Base-10 logarithm of the chance of standard normal shocks as large, ``log10 P(chi_n >= |z|)``.

    If ``free`` is the number of free shocks, this is the chance of a draw as far from zero in any
    direction. With one, it is the chance of a draw as far along ``z``, either way: for the smallest
    shocks that reach a target, about twice the target's probability (first-order reliability method).

    Args:
        shocks: ``z``, ``(..., D, A)``; zero where frozen.
        free: degrees of freedom ``n``.

    Returns:
        Shape ``(...)``.

    Raises:
        TypeError: if ``shocks`` is not a floating tensor or ``free`` not an int.
        ValueError: if ``free`` is below one.

    Example:
        >>> log10_chance(torch.tensor([[3.0, 4.0]])), log10_chance(torch.tensor([[3.0, 4.0]]), free=2)
        (tensor(-6.2416, dtype=torch.float64), tensor(-5.4287, dtype=torch.float64))

    References:
        A. M. Hasofer, N. C. Lind (1974), Exact and Invariant Second-Moment Code Format, Journal of the
        Engineering Mechanics Division 100 (1), https://doi.org/10.1061/JMCEA3.0001848
    """
    shocks = check_like("log10_chance", "shocks", shocks, shocks, "shocks")
    half = 0.5 * check_positive("log10_chance", "free", free)
    size = 0.5 * shocks.double().flatten(-2).square().sum(-1)
    alpha = torch.full_like(size, half)
    chance = torch.special.gammaincc(alpha, size)
    # Below the smallest numbers, the leading term of the expansion for large sizes.
    far = (half - 1.0) * size.log() - size - math.lgamma(half)
    return torch.where(chance > 1e-290, chance.log(), far) / math.log(10.0)


def _shortest(layout: Layout, returns: Tensor) -> int:
    """The shortest history that judges: two paths, and twice as many days as assets for a covariance."""
    return 2 * max(layout.days, returns.shape[1])


def _usual(returns: Tensor) -> Whitening:
    """Mean and covariance of a history."""
    return whitening(returns.mean(0), sample(returns))


def _values(layout: Layout, returns: Tensor) -> Tensor:
    """All statistics but joint moves of every path in returns ``(T, A)``, ``(T - D + 1, K - H)``."""
    columns, parts = torch.cat([returns, returns.mean(1, keepdim=True)], 1), []
    for span in layout.spans:
        moves = _moves(columns, span)
        parts += [_largest(layout, moves, span), _largest(layout, -moves, span)]
    windows = returns[layout.days - layout.lookback :].unfold(0, layout.lookback, 1).mT
    # Unknown facts, as the correlation of one asset, are unknown for all paths alike.
    facts = torch.func.vmap(stylized_facts)(windows)[:, :2].nan_to_num(nan=0.0)
    return torch.cat([*parts, facts, -facts], 1)


def _joint(layout: Layout, returns: Tensor, usual: Whitening) -> Tensor:
    """The largest Mahalanobis distances of moves in every path, ``(T - D + 1, H)``."""
    moved = returns - usual.mean
    distances = [squared_distance(_moves(moved, span), usual).sqrt()[:, None] for span in layout.spans]
    pairs = zip(distances, layout.spans, strict=True)
    return torch.cat([_largest(layout, distance, span) for distance, span in pairs], 1)


def _moves(returns: Tensor, span: int) -> Tensor:
    """Sums over all spans of days, ``(T - span + 1, A)``."""
    total = torch.cat([torch.zeros_like(returns[:1]), returns.cumsum(0)])
    return total[span:] - total[: len(total) - span]


def _largest(layout: Layout, moves: Tensor, span: int) -> Tensor:
    """The largest value over the spans of each path that touch its free days."""
    count = min(layout.free, layout.days - span + 1)
    return moves[layout.days - span + 1 - count :].unfold(0, count, 1).amax(-1)


def _tails(values: Tensor, counts: Tensor, totals: Tensor, highest: Tensor, mean: Tensor) -> Tensor:
    """``log10`` of the share of real values as large, continued by a power law beyond the highest."""
    share = (1 + counts).double() / (1 + totals[:, None])
    beyond = _TAIL_INDEX * ((values - mean) / (highest - mean)).log10()
    return share.log10() - torch.where(values > highest, beyond, 0.0)
