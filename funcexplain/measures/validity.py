"""Validity of an answer: how far the weights of one row are from the target.

Pure functions of one row. ``measured`` is the quantity that the target constrains, for an allocation the
weights, and ``nearest`` its closest allowed value, for an allocation the target; both ``(A,)``, or
``(M, A)`` for the models of a consensus, which are averaged. Every measure is a scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor


def max_error(measured: Tensor, nearest: Tensor) -> Tensor:
    """Largest deviation from the target, ``max |w - t|``; `solve` compares it with ``atol``.

    Example:
        >>> max_error(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]))
        tensor(0.2500)
    """
    return (measured - nearest).abs().amax()


def total_variation(measured: Tensor, nearest: Tensor) -> Tensor:
    """Share of the portfolio that has to be moved to reach the target, ``sum |w - t| / 2``.

    Returns:
        Scalar; for allocations that sum to one, the one-way turnover between them.

    Example:
        >>> total_variation(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]))
        tensor(0.2500)

    References:
        A. L. Gibbs, F. E. Su (2002), On Choosing and Bounding Probability Metrics,
        https://doi.org/10.1111/j.1751-5823.2002.tb00178.x
    """
    return 0.5 * (measured - nearest).abs().sum(-1).mean()


def divergence(measured: Tensor, nearest: Tensor) -> Tensor:
    """Kullback-Leibler divergence in nats, ``sum t log(t / w) - t + w``.

    The last two terms cancel for allocations with equal sums, and keep it non-negative for others.

    Args:
        measured: ``(A,)``, non-negative; a negative one gives NaN.
        nearest: ``(A,)``, non-negative.

    Returns:
        Scalar; infinite if a weight is zero whose target is not.

    Example:
        >>> divergence(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        tensor(0.6931)

    References:
        S. Kullback, R. A. Leibler (1951), On Information and Sufficiency,
        https://doi.org/10.1214/aoms/1177729694
    """
    terms = torch.xlogy(nearest, nearest) - torch.xlogy(nearest, measured) - nearest + measured
    return terms.sum(-1).mean()


def gap_closed(now: Tensor, before: Tensor) -> Tensor:
    """Share of the gap between today's weights and the target that was closed, ``1 - now / before``.

    Args:
        now: `total_variation` at the answer, scalar.
        before: `total_variation` at the reference, scalar.

    Returns:
        Scalar: one at the target, zero without progress, negative if the gap grew; NaN if there was no
        gap.

    Example:
        >>> gap_closed(torch.tensor(0.1), torch.tensor(0.4))
        tensor(0.7500)
    """
    return torch.where(before > 0, 1.0 - now / before, torch.nan)
