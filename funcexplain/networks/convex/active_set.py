"""Primal-dual active sets: guess which weights are on a bound, solve for the others, correct the guess.

The program is that of `program.py`, on plain tensors ``(N, A)``, scaled. A step solves for the moving
weights with all others on their bounds; then a weight that crossed a bound is put on it, and a bound
whose multiplier has the wrong sign is released. When nothing changes, the guess is the solution.

Source: Hintermüller, Ito and Kunisch, The primal-dual active set strategy as a semismooth Newton method
(2003), https://doi.org/10.1137/S1052623401383558.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.networks.convex.newton import newton_step, step_matrix

# In units of the scaled program, whose entries are at most one: about ten rounding errors of a sum.
TOLERANCE = 2e-14
# A pivot below this, relative to Q, counts as zero: the step along it would be rounding noise.
SINGULAR = 1e-11


class Program(NamedTuple):
    """``1/2 w' Q w - r' w - b' log w`` of N rows; all rows share the cap."""

    matrix: Tensor  # (N, A, A)
    returns: Tensor  # (N, A)
    budgets: Tensor  # (N, A)

    def rows(self, index: Tensor) -> Program:
        """Select rows."""
        return Program(self.matrix[index], self.returns[index], self.budgets[index])

    def size(self) -> Tensor:
        """The largest entry of Q, ``(N,)``; one if Q is zero, as in `step_matrix`."""
        size = self.matrix.diagonal(dim1=-2, dim2=-1).amax(-1)
        return size.masked_fill(size == 0.0, 1.0)

    def gradient(self, weights: Tensor) -> Tensor:
        """``Q w - r - b / w``, with ``0 / 0 = 0``."""
        pull = self.budgets / weights.masked_fill(self.budgets == 0.0, 1.0)
        return (self.matrix @ weights[..., None])[..., 0] - self.returns - pull


class Guess(NamedTuple):
    """Weights ``(N, A)``, and which of them are on a bound or held."""

    weights: Tensor
    lower: Tensor  # bool: at zero
    upper: Tensor  # bool: at the cap
    held: Tensor  # bool: fixed between the bounds

    def rows(self, index: Tensor) -> Guess:
        """Select rows."""
        return Guess(*(part[index] for part in self))

    def change(self, weights: Tensor, below: Tensor, above: Tensor, freed: Tensor) -> Guess:
        """Set new weights, add some to their bounds and release others."""
        return Guess(weights, (self.lower & ~freed) | below, (self.upper & ~freed) | above, self.held)

    @property
    def moving(self) -> Tensor:
        """The weights that a step may change."""
        return ~(self.lower | self.upper | self.held)


class _Move(NamedTuple):
    """A Newton step from a guess, with its bounds active."""

    weights: Tensor  # (N, A), on the guess's bounds
    step: Tensor  # (N, A)
    curved: Tensor  # bool, (N, A): has a budget, whose logarithm keeps it positive
    missing: Tensor  # (N, 1), the sum of the step


Correct = Callable[[Program, float, Guess, _Move], tuple[Guess, Tensor]]


def refine(
    program: Program, cap: float, guess: Guess, max_steps: int, correct: Correct, damping: float = 0.0
) -> tuple[Guess, Tensor]:
    """Correct a guess, by `leap` or `walk`, until it is the solution or ``max_steps`` are done.

    ``damping`` adds curvature in every direction, relative to Q: a proximal point method, whose steps
    are finite without curvature and which converges to the same solution.

    Returns:
        The last guess and, ``(N,)``, whether it is the solution. A row with a singular system stops at
        the previous guess.
    """
    best = Guess(*(part.clone() for part in guess))
    solved = torch.zeros_like(guess.weights[:, 0], dtype=torch.bool)
    rows = torch.arange(len(solved), device=solved.device)
    for _ in range(max_steps):
        if not len(rows):
            break
        move, regular = _solve(program, cap, guess, damping)
        guess, done = correct(program, cap, guess, move)
        for whole, part in zip(best, guess, strict=True):
            whole[rows[regular]] = part[regular]
        solved[rows] = done & regular
        keep = regular & ~done
        if not bool(keep.all()):
            rows, program, guess = rows[keep], program.rows(keep), guess.rows(keep)
    return best, solved


def _solve(program: Program, cap: float, guess: Guess, damping: float) -> tuple[_Move, Tensor]:
    """The Newton step of the moving weights, and whether the row's system is regular."""
    moving, budgets = guess.moving, program.budgets
    weights = guess.weights.masked_fill(guess.lower, 0.0).masked_fill(guess.upper, cap)
    missing = 1.0 - weights.sum(-1, keepdim=True)
    curved = (budgets > 0.0) & moving
    barrier = (budgets / weights.square()).masked_fill(~curved, 0.0)
    size = program.size()
    barrier = barrier + damping * size[:, None]
    factor, info = torch.linalg.cholesky_ex(step_matrix(program.matrix, barrier, moving))
    gradient = program.gradient(weights)
    step = newton_step(gradient, moving, missing, lambda rhs: torch.cholesky_solve(rhs, factor))
    smallest = factor.diagonal(dim1=-2, dim2=-1).amin(-1).square()
    regular = (info == 0) & (smallest > SINGULAR * size) & step.isfinite().all(-1)
    return _Move(weights, step, curved, missing), regular


