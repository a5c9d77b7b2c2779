"""The quadratic program of a row, by its dual in K multipliers.

The program minimizes ``g'd + d'B d / 2 + rho * sum(violations)``, where K linear functions ``f + G d``
violate their bounds, ``lower`` and ``upper``. Its solution is ``d = -B^-1 (g + G'l)``. The multipliers
``l`` minimize ``l'W l / 2 - c'l + sum(max(lower * l, upper * l))`` over ``|l| <= rho``, with
``W = G B^-1 G'`` and ``c = f - G B^-1 g``: positive at an upper bound, negative at a lower one, zero
between.

References:
    R. Fletcher (1985), An l1 Penalty Method for Nonlinear Constraints,
    https://doi.org/10.1137/1.9781611971974; M. Hintermüller, K. Ito, K. Kunisch (2002), The Primal-Dual
    Active Set Strategy as a Semismooth Newton Method, https://doi.org/10.1137/S1052623401383558
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from funcexplain.solvers.damped_step import WIDE, Model, PenaltyTerms, approach_minimum

# Iterations of the interior point, and rounds of the active set that follow.
_ITERATIONS, _ROUNDS = 18, 3
# An infinite bound counts as this many times the value away.
_FAR = 1e4
# Fraction of the mean diagonal that is added where multipliers are not unique.
_RIDGE = 1e-13
_FLAT = 1e-14


def solve_program(
    rows: Tensor,
    factors: Tensor,
    pairs: Tensor,
    damping: Tensor,
    lower: Tensor,
    upper: Tensor,
    rho: Tensor,
    values: Tensor,
    free: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The step of a quadratic program whose curvature is known from M earlier steps.

    By the compact form of BFGS, all that the program needs are inner products of its vectors; only these
    are in float64.

    Args:
        rows: the gradient ``g`` and the rows of ``G`` without their factors, ``(1 + K, N)``.
        factors: of the rows of ``G``, ``(K,)``.
        pairs: M steps, and the changes of the gradient along them, ``(2 M, N)``; zero for none.
        damping: curvature that is added.
        lower: bounds ``(K,)``; ``-inf`` for none.
        upper: bounds ``(K,)``; ``inf`` for none.
        rho: price of a violation.
        values: ``f``, ``(K,)``.
        free: factor of each entry of the step, zero for those that are held, ``(N,)``.

    Returns:
        The step ``(N,)``, and the multipliers ``(K,)``.
    """
    if free is not None:
        rows = rows * free
    vectors, count, memory = torch.cat([rows, pairs]), len(rows), len(pairs) // 2
    scale = torch.cat([torch.ones_like(factors[:1]), factors, factors.new_ones(len(pairs))])
    products = (vectors @ vectors.mT).to(WIDE) * scale[:, None] * scale
    step_step, step_change = products[count:-memory, count:-memory], products[count:-memory, -memory:]
    shape = 1.0 / (1.0 + damping)
    curved = step_change + damping * step_step
    squares = products[-memory:, -memory:] + damping * (step_change + curved.mT)
    curvatures = curved.diagonal()
    triangle = curved.triu() + torch.diag((curvatures <= 0.0).to(WIDE))
    identity = torch.eye(memory, dtype=WIDE, device=rows.device)
    inverse = torch.linalg.solve_triangular(triangle, identity, upper=True)
    middle = inverse.mT @ (torch.diag(curvatures) + shape * squares) @ inverse
    along_steps = products[:count, count:-memory]
    along_changes = products[:count, -memory:] + damping * along_steps
    of_steps = along_steps @ middle - shape * (along_changes @ inverse)
    of_changes = -shape * (along_steps @ inverse.mT)
    gram = shape * products[:count, :count] + of_steps @ along_steps.mT + of_changes @ along_changes.mT
    gram = 0.5 * (gram + gram.mT)
    multipliers = solve_dual(gram[1:, 1:], values - gram[1:, 0], lower, upper, rho)
    shares = torch.cat([torch.ones_like(multipliers[:1]), multipliers])
    by_changes = shares @ of_changes
    shares = torch.cat([shape * shares, shares @ of_steps + damping * by_changes, by_changes])
    step = -((shares * scale).to(vectors.dtype) @ vectors)
    return step if free is None else step * free, multipliers


