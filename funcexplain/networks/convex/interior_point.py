"""A primal-dual interior point method for programs that the active sets do not solve.

The program is that of `program.py`, on plain tensors ``(N, A)``, scaled. With multipliers z of
``w >= 0`` and u of ``v = cap - w >= 0`` its solution is

    Q w - r - tau - z + u = 0,   sum(w) = 1,   w z = b,   v u = 0,

so the logarithmic term is just the target of the products ``w z``. Newton steps towards
``w z = b + mu``, ``v u = mu`` with mu decreasing to zero converge in 10 to 20 steps.

Source: Mehrotra, On the implementation of a primal-dual interior point method (1992),
https://doi.org/10.1137/0802028; its second-order term is bounded by the target here: unbounded, it
stalls on one in twenty-five programs with budgets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.networks.convex.active_set import Guess, Program

_ACCURACY = 1e-12  # of the scaled program; precise enough to identify the active sets
_NEAR = 1e-5  # above the root of the accuracy, the limit of weights with a vanishing multiplier
_MAX_STEPS = 40


class _Point(NamedTuple):
    """An iterate; all fields are ``(N, A)``, except ``price``, ``(N, 1)``."""

    weights: Tensor
    slack: Tensor  # v, a separate iterate: cap - w would lose all digits near the cap
    at_zero: Tensor  # z
    at_cap: Tensor  # u
    price: Tensor  # tau


def interior_point(program: Program, cap: float) -> Guess:
    """Solve to about 1e-12, with strictly positive weights, and guess which of them are on a bound.

    ``A * cap`` must exceed one; a cap of two or more means no bound.
    """
    point = _start(program, cap)
    answer = _Point(*(part.clone() for part in point))
    budgets = program.budgets
    rows = torch.arange(len(budgets), device=budgets.device)
    for _ in range(_MAX_STEPS):
        done = _error(program, cap, point) <= _ACCURACY
        if bool(done.any()):
            for whole, part in zip(answer, point, strict=True):
                whole[rows] = part
            rows, program = rows[~done], program.rows(~done)
            point = _Point(*(part[~done] for part in point))
        if not len(rows):
            break
        point = _step(program, cap, point)
    for whole, part in zip(answer, point, strict=True):
        whole[rows] = part
    # If a weight and its multiplier both vanish, either guess is correct, but only a bound gives exact
    # zeros and a regular system; a weight put on its bound by mistake is released later. Programs with
    # budgets are excluded: small budgets give tiny weights and slacks that are not zero.
    plain = (budgets == 0.0).all(-1, keepdim=True)
    near = _NEAR * plain
    width = _width(program, cap)
    upper = answer.slack < width * torch.maximum(answer.at_cap, near)
    lower = (answer.weights < width * torch.maximum(answer.at_zero, near)) & (budgets == 0.0) & ~upper
    return Guess(answer.weights, lower, upper, torch.zeros_like(upper))


def _width(program: Program, cap: float) -> float:
    """The size of the feasible set, at most one: a cap just above 1 / n leaves tiny slacks."""
    return min(program.returns.shape[-1] * cap - 1.0, 1.0)


def _start(program: Program, cap: float) -> _Point:
    """Equal weights, with multipliers of the size of the gradient."""
    weights = torch.full_like(program.returns, 1.0 / program.returns.shape[-1])
    pull = (program.matrix @ weights[..., None])[..., 0] - program.returns
    price = pull.mean(-1, keepdim=True)
    size = (pull - price).abs().amax(-1, keepdim=True).clamp(min=1e-2).expand_as(weights)
    return _Point(weights, cap - weights, program.budgets / weights + size, size, price)


def _error(program: Program, cap: float, point: _Point) -> Tensor:
    """The largest violation of the four conditions, ``(N,)``."""
    stationary, full, inside = _residuals(program, cap, point)
    # A small budget is met to four digits, so that Newton's method can finish.
    low = (point.weights * point.at_zero - program.budgets) * (1e-8 / program.budgets).clamp(1.0, 1e8)
    low = torch.where(program.budgets > 0.0, low, point.weights * point.at_zero)
    # With small budgets, a slack may be as small as a weight, and needs the same weighting.
    smallest = program.budgets.masked_fill(program.budgets == 0.0, 1.0).amin(-1, keepdim=True)
    factor = (1e-14 / smallest.square()).clamp(1.0, 1e8)
    high = point.slack / _width(program, cap) * point.at_cap * factor
    parts = torch.stack([stationary, inside, low, high])
    return torch.maximum(parts.abs().amax((0, -1)), full[..., 0].abs())


def _residuals(program: Program, cap: float, point: _Point) -> tuple[Tensor, Tensor, Tensor]:
    weights, slack, at_zero, at_cap, price = point
    stationary = (
        (program.matrix @ weights[..., None])[..., 0] - program.returns - price - at_zero + at_cap
    )
    return stationary, weights.sum(-1, keepdim=True) - 1.0, weights + slack - cap


def _step(program: Program, cap: float, point: _Point) -> _Point:
    """One predictor-corrector step."""
    weights, slack, at_zero, at_cap, price = point
    budgets = program.budgets
    stationary, full, inside = _residuals(program, cap, point)

    # rho 1 1' keeps the factor regular where Q is singular and the barrier fades; see newton.py.
    system = program.matrix + 1.0
    system.diagonal(dim1=-2, dim2=-1).add_(at_zero / weights + at_cap / slack)
    factor = torch.linalg.cholesky_ex(system).L
    along = torch.cholesky_solve(torch.ones_like(weights)[..., None], factor)[..., 0]

    def direction(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The Newton direction to ``w z = low`` and ``v u = high``: of positive parts, and of tau."""
        low_gap, high_gap = (low - weights * at_zero) / weights, (high - slack * at_cap) / slack
        rhs = low_gap - high_gap - (at_cap / slack) * inside - stationary
        free = torch.cholesky_solve(rhs[..., None], factor)[..., 0]
        change = -(full + free.sum(-1, keepdim=True)) / along.sum(-1, keepdim=True)
        d_weights = free + change * along
        d_slack = -inside - d_weights
        d_zero, d_cap = low_gap - at_zero / weights * d_weights, high_gap - at_cap / slack * d_slack
        return torch.stack([d_weights, d_slack, d_zero, d_cap]), change + full

    def max_length(step: Tensor) -> Tensor:
        """The maximum step length, at most one, that keeps all parts nonnegative."""
        return torch.where(step < 0.0, -values / step, torch.inf).amin((0, -1))[..., None].clamp(max=1.0)

    def distance(at: Tensor) -> Tensor:
        gap = (at[0] * at[2] - budgets).abs() + at[1] * at[3]
        return gap.mean(-1, keepdim=True) / 2.0

    values = torch.stack(point[:4])
    affine, _ = direction(budgets, torch.zeros_like(budgets))
    mu = distance(values)
    ratio = distance(values + max_length(affine) * affine) / mu.clamp(min=1e-300)
    center = mu * ratio.clamp(max=1.0) ** 3
    low, high = budgets + center, center.expand_as(slack)
    # A second-order term as large as its target would cancel the step: where the product is a tenth of
    # its target, the step would lead back to the present point.
    step, change = direction(
        torch.clamp(low - affine[0] * affine[2], 0.5 * low, 2.0 * low),
        torch.clamp(high - affine[1] * affine[3], 0.5 * high, 2.0 * high),
    )
    length = 0.995 * max_length(step)
    weights, slack, at_zero, at_cap = values + length * step
    return _Point(weights, slack, at_zero, at_cap, price + length * change)
