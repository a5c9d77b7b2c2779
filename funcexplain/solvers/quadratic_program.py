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

from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.networks.convex.constants import constant
from funcexplain.solvers.damped_step import WIDE

# Maximum number of interior-point iterations, where they end, and rounds of the active set that follow.
_ITERATIONS, _ACCURACY, _ROUNDS = 30, 1e-13, 3
_TO_BOUNDARY = 0.99
_LAST = (-3, -2, -1)
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
    are in float64. Mapped rows are solved together, as plain tensors with a leading dimension.

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
    rows = rows if free is None else rows * free
    program = (rows, factors, pairs, damping, lower, upper, rho, values)
    step, multipliers = constant(_solve_programs, *program)
    return step if free is None else step * free, multipliers


def _solve_programs(*program: Tensor) -> tuple[Tensor, Tensor]:
    """The same, of rows that lead."""
    rows, factors, pairs, damping, lower, upper, rho, values = program
    vectors, count, memory = torch.cat([rows, pairs], -2), rows.shape[-2], pairs.shape[-2] // 2
    one = torch.ones_like(factors[..., :1])
    scale = torch.cat([one, factors, one.expand(*factors.shape[:-1], 2 * memory)], -1)
    wide = vectors.to(WIDE)
    products = wide @ wide.mT * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    damping = damping[..., None, None]
    shape = 1.0 / (1.0 + damping)

    # Inner products of the steps with the changes of the damped gradient, and of the changes.
    change = products[..., count:-memory, -memory:]
    curved = change + damping * products[..., count:-memory, count:-memory]
    squares = products[..., -memory:, -memory:] + damping * (change + curved.mT)
    curvatures = curved.diagonal(dim1=-2, dim2=-1)
    triangle = curved.triu() + torch.diag_embed((curvatures <= 0.0).to(WIDE))
    identity = torch.eye(memory, dtype=WIDE, device=rows.device)
    inverse = torch.linalg.solve_triangular(triangle, identity, upper=True)
    middle = inverse.mT @ (torch.diag_embed(curvatures) + shape * squares) @ inverse
    along_steps = products[..., :count, count:-memory]
    along_changes = products[..., :count, -memory:] + damping * along_steps
    of_steps = along_steps @ middle - shape * (along_changes @ inverse)
    of_changes = -shape * (along_steps @ inverse.mT)
    gram = shape * products[..., :count, :count]
    gram = gram + of_steps @ along_steps.mT + of_changes @ along_changes.mT
    gram = 0.5 * (gram + gram.mT)

    multipliers = solve_dual(gram[..., 1:, 1:], values - gram[..., 1:, 0], lower, upper, rho)
    shares = torch.cat([one, multipliers], -1).unsqueeze(-2)
    by_changes = shares @ of_changes
    by_steps = shares @ of_steps + damping * by_changes
    shares = torch.cat([shape * shares, by_steps, by_changes], -1) * scale.unsqueeze(-2)
    return -(shares @ wide).squeeze(-2).to(rows.dtype), multipliers


def solve_dual(w: Tensor, c: Tensor, lower: Tensor, upper: Tensor, rho: Tensor) -> Tensor:
    """The multipliers of quadratic programs, in float64.

    An interior-point method comes close; its active set is then solved exactly, and kept if the
    objective falls.

    Args:
        w: ``(..., K, K)``, positive semidefinite.
        c: values after the unconstrained step, ``(..., K)``.
        lower: bounds ``(..., K)``; ``-inf`` for none.
        upper: bounds ``(..., K)``; ``inf`` for none.
        rho: price of a violation, the maximum of a multiplier, ``(...)``.

    Returns:
        ``(..., K)``.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> solve_dual(one[:, None], 2.0 * one, -one, one, 10.0 * one[0])  # c is above upper by 1
        tensor([1.0000], dtype=torch.float64)
    """
    far, rho = _FAR * (1.0 + c.abs()), rho.unsqueeze(-1)
    lower, upper = torch.maximum(lower, c - far), torch.minimum(upper, c + far)
    alone = c.shape[-1] == 1  # whose active set is known at once
    best = torch.zeros_like(c) if alone else _interior_point(w, c, lower, upper, rho)
    minimum, current = _objective(w, c, lower, upper, best), best
    for _ in range(1 if alone else _ROUNDS):
        current = _active_set(w, c, lower, upper, rho, current)
        value = _objective(w, c, lower, upper, current)
        better = (value <= minimum + _FLAT * minimum.abs()).unsqueeze(-1)
        best, minimum = torch.where(better, current, best), torch.minimum(value, minimum)
    return best


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return torch.linalg.vecdot(matrix, vector.unsqueeze(-2))


def _objective(w: Tensor, c: Tensor, lower: Tensor, upper: Tensor, multipliers: Tensor) -> Tensor:
    support = torch.maximum(lower * multipliers, upper * multipliers)
    return (multipliers * (0.5 * _times(w, multipliers) - c) + support).sum(-1)


def _diagonal(w: Tensor) -> Tensor:
    """The diagonal; of a function that does not depend on the step, a little more than zero."""
    diagonal = w.diagonal(dim1=-2, dim2=-1)
    return diagonal.clamp_min(_FLAT) + _FLAT * diagonal.amax(-1, keepdim=True)


