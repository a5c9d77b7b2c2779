"""Projections onto the simplex with a cap: sparsemax and softmax, each by one sort.

Both are ``w_i = clip(link(x_i - tau), 0, cap)`` with tau such that the weights sum to one. The search
finds which weights are free; with these known, both have a closed form.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from funcexplain.networks.convex.checks import check_cap, check_tensor, equal_split, is_equal_split
from funcexplain.networks.convex.constants import constant


def sparsemax(x: Tensor, max_weight: float = 1.0) -> Tensor:
    """Project scores onto the simplex with an upper bound on each weight.

    ``w = argmin ||w - x||^2`` subject to ``sum(w) = 1`` and ``0 <= w <= max_weight``: the weights are
    ``clip(x - tau, 0, max_weight)``. For the free weights, those strictly between the bounds, the
    gradient is the centering matrix; for others it is zero. A score exactly at a kink is not free.

    Args:
        x: scores, ``(..., A)``, of any floating dtype; computed in float64.
        max_weight: upper bound on each weight, at least ``1 / A``; 1 or more means no bound.

    Returns:
        Weights ``(..., A)`` in the dtype of ``x``; a row with an entry that is not finite is NaN.

    Raises:
        TypeError: if ``x`` is not a floating tensor or ``max_weight`` is not a number.
        ValueError: if ``x`` has no assets, or ``A * max_weight < 1``.

    Example:
        >>> import torch
        >>> from funcexplain.networks.convex import sparsemax
        >>> sparsemax(torch.tensor([1.0, 0.6, -2.0]))
        tensor([0.7000, 0.3000, 0.0000])
        >>> sparsemax(torch.tensor([1.0, 0.6, -2.0]), max_weight=0.5)
        tensor([0.5000, 0.5000, 0.0000])

    References:
        Martins and Astudillo, From softmax to sparsemax (2016), https://arxiv.org/abs/1602.02068.
        Malaviya, Ferreira and Martins, Sparse and constrained attention for neural machine translation
        (2018), https://arxiv.org/abs/1805.08241.
    """
    check_tensor("sparsemax", "x", x, "(..., A)", 1)
    cap = check_cap("sparsemax", x.shape[-1], max_weight)
    if is_equal_split(x.shape[-1], cap):
        return equal_split(x)
    scores = x.double()
    weights, free = constant(partial(project, cap), scores)
    # Adds zero to the value, and the centered scores to the derivative.
    change = free * (scores - scores.detach())
    change = change - free * (change.sum(-1, keepdim=True) / free.sum(-1, keepdim=True).clamp(min=1.0))
    return (weights + change).to(x.dtype)


def project(cap: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Project rows onto the capped simplex, without derivatives.

    The total of ``clip(x - t, 0, cap)`` decreases in t, with kinks at ``t = x_i`` and ``t = x_i - cap``.
    With sorted scores, cumulative sums give the total at every kink; tau is to the right of the last
    kink with a total of at least one, and the total is linear from there to tau. The cap is at most one,
    ``A * cap > 1``.

    Returns:
        ``(weights, free)``, both ``(..., A)``; ``free`` is 1 strictly between the bounds, else 0.
    """
    num_assets = x.shape[-1]
    ascending = x.sort(-1).values
    # tau is at most cap below the k-th largest score, k = ceil(1 / cap): clipping scores that are more
    # than cap from it does not change the solution, and all sums have the precision of a weight.
    kth = max(num_assets - math.ceil(1.0 / cap), 0)
    center = ascending[..., kth : kth + 1].clone()
    ascending = (ascending - center).clamp(-cap, cap)
    sums = torch.nn.functional.pad(ascending.cumsum(-1), (1, 0))
    rank = torch.arange(num_assets, device=x.device).expand_as(ascending)

    def totals(kinks: Tensor, first_free: Tensor, first_capped: Tensor) -> Tensor:
        free = sums.gather(-1, first_capped) - sums.gather(-1, first_free)
        # In the dtype of x: a Python float times an integer tensor is float32.
        capped = (num_assets - first_capped).to(x.dtype)
        return free - (first_capped - first_free) * kinks + cap * capped

    # At its own kink a score adds 0 or cap on either side, so ties need no special case.
    leaves_cap = ascending - cap
    kinks = torch.cat([ascending, leaves_cap], -1)
    total = torch.cat(
        [
            totals(ascending, rank, torch.searchsorted(ascending, ascending + cap)),
            totals(leaves_cap, torch.searchsorted(ascending, leaves_cap), rank),
        ],
        -1,
    )
    kink, at = kinks.masked_fill(total < 1.0, -math.inf).max(-1, keepdim=True)
    scores = (x - center).clamp(-cap, cap)
    slope = ((scores > kink) & (scores - cap <= kink)).sum(-1, keepdim=True)
    tau = kink + (total.gather(-1, at) - 1.0).clamp(min=0.0) / slope.clamp(min=1)

    free = ((scores > tau) & (scores - cap < tau)).to(x.dtype)
    weights = (scores - tau).clamp(0.0, cap)
    rest = (1.0 - weights.sum(-1, keepdim=True)) / free.sum(-1, keepdim=True).clamp(min=1.0)
    return (weights + free * rest).clamp(0.0, cap), free