def leap(program: Program, cap: float, guess: Guess, move: _Move) -> tuple[Guess, Tensor]:
    """Take the whole step and correct all sets at once: fast, but it may cycle."""
    moving = guess.moving
    # Keeps weights with a budget positive; near the solution it is never active.
    fraction = (-0.9 * move.weights / move.step).masked_fill(~move.curved | (move.step >= 0.0), 1.0)
    weights = move.weights + move.step * fraction.amin(-1, keepdim=True).clamp(max=1.0)
    below = moving & (weights < -TOLERANCE)
    above = moving & (weights > cap + TOLERANCE)
    error, wrong, gradient = _check(program, guess, weights)
    freed = (wrong > TOLERANCE) | _release_blocked(gradient, guess, move.missing)
    solved = (error <= TOLERANCE) & ~(below | above | freed).any(-1)
    return guess.change(weights, below, above, freed), solved


def walk(program: Program, cap: float, guess: Guess, move: _Move) -> tuple[Guess, Tensor]:
    """Stop at the first bound; release one only if no bound was met: a descent from a feasible guess."""
    moving, step = guess.moving, move.step
    ahead = torch.where(step < 0.0, move.weights, cap - move.weights).clamp(min=0.0)
    room = torch.where(moving & (step != 0.0), ahead / step.abs(), torch.inf)
    soft = move.curved & (step < 0.0)
    fraction = torch.where(soft, 0.9 * room, room).amin(-1, keepdim=True).clamp(max=1.0)
    weights = move.weights + step * fraction
    hit = moving & ~soft & (room <= fraction) & (fraction < 1.0)
    error, wrong, gradient = _check(program, guess, weights)
    stationary = (fraction[..., 0] == 1.0) & (error <= TOLERANCE)
    worst = (wrong > TOLERANCE) & (wrong >= wrong.amax(-1, keepdim=True))
    freed = (worst & stationary[:, None]) | _release_blocked(gradient, guess, move.missing)
    changed = guess.change(weights, hit & (step < 0.0), hit & (step > 0.0), freed)
    return changed, stationary & ~freed.any(-1)


def _check(program: Program, guess: Guess, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The error of free weights and sum, ``(N,)``, each multiplier's violation, and the gradient."""
    gradient = program.gradient(weights)
    level = price(gradient, guess)
    slope = (gradient - level) / (1.0 + level.abs())  # b / w may exceed the scale of the program
    error = slope.abs().masked_fill(guess.lower | guess.upper, 0.0).amax(-1)
    error = torch.maximum(error, (weights.sum(-1) - 1.0).abs())
    wrong = torch.where(guess.lower, -slope, torch.where(guess.upper, slope, 0.0))
    return error, wrong, gradient


def _release_blocked(gradient: Tensor, guess: Guess, missing: Tensor) -> Tensor:
    """The bound to release, ``(N, A)``, if no weight moves but the sum is not one."""
    short = ~guess.moving.any(-1, keepdim=True) & (missing > TOLERANCE)
    over = ~guess.moving.any(-1, keepdim=True) & (missing < -TOLERANCE)
    lowest = gradient.masked_fill(~guess.lower, torch.inf).amin(-1, keepdim=True)
    highest = gradient.masked_fill(~guess.upper, -torch.inf).amax(-1, keepdim=True)
    return (short & guess.lower & (gradient <= lowest)) | (over & guess.upper & (gradient >= highest))


def price(gradient: Tensor, guess: Guess) -> Tensor:
    """The multiplier of ``sum(w) = 1``, ``(N, 1)``, from the gradient ``(N, A)``.

    If no weight moves, any value between the gradients at the caps and at zero is valid: the middle.
    """
    moving = guess.moving
    count = moving.sum(-1, keepdim=True)
    mean = (gradient * moving).sum(-1, keepdim=True) / count.clamp(min=1)
    high = gradient.masked_fill(~guess.lower, torch.inf).amin(-1, keepdim=True)
    low = gradient.masked_fill(~guess.upper, -torch.inf).amax(-1, keepdim=True)
    # If one of the sets is empty, the interval has one end: take it.
    high = torch.where(high == torch.inf, low, high)
    low = torch.where(low == -torch.inf, high, low)
    return torch.where(count > 0, mean, 0.5 * (high + low))


def hold_dependent(program: Program, guess: Guess) -> Guess:
    """Hold moving weights that make the step's system singular.

    If several allocations are optimal, the curvature is zero along some directions between the moving
    weights. A pivoted Cholesky factorization, relative to the largest weight, selects moving weights
    without such a direction; the others are held.
    """
    moving = guess.moving
    rows = torch.arange(len(moving), device=moving.device)
    base = guess.weights.masked_fill(~moving, -torch.inf).argmax(-1)
    curved = moving & (program.budgets > 0.0)
    barrier = (program.budgets / guess.weights.square()).masked_fill(~curved, 0.0)
    matrix = program.matrix + torch.diag_embed(barrier)
    column = matrix[rows, base]
    # Curvature along e_i - e_base and e_j - e_base.
    schur = matrix - column[:, :, None] - column[:, None, :] + column[rows, base][:, None, None]
    remaining = moving.clone()
    remaining[rows, base] = False
    chosen = torch.zeros_like(moving)
    chosen[rows, base] = moving[rows, base]
    for _ in range(moving.shape[-1] - 1):
        pivots = schur.diagonal(dim1=-2, dim2=-1).masked_fill(~remaining, -torch.inf)
        size, at = pivots.max(-1)
        regular = size > SINGULAR * program.size()
        if not bool(regular.any()):
            break
        chosen[rows, at] |= regular
        remaining[rows, at] = False
        column = schur[rows, at]
        change = column[:, :, None] * column[:, None, :] / size.masked_fill(~regular, 1.0)[:, None, None]
        schur = torch.where(regular[:, None, None], schur - change, schur)
    return guess._replace(held=moving & ~chosen)