class _Barrier(NamedTuple):
    """A point of the interior: the multipliers are ``p - n``, with ``p`` and ``n`` in ``(0, room)``.

    Attributes:
        slack: ``(p, n)`` and their distances from ``room``, ``(..., 2, 2, K)``.
        dual: the multipliers of both, of which the products with the slacks vanish at the solution.
    """

    slack: Tensor
    dual: Tensor

    def multipliers(self) -> Tensor:
        """Of the program, ``(..., K)``."""
        return self.slack[..., 0, 0, :] - self.slack[..., 0, 1, :]


def _interior_point(w: Tensor, c: Tensor, lower: Tensor, upper: Tensor, rho: Tensor) -> Tensor:
    """The multipliers nearly, by Mehrotra's predictor and corrector."""
    scale, tiny = _diagonal(w).rsqrt(), torch.finfo(WIDE).tiny
    w = w * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    slopes = torch.stack([upper - c, c - lower], -2) * scale.unsqueeze(-2)
    room = (rho / scale).unsqueeze(-2).clamp_min(tiny)
    part = 0.1 * room.expand_as(slopes)
    slack = torch.stack([part, room - part], -3)
    at = _Barrier(slack, (slopes.abs().amax(_LAST[1:])[..., None, None, None] + tiny).expand_as(slack))
    signs = torch.tensor([[1.0], [-1.0]], dtype=WIDE, device=w.device)
    start = (at.slack * at.dual).mean(_LAST, keepdim=True)
    for _ in range(_ITERATIONS):
        products = at.slack * at.dual
        gap = products.mean(_LAST, keepdim=True)
        going = gap > _ACCURACY * start
        if not bool(going.any()):
            break
        at = _iterate(w, slopes, signs, at, products, gap, going)
    return (at.multipliers() * scale).clamp(-rho, rho)


def _iterate(
    w: Tensor, slopes: Tensor, signs: Tensor, at: _Barrier, products: Tensor, gap: Tensor, going: Tensor
) -> _Barrier:
    """One iteration; what has converged is held, so that no row depends on others."""
    inverse = at.slack.reciprocal()
    ratio = at.dual * inverse
    spread = ratio.sum(-3).reciprocal()
    loose = spread.sum(-2).reciprocal()
    factor, failed = torch.linalg.cholesky_ex(w + torch.diag_embed(loose))
    gradient = torch.addcmul(slopes, signs, _times(w, at.multipliers()).unsqueeze(-2))

    def move(pull: Tensor) -> Tensor:
        """How the slacks move, relative to themselves."""
        free = pull * spread
        rhs = loose * (free[..., 0, :] - free[..., 1, :])
        change = _times(w, torch.cholesky_solve(rhs.unsqueeze(-1), factor).squeeze(-1))
        free = torch.addcmul(free, signs * change.unsqueeze(-2), spread, value=-1.0)
        return signs.unsqueeze(-1) * free.unsqueeze(-3) * inverse

    # The predictor aims at products of zero, with a dual that moves by -(1 + moved) of itself.
    moved = move(-gradient)
    far = torch.maximum(-moved, 1.0 + moved).amax(_LAST, keepdim=True).clamp_min(1.0).reciprocal()
    missed = products * moved * (1.0 + moved)
    left = 1.0 - far - far.square() * missed.mean(_LAST, keepdim=True) / gap
    aim = (gap * left.clamp(0.0, 1.0) ** 3 + missed).clamp(-gap, gap)
    pull = aim * inverse
    moved = move(pull[..., 0, :, :] - pull[..., 1, :, :] - gradient)
    fall = 1.0 + moved - aim / products
    far = _TO_BOUNDARY / torch.maximum(-moved, fall).amax(_LAST, keepdim=True).clamp_min(1.0)
    far = torch.where(going & (failed == 0)[..., None, None, None], far, 0.0)
    return _Barrier(at.slack + far * moved * at.slack, at.dual - far * fall * at.dual)


def _active_set(
    w: Tensor, c: Tensor, lower: Tensor, upper: Tensor, rho: Tensor, multipliers: Tensor
) -> Tensor:
    """One round: multipliers of the bounds that look active, by the system of these alone."""
    diagonal = _diagonal(w)
    value = c - _times(w, multipliers) + diagonal * multipliers  # of each without its own multiplier
    wanted = ((value - upper).clamp_min(0.0) - (lower - value).clamp_min(0.0)) / diagonal
    saturated = wanted.abs() >= rho
    fixed = torch.where(saturated, wanted.sign() * rho, 0.0)
    active = (wanted != 0.0) & ~saturated
    bound = torch.where(wanted > 0.0, upper, lower)
    free = active.to(WIDE)
    ridge = 1.0 - free + _RIDGE * diagonal.mean(-1, keepdim=True)
    system = w * free.unsqueeze(-1) * free.unsqueeze(-2) + torch.diag_embed(ridge)
    factor, failed = torch.linalg.cholesky_ex(system)
    rhs = torch.where(active, c - bound - _times(w, fixed), 0.0)
    found = torch.cholesky_solve(rhs.unsqueeze(-1), factor).squeeze(-1) + fixed
    return torch.where((failed == 0).unsqueeze(-1), torch.clamp(found, -rho, rho), multipliers)