def capped_softmax(x: Tensor, max_weight: float = 1.0) -> Tensor:
    """Softmax with an upper bound on each weight.

    ``w = argmin sum(w log w) - w @ x`` subject to ``sum(w) = 1`` and ``w <= max_weight``: the weights
    are ``min(max_weight, exp(x - tau))``. The remainder is distributed among the other
    weights by a softmax of their scores; if no weight is capped, this is ``torch.softmax``.

    Args:
        x: scores, ``(..., A)``, of any floating dtype; computed in float64.
        max_weight: upper bound on each weight, at least ``1 / A``; 1 or more means no bound.

    Returns:
        Weights ``(..., A)`` in the dtype of ``x``; a row with an entry that is not finite is NaN.

    Raises:
        TypeError: if ``x`` is not a floating tensor or ``max_weight`` is not a number.
        ValueError: if ``x`` has no assets, or ``A * max_weight < 1``.

    Example:
        >>> import torch
        >>> from funcexplain.networks.convex import capped_softmax
        >>> capped_softmax(torch.tensor([2.0, 0.0, 0.0]))
        tensor([0.7870, 0.1065, 0.1065])
        >>> capped_softmax(torch.tensor([2.0, 0.0, 0.0]), max_weight=0.5)
        tensor([0.5000, 0.2500, 0.2500])

    References:
        Martins and Kreutzer, Learning what's easy: fully differentiable neural easy-first taggers
        (2017), https://aclanthology.org/D17-1036, where it is called constrained softmax.
    """
    check_tensor("capped_softmax", "x", x, "(..., A)", 1)
    cap = check_cap("capped_softmax", x.shape[-1], max_weight)
    if is_equal_split(x.shape[-1], cap):
        return equal_split(x)
    scores = x.double()
    capped, remainder, poison = constant(partial(_softmax_search, cap), scores)
    shared = torch.softmax(scores.masked_fill(capped, -math.inf), -1)
    return ((remainder * shared).masked_fill(capped, cap) + poison).to(x.dtype)


def _softmax_search(cap: float, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the capped weights ``(..., A)``, the remainder ``(..., 1)``, and NaN for bad rows.

    With sorted scores, k weights are capped for the smallest k at which the next weight, its share of
    the remainder, is below the cap.
    """
    num_assets = x.shape[-1]
    poison = (0.0 * x).sum(-1, keepdim=True)
    ascending = x.sort(-1).values
    # Entry i: the share of score i in a softmax of the scores up to it, times the remainder.
    above = torch.arange(num_assets - 1, -1, -1, dtype=x.dtype, device=x.device)
    largest = (ascending - ascending.logcumsumexp(-1)).exp() * (1.0 - cap * above)
    # The last entry that fits is the largest free score; the first always fits.
    fits = (largest <= cap) & (cap * above < 1.0)
    fits[..., 0] = True
    threshold = ascending.masked_fill(~fits, -math.inf).amax(-1, keepdim=True)
    capped = x > threshold
    remainder = 1.0 - cap * capped.to(x.dtype).sum(-1, keepdim=True)
    return capped, remainder, poison
