"""Models of returns: maps from a standard normal ``z`` to daily returns, with exact inverses.

    normal              r[t] = b[t] + F z[t]
    student_t           r[t] = b[t] + g(|z[t]|) F z[t]
    filtered_history    r[t] = b[t] + s[t] m(g(|z[t]|) F z[t])
                        s[t + 1]^2 = w + alpha r[t]^2 + beta s[t]^2

``b`` is the path that belongs to ``z = 0``. ``F`` is a factor of the covariance or correlation, ``g``
stretches the length of a normal vector to that of a Student vector, ``m`` maps each asset's margin to
that of its history, and the volatility ``s`` evolves along the path. So ``|z|^2 / 2`` is the negative
log-density of a path's shocks, up to a constant, under every model.

A model's data are estimated from its history when it is made. They go into the ``args`` of a problem,
where they can be mapped: see `stack`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from funcexplain.markets import estimates, splines
from funcexplain.markets.covariances import check_history
from funcexplain.markets.masks import factors
from funcexplain.problems.checks import check_covariance, check_number

__all__ = ["Model", "filtered_history", "normal", "stack", "student_t"]

Data = dict[str, Tensor]
Path = Callable[[Tensor, Tensor, Data], Tensor]

MIN_DAYS = 250


@dataclass(frozen=True, eq=False)
class Model:
    """A differentiable map from standard normal shocks to returns, and its inverse.

    Attributes:
        name: ``"normal"``, ``"student_t"`` or ``"filtered_history"``.
        cov: covariance of a day's returns, or correlation of its shocks, ``(A, A)``.
        decode: ``(z, base, data) -> returns``, all ``(D, A)``; at ``z = 0`` the base path, bit for bit.
        encode: ``(returns, base, data) -> z``, its inverse.
        df: degrees of freedom of the joint tails, ``inf`` for normal ones.
        state: data that do not depend on which shocks are free.
        history: the returns that the state was estimated from, ``(T, A)``; None if it has no state.
        variance: conditional variances of these days and the next, ``(T + 1, A)``, or None.
    """

    name: str
    cov: Tensor
    decode: Path
    encode: Path
    df: float
    state: Data
    history: Tensor | None = None
    variance: Tensor | None = None

    def data(self, num_days: int, *, free: Tensor | None = None, ahead: int = 0) -> Data:
        """The data that `decode` and `encode` read, for paths of ``num_days`` days.

        Args:
            num_days: days of the path, ``D``.
            free: bool, True = free, ``(D, A)``, or ``(1, A)`` for all days. Default: all.
            ahead: days of the path after the last day of the model's history.

        Returns:
            Tensors by name.

        Example:
            >>> sorted(normal(torch.eye(2)).data(5))
            ['factor']
        """
        factor = factors(self.cov, free)
        if self.name == "normal":
            return {"factor": factor}
        counts = (factor.diagonal(dim1=-2, dim2=-1) != 0).sum(-1).tolist()
        tables = {n: estimates.radial_table(n, self.df) for n in set(counts)}
        radial = torch.stack([tables[n] for n in counts]).to(factor)
        data = {**self.state, "mixing": factor, "radial": radial}
        if self.variance is not None:
            known = num_days - ahead
            if known >= len(self.variance):
                raise ValueError(
                    f"{self.name}: returns must have at least the {known} known days of the path, got "
                    f"{len(self.variance) - 1}"
                )
            data["variance"] = self.variance[len(self.variance) - 1 - known]
        return data

    def log_density(self, returns: Tensor, base: Tensor | None = None) -> Tensor:
        """Log-density of each day of a path after the history, given the days before it.

        Args:
            returns: daily log returns, ``(D, A)``.
            base: returns at ``z = 0``, which broadcast to these. Default: zero.

        Returns:
            Log-densities ``(D,)``.

        Example:
            >>> normal(torch.eye(2)).log_density(torch.zeros(1, 2))  # -log(2 pi)
            tensor([-1.8379])
        """
        path = torch.zeros_like(returns) if base is None else base.expand_as(returns)
        data = self.data(len(returns), ahead=len(returns))

        def shocks(day: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
            here = (torch.arange(len(returns), device=place.device) == place)[:, None]
            z = self.encode(torch.where(here, day, returns), path, data)
            chosen = torch.where(here, z, 0.0).sum(0)
            return chosen, chosen

        slopes = torch.func.vmap(torch.func.jacrev(shocks, has_aux=True))
        jacobian, z = slopes(returns, torch.arange(len(returns), device=returns.device))
        constant = 0.5 * returns.shape[1] * math.log(2 * math.pi)
        return torch.linalg.slogdet(jacobian).logabsdet - 0.5 * z.square().sum(-1) - constant


def normal(cov: Tensor) -> Model:
    """Independent normal days: ``r[t] = b[t] + F z[t]`` with ``F F' = cov``.

    Args:
        cov: covariance of the assets' daily log returns, ``(A, A)``; see
            ``funcexplain.markets.covariances``.

    Returns:
        The model.

    Raises:
        TypeError, ValueError: unless ``cov`` is a covariance.

    Example:
        >>> model = normal(torch.tensor([[4.0]]))
        >>> model.decode(torch.ones(1, 1), torch.zeros(1, 1), model.data(1))
        tensor([[2.]])
    """
    factors(cov)  # checks it
    return Model("normal", cov.detach().clone(), _decode_normal, _encode_normal, math.inf, {})


def student_t(cov: Tensor, df: float = 5.0) -> Model:
    """Independent days with heavy tails that all assets share: multivariate Student t.

    ``r[t] = b[t] + g(|z[t]|) F z[t]``. The length of ``z[t]`` is stretched, by probability, from the chi
    law to that of a Student vector. This is the law of a normal vector divided by one random volatility
    a day, with as many coordinates as assets, so that it has an inverse.

    Args:
        cov: covariance of the assets' daily log returns, ``(A, A)``: that of the Student vector, not
            its scale matrix ``cov (df - 2) / df``.
        df: degrees of freedom, above 2.

    Returns:
        The model.

    Raises:
        TypeError, ValueError: unless ``cov`` is a covariance and ``df > 2``.
        ModuleNotFoundError: if scipy is not installed.

    Example:
        >>> model = student_t(torch.eye(1), df=5.0)
        >>> returns = model.decode(torch.tensor([[1.0], [4.0]]), torch.zeros(2, 1), model.data(2))
        >>> returns.squeeze()
        tensor([0.8602, 9.5132])
    """
    cov = check_covariance("student_t", cov)
    df = _check_df("student_t", df)
    estimates.need_scipy("student_t")
    return Model("student_t", cov, _decode_student, _encode_student, df, {})


def filtered_history(
    returns: Tensor, *, df: float | None = None, volatility: tuple[float, float] | None = None
) -> Model:
    """Filtered history: volatility from GARCH(1, 1), margins of the history, a Student copula.

    ``r[t] = b[t] + s[t] m(g(|z[t]|) F z[t])`` and ``s[t + 1]^2 = w + alpha r[t]^2 + beta s[t]^2``: the
    volatility of each asset starts from the end of the history and evolves along the path. ``m`` maps
    to the quantiles of the history's standardized returns around their median, with Pareto tails.
    The copula's correlations are those of the latest days (decay 0.995), shrunk by 10 % towards all.

    Args:
        returns: daily log returns up to the date of the question, ``(T, A)``, ``T >= 250``.
        df: degrees of freedom of the copula, above 2; ``math.inf`` for a Gaussian copula. Default:
            estimated.
        volatility: ``(alpha, beta)``, both positive, with a sum of at most one: ``(0.06, 0.94)`` is the
            exponentially weighted volatility of RiskMetrics. Default: estimated.

    Returns:
        The model.

    Raises:
        TypeError, ValueError: for another type, too few days, an asset with a constant price, or one
            that duplicates another.
        ModuleNotFoundError: if scipy is not installed.

    Example:
        >>> history = 0.01 * torch.randn(300, 2, dtype=torch.float64)
        >>> model = filtered_history(history)
        >>> base, data = history[-5:], model.data(5)
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> torch.allclose(model.encode(model.decode(z, base, data), base, data), z)
        True

    References:
        G. Barone-Adesi, K. Giannopoulos, L. Vosper (1999), VaR without Correlations for Portfolios of
        Derivative Securities; T. Bollerslev (1986), Generalized Autoregressive Conditional
        Heteroskedasticity, https://doi.org/10.1016/0304-4076(86)90063-1; A. McNeil, R. Frey (2000),
        Estimation of Tail-Related Risk Measures, https://doi.org/10.1016/S0927-5398(00)00012-8
    """
    where = "filtered_history"
    given = check_history(where, "returns", returns)
    degrees = None if df is None else _check_df(where, df)
    rates = None if volatility is None else _check_volatility(volatility)
    estimates.need_scipy(where)
    if len(given) < MIN_DAYS:
        raise ValueError(f"{where}: returns must have at least {MIN_DAYS} days, got {len(given)}")
    history = given.double().cpu().numpy()
    still = np.ptp(np.quantile(history, (0.05, 0.95), axis=0), axis=0) == 0
    if still.any():
        raise ValueError(
            f"{where}: the price of every asset must move, got a constant price of asset "
            f"{int(still.nonzero()[0][0])} on 9 of 10 days; leave it out"
        )
    alpha, beta = estimates.fit_volatility(history) if rates is None else rates
    variance = estimates.filter_variance(history, alpha, beta)
    moves = history / np.sqrt(variance[:-1])
    correlation = estimates.fit_correlation(moves)
    check_covariance(where, torch.from_numpy(correlation))
    if degrees is None:
        degrees = estimates.fit_tails(moves / moves.std(0), correlation)
    points = estimates.margin_points(degrees)
    values = torch.from_numpy(estimates.fit_margins(moves, points))
    margins = splines.spline(torch.from_numpy(points).expand_as(values), values)
    mean = (history**2).mean(0)
    recursion = np.stack(
        [(1 - alpha - beta) * mean, np.full_like(mean, alpha), np.full_like(mean, beta)]
    )
    state = {"volatility": torch.from_numpy(recursion).to(given), "margins": margins.to(given)}
    cov, variances = (torch.from_numpy(array).to(given) for array in (correlation, variance))
    return Model(where, cov, _decode_filtered, _encode_filtered, degrees, state, given, variances)


def stack(data: Sequence[Data]) -> Data:
    """Stack the data of several models or masks, to be mapped: ``fe.vmap(problem, **stack(...))``.

    Example:
        >>> covs = torch.eye(2), 4 * torch.eye(2)
        >>> stack([normal(cov).data(5) for cov in covs])["factor"].shape
        torch.Size([2, 1, 2, 2])
    """
    return {name: torch.stack([each[name] for each in data]) for name in data[0]}


def _decode_normal(z: Tensor, base: Tensor, data: Data) -> Tensor:
    return base + _mix(data["factor"], z)


def _encode_normal(returns: Tensor, base: Tensor, data: Data) -> Tensor:
    return _unmix(data["factor"], returns - base)


def _decode_student(z: Tensor, base: Tensor, data: Data) -> Tensor:
    return base + _stretch(z, data)


def _encode_student(returns: Tensor, base: Tensor, data: Data) -> Tensor:
    return _shrink(returns - base, data)


def _decode_filtered(z: Tensor, base: Tensor, data: Data) -> Tensor:
    moves = splines.evaluate(data["margins"], _stretch(z, data))
    variance, path = data["variance"], []
    for start, move in zip(base, moves, strict=True):
        path.append(start + variance.sqrt() * move)
        variance = _next_variance(variance, path[-1], data)
    return torch.stack(path)


def _encode_filtered(returns: Tensor, base: Tensor, data: Data) -> Tensor:
    variance, moves = data["variance"], []
    for start, day in zip(base, returns, strict=True):
        moves.append((day - start) / variance.sqrt())
        variance = _next_variance(variance, day, data)
    return _shrink(splines.invert(data["margins"], torch.stack(moves)), data)


def _next_variance(variance: Tensor, day: Tensor, data: Data) -> Tensor:
    constant, alpha, beta = data["volatility"]
    return constant + alpha * day.square() + beta * variance


def _stretch(z: Tensor, data: Data) -> Tensor:
    """From standard normal days to Student days of the covariance ``F F'``."""
    factor, table = data["mixing"], data["radial"]
    length, positive = _length(torch.where(_held(factor), 0.0, z))
    ratio = torch.where(positive, splines.evaluate(table, length) / length, table[:, 2, 0])
    return ratio.unsqueeze(-1) * _mix(factor, z)


