"""Financial turbulence: how far the returns of a day are from what history knows."""

from __future__ import annotations

import torch
from torch import Tensor

from funcexplain.markets import covariances
from funcexplain.problems.checks import check_count, check_covariance, check_like, check_tensor
from funcexplain.problems.penalties import Penalty


def turbulence_of(returns: Tensor, history: Tensor, cov: Tensor | None = None) -> Tensor:
    """Turbulence of each day, the squared Mahalanobis distance ``(r - m)' inv(cov) (r - m) / A``.

    Divided by the number of assets, so that its mean over the history is about one: a value of three
    is a day three times as turbulent as usual, by size or by going against the correlations. (Kritzman
    and Li print it undivided, and divide in later work.)

    Args:
        returns: returns of the days in question, ``(..., A)``.
        history: returns that say what is usual, ``(T, A)``; ``m`` is their mean.
        cov: covariance of the assets, ``(A, A)``. Default: that of the history; see
            ``funcexplain.markets.covariances`` for others.

    Returns:
        Turbulence ``(...)``.

    Raises:
        TypeError: if something is no floating tensor, or dtypes differ.
        ValueError: if shapes do not fit, or the covariance is not positive definite.

    Example:
        >>> history = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> turbulence_of(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), history)
        tensor([0.0000, 3.0000])

    References:
        M. Kritzman, Y. Li (2010), Skulls, Financial Turbulence, and Risk Management,
        https://doi.org/10.2469/faj.v66.n5.3
    """
    mean, whiten = _whitening("turbulence_of", history, cov)
    returns = check_like("turbulence_of", "returns", returns, history, "history")
    if returns.shape[-1:] != mean.shape:
        raise ValueError(
            f"turbulence_of: returns must have one column for each of the {len(mean)} assets of "
            f"history, got {tuple(returns.shape)}"
        )
    return ((returns - mean) @ whiten).square().mean(-1)


def turbulence(history: Tensor, cov: Tensor | None = None, *, channel: int = 0) -> Penalty:
    """Penalty on turbulent days: the mean of `turbulence_of` over the days of a window.

    Its value is about one for usual windows and does not depend on the reference: it draws towards
    what is usual, where penalties of a distance draw towards the reference.

    Args:
        history: returns that say what is usual, ``(T, A)``, in units of the channel.
        cov: covariance of the assets, ``(A, A)``. Default: that of the history.
        channel: the channel of the window that holds the returns of the days.

    Returns:
        A penalty, by name ``"turbulence"``.

    Raises:
        TypeError: if something is no floating tensor, dtypes differ, or ``channel`` is no int.
        ValueError: if shapes do not fit, or the covariance is not positive definite.

    Example:
        >>> history = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> window = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
        >>> turbulence(history)(window, window)
        tensor(1.5000)

    References:
        M. Kritzman, Y. Li (2010), Skulls, Financial Turbulence, and Risk Management,
        https://doi.org/10.2469/faj.v66.n5.3
    """
    mean, whiten = _whitening("turbulence", history, cov)
    place = check_count("turbulence", "channel", channel)

    def penalty(x: Tensor, reference: Tensor) -> Tensor:
        del reference
        return ((x[place] - mean.to(x)) @ whiten.to(x)).square().mean()

    penalty.__name__ = "turbulence"  # by which `penalize` stores its strength
    return penalty


def _whitening(where: str, history: Tensor, cov: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean, and a matrix that takes deviations from it to uncorrelated ones of variance one."""
    history = check_tensor(where, "history", history)
    if history.ndim != 2 or len(history) < 2:
        raise ValueError(
            f"{where}: history must have shape (days, assets) with at least 2 days, got "
            f"{tuple(history.shape)}"
        )
    cov = (
        covariances.sample(history) if cov is None else check_like(where, "cov", cov, history, "history")
    )
    if cov.shape != 2 * history.shape[1:]:
        raise ValueError(
            f"{where}: cov must have shape {tuple(2 * history.shape[1:])}, one row and column for each "
            f"asset of history, got {tuple(cov.shape)}"
        )
    factor = torch.linalg.cholesky(check_covariance(where, cov).double())
    whiten = torch.linalg.solve_triangular(factor, torch.eye(len(cov)).to(factor), upper=False).mT
    return history.mean(0), whiten.to(history)
