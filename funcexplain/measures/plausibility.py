"""How unusual a window is, measured against a history of the same features.

`summarize` reads a history once; the measures are pure functions of one window and that summary. The
first channel must hold returns. A window is compared with windows of the same length: the kurtosis of 20
days is not that of 20 years. `rarity` measures how rare its path is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from funcexplain.markets.covariances import sample
from funcexplain.markets.turbulence import Whitening, whitening

_TAIL = 0.01  # of the days on each side of the usual range
_BLOCK = 1 << 22  # numbers in a block of windows, 32 MB


@dataclass(frozen=True, eq=False)
class Past:
    """Statistics of a history, in float64.

    Attributes:
        days: the history, ``(C, days, A)``.
        lookback: days of a window, ``L``.
        sigma: standard deviation of each channel over days and assets, ``(C, 1, 1)``.
        mad: median absolute deviation of each channel and asset, ``(C, 1, A)``.
        lower: 1 % quantile of each channel and asset, ``(C, 1, A)``.
        upper: 99 % quantile, ``(C, 1, A)``.
        usual: mean and covariance of the returns; NaN unless there are more days than assets.
        facts: mean of `stylized_facts` over all windows, ``(4,)``.
    """

    days: Tensor
    lookback: int
    sigma: Tensor
    mad: Tensor
    lower: Tensor
    upper: Tensor
    usual: Whitening
    facts: Tensor


def summarize(history: Tensor, lookback: int, facts: Tensor | None = None) -> Past:
    """Read a history once for all measures.

    Args:
        history: features of every day, ``(C, days, A)``, at least two days and one window long.
        lookback: days of a window, ``L``.
        facts: of its windows and any later ones, if `facts_of_windows` are known.

    Returns:
        The summary.

    Example:
        >>> past = summarize(torch.arange(12.0).view(1, 6, 2), lookback=3)
        >>> past.sigma.flatten()
        tensor([3.6056], dtype=torch.float64)
    """
    days = history.double()
    returns = days[0]
    center = days.median(dim=1, keepdim=True).values
    usual = whitening(returns.mean(0), sample(returns))
    if len(returns) <= returns.shape[1]:
        # Too few days to estimate a covariance: how unusual a day is remains unknown.
        usual = usual._replace(mean=torch.full_like(usual.mean, torch.nan))
    facts = facts_of_windows(days, lookback) if facts is None else facts
    return Past(
        days=days,
        lookback=lookback,
        sigma=days.flatten(1).std(1)[:, None, None],
        mad=(days - center).abs().median(dim=1, keepdim=True).values,
        lower=_quantile(days, _TAIL),
        upper=-_quantile(-days, _TAIL),
        usual=usual,
        facts=facts[: len(returns) - lookback + 1].nanmean(0),
    )


def _quantile(days: Tensor, share: float) -> Tensor:
    """A small quantile over the days, ``(C, 1, A)``, as of torch.quantile, which sorts all of them."""
    place = share * (days.shape[1] - 1)
    below = int(place)
    lowest = days.topk(min(below + 2, days.shape[1]), dim=1, largest=False).values
    return lowest[:, below : below + 1].lerp(lowest[:, -1:], place - below)


def facts_of_windows(history: Tensor, lookback: int) -> Tensor:
    """`stylized_facts` of every window of a history ``(C, days, A)``, ``(N, 4)``."""
    facts = torch.func.vmap(stylized_facts)
    return torch.cat([facts(part[:, 0]) for part in _windows(history[:1], lookback)])


def nearest_windows(x: Tensor, past: Past, sigma: Tensor, k: int) -> Tensor:
    """Mean distance to the ``k`` nearest windows of the history, root mean square in sigmas.

    ``mean_k sqrt(mean(((x - h_k) / sigma)**2))``. Far from all windows of the history,
    the network extrapolates.

    Args:
        x: window, ``(C, L, A)``.
        past: summary of the history.
        sigma: broadcasts to x.
        k: number of windows; all if there are fewer.

    Returns:
        Scalar.

    Example:
        >>> past = summarize(torch.arange(12.0).view(1, 6, 2), lookback=3)
        >>> nearest_windows(past.days[:, 1:4], past, torch.tensor(1.0), k=1)
        tensor(0., dtype=torch.float64)

    References:
        S. Dandl, C. Molnar, M. Binder, B. Bischl (2020), Multi-Objective Counterfactual Explanations,
        https://arxiv.org/abs/2004.11165
    """
    x, scaled, lookback = x.double(), past.days / sigma, past.lookback
    sizes = scaled.square().sum((0, 2)).unfold(0, lookback, 1).sum(1)
    # Each day of the history times each day of x; a window is a diagonal of these products.
    products = torch.einsum("cda,cla->dl", scaled, x / sigma)
    products = products.unfold(0, lookback, 1).diagonal(dim1=1, dim2=2).sum(1)
    nearest = (sizes - 2.0 * products).topk(min(k, len(sizes)), largest=False).indices
    # The product is inexact for close windows: it only finds them, distances are computed again.
    days = nearest[:, None] + torch.arange(lookback, device=x.device)
    change = (past.days[:, days].movedim(1, 0) - x) / sigma
    return change.flatten(1).square().mean(1).sqrt().mean()


def in_range(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Share of entries within the history's 1 to 99 % range, channel by channel and asset by asset.

    Args:
        x: window, ``(C, L, A)``.
        lower: 1 % quantiles, ``(C, 1, A)``.
        upper: 99 % quantiles, ``(C, 1, A)``.

    Returns:
        Scalar in ``[0, 1]``; about 0.98 for windows of the history.

    Example:
        >>> in_range(torch.tensor([[[0.0, 5.0]]]), torch.tensor(-1.0), torch.tensor(1.0))
        tensor(0.5000, dtype=torch.float64)
    """
    return ((x >= lower) & (x <= upper)).double().mean()


