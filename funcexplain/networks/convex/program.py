"""The program behind Markowitz and risk budgeting, solved exactly on plain tensors.

    minimize  1/2 w' Q w - r' w - b' log w   subject to   sum(w) = 1,  0 <= w <= cap

with Q positive semidefinite and b >= 0. Leaping active sets settle most programs without budgets. An
interior point guesses the sets of the others, and active sets polish its answer: by leaps, and where
these fail, step by step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from funcexplain.networks.convex.active_set import (
    SINGULAR,
    Guess,
    Program,
    hold_dependent,
    leap,
    price,
    refine,
    walk,
)
from funcexplain.networks.convex.interior_point import interior_point
from funcexplain.networks.convex.simplex import project

_COLD = 15  # steps; two are usual
_POLISH = 10  # steps; two are usual
_WALK = 120  # steps, where leaps go round in circles or several allocations are optimal
_DAMPING = 1e-9  # of the walk, relative to Q


def solve_program(cap: float, matrix: Tensor, returns: Tensor, budgets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the weights, and which of them lie between the bounds and move with the data.

    Args:
        cap: upper bound of each weight, at most one, ``A * cap > 1``.
        matrix: Q, ``(..., A, A)``.
        returns: r, ``(..., A)``.
        budgets: b, ``(..., A)``; a negative one makes its row NaN.

    Returns:
        ``(weights, moving)``, both ``(..., A)``; ``moving`` is bool. Rows with entries that are not
        finite are NaN. Where several allocations are optimal, one of them is returned, and of
        the weights that could be exchanged only some move.
    """
    shape, num_assets = returns.shape, returns.shape[-1]
    program = Program(
        matrix.reshape(-1, num_assets, num_assets),
        returns.reshape(-1, num_assets),
        budgets.reshape(-1, num_assets),
    )
    program, bad = _scaled(program)
    if cap >= 1.0:
        cap = 2.0  # no bound at all: at the vertex of one asset it would double the one at zero
    guess, settled = _cold(program, cap)
    rows = (~settled).nonzero()[:, 0]
    if len(rows):
        rest = program.rows(rows)
        inner = interior_point(rest, cap)
        polished, done = refine(rest, cap, inner, _POLISH, leap)
        left = (~done).nonzero()[:, 0]
        if len(left):
            some = rest.rows(left)
            walked, done[left] = refine(some, cap, inner.rows(left), _WALK, walk, damping=_DAMPING)
            for whole, part in zip(polished, hold_dependent(some, walked), strict=True):
                whole[left] = part
        lost = ~done & (_violation(rest, cap, polished) > _violation(rest, cap, inner))
        safe = hold_dependent(rest, inner) if bool(lost.any()) else inner
        for whole, part, other in zip(guess, polished, safe, strict=True):
            whole[rows] = torch.where(lost[:, None], other, part)
    weights = guess.weights.clamp(0.0, min(cap, 1.0)).masked_fill(bad[:, None], torch.nan)
    return weights.reshape(shape), guess.moving.reshape(shape)


def _scaled(program: Program) -> tuple[Program, Tensor]:
    """Bring each row to entries of at most one; replace rows without a solution by an empty program.

    Multiplying the objective by a constant, or adding one to all returns, leaves the solution as it is.
    """
    matrix, returns, budgets = program
    finite = (matrix.sum((-2, -1)) + returns.sum(-1) + budgets.sum(-1)).isfinite()
    bad = ~(finite & (budgets >= 0.0).all(-1))
    if bool(bad.any()):
        empty = bad[:, None]
        matrix = matrix.masked_fill(empty[..., None], 0.0)
        returns, budgets = returns.masked_fill(empty, 0.0), budgets.masked_fill(empty, 0.0)
    returns = returns - returns.amax(-1, keepdim=True)
    # No entry of a positive semidefinite matrix exceeds its diagonal.
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    sizes = [diagonal.amax(-1), returns.abs().amax(-1), budgets.amax(-1)]
    size = torch.stack(sizes).amax(0)[:, None]
    size = size.masked_fill(size == 0.0, 1.0)
    return Program(matrix / size[..., None], returns / size, budgets / size), bad


def _cold(program: Program, cap: float) -> tuple[Guess, Tensor]:
    """Active sets from what three projected gradient steps suggest; with budgets, nothing.

    Such a step costs a third of an active set's, and three of them save it five.
    """
    weights = torch.full_like(program.returns, 1.0 / program.returns.shape[-1])
    nowhere = torch.zeros_like(weights, dtype=torch.bool)
    free = torch.ones_like(weights)
    if bool((program.budgets > 0.0).any()):
        return Guess(weights, nowhere, nowhere.clone(), nowhere.clone()), nowhere.any(-1)
    curvature = program.matrix.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).clamp(min=SINGULAR)
    for scale in (1.0, 2.0, 2.0):
        pull = program.gradient(weights) / (scale * curvature)
        weights, free = project(min(cap, 1.0), weights - pull)
    bound = free == 0.0
    lower = bound & (weights < 0.5 * cap)
    return refine(program, cap, Guess(weights, lower, bound & ~lower, nowhere), _COLD, leap)


def _violation(program: Program, cap: float, guess: Guess) -> Tensor:
    """How far the weights are from solving their row, ``(N,)``: in a projected gradient step, or in sum.

    A weight with a budget is measured by the product with its slope, which stays finite at zero.
    """
    gradient = program.gradient(guess.weights)
    slope = gradient - price(gradient, guess)
    kept = (guess.weights - slope).clamp(0.0, cap) - guess.weights
    scaled = slope * guess.weights
    error = torch.where(guess.upper, kept, torch.where(program.budgets > 0.0, scaled, kept))
    error = torch.maximum(error.abs().amax(-1), (guess.weights.sum(-1) - 1.0).abs())
    return error.masked_fill(error.isnan(), torch.inf)
