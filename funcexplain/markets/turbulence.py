"""Financial turbulence: how unusual a day's returns are, relative to a history."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.markets import covariances
from funcexplain.problems.checks import check_count, check_covariance, check_like, check_shape
from funcexplain.problems.penalties import Penalty

_SINGULAR = 1e-12  # eigenvalues of a correlation matrix below this are rounding
_OFF_RANGE = 1e-4  # sigmas in a direction without variance that are more than rounding
_TINY = torch.finfo(torch.float64).tiny


class Whitening(NamedTuple):
    """Mean and covariance of a history of returns, in the form that distances need, float64.

    Attributes:
        mean: mean return of each asset, ``(A,)``.
        whiten: maps deviations from the mean to uncorrelated ones of variance one, ``(A, rank)``:
            ``whiten @ whiten.T`` is the inverse of the covariance on its range.
        null: maps deviations to the directions in which the history never moves, in sigmas of the
            assets, ``(A, A - rank)``: where one asset duplicates another, their difference.
    """

    mean: Tensor
    whiten: Tensor
    null: Tensor


def whitening(mean: Tensor, cov: Tensor) -> Whitening:
    """Factor a positive semidefinite covariance ``(A, A)``.

    The rank does not depend on the units of single assets: it is that of the correlation matrix, without
    eigenvalues below ``1e-12``.

    Example:
        >>> duplicate = torch.tensor([[4.0, 4.0], [4.0, 4.0]])
        >>> whitening(torch.zeros(2), duplicate).whiten.abs()
        tensor([[0.2500],
                [0.2500]], dtype=torch.float64)
    """
    cov = cov.double()
    sigma = cov.diagonal().sqrt()
    # An asset that never moves, to rounding, has no sigma of its own; it gets the market's.
    sigma = torch.where(sigma > _SINGULAR * mean.double().abs(), sigma, sigma.mean().clamp_min(_TINY))
    values, vectors = torch.linalg.eigh(cov / sigma / sigma[:, None])
    moves, vectors = values > _SINGULAR, vectors / sigma[:, None]
    return Whitening(mean.double(), vectors[:, moves] / values[moves].sqrt(), vectors[:, ~moves])


def day_turbulence(returns: Tensor, usual: Whitening) -> Tensor:
    """Squared Mahalanobis distance of days from the mean, per dimension: ``|whiten' (r - m)|^2 / rank``.

    It is infinite for a day that moves, by more than ``1e-4`` of its size in sigmas (or of one sigma),
    in a direction in which the history never moves: the limit of a vanishing variance. Maps ``(..., A)``
    to ``(...)``.

    Example:
        >>> usual = whitening(torch.zeros(2), torch.ones(2, 2))
        >>> day_turbulence(torch.tensor([[3.0, 3.0], [3.0, 2.0]]).double(), usual)
        tensor([9.0000,    inf], dtype=torch.float64)
    """
    distance = squared_distance(returns - usual.mean, usual)
    # Where nothing ever moved, a day without moves is not turbulent.
    return distance / max(1, usual.whiten.shape[1])


def squared_distance(moved: Tensor, usual: Whitening) -> Tensor:
    """Squared Mahalanobis distance of moves from zero, ``(..., A)`` to ``(...)``; infinite as above."""
    distance = (moved @ usual.whiten).square().sum(-1)
    if usual.null.shape[1] == 0:
        return distance
    rounding = _OFF_RANGE**2 * distance.clamp_min(1.0)
    return torch.where((moved @ usual.null).square().sum(-1) > rounding, torch.inf, distance)


def turbulence_of(returns: Tensor, history: Tensor, cov: Tensor | None = None) -> Tensor:
    """Turbulence of each day, the squared Mahalanobis distance ``(r - m)' inv(cov) (r - m) / A``.

    Divided by the number of assets, so that its mean over the history is about one: a value of three
    is a day three times as turbulent as usual, by its size or by going against the correlations.
    (Kritzman and Li print it undivided, and divide in later work.)

    If the history's covariance is singular, as with an asset that duplicates another or never moves, the
    inverse is that on its range and ``A`` its rank; a day outside of the range is infinitely turbulent.

    Args:
        returns: returns of the days in question, ``(..., A)``.
        history: usual returns, ``(T, A)``; ``m`` is their mean.
        cov: covariance of the assets, ``(A, A)``. Default: that of the history, for ``T > A``; see
            ``funcexplain.markets.covariances`` for others.

    Returns:
        Turbulence ``(...)``.

    Raises:
        TypeError: if an argument is not a floating tensor, or dtypes differ.
        ValueError: if shapes do not fit, or the covariance is not positive definite for lack of days.

    Example:
        >>> history = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> turbulence_of(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), history)
        tensor([0., 3.])

    References:
        M. Kritzman, Y. Li (2010), Skulls, Financial Turbulence, and Risk Management,
        https://doi.org/10.2469/faj.v66.n5.3
    """
    usual = _checked_whitening("turbulence_of", history, cov)
    returns = check_like("turbulence_of", "returns", returns, history, "history")
    if returns.shape[-1:] != usual.mean.shape:
        raise ValueError(
            f"turbulence_of: returns must have one column for each of the {len(usual.mean)} assets of "
            f"history, got {tuple(returns.shape)}"
        )
    return day_turbulence(returns.double(), usual).to(returns)


def turbulence(history: Tensor, cov: Tensor | None = None, *, channel: int = 0) -> Penalty:
    """Penalty on turbulent days: the mean of `turbulence_of` over the days of a window.

    Its value is about one for usual windows and does not depend on the reference: it pulls towards usual
    days, while penalties of a distance pull towards the reference.

    Args:
        history: usual returns, ``(T, A)``, in units of the channel.
        cov: covariance of the assets, ``(A, A)``. Default: that of the history.
        channel: the channel of the window that holds the returns of the days.

    Returns:
        A penalty, by name ``"turbulence"``.

    Raises:
        TypeError: if an argument is not a floating tensor, dtypes differ, or ``channel`` is not an int.
        ValueError: if shapes do not fit, or the covariance is not positive definite: the penalty would
            be infinite nearly everywhere.

    Example:
        >>> history = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> window = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
        >>> turbulence(history)(window, window)
        tensor(1.5000)

    References:
        M. Kritzman, Y. Li (2010), Skulls, Financial Turbulence, and Risk Management,
        https://doi.org/10.2469/faj.v66.n5.3
    """
    usual = _checked_whitening("turbulence", history, cov)
    if usual.null.shape[1]:
        raise _singular("turbulence")
    number = check_count("turbulence", "channel", channel)

    def penalty(x: Tensor, reference: Tensor) -> Tensor:
        del reference
        if number >= len(x):
            raise ValueError(f"turbulence: channel must be one of {len(x)}, got {number}")
        return day_turbulence(x[number], Whitening(*(part.to(x) for part in usual))).mean()

    penalty.__name__ = "turbulence"  # the name under which `penalize` stores its strength
    return penalty


def _checked_whitening(where: str, history: Tensor, cov: Tensor | None) -> Whitening:
    """The whitening of a user's history and covariance."""
    history = covariances.check_history(where, "history", history)
    days, assets = history.shape
    if cov is None:
        if days <= assets:
            raise _singular(where)
        return whitening(history.mean(0), covariances.sample(history.double()))
    cov = check_like(where, "cov", cov, history, "history")
    check_shape(where, "cov", cov, (assets, assets), "one row and column for each asset of history")
    return whitening(history.mean(0), check_covariance(where, cov))


def _singular(where: str) -> ValueError:
    """The error for a covariance that is not positive definite."""
    return ValueError(
        f"{where}: cov must be positive definite, got one that is not; more observations than assets, "
        "none of which duplicates others, or shrinkage towards a diagonal, make it so"
    )
