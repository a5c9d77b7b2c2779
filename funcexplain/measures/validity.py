"""Whether an answer holds: how far the weights of one row are from what was asked for.

Pure functions of one row. ``measured`` is what the goal looks at, for a plain target the weights
themselves, and ``nearest`` what it should be, for a plain target the target; both ``(A,)``, or
``(M, A)`` for the models of a consensus, over which is averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor


def max_error(measured: Tensor, nearest: Tensor) -> Tensor:
    """Largest deviation from the target, ``max |w - t|``; `solve` compares it with ``atol``.

    Args:
        measured: ``(A,)``.
        nearest: ``(A,)``.

    Returns:
        Scalar.

    Example:
        >>> max_error(torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]))
        tensor(0.2500)
    """
    return (measured - nearest).abs().amax()


def total_variation(measured: Tensor, nearest: Tensor) -> Tensor:
    """Share of the portfolio that is not where it should be, ``sum |w - t| / 2``.

    Args:
        measured: ``(A,)``.
        nearest: ``(A,)``.

    Returns:
        Scalar; of allocations that sum to one it is the one-way turnover between them.

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

    The last two terms cancel for allocations of one sum, and keep it non-negative for others.

    Args:
        measured: ``(A,)``, non-negative; a negative one gives NaN.
        nearest: ``(A,)``, non-negative.

    Returns:
        Scalar; infinite where a wanted weight is zero.

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
    """Share of the way from today's weights to the target that was gone, ``1 - now / before``.

    Args:
        now: `total_variation` at the answer, scalar.
        before: `total_variation` at the reference, scalar.

    Returns:
        Scalar: one at the target, zero where nothing was won, negative where ground was lost; NaN
        where there was no gap.

    Example:
        >>> gap_closed(torch.tensor(0.1), torch.tensor(0.4))
        tensor(0.7500)
    """
    return torch.where(before > 0, 1.0 - now / before, torch.nan)
