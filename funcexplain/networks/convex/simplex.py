"""Projections onto the simplex with a cap: sparsemax and softmax, each from one sort.

Both are ``w_i = clip(link(x_i - tau), 0, cap)`` for the number tau at which the weights sum to one. The
search finds tau's piece, that is which weights are free; on a piece both are closed formulas.
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
    ``clip(x - tau, 0, max_weight)``. Among the free weights, those strictly between the bounds, the
    gradient is the centering matrix; elsewhere it is zero. A score exactly on a kink counts as not free.

    Args:
        x: scores, ``(..., A)``, of any floating dtype; the work is done in float64.
        max_weight: upper bound on each weight, at least ``1 / A``; 1 or more is no bound.

    Returns:
        Weights ``(..., A)`` in the dtype of ``x``; a row with an entry that is not finite is NaN.

    Raises:
        TypeError: if ``x`` is no floating tensor or ``max_weight`` no number.
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
    # The solution is linear on its piece: zero is added in value, the centered scores in derivative.
    change = free * (scores - scores.detach())
    change = change - free * (change.sum(-1, keepdim=True) / free.sum(-1, keepdim=True).clamp(min=1.0))
    return (weights + change).to(x.dtype)


def project(cap: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Project rows onto the capped simplex, without derivatives.

    The total of ``clip(x - t, 0, cap)`` falls in t and bends at ``t = x_i`` and at ``t = x_i - cap``.
    With the scores sorted, running sums give the total at every bend; tau lies right of the last bend
    at which the total is still one or more, and the total is linear from there to tau.

    Args:
        cap: upper bound of each weight, at most one, ``A * cap > 1``.
        x: scores, ``(..., A)``, in float64.

    Returns:
        ``(weights, free)``, both ``(..., A)``; ``free`` is 1 strictly between the bounds, else 0.
    """
    num_assets = x.shape[-1]
    ascending = x.sort(-1).values
    # tau lies within cap below the k-th largest score, k = ceil(1 / cap): scores further than cap from
    # that one are clipped without changing the answer, and all sums keep the precision of a weight.
    kth = max(num_assets - math.ceil(1.0 / cap), 0)
    center = ascending[..., kth : kth + 1].clone()
    ascending = (ascending - center).clamp(-cap, cap)
    sums = torch.nn.functional.pad(ascending.cumsum(-1), (1, 0))
    rank = torch.arange(num_assets, device=x.device).expand_as(ascending)

    def totals(bends: Tensor, first_free: Tensor, first_capped: Tensor) -> Tensor:
        free = sums.gather(-1, first_capped) - sums.gather(-1, first_free)
        # In the dtype of x: a Python number times integers is a float32.
        capped = (num_assets - first_capped).to(x.dtype)
        return free - (first_capped - first_free) * bends + cap * capped

    # At its own bend a score adds 0 or cap whichever side it is counted on, so ties need no care.
    leaves_cap = ascending - cap
    bends = torch.cat([ascending, leaves_cap], -1)
    total = torch.cat(
        [
            totals(ascending, rank, torch.searchsorted(ascending, ascending + cap)),
            totals(leaves_cap, torch.searchsorted(ascending, leaves_cap), rank),
        ],
        -1,
    )
    bend, at = bends.masked_fill(total < 1.0, -math.inf).max(-1, keepdim=True)
    scores = (x - center).clamp(-cap, cap)
    slope = ((scores > bend) & (scores - cap <= bend)).sum(-1, keepdim=True)
    tau = bend + (total.gather(-1, at) - 1.0).clamp(min=0.0) / slope.clamp(min=1)

    free = ((scores > tau) & (scores - cap < tau)).to(x.dtype)
    weights = (scores - tau).clamp(0.0, cap)
    rest = (1.0 - weights.sum(-1, keepdim=True)) / free.sum(-1, keepdim=True).clamp(min=1.0)
    return (weights + free * rest).clamp(0.0, cap), free


def capped_softmax(x: Tensor, max_weight: float = 1.0) -> Tensor:
    """Softmax with an upper bound on each weight.

    ``w = argmin sum(w log w) - w @ x`` subject to ``sum(w) = 1`` and ``w <= max_weight``: the weights
    are ``min(max_weight, exp(x - tau))``. What the capped weights leave over is shared among the others
    by a softmax of their scores; where nothing is capped, this is ``torch.softmax``.

    Args:
        x: scores, ``(..., A)``, of any floating dtype; the work is done in float64.
        max_weight: upper bound on each weight, at least ``1 / A``; 1 or more is no bound.

    Returns:
        Weights ``(..., A)`` in the dtype of ``x``; a row with an entry that is not finite is NaN.

    Raises:
        TypeError: if ``x`` is no floating tensor or ``max_weight`` no number.
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
        (2017), https://aclanthology.org/D17-1036, where it is named constrained softmax.
    """
    check_tensor("capped_softmax", "x", x, "(..., A)", 1)
    cap = check_cap("capped_softmax", x.shape[-1], max_weight)
    if is_equal_split(x.shape[-1], cap):
        return equal_split(x)
    scores = x.double()
    capped, left, poison = constant(partial(_softmax_search, cap), scores)
    shared = torch.softmax(scores.masked_fill(capped, -math.inf), -1)
    return ((left * shared).masked_fill(capped, cap) + poison).to(x.dtype)


def _softmax_search(cap: float, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the capped weights ``(..., A)``, what they leave over ``(..., 1)``, and NaN for bad rows.

    With the scores sorted, k weights are capped for the smallest k at which the next largest one, given
    its share of the rest, fits under the cap.
    """
    num_assets = x.shape[-1]
    poison = (0.0 * x).sum(-1, keepdim=True)
    ascending = x.sort(-1).values
    # Entry i: the share of score i in a softmax of the scores up to it, times what those above leave.
    above = torch.arange(num_assets - 1, -1, -1, dtype=x.dtype, device=x.device)
    largest = (ascending - ascending.logcumsumexp(-1)).exp() * (1.0 - cap * above)
    # The last entry that fits is the largest free score; the first always fits, being alone.
    fits = (largest <= cap) & (cap * above < 1.0)
    fits[..., 0] = True
    threshold = ascending.masked_fill(~fits, -math.inf).amax(-1, keepdim=True)
    capped = x > threshold
    left = 1.0 - cap * capped.to(x.dtype).sum(-1, keepdim=True)
    return capped, left, poison
