"""Distance of an answer from the reference, and how much of the market it changes.

Pure functions of the change ``d = x - reference`` of one row, in units of x or divided by `in_units`:
``change`` has shape ``(C, L, A)``, ``tolerance`` is in its units, and each measure is a scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor

_OTHERS = {"channels": (1, 2), "days": (0, 2), "assets": (0, 1)}


def in_units(change: Tensor, unit: Tensor) -> Tensor:
    """Change in units such as sigmas, ``d / unit``; a change of zero stays zero, in units of zero too.

    Args:
        change: ``(C, L, A)``.
        unit: broadcasts to ``change``, such as ``(C, 1, 1)``.

    Returns:
        ``(C, L, A)``.

    Example:
        >>> in_units(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0.0, 2.0]]]))
        tensor([[[0.0000, 0.5000]]])
    """
    return torch.where(change == 0, 0.0, change / unit)


def l1(change: Tensor) -> Tensor:
    """Sum of absolute changes, ``sum |d|``, in units of x.

    Example:
        >>> l1(torch.tensor([[[3.0, -4.0]]]))
        tensor(7.)
    """
    return change.abs().sum()


def l2(change: Tensor) -> Tensor:
    """Euclidean length of the change, ``sqrt(sum d**2)``, in units of x.

    Example:
        >>> l2(torch.tensor([[[3.0, -4.0]]]))
        tensor(5.)
    """
    return change.square().sum().sqrt()


def linf(change: Tensor) -> Tensor:
    """Largest change of an entry, ``max |d|``, in units of x.

    Example:
        >>> linf(torch.tensor([[[3.0, -4.0]]]))
        tensor(4.)
    """
    return change.abs().amax()


def rms(change: Tensor) -> Tensor:
    """Root mean square, ``sqrt(mean d**2)``; for a change in sigmas, the sigmas per entry.

    Example:
        >>> rms(torch.tensor([[[3.0, -3.0]]]))
        tensor(3.)
    """
    return change.square().mean().sqrt()


def mad_distance(change: Tensor, mad: Tensor) -> Tensor:
    """Mean absolute change in units of each feature's median absolute deviation, ``mean |d| / MAD``.

    ``mad``, ``(C, 1, A)``, is ``median |h - median h|`` over the days of a history. The paper sums over
    features; the mean makes short and long windows comparable.

    Returns:
        Scalar; infinite if an entry changes that never varied.

    Example:
        >>> mad_distance(torch.tensor([[[3.0, -4.0]]]), torch.tensor([[[1.0, 2.0]]]))
        tensor(2.5000)

    References:
        S. Wachter, B. Mittelstadt, C. Russell (2017), Counterfactual Explanations without Opening the
        Black Box, https://arxiv.org/abs/1711.00399
    """
    return in_units(change, mad).abs().mean()


def changed_share(change: Tensor, tolerance: float) -> Tensor:
    """Share of the entries that change by more than the tolerance, ``mean(|d| > tolerance)``.

    Returns:
        Scalar in ``[0, 1]``.

    Example:
        >>> changed_share(torch.tensor([[[3.0, 0.0], [0.0, 0.0]]]), 0.1)
        tensor(0.2500, dtype=torch.float64)
    """
    return (change.abs() > tolerance).double().mean()


def touched(change: Tensor, tolerance: float, axis: str) -> Tensor:
    """Number of ``"assets"``, ``"days"`` or ``"channels"`` with a change above the tolerance.

    Example:
        >>> touched(torch.tensor([[[3.0, 0.0], [2.0, 0.0]]]), 0.1, "assets")
        tensor(1)
    """
    return (change.abs() > tolerance).any(_OTHERS[axis][1]).any(_OTHERS[axis][0]).sum()


def gini(change: Tensor) -> Tensor:
    """Gini index of the absolute changes: zero if all are equal, near one if few entries carry all.

    ``sum_i (2 i - n - 1) a_i / (n sum_i a_i)`` with ``a_1 <= ... <= a_n`` the sorted ``|d|``.

    Returns:
        Scalar in ``[0, 1 - 1 / n]``; NaN if nothing changes.

    Example:
        >>> gini(torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])), gini(torch.ones(1, 2, 2))
        (tensor(0.7500), tensor(0.))

    References:
        N. Hurley, S. Rickard (2009), Comparing Measures of Sparsity, https://arxiv.org/abs/0811.4706
    """
    sizes = change.abs().flatten().sort().values
    count = len(sizes)
    ranks = torch.arange(1 - count, count, 2, dtype=sizes.dtype, device=sizes.device)
    return (ranks * sizes).sum() / (count * sizes.sum())