def _shrink(moved: Tensor, data: Data) -> Tensor:
    """The inverse of `_stretch`."""
    table, point = data["radial"], _unmix(data["mixing"], moved)
    length, positive = _length(point)
    ratio = torch.where(positive, splines.invert(table, length) / length, 1 / table[:, 2, 0])
    return ratio.unsqueeze(-1) * point


def _length(points: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of vectors, one instead of zero, whose root has no derivative; and where not zero."""
    squares = points.square().sum(-1)
    positive = squares > 0
    return torch.where(positive, squares, 1.0).sqrt(), positive


def _mix(factor: Tensor, z: Tensor) -> Tensor:
    return torch.einsum("dij,dj->di", factor.expand(len(z), -1, -1), z)


def _unmix(factor: Tensor, moved: Tensor) -> Tensor:
    """The inverse of `_mix`; zero where frozen."""
    held = _held(factor)
    whole = factor + torch.diag_embed(held.to(factor))
    z = torch.linalg.solve_triangular(whole, moved.unsqueeze(-1), upper=False).squeeze(-1)
    return torch.where(held, 0.0, z)


def _held(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1) == 0


def _check_df(where: str, df: float) -> float:
    return check_number(where, "df", df, minimum=2.0, strict=True) if df != math.inf else math.inf


def _check_volatility(given: tuple[float, float]) -> tuple[float, float]:
    where, expected = "filtered_history", "volatility must be a pair (alpha, beta)"
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"{where}: {expected}, got {given!r}")
    alpha, beta = (check_number(where, "volatility", value, minimum=0.0) for value in given)
    if alpha + beta > 1:
        raise ValueError(f"{where}: {expected}, both >= 0, with a sum of at most one, got {given}")
    return alpha, beta
