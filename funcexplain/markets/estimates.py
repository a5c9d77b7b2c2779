"""Estimates behind the models of returns: volatility, margins, correlations and tails of a history.

All are numpy in float64; scipy, an extra, is imported where it is needed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from funcexplain.markets.splines import spline

Array = NDArray[np.float64]

# Radii of less probability than this continue linearly.
_RAREST = 1e-30
_RADIAL_KNOTS = 64
# Probabilities of the knots of a margin: quantiles of the history, and of the tail beyond them.
_TAIL = 0.05
_BODY = np.linspace(_TAIL, 1 - _TAIL, 19)
_BEYOND = np.array([1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.025])
# Largest sum of alpha and beta: volatility always returns, with a half-life of 138 days at most.
_LONGEST = 0.995
# Pareto index of the heaviest tails: below it, a kurtosis exists.
_HEAVIEST = 0.25
# Slope of a margin where it does not rise, in standard deviations.
_FLATTEST = 1e-2
# Shrinkage of correlations: the weight of all days beside the latest, and the decay of the latter.
_ALL_DAYS, _DECAY = 0.1, 0.995


def need_scipy(where: str) -> Any:
    """The modules ``scipy.stats``, ``scipy.optimize`` and ``scipy.signal``."""
    try:
        from scipy import optimize, signal, stats
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{where}: needs the package scipy; install it with: pip install scipy"
        ) from error
    return stats, optimize, signal


@lru_cache(maxsize=256)
def radial_table(num_free: int, df: float) -> Tensor:
    """The spline from the length of a standard normal vector to that of a Student vector.

    Both have ``num_free`` entries and unit covariance, and the lengths have the same probability:
    stretched by it, a standard normal vector has the multivariate t law of ``df`` degrees of freedom.

    Example:
        >>> table = radial_table(1, 5.0)
        >>> table[:2, 0], bool((table.diff(dim=1)[:2] > 0).all())
        (tensor([0., 0.], dtype=torch.float64), True)
    """
    if num_free == 0 or math.isinf(df):
        identity = torch.arange(_RADIAL_KNOTS, dtype=torch.float64, device="cpu")
        return spline(identity, identity, torch.ones_like(identity))
    from scipy import special

    a, b = num_free / 2, df / 2
    # Half the squares of normal lengths have the gamma law.
    low = special.gammaincinv(a, _RAREST) if num_free > 2 else 0.0
    points = np.linspace(math.sqrt(low), math.sqrt(special.gammainccinv(a, _RAREST)), _RADIAL_KNOTS)[1:]
    half = points**2
    points = math.sqrt(2) * points
    # The square u of a Student length, divided by df - 2, has the beta prime law. From the nearer end,
    # where a probability keeps its digits.
    below = special.betaincinv(a, b, special.gammainc(a, half))
    above = special.betaincinv(b, a, special.gammaincc(a, half))
    lower = half < a
    u = np.where(lower, below, 1 - above) / np.where(lower, 1 - below, above)
    values = np.sqrt((df - 2) * u)
    # Slopes are ratios of the densities of both lengths; near zero, these are the same power.
    normal = (2 * a - 1) * np.log(points) - half - (a - 1) * math.log(2) - special.gammaln(a)
    student = math.log(2) + (a - 0.5) * np.log(u) - (a + b) * np.log1p(u) - special.betaln(a, b)
    slopes = math.sqrt(df - 2) * np.exp(normal - student)
    first = special.betaln(a, b) - special.gammaln(a) - a * math.log(2)
    first = math.sqrt(df - 2) * math.exp(first / num_free)
    parts = ((0.0, points), (0.0, values), (first, slopes))
    return spline(*(torch.from_numpy(np.concatenate([[start], part])) for start, part in parts))


def fit_volatility(returns: Array) -> tuple[float, float]:
    """Reaction and memory ``(alpha, beta)`` of the variance, the same for all assets.

    They maximize the likelihood of Student returns with 5 degrees of freedom, whose variance is
    ``v[t + 1] = (1 - alpha - beta) m + alpha r[t]^2 + beta v[t]`` with the mean square ``m``.
    """
    _, optimize, _ = need_scipy("filtered_history")

    def cost(point: Array) -> float:
        alpha, total = np.array([1.0, _LONGEST]) / (1 + np.exp(-point))
        if not alpha < total:
            return math.inf
        variance = filter_variance(returns, alpha, total - alpha)[:-1]
        return float((3 * np.log1p(returns**2 / (3 * variance)) + 0.5 * np.log(variance)).mean())

    start = np.log([0.05 / 0.95, 0.98 / 0.02])
    settings = {"xatol": 0.01, "fatol": 1e-7, "maxfev": 100}
    point = optimize.minimize(cost, start, method="Nelder-Mead", options=settings).x
    alpha, total = np.array([1.0, _LONGEST]) / (1 + np.exp(-point))
    return float(alpha), float(total - alpha)


def filter_variance(returns: Array, alpha: float, beta: float) -> Array:
    """Variances of all days of ``returns`` ``(T, A)`` and of the next, ``(T + 1, A)``.

    Example:
        >>> filter_variance(np.array([[2.0], [0.0]]), 0.5, 0.5).ravel()
        array([2. , 3. , 1.5])
    """
    *_, signal = need_scipy("filtered_history")
    mean = (returns**2).mean(0, keepdims=True)
    news = (1 - alpha - beta) * mean + alpha * returns**2
    later, _ = signal.lfilter([1.0], [1.0, -beta], news, axis=0, zi=beta * mean)
    return np.concatenate([mean, later])


def margin_points(df: float) -> Array:
    """Quantiles of the Student law of unit variance at the knots of margins, ``(K,)``."""
    stats, *_ = need_scipy("filtered_history")
    below = np.concatenate([_BEYOND, _BODY[: len(_BODY) // 2]])
    low = stats.norm.ppf(below) if math.isinf(df) else stats.t.ppf(below, df) * math.sqrt((df - 2) / df)
    return np.concatenate([low, [0.0], -low[::-1]])


def fit_margins(moves: Array, points: Array) -> Array:
    """Quantiles of the moves ``(T, A)`` around their median at the `margin_points`, ``(A, K)``.

    The body has the quantiles of the history, the tails those of fitted Pareto laws.
    """
    body = np.quantile(moves, _BODY, axis=0).T
    lower, upper = -_tail(-moves, -body[:, 0]), _tail(moves, body[:, -1])[:, ::-1]
    rises = np.diff(np.concatenate([lower, body, upper], 1), axis=1)
    # Moves that repeat, such as zeros, have quantiles that do not rise.
    scale = moves.std(0)[:, None]
    values = np.cumsum(np.maximum(rises, _FLATTEST * scale * np.diff(points)), axis=1)
    values = np.concatenate([np.zeros_like(scale), values], 1)
    return values - values[:, [len(points) // 2]]


def _tail(moves: Array, threshold: Array) -> Array:
    """Upper quantiles ``(A, K)`` of the generalized Pareto law, by its probability-weighted moments.

    References:
        J. R. M. Hosking, J. R. Wallis (1987), Parameter and Quantile Estimation for the Generalized
        Pareto Distribution, https://doi.org/10.2307/1269343
    """
    count = max(int(_TAIL * len(moves)), 2)
    excess = np.maximum(np.sort(moves, axis=0)[-count:] - threshold, 0.0)
    rank = (np.arange(count)[::-1] + 0.35) / count
    mean, weighted = excess.mean(0), (rank[:, None] * excess).mean(0)
    mean = np.maximum(mean, 1e-12)
    # The tail index is one for all assets, since single ones vary too much between samples.
    index = 2 - float((mean / (mean - 2 * weighted)).mean())
    shape = -min(max(index, 1e-6), _HEAVIEST)
    size = mean[:, None] * (1 + shape)
    return threshold[:, None] + size / shape * (1 - (_BEYOND / _TAIL) ** shape)


def fit_tails(moves: Array, correlation: Array) -> float:
    """Degrees of freedom of the multivariate t law of moves with unit variances, by likelihood."""
    _, optimize, _ = need_scipy("filtered_history")
    squares = (np.linalg.solve(np.linalg.cholesky(correlation), moves.T) ** 2).sum(0)
    num_assets = moves.shape[1]

    def cost(inverse: float) -> float:
        df = 1 / inverse
        constant = math.lgamma((df + num_assets) / 2) - math.lgamma(df / 2)
        constant -= num_assets / 2 * math.log(df - 2)
        return float((df + num_assets) / 2 * np.log1p(squares / (df - 2)).mean() - constant)

    return 1 / float(optimize.minimize_scalar(cost, bounds=(0.01, 0.4), method="bounded").x)


def fit_correlation(moves: Array) -> Array:
    """Correlations of the copula of moves ``(T, A)``: those of the latest days, shrunk towards all.

    They are correlations of the Student quantiles of ranks, on which single days have little effect;
    their degrees of freedom hardly matter.
    """
    stats, *_ = need_scipy("filtered_history")
    ranks = stats.rankdata(moves, axis=0) / (len(moves) + 1)
    scores = stats.t.ppf(ranks, 6.0)
    weights = _DECAY ** np.arange(len(moves))[::-1]
    weights = (1 - _ALL_DAYS) * weights / weights.sum() + _ALL_DAYS / len(moves)
    second = (scores * weights[:, None]).T @ scores
    scale = np.sqrt(second.diagonal())
    return second / scale / scale[:, None]
