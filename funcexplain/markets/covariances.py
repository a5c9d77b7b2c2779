"""Covariances of the assets' returns: sample, shrunk, or exponentially weighted.

Each function maps a history of returns ``(T, A)`` to a daily covariance ``(A, A)`` of the same dtype.
Which to use depends on the number of days per asset: with few days, the smallest eigenvalues of the
sample covariance are too small, and a search mistakes their directions for cheap ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from funcexplain.problems.checks import check_number, check_tensor


def sample(returns: Tensor) -> Tensor:
    """Sample covariance, ``sum_t (r[t] - m)(r[t] - m)' / (T - 1)`` with the mean ``m``.

    Args:
        returns: history, shape ``(T, A)``, ``T >= 2``. It is positive definite only for ``T > A``.

    Returns:
        Covariance ``(A, A)``.

    Raises:
        TypeError, ValueError: unless ``returns`` is a finite floating tensor of that shape.

    Example:
        >>> sample(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        tensor([[0.6667, 0.0000],
                [0.0000, 0.6667]])
    """
    returns = check_history("sample", "returns", returns)
    centered = returns - returns.mean(0)
    return centered.mT @ centered / (len(returns) - 1)


def ledoit_wolf(returns: Tensor) -> Tensor:
    """Covariance shrunk towards a multiple of the identity, ``(1 - s) C + s tr(C) / A I``.

    ``C`` is the sample covariance (divided by ``T``) and ``s`` the shrinkage that minimizes the mean
    squared error, estimated from the sample. Positive definite even with fewer days than assets.

    Args:
        returns: history, shape ``(T, A)``, ``T >= 2``.

    Returns:
        Covariance ``(A, A)``.

    Raises:
        TypeError, ValueError: unless ``returns`` is a finite floating tensor of that shape.
        ModuleNotFoundError: if scikit-learn is not installed.

    Example:
        >>> ledoit_wolf(torch.randn(10, 20)).shape  # doctest: +SKIP
        torch.Size([20, 20])

    References:
        O. Ledoit, M. Wolf (2004), A Well-Conditioned Estimator for Large-Dimensional Covariance
        Matrices, https://doi.org/10.1016/S0047-259X(03)00096-4
    """
    returns = check_history("ledoit_wolf", "returns", returns)
    try:
        from sklearn.covariance import ledoit_wolf as estimate
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "ledoit_wolf: needs the package scikit-learn; install it with: pip install scikit-learn"
        ) from error
    cov, _ = estimate(returns.double().cpu().numpy())
    return torch.from_numpy(cov).to(returns)


def exponential(returns: Tensor, decay: float = 0.94) -> Tensor:
    """Exponentially weighted covariance: a day's weight falls by the factor ``decay`` per day of age.

    ``sum_t w[t] (r[t] - m)(r[t] - m)' / (1 - sum_t w[t]^2)`` with ``w[t]`` proportional to
    ``decay^(T - 1 - t)``, summing to one, and the weighted mean ``m``. The denominator makes it unbiased
    for independent days; with equal weights it is the sample covariance. The effective number of days is
    ``(1 + decay) / (1 - decay)`` (32 by default), which should exceed the number of assets.

    Args:
        returns: history, shape ``(T, A)``, ``T >= 2``, the latest day last.
        decay: factor in (0, 1).

    Returns:
        Covariance ``(A, A)``.

    Raises:
        TypeError, ValueError: unless ``returns`` is a finite floating tensor of that shape, and
            ``decay`` a number in (0, 1).

    Example:
        >>> calm_then_wild = torch.tensor([[0.1], [-0.1], [2.0], [-2.0]])
        >>> exponential(calm_then_wild, decay=0.5) > sample(calm_then_wild)
        tensor([[True]])

    References:
        J. P. Morgan, Reuters (1996), RiskMetrics Technical Document, section 5.2, which assumes a zero
        mean; pandas computes the formula above as ``ewm(alpha=1 - decay).cov()``.
    """
    returns = check_history("exponential", "returns", returns)
    if not check_number("exponential", "decay", decay, minimum=0.0, strict=True) < 1.0:
        raise ValueError(
            f"exponential: decay must be in (0, 1), got {decay!r}; use sample for equal weights"
        )
    age = torch.arange(len(returns) - 1, -1, -1, device=returns.device)
    # In float64 first: the powers of a long history span more than float16 does.
    weights = torch.softmax(age.double() * math.log(decay), 0).to(returns)
    centered = returns - weights @ returns
    return (centered * weights[:, None]).mT @ centered / (1 - weights.square().sum())


def check_history(where: str, name: str, returns: Tensor) -> Tensor:
    """Raise unless returns are a finite floating tensor of at least two days and one asset."""
    returns = check_tensor(where, name, returns)
    if returns.ndim != 2 or len(returns) < 2 or returns.shape[1] < 1:
        raise ValueError(
            f"{where}: {name} must have shape (days, assets) with at least 2 days and 1 asset, got "
            f"{tuple(returns.shape)}"
        )
    return returns