def stylized_facts(returns: Tensor) -> Tensor:
    """Volatility, pair correlation, excess kurtosis and autocorrelation of a window's returns.

    - volatility: ``sqrt(mean_a var_a)``, sample variance over days
    - correlation: mean over pairs of assets
    - excess kurtosis: mean over assets of ``m4 / m2**2 - 3``
    - autocorrelation: mean over assets of ``sum_t d_t d_(t+1) / sum_t d_t**2``, ``d`` less its mean

    The last three leave out assets that do not move.

    Args:
        returns: ``(L, A)``.

    Returns:
        ``(4,)``; NaN for undefined numbers, all of them for one day.

    Example:
        >>> stylized_facts(torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0], [-1.0, -2.0]]))
        tensor([ 1.8257,  1.0000, -2.0000, -0.7500])

    References:
        R. Cont (2001), Empirical Properties of Asset Returns: Stylized Facts and Statistical Issues,
        https://doi.org/10.1080/713665670
    """
    length, count = returns.shape
    deviations = returns - returns.mean(0)
    total = deviations.square().sum(0)
    moves = total > 0
    moving = moves.sum()
    scaled = torch.where(moves, deviations / total.sqrt(), 0.0)  # unit vectors, or zero
    # The square of a sum of unit vectors counts every pair twice, and each vector once.
    pairs = (scaled.sum(1).square().sum() - moving) / (moving * (moving - 1))
    kurtosis = (length * scaled.square().square().sum(0) - 3.0).where(
        moves, torch.zeros_like(total)
    ).sum() / moving
    lagged = (scaled[:-1] * scaled[1:]).sum() / moving
    volatility = (total / (length - 1)).sum().div(count).sqrt() if length > 1 else total[0] * torch.nan
    return torch.stack([volatility, pairs, kurtosis, lagged])


def _windows(days: Tensor, lookback: int) -> Iterator[Tensor]:
    """All windows of a history ``(C, days, A)``, oldest first, in blocks ``(n, C, L, A)``."""
    size = lookback * days.shape[0] * days.shape[2]
    view = days.unfold(1, lookback, 1).permute(1, 0, 3, 2)
    yield from view.split(max(1, _BLOCK // size))
