"""The program of Markowitz and risk budgeting, solved exactly on plain tensors.

    minimize  1/2 w' Q w - r' w - b' log w   subject to   sum(w) = 1,  0 <= w <= cap

with Q positive semidefinite and b >= 0. Active sets with `leap` solve most programs without budgets. For
the others, an interior point method guesses the sets, and active sets refine its result, with `leap`, or
if that fails with `walk`.
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

# Maximum numbers of steps; two are usual with leap.
_COLD_STEPS = 15
_REFINE_STEPS = 10
_WALK_STEPS = 120  # if leap cycles or several allocations are optimal
_DAMPING = 1e-9  # of walk, relative to Q


def solve_program(cap: float, matrix: Tensor, returns: Tensor, budgets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the weights, and which of them are between the bounds and move with the data.

    The cap is at most one, ``A * cap > 1``; Q is ``(..., A, A)``, all other tensors are ``(..., A)``.
    Rows with a negative budget or an entry that is not finite are NaN. If several allocations are
    optimal, one of them is returned, and only some of the interchangeable weights move.
    """
    shape, num_assets = returns.shape, returns.shape[-1]
    program = Program(
        matrix.reshape(-1, num_assets, num_assets),
        returns.reshape(-1, num_assets),
        budgets.reshape(-1, num_assets),
    )
    program, bad = _scale(program)
    if cap >= 1.0:
        cap = 2.0  # no bound: a cap of one would be degenerate with the others at zero
    guess, solved = _cold_start(program, cap)
    rows = (~solved).nonzero()[:, 0]
    if len(rows):
        rest = program.rows(rows)
        inner = interior_point(rest, cap)
        refined, done = refine(rest, cap, inner, _REFINE_STEPS, leap)
        failed = (~done).nonzero()[:, 0]
        if len(failed):
            hard, start = rest.rows(failed), inner.rows(failed)
            walked, done[failed] = refine(hard, cap, start, _WALK_STEPS, walk, damping=_DAMPING)
            for whole, part in zip(refined, hold_dependent(hard, walked), strict=True):
                whole[failed] = part
        worse = ~done & (_violation(rest, cap, refined) > _violation(rest, cap, inner))
        safe = hold_dependent(rest, inner) if bool(worse.any()) else inner
        for whole, part, other in zip(guess, refined, safe, strict=True):
            whole[rows] = torch.where(worse[:, None], other, part)
    weights = guess.weights.clamp(0.0, min(cap, 1.0)).masked_fill(bad[:, None], torch.nan)
    return weights.reshape(shape), guess.moving.reshape(shape)


def _scale(program: Program) -> tuple[Program, Tensor]:
    """Scale each row to entries of at most one; replace rows without a solution by an empty program.

    Multiplying the objective by a constant, or adding one to all returns, does not change the solution.
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
    size = torch.stack([diagonal.amax(-1), returns.abs().amax(-1), budgets.amax(-1)]).amax(0)[:, None]
    size = size.masked_fill(size == 0.0, 1.0)
    return Program(matrix / size[..., None], returns / size, budgets / size), bad


def _cold_start(program: Program, cap: float) -> tuple[Guess, Tensor]:
    """Active sets from a guess of three projected gradient steps; programs with budgets are skipped.

    A gradient step costs a third of an active-set step, and three of them save five.
    """
    weights = torch.full_like(program.returns, 1.0 / program.returns.shape[-1])
    none = torch.zeros_like(weights, dtype=torch.bool)
    free = torch.ones_like(weights)
    if bool((program.budgets > 0.0).any()):
        return Guess(weights, none, none.clone(), none.clone()), none.any(-1)
    curvature = program.matrix.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).clamp(min=SINGULAR)
    for scale in (1.0, 2.0, 2.0):
        pull = program.gradient(weights) / (scale * curvature)
        weights, free = project(min(cap, 1.0), weights - pull)
    bound = free == 0.0
    lower = bound & (weights < 0.5 * cap)
    return refine(program, cap, Guess(weights, lower, bound & ~lower, none), _COLD_STEPS, leap)


def _violation(program: Program, cap: float, guess: Guess) -> Tensor:
    """The error of the weights, ``(N,)``: of a projected gradient step, or of the sum.

    The error of a weight with a budget is the product with its slope, which stays finite at zero.
    """
    gradient = program.gradient(guess.weights)
    slope = gradient - price(gradient, guess)
    kept = (guess.weights - slope).clamp(0.0, cap) - guess.weights
    scaled = slope * guess.weights
    error = torch.where(guess.upper, kept, torch.where(program.budgets > 0.0, scaled, kept))
    error = torch.maximum(error.abs().amax(-1), (guess.weights.sum(-1) - 1.0).abs())
    return error.masked_fill(error.isnan(), torch.inf)
