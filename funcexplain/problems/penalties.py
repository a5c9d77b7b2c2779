"""Penalties: what it costs to move away from the reference, ``(x, reference) -> scalar``.

Each is a pure function of two windows of shape ``(C, L, A)`` and an average over entries, so that one
strength means the same for a short and a long window. Units are those of ``x``.
"""

from __future__ import annotations

from torch import Tensor


def l1(x: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute change, ``mean(|x - r|)``.

    Args:
        x: window, shape ``(C, L, A)``.
        reference: window that changes are measured from, shape ``(C, L, A)``.

    Returns:
        Scalar.

    Example:
        >>> import torch
        >>> l1(torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2))
        tensor(3.)
    """
    return (x - reference).abs().mean()


def l2(x: Tensor, reference: Tensor) -> Tensor:
    """Mean squared change, ``mean((x - r)**2)``; no factor one half.

    Args:
        x: window, shape ``(C, L, A)``.
        reference: window that changes are measured from, shape ``(C, L, A)``.

    Returns:
        Scalar.

    Example:
        >>> import torch
        >>> l2(torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2))
        tensor(9.)
    """
    return (x - reference).square().mean()


def smoothness(x: Tensor, reference: Tensor) -> Tensor:
    """Mean squared step of the change from one day to the next, ``mean((d[l + 1] - d[l])**2)``.

    ``d = x - r``: a shift of a whole history costs nothing, a spike on one day costs twice its square.

    Args:
        x: window, shape ``(C, L, A)``; the lookback is dimension -2.
        reference: window that changes are measured from, shape ``(C, L, A)``.

    Returns:
        Scalar; zero for a lookback of one day.

    Example:
        >>> import torch
        >>> smoothness(torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2))
        tensor(0.)
    """
    steps = (x - reference).diff(dim=-2)
    return steps.square().sum() / max(steps.numel(), 1)
