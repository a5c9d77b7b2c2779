"""From `Target` to the tensor in ``args``, and the proof that a target is infeasible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from funcexplain.networks.network import Apply, deferred_interrupts, set_seed
from funcexplain.networks.noise import normal
from funcexplain.problems import losses
from funcexplain.problems.criterion import EXACT, GOALS, Criterion, Portfolio, Target

# The network is probed at this many windows around the reference: do its weights sum to one?
_NUM_PROBES = 4
_SUM_TOLERANCE = 1e-3
# Losses of whole allocations; they are meaningless for the measured values of goals.
_DISTRIBUTION_LOSSES = (losses.kl, losses.js, losses.cross_entropy)
_ALLOCATION_LOSSES = (*_DISTRIBUTION_LOSSES, losses.cosine_distance)

_PROBED = (
    "at the windows tried; if not at others, pass leverage=, the largest weight that it holds, to "
    "fe.problem"
)

# Smaller errors are left to the search: they may be rounding, or a tie.
_MIN_ERROR = 2e-3
_MAX_STEPS = 500
_CHECK_EVERY = 50
# Largest position that is assumed of networks whose weights have any sum.
_LEVERAGE = 10.0
# Goals are compared in this range, so that no square overflows; no weight is near it.
_LARGEST = 1e60
_ROUNDING = 1e-4
_OTHER_CURVATURE = 6.0


def encode_targets(
    where: str,
    targets: Sequence[Target],
    apply: Apply,
    args: dict[str, Any],
    assets: tuple[str, ...] | None,
    leverage: float | None = None,
) -> tuple[Tensor, Criterion]:
    """Encode targets for one question as a stack, and return how weights are compared with a row of it.

    All targets must be feasible within the leverage and measure the same number of values.
    """
    for index, target in enumerate(targets):
        if not isinstance(target, Target):
            raise TypeError(
                f"{where}: target[{index}] must be a target like the others, got "
                f"{type(target).__name__}; fe.targets.exact(weights) makes one of an allocation"
            )
    from_today = any(target.from_today for target in targets)
    like = args["x0"][0, 0] if assets is None else args["x0"].new_zeros(len(assets))
    with deferred_interrupts(), torch.no_grad():
        weights = _probe_weights(apply, args)
        if weights.ndim > 2:
            raise ValueError(
                f"{where}: problem must not be a consensus, whose targets cannot be replaced, got one; "
                "map over targets first"
            )
        if weights[0].shape != like.shape:
            raise ValueError(
                f"{where}: network must return {len(like)} weights, one for each "
                f"{'asset' if assets is None else 'of assets or outputs'}, got shape "
                f'{tuple(weights[0].shape)}; name all weights, such as outputs=[*assets, "CASH"]'
            )
        portfolio = Portfolio(like, assets, weights[0])
        exact = [target.weights(portfolio) for target in targets if target.weights is not None]
        if len(exact) == len(targets):
            stack, criterion = torch.stack(exact), EXACT
        else:
            rows = [target.rows(portfolio) for target in targets]
            counts = sorted({len(row) for row in rows})
            if len(counts) > 1:
                raise ValueError(
                    f"{where}: targets of one stack must measure the same number of values, got "
                    f"{counts}; map over each kind in a separate call"
                )
            stack, criterion = torch.stack(rows), GOALS
        calls = [target.call for target in targets]
        _check_feasible(where, calls, stack, criterion, weights, leverage)
    return stack, criterion._replace(from_today=from_today)


def check_loss(where: str, loss: Any, criterion: Criterion, target: Tensor) -> None:
    """Raise if a loss compares whole allocations, or distributions, and the target is not one."""
    if criterion.ndim == EXACT.ndim and loss in _DISTRIBUTION_LOSSES and bool((target < 0.0).any()):
        raise ValueError(
            f"{where}: loss {loss.__name__} compares distributions, weights >= 0 that sum to one, got a "
            "target with shorts; use fe.losses.mse or mae for a long-short portfolio"
        )
    if criterion.ndim == GOALS.ndim and loss in _ALLOCATION_LOSSES:
        raise ValueError(
            f"{where}: loss must compare what targets measure with their bounds, as fe.losses.mse and "
            f"mae do, got {loss.__name__}, which compares whole allocations"
        )


def check_sum(where: str, apply: Apply, args: dict[str, Any]) -> None:
    """Raise if an allocation does not sum to one and the network's weights always do."""
    total = float(args["target"].sum())
    if abs(total - 1.0) > _SUM_TOLERANCE:  # the network is called only if needed
        with deferred_interrupts(), torch.no_grad():
            if is_long_only(_probe_weights(apply, args)):
                raise ValueError(
                    f"{where}: target must be feasible, got weights that sum to {total:.3g}, but the "
                    f"network's weights are always >= 0 and sum to one {_PROBED}"
                )


def is_long_only(weights: Tensor) -> bool:
    """Whether all allocations ``(N, A)`` are long-only and fully invested."""
    sums = weights.double().sum(-1)
    return bool((weights >= -_ROUNDING).all() and ((sums - 1.0).abs() <= _ROUNDING).all())


