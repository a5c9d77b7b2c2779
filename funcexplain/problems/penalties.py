"""Penalties: the cost of moving away from the reference, ``(x, reference) -> scalar``.

Each is a pure function of a window and its reference, ``(C, L, A)`` each. It is an average over entries,
so that a strength means the same for short and long windows. Units are those of ``x``; `scaled` changes
them, for example to sigmas. `group`, `mahalanobis` and `scaled` make a penalty from their settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funcexplain.problems import checks

__all__ = ["group", "l1", "l2", "mahalanobis", "scaled", "smoothness"]

Penalty = Callable[[Tensor, Tensor], Tensor]
_AXES = {"channels": -3, "days": -2, "assets": -1}


def l1(x: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute change, ``mean(|x - r|)``.

    Example:
        >>> l1(torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2))
        tensor(3.)
    """
    return (x - reference).abs().mean()


def l2(x: Tensor, reference: Tensor) -> Tensor:
    """Mean squared change, ``mean((x - r)**2)``; no factor one half.

    Example:
        >>> l2(torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2))
        tensor(9.)
    """
    return (x - reference).square().mean()


def smoothness(x: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of the change from one day to the next, ``mean((d[l + 1] - d[l])**2)``.

    ``d = x - r``: shifting a whole history costs nothing, a spike on one day costs twice its square.

    Returns:
        Scalar; zero for a lookback of one day.

    Example:
        >>> smoothness(torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2))
        tensor(0.)
    """
    steps = (x - reference).diff(dim=-2)
    return steps.square().sum() / max(steps.numel(), 1)


def group(axis: str) -> Penalty:
    """Group lasso over assets, days or channels: mean of each group's root mean square change.

    ``mean_g sqrt(mean(d_g**2))`` with ``d = x - r``. The square root has a nonzero slope at zero, which
    favors few changed groups; within a group, changes spread as with `l2`.

    Args:
        axis: one group per asset, day or channel: ``"assets"``, ``"days"`` or ``"channels"``.

    Returns:
        A penalty named ``"group"``; its gradient is zero in unchanged groups.

    Raises:
        ValueError: for another axis.

    Example:
        >>> x = torch.tensor([[[3.0, 0.0], [3.0, 0.0]]])  # one channel, two days, two assets
        >>> group("assets")(x, torch.zeros_like(x)), group("days")(x, torch.zeros_like(x))
        (tensor(1.5000), tensor(2.1213))

    References:
        M. Yuan, Y. Lin (2006), Model Selection and Estimation in Regression with Grouped Variables,
        https://doi.org/10.1111/j.1467-9868.2005.00532.x
    """
    if not isinstance(axis, str) or axis not in _AXES:
        raise ValueError(f"group: axis must be one of {sorted(_AXES)}, got {axis!r}")
    dim = _AXES[axis]

    def penalty(x: Tensor, reference: Tensor) -> Tensor:
        groups = (x - reference).movedim(dim, 0).flatten(1)
        return torch.linalg.vector_norm(groups, dim=1).mean() / groups.shape[1] ** 0.5

    return _set_name(penalty, "group")


def mahalanobis(cov: Tensor) -> Penalty:
    """Mean squared Mahalanobis distance per asset, ``mean(d' inv(cov) d) / A`` over channels and days.

    Changes in line with the assets' correlations cost less than changes against them. With the identity
    as ``cov`` it is `l2`; its expected value is one for changes drawn from ``cov``.

    Args:
        cov: covariance of the assets, shape ``(A, A)``, or one for each channel, ``(C, 1, A, A)``;
            symmetric and positive definite, in units of ``x**2``.

    Returns:
        A penalty named ``"mahalanobis"``.

    Raises:
        TypeError: if ``cov`` is not a floating tensor.
        ValueError: if it is not square, finite, symmetric and positive definite.

    Example:
        >>> together = mahalanobis(torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
        >>> zeros = torch.zeros(1, 1, 2)
        >>> together(torch.tensor([[[1.0, 1.0]]]), zeros), together(torch.tensor([[[1.0, -1.0]]]), zeros)
        (tensor(0.5263), tensor(10.0000))

    References:
        P. C. Mahalanobis (1936), On the Generalised Distance in Statistics;
        M. Kritzman, Y. Li (2010), Skulls, Financial Turbulence, and Risk Management,
        https://doi.org/10.2469/faj.v66.n5.3
    """
    factor = torch.linalg.cholesky(checks.check_covariance("mahalanobis", cov))
    # Inverted once: a penalty is evaluated at every step.
    whiten = torch.linalg.solve_triangular(
        factor, torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device), upper=False
    ).mT

    def penalty(x: Tensor, reference: Tensor) -> Tensor:
        return ((x - reference).unsqueeze(-2) @ whiten.to(x)).square().mean()

    return _set_name(penalty, "mahalanobis")


def scaled(penalty: Penalty, scale: Tensor | float) -> Penalty:
    """Measure changes in other units: the penalty of ``x / scale`` and ``reference / scale``.

    With each channel's standard deviation, changes count in sigmas; with a scale per entry, some entries
    can cost more than others.

    Args:
        penalty: function ``(x, reference) -> scalar``.
        scale: number, or tensor that broadcasts to x, such as ``(C, 1, 1)``; positive.

    Returns:
        A penalty with the name of ``penalty``.

    Raises:
        TypeError: if ``penalty`` is not callable, or ``scale`` is not a number or floating tensor.
        ValueError: if a scale is not positive and finite.

    Example:
        >>> in_sigmas = scaled(l1, torch.tensor([[[2.0]], [[10.0]]]))
        >>> in_sigmas(torch.full((2, 1, 1), 10.0), torch.zeros(2, 1, 1))
        tensor(3.)
    """
    checks.check_callable("scaled", "penalty", penalty)
    if isinstance(scale, Tensor):
        scale = checks.check_tensor("scaled", "scale", scale)
    else:
        checks.check_number("scaled", "scale", scale, minimum=0.0, strict=True)
        scale = torch.tensor(float(scale), device="cpu")
    if bool((scale <= 0).any()):
        raise ValueError(f"scaled: scale must be > 0, got a minimum of {scale.min():g}")
    units = scale

    def penalize_scaled(x: Tensor, reference: Tensor) -> Tensor:
        return penalty(x / units.to(x), reference / units.to(x))

    return _set_name(penalize_scaled, getattr(penalty, "__name__", "scaled"))


def _set_name(penalty: Any, name: str) -> Penalty:
    penalty.__name__ = name  # the default name of its strength in `penalize`
    return penalty
