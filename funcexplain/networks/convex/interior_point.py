"""A primal-dual interior point for the programs that the active sets do not settle.

The program is that of `program.py`, on plain tensors ``(N, A)`` of one scale. With multipliers z of
``w >= 0`` and u of ``v = cap - w >= 0`` its solution is

    Q w - r - tau - z + u = 0,   sum(w) = 1,   w z = b,   v u = 0,

so the logarithmic term needs no function of its own: it is the target of the products ``w z``. Newton
steps towards ``w z = b + mu``, ``v u = mu`` with mu falling to zero get there in 10 to 20 steps.

Source: Mehrotra, On the implementation of a primal-dual interior point method (1992),
https://doi.org/10.1137/0802028; its second-order term is bounded by the target here, since unbounded
it stalls one program with budgets in twenty-five.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.networks.convex.active_set import Guess, Program

_ACCURACY = 1e-12  # of the scaled program; the active sets are clear by then
_NEAR = 1e-5  # above the root of the accuracy, at which a weight with a vanishing multiplier stops
_MAX_STEPS = 40


class _Point(NamedTuple):
    """An iterate; all of it ``(N, A)`` but ``price``, which is ``(N, 1)``."""

    weights: Tensor
    slack: Tensor  # v, its own iterate: cap - w has no digits left where w is nearly cap
    at_zero: Tensor  # z
    at_cap: Tensor  # u
    price: Tensor  # tau


def interior_point(program: Program, cap: float) -> Guess:
    """Solve to about 1e-12 and tell which weights sit on a bound.

    Args:
        program: N rows.
        cap: upper bound of each weight, with ``A * cap > 1``; two or more if there is none.

    Returns:
        Strictly positive weights that sum to one, with the sets they suggest.
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
    # Where the weight and its multiplier both vanish, either guess is right, but only a bound gives
    # exact zeros and a regular system; a weight that was put on its bound by mistake is released later.
    # Not so beside a small budget, which keeps tiny weights and slacks that are no zeros.
    plain = (budgets == 0.0).all(-1, keepdim=True)
    near = _NEAR * plain
    width = _width(program, cap)
    upper = answer.slack < width * torch.maximum(answer.at_cap, near)
    lower = (answer.weights < width * torch.maximum(answer.at_zero, near)) & (budgets == 0.0) & ~upper
    return Guess(answer.weights, lower, upper, torch.zeros_like(upper))


def _width(program: Program, cap: float) -> float:
    """The size of the feasible set, at most one: a cap little above 1 / n leaves tiny slacks."""
    return min(program.returns.shape[-1] * cap - 1.0, 1.0)


def _start(program: Program, cap: float) -> _Point:
    """The equal split, with multipliers of the size of what pulls it away."""
    weights = torch.full_like(program.returns, 1.0 / program.returns.shape[-1])
    pull = (program.matrix @ weights[..., None])[..., 0] - program.returns
    price = pull.mean(-1, keepdim=True)
    size = (pull - price).abs().amax(-1, keepdim=True).clamp(min=1e-2).expand_as(weights)
    return _Point(weights, cap - weights, program.budgets / weights + size, size, price)


def _error(program: Program, cap: float, point: _Point) -> Tensor:
    """The largest violation of the four conditions, ``(N,)``."""
    stationary, full, inside = _residuals(program, cap, point)
    # A small budget is met to four digits of its own, so that Newton's method can finish.
    low = (point.weights * point.at_zero - program.budgets) * (1e-8 / program.budgets).clamp(1.0, 1e8)
    low = torch.where(program.budgets > 0.0, low, point.weights * point.at_zero)
    # Beside it, a slack may be as small as the weight that it leaves room for, and has to show.
    least = program.budgets.masked_fill(program.budgets == 0.0, 1.0).amin(-1, keepdim=True)
    high = point.slack / _width(program, cap) * point.at_cap * (1e-14 / least.square()).clamp(1.0, 1e8)
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
        """Newton's direction to ``w z = low`` and ``v u = high``, of the positive parts and of tau."""
        low_gap, high_gap = (low - weights * at_zero) / weights, (high - slack * at_cap) / slack
        rhs = low_gap - high_gap - (at_cap / slack) * inside - stationary
        free = torch.cholesky_solve(rhs[..., None], factor)[..., 0]
        change = -(full + free.sum(-1, keepdim=True)) / along.sum(-1, keepdim=True)
        d_weights = free + change * along
        d_slack = -inside - d_weights
        d_zero, d_cap = low_gap - at_zero / weights * d_weights, high_gap - at_cap / slack * d_slack
        return torch.stack([d_weights, d_slack, d_zero, d_cap]), change + full

    def reach(step: Tensor) -> Tensor:
        """The longest step, at most one, that keeps everything nonnegative."""
        return torch.where(step < 0.0, -values / step, torch.inf).amin((0, -1))[..., None].clamp(max=1.0)

    def distance(at: Tensor) -> Tensor:
        gap = (at[0] * at[2] - budgets).abs() + at[1] * at[3]
        return gap.mean(-1, keepdim=True) / 2.0

    values = torch.stack(point[:4])
    affine, _ = direction(budgets, torch.zeros_like(budgets))
    mu = distance(values)
    center = mu * (distance(values + reach(affine) * affine) / mu.clamp(min=1e-300)).clamp(max=1.0) ** 3
    low, high = budgets + center, center.expand_as(slack)
    # A second-order term of the size of its target would aim at the point that we come from: where the
    # product is a tenth of its target, the step is then exact and leads nowhere.
    step, change = direction(
        torch.clamp(low - affine[0] * affine[2], 0.5 * low, 2.0 * low),
        torch.clamp(high - affine[1] * affine[3], 0.5 * high, 2.0 * high),
    )
    length = 0.995 * reach(step)
    weights, slack, at_zero, at_cap = values + length * step
    return _Point(weights, slack, at_zero, at_cap, price + length * change)