def minimum_error(
    criterion: Criterion, targets: Tensor, count: int, *, leverage: float | None = None
) -> Tensor:
    """The error of the best allocation for each target, zero where some allocation may meet it.

    Minimizes ``sum(residual**2) / 2``, which is convex, over weights of at most ``leverage`` in absolute
    value (None: over long-only allocations that sum to one), by accelerated projected gradient steps. An
    error is returned only where the linear bound ``f(w) - <g, w - s>``, s the best vertex, proves that
    no allocation does better (Frank and Wolfe 1956, https://doi.org/10.1002/nav.3800030109).

    Returns:
        `Criterion.error` of the best allocation of ``count`` assets for each target, ``(T,)``, float64.
    """
    given = targets.double()
    targets = given.clamp(-_LARGEST, _LARGEST)
    w = torch.full((len(targets), count), 1.0 / count, dtype=torch.float64, device=targets.device)
    best, ahead, momentum = w, w, 1.0
    proven = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
    value = _objective(criterion, w, targets)[0]
    # A safe step size for linear goals, turnover (slope 1 / 2 in every weight) and concentration.
    squares = targets[..., :-3].square().sum((-1, -2)) if criterion.ndim == 2 else w.new_zeros(1)
    rate = 1.0 / (_OTHER_CURVATURE + count / 4 + squares.expand(len(targets)))
    for step in range(_MAX_STEPS):
        _, grad = _objective(criterion, ahead, targets)
        moved = _project(ahead - rate[:, None] * grad, leverage)
        next_momentum = 0.5 * (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5)
        ahead = moved + (momentum - 1.0) / next_momentum * (moved - w)
        w, momentum = moved, next_momentum
        if step % _CHECK_EVERY:
            continue
        now, grad = _objective(criterion, w, targets)
        best = torch.where((now < value)[:, None], w, best)
        value = torch.minimum(now, value)
        best_vertex = grad.amin(-1) if leverage is None else -leverage * grad.abs().sum(-1)
        gap = (grad * w).sum(-1) - best_vertex
        proven |= now - gap > 0
        if bool((proven & (gap < 1e-9) | (value < 0.5 * _MIN_ERROR**2)).all()):
            break
    error = criterion.error(best, given, rows=1)
    return torch.where(proven & (error > _MIN_ERROR), error, 0.0)


def _objective(criterion: Criterion, weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Half the sum of squared residuals of each row, and its gradient."""
    with torch.enable_grad():
        weights = weights.detach().requires_grad_()
        measured, nearest = criterion.compare(weights, targets)
        values = 0.5 * (measured - nearest).square().sum(-1)
        (grads,) = torch.autograd.grad(values.sum(), weights)
    return values.detach(), grads


def _project(weights: Tensor, leverage: float | None) -> Tensor:
    """The nearest feasible allocation (the simplex: Held, Wolfe and Crowder 1974)."""
    if leverage is not None:
        return weights.clamp(-leverage, leverage)
    weights = weights - weights.amax(-1, keepdim=True)  # of huge weights, one is lost to rounding
    ordered = weights.sort(-1, descending=True).values
    counts = torch.arange(1, weights.shape[-1] + 1, device=weights.device)
    excess = (ordered.cumsum(-1) - 1.0) / counts
    num_positive = (ordered > excess).sum(-1, keepdim=True)
    return (weights - excess.gather(-1, num_positive - 1)).clamp_min(0.0)


def _probe_weights(apply: Apply, args: dict[str, Any]) -> Tensor:
    """The network's weights at the reference and at windows near it that it accepts, ``(1 + N, A)``."""
    params, reference = set_seed(args["params"], args["seed"]), args["reference"]
    noise = normal(args["seed"], (_NUM_PROBES, *reference.shape), reference.dtype)
    spread = reference.std(correction=0)
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    weights = [apply(params, reference)]
    for window in reference + scale * noise:
        with suppress(Exception):
            weights.append(apply(params, window))
    return torch.stack(weights)


def _check_feasible(
    where: str,
    calls: list[str],
    targets: Tensor,
    criterion: Criterion,
    weights: Tensor,
    leverage: float | None,
) -> None:
    long_only = leverage is None and is_long_only(weights)
    limit = None if long_only else _LEVERAGE if leverage is None else leverage
    if limit == math.inf:
        return
    errors = minimum_error(criterion, targets, weights.shape[-1], leverage=limit)
    worst = int(errors.argmax())
    if errors[worst] > 0:
        kind = "weights >= 0 that sum to one, like the network's, can meet it"
        remedy = f"they are so {_PROBED}"
        if limit is not None:
            kind = f"weights can meet it without a position above {limit:g}, long or short"
            remedy = "if the network holds more, pass leverage=, its largest weight, to fe.problem"
        raise ValueError(
            f"{where}: target must be feasible, got {calls[worst]}: no {kind}; the minimum error is "
            f"{float(errors[worst]):.3g}; {remedy}"
        )