def solve_dual(w: Tensor, c: Tensor, lower: Tensor, upper: Tensor, rho: Tensor) -> Tensor:
    """The multipliers of a quadratic program, in float64.

    An interior-point method comes close; its active set is then solved exactly, and kept if the
    objective falls.

    Args:
        w: ``(K, K)``, positive semidefinite.
        c: values after the unconstrained step, ``(K,)``.
        lower: bounds ``(K,)``; ``-inf`` for none.
        upper: bounds ``(K,)``; ``inf`` for none.
        rho: price of a violation, the maximum of a multiplier.

    Returns:
        ``(K,)``.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> solve_dual(one[:, None], 2.0 * one, -one, one, 10.0 * one[0])  # c is above upper by 1
        tensor([1.0000], dtype=torch.float64)
    """
    far = _FAR * (1.0 + c.abs())
    lower, upper = torch.maximum(lower, c - far), torch.minimum(upper, c + far)
    alone = len(c) == 1  # whose active set is known at once
    best = torch.zeros_like(c) if alone else _interior_point(w, c, lower, upper, rho)
    minimum, current = _objective(w, c, lower, upper, best), best
    for _ in range(_ROUNDS):
        current = _active_set(w, c, lower, upper, rho, current)
        value = _objective(w, c, lower, upper, current)
        better = value < minimum
        best, minimum = torch.where(better, current, best), torch.where(better, value, minimum)
    return best


def _objective(w: Tensor, c: Tensor, lower: Tensor, upper: Tensor, multipliers: Tensor) -> Tensor:
    support = torch.maximum(lower * multipliers, upper * multipliers)
    return 0.5 * multipliers @ w @ multipliers - c @ multipliers + support.sum()


def _diagonal(w: Tensor) -> Tensor:
    """The diagonal; of a function that does not depend on the step, a little more than zero."""
    diagonal = w.diagonal()
    return diagonal.clamp_min(_FLAT) + _FLAT * diagonal.amax()


def _interior_point(w: Tensor, c: Tensor, lower: Tensor, upper: Tensor, rho: Tensor) -> Tensor:
    """The multipliers nearly, as differences of two nonnegative halves."""
    scale = _diagonal(w).rsqrt()
    shift = 1e-12 * len(c) * torch.eye(len(c), dtype=w.dtype, device=w.device)
    factor, failed = torch.linalg.cholesky_ex(w * scale[:, None] * scale + shift)
    half = torch.where(failed == 0, factor, shift).T / math.sqrt(2.0)
    slopes = torch.cat([(upper - c) * scale, (c - lower) * scale])
    zero = torch.zeros_like(rho)
    model = Model(
        torch.zeros_like(c),
        torch.cat([half, -half], 1),
        PenaltyTerms(zero, slopes, torch.zeros_like(slopes)),
        zero,
    )
    room = (rho / scale).repeat(2)
    halves = approach_minimum(model, torch.zeros_like(room), room, _ITERATIONS)
    return ((halves[: len(c)] - halves[len(c) :]) * scale).clamp(-rho, rho)


def _active_set(
    w: Tensor, c: Tensor, lower: Tensor, upper: Tensor, rho: Tensor, multipliers: Tensor
) -> Tensor:
    """One round: multipliers of the bounds that look active, by the system of these alone."""
    diagonal = _diagonal(w)
    value = c - w @ multipliers + diagonal * multipliers  # of each without its own multiplier
    wanted = ((value - upper).clamp_min(0.0) - (lower - value).clamp_min(0.0)) / diagonal
    saturated = wanted.abs() >= rho
    fixed = torch.where(saturated, wanted.sign() * rho, 0.0)
    active = (wanted != 0.0) & ~saturated
    bound = torch.where(wanted > 0.0, upper, lower)
    free = active.to(WIDE)
    system = w * free[:, None] * free + torch.diag(1.0 - free + _RIDGE * diagonal.mean())
    factor, failed = torch.linalg.cholesky_ex(system)
    rhs = torch.where(active, c - bound - w @ fixed, 0.0)
    found = torch.cholesky_solve(rhs[:, None], factor)[:, 0] + fixed
    return torch.where(failed == 0, found.clamp(-rho, rho), multipliers)
