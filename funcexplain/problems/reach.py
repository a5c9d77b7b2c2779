"""Can any allocation meet a target? What none of the network's kind can is refused beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from funcexplain.problems.criterion import Criterion

# Misses below this are left to the search: they may be rounding, or a tie.
_LEAST_MISS = 2e-3
_MOST_STEPS = 500
_CHECK_EVERY = 50
# Networks that hold weights of any sum may hold this much of an asset, long or short.
_LEVERAGE = 10.0
_ROUNDING = 1e-4
_OTHER_SLOPES = 6.0


def is_invested(weights: Tensor) -> bool:
    """Whether all of several allocations ``(N, A)`` are long-only and fully invested."""
    sums = weights.double().sum(-1)
    return bool((weights >= -_ROUNDING).all() and ((sums - 1.0).abs() <= _ROUNDING).all())


def least_miss(criterion: Criterion, targets: Tensor, count: int, *, invested: bool) -> Tensor:
    """How far the best allocation is from each target, zero where one may meet it.

    Minimizes ``sum(residual**2) / 2``, which is convex, over long-only allocations that sum to one
    (``invested``) or over weights within ten of zero, by accelerated projected gradient steps. A miss
    is told only where the linear bound ``f(w) - <g, w - s>``, s the best vertex, proves that no
    allocation does better (Frank and Wolfe 1956, https://doi.org/10.1002/nav.3800030109).

    Args:
        criterion: of the targets.
        targets: ``(T, ...)``.
        count: number of assets.
        invested: whether weights are long-only and sum to one.

    Returns:
        Largest distance ``(T,)`` of what is measured from where it should be, float64.
    """
    targets = targets.double()
    w = torch.full((len(targets), count), 1.0 / count, dtype=torch.float64, device=targets.device)
    best, ahead, momentum = w, w, 1.0
    certain = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
    value = _misfit(criterion, w, targets)[0]
    # One step is safe for what is linear, for turnover (slope 1 / 2 in every weight), and the index.
    slopes = targets[..., :-3].square().sum((-1, -2)) if criterion.ndim == 2 else w.new_zeros(1)
    rate = 1.0 / (_OTHER_SLOPES + count / 4 + slopes.expand(len(targets)))
    for step in range(_MOST_STEPS):
        _, slope = _misfit(criterion, ahead, targets)
        moved = _projected(ahead - rate[:, None] * slope, invested)
        following = 0.5 * (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5)
        ahead = moved + (momentum - 1.0) / following * (moved - w)
        w, momentum = moved, following
        if step % _CHECK_EVERY:
            continue
        now, slope = _misfit(criterion, w, targets)
        best = torch.where((now < value)[:, None], w, best)
        value = torch.minimum(now, value)
        if invested:
            gap = (slope * w).sum(-1) - slope.amin(-1)
        else:
            gap = (slope * w).sum(-1) + _LEVERAGE * slope.abs().sum(-1)
        certain |= now - gap > 0
        if bool((certain & (gap < 1e-9) | (value < 0.5 * _LEAST_MISS**2)).all()):
            break
    miss = criterion.error(best, targets, rows=1)
    return torch.where(certain & (miss > _LEAST_MISS), miss, 0.0)


def _misfit(criterion: Criterion, weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Half the sum of squares of each row, and its slope."""
    with torch.enable_grad():
        weights = weights.detach().requires_grad_()
        measured, nearest = criterion.compare(weights, targets)
        misfits = 0.5 * (measured - nearest).square().sum(-1)
        (slope,) = torch.autograd.grad(misfits.sum(), weights)
    return misfits.detach(), slope


def _projected(weights: Tensor, invested: bool) -> Tensor:
    """The nearest allocation of the kind (the simplex: Held, Wolfe and Crowder 1974)."""
    if not invested:
        return weights.clamp(-_LEVERAGE, _LEVERAGE)
    ordered = weights.sort(-1, descending=True).values
    places = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    excess = (ordered.cumsum(-1) - 1.0) / places
    held = (ordered > excess).sum(-1, keepdim=True)
    return (weights - excess.gather(-1, held - 1)).clamp_min(0.0)
