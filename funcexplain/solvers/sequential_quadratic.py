"""The method of `closest`: sequential quadratic programming, from a hit to the closest one.

It minimizes ``|z - z_r|**2 / 2`` subject to ``lower <= m(z) <= upper``, the target with its tolerance.
Each step solves a quadratic program, with linearized constraints and the Lagrangian's curvature from its
gradients at earlier points. A step must decrease the merit ``|z - z_r|**2 / 2 + rho * sum(violations)``;
otherwise it is corrected for the curvature of the constraints, then damped. Measures that are shares, in
(0, 1), are constrained by their logits, in which a softmax is nearly linear.

References:
    S. P. Han (1977), A Globally Convergent Method for Nonlinear Programming,
    https://doi.org/10.1007/BF00932858; R. Fletcher (1982), Second Order Corrections for
    Non-differentiable Optimization, https://doi.org/10.1007/BFb0093148; J. Nocedal (1980), Updating
    Quasi-Newton Matrices with Limited Storage, https://doi.org/10.1090/S0025-5718-1980-0572855-7
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.problems.problem import Args, Problem, identity
from funcexplain.solvers.damped_step import WIDE, hold
from funcexplain.solvers.gauss_newton import (
    Linearization,
    bind_jacobian,
    linearize,
    project_flat,
    unknown_linearization,
)
from funcexplain.solvers.quadratic_program import solve_dual
from funcexplain.solvers.state import (
    Advance,
    BoundMethod,
    Evaluation,
    Objective,
    State,
    Stopping,
    ValueAndGrad,
)

# Steps whose changes of the gradient give the curvature.
_MEMORY = 8
# Minimum curvature along a step, as a fraction of that of the distance alone.
_MINIMUM_CURVATURE = 0.2
# The part of the tolerance that the program uses, so that rounding does not lose a hit.
_TOLERANCE = 0.95
# rho, in multiples of the typical multiplier; and its growth where it does not keep the target.
_PRICE, _PRICE_GROWTH = 3.0, 4.0
# Damping: of the first step, its factor where a step fails, and where one succeeds.
_DAMPING, _RAISE, _LOWER = 1.0, 4.0, 0.25
_MINIMUM_RATIO = 1e-3
# A gradient of the Lagrangian smaller than this fraction of the distance counts as zero.
_STATIONARY = 1e-2
_LOGIT_MARGIN = 1e-9
# Rounds of the active set of bounds on z.
_BOUND_ROUNDS = 3


class Constraints(NamedTuple):
    """Values that are constrained ``(K,)``, their Jacobian ``(K, N)`` and bounds, in float64."""

    values: Tensor
    jacobian: Tensor
    lower: Tensor
    upper: Tensor

    def violation(self, values: Tensor) -> Tensor:
        """Sum of the distances of some values from their bounds."""
        return ((self.lower - values).clamp_min(0.0) + (values - self.upper).clamp_min(0.0)).sum()


class Program(NamedTuple):
    """The program behind a step, by which its trial is judged.

    Attributes:
        multipliers: of the constraints, ``(K,)``.
        decrease: of the merit, as the program predicts it.
        rho: price of a violation.
        damping: curvature that is added.
        corrects: whether the step corrects for the constraints' curvature seen by a first trial.
    """

    multipliers: Tensor
    decrease: Tensor
    rho: Tensor
    damping: Tensor
    corrects: Tensor


class SequentialQuadraticState(NamedTuple):
    """The state of the method.

    Attributes:
        z: the last point that decreased the merit.
        line: its linearization.
        in_logits: which measures are constrained by their logits, ``(K,)``.
        program: the one whose step is under trial.
        steps: the last steps, ``(M, N)``; zero where there were fewer.
        changes: of the Lagrangian's gradient along them.
        distance: smallest mean squared distance of a hit; NaN before the first evaluation.
    """

    z: Tensor
    line: Linearization
    in_logits: Tensor
    program: Program
    steps: Tensor
    changes: Tensor
    distance: Tensor


class SequentialQuadratic(NamedTuple):
    """Approach the reference, without losing the target by more than ``atol``.

    Attributes:
        atol: tolerance of a hit.
        from_hits: whether a row that does not begin at a hit ends at once.
    """

    atol: float
    from_hits: bool = True

    def bind(
        self, problem: Problem, stopping: Stopping, gradient: Callable[[Objective], ValueAndGrad]
    ) -> BoundMethod:
        """Return the functions of one row's step: the Jacobian, and a step judged by its merit."""
        del gradient
        return bind_jacobian(problem, stopping, partial(_init, problem), partial(self._advance, problem))

    def _advance(self, problem: Problem, state: State, args: Args, at: Evaluation) -> Advance:
        carried: SequentialQuadraticState = state.optimizer
        reference = problem.encode(args["reference"], args).to(WIDE).flatten()
        point, tried = carried.z.to(WIDE).flatten(), state.z.to(WIDE).flatten()
        here, first = linearize(problem, at, args), carried.distance.isnan()
        lower, upper, strict = problem.criterion.bounds(args["target"])
        in_logits = torch.where(first, _are_shares(here, at.weights, strict), carried.in_logits)
        constrain = partial(_constrain, lower, upper, strict, self.atol, in_logits)
        before, after = constrain(carried.line), constrain(here)

        # The trial: is it a hit, and does it decrease the merit?
        distance = (tried - reference).square().mean()
        finite = distance.isfinite() & here.jacobian.sum(dtype=WIDE).isfinite()
        hits = problem.criterion.error(at.weights, args["target"], atol=self.atol) <= self.atol
        usable, program = hits & finite, carried.program
        closer = usable & (first | (distance < carried.distance))
        violated, violates = before.violation(before.values), after.violation(after.values)
        half_square = 0.5 * (point - reference).square().sum()
        actual = half_square - 0.5 * (tried - reference).square().sum()
        actual = actual + program.rho * (violated - violates)
        ratio = actual / program.decrease.clamp_min(torch.finfo(WIDE).tiny)
        accepts = finite & (first | (ratio > _MINIMUM_RATIO))

        # What the trial says of the curvature, also where it is not accepted.
        step = torch.where(first | ~finite, 0.0, tried - point)
        moved = program.multipliers @ (after.jacobian - before.jacobian)
        change = _positive(step, step + torch.where(first | ~finite, 0.0, moved))
        steps, changes = (
            torch.where(step.any(), torch.cat([rows[1:], row[None]]), rows)
            for rows, row in ((carried.steps, step), (carried.changes, change))
        )

        # The next program is at the better point. A trial that failed narrowly is corrected once.
        corrects = ~accepts & finite & ~program.corrects & (ratio > -1.0)
        z = torch.where(accepts, state.z, carried.z)
        point = torch.where(accepts, tried, point)
        line = Linearization(
            *(torch.where(accepts, *pair) for pair in zip(here, carried.line, strict=True))
        )
        at_point = constrain(line)
        beyond = after.values - before.jacobian @ step
        linearized = torch.where(corrects, beyond, at_point.values)
        mean_norm = at_point.jacobian.square().sum(1).mean().sqrt()
        typical = (point - reference).norm() / mean_norm.clamp_min(torch.finfo(WIDE).tiny)
        saturated = program.multipliers.abs().amax() >= 0.99 * program.rho
        grows = accepts & saturated & (violates > 0.5 * violated)
        rho = torch.where(grows, _PRICE_GROWTH * program.rho, program.rho)
        rho = torch.where(first, _PRICE * typical, rho)
        damping = torch.where(accepts, _relax(program.damping, ratio), program.damping)
        raised = (_RAISE * program.damping).clamp_min(_DAMPING)
        damping = torch.where(accepts | corrects, damping, raised)
        damping = torch.where(first, _DAMPING, damping)

        slope = point - reference
        solve = partial(_solve, at_point, linearized, slope, (steps, changes), rho, damping)
        move, multipliers = solve(torch.ones_like(slope))
        if problem.project is not identity:
            project = partial(project_flat, problem, z, args)
            move, multipliers = _hold_bounds(project, point, solve, move, multipliers)
        following = problem.project((point + move).to(z.dtype).view(z.shape), args)
        taken = following.to(WIDE).flatten() - point
        ahead = at_point.values + at_point.jacobian @ taken
        model = slope @ taken - 0.5 * taken @ (slope + multipliers @ at_point.jacobian)
        model = model - 0.5 * damping * taken.square().sum()
        violation = at_point.violation(at_point.values)
        decrease = rho * (violation - at_point.violation(ahead)) - model

        residual = slope + multipliers @ at_point.jacobian
        residual = torch.where(taken == 0.0, 0.0, residual)  # what a bound holds may have any slope
        met = torch.where(accepts, usable, carried.distance <= slope.square().mean() * (1.0 + 1e-12))
        ends = ~corrects & met & (residual.norm() <= _STATIONARY * slope.norm())
        ends = ends | ~(following != z).any() | (usable & (distance == 0.0))
        kept = torch.where(closer, distance, carried.distance)
        best = carried.distance.to(z.dtype)
        # A trial that misses is not closer than the best one, and does not end the search.
        unknown = torch.inf if self.from_hits else torch.finfo(z.dtype).max
        failed = torch.where(first, unknown, best)
        return Advance(
            z=torch.where(ends, state.z, following),
            carried=SequentialQuadraticState(
                *(z, line, in_logits),
                Program(multipliers, decrease, rho, damping, corrects),
                *(steps, changes, torch.where(first & ~usable, unknown, kept)),
            ),
            value=torch.where(usable, distance.to(z.dtype), failed),
            best=best,
            loss=kept.to(z.dtype),
            grads=torch.where(ends, 0.0, residual).to(z.dtype).view(z.shape),
        )


def _init(problem: Problem, z: Tensor, args: Args) -> SequentialQuadraticState:
    zero = z.new_zeros((), dtype=WIDE)
    line = unknown_linearization(problem, z, args)
    values = line.measured.to(WIDE)
    past = torch.zeros_like(z).flatten().to(WIDE).expand(_MEMORY, -1).clone()
    program = Program(values, zero, zero, zero, torch.zeros_like(zero, dtype=torch.bool))
    return SequentialQuadraticState(
        z, line, values.to(torch.bool), program, past, past.clone(), zero + torch.nan
    )


def _are_shares(line: Linearization, weights: Tensor, strict: Tensor) -> Tensor:
    """Which measures are shares of a portfolio: numbers in (0, 1), of weights that sum to one."""
    is_portfolio = (weights >= 0.0).all() & ((weights.sum(-1) - 1.0).abs() < 1e-3).all()
    return is_portfolio & (line.measured > 0.0) & (line.measured < 1.0) & ~strict.flatten()


def _constrain(
    lower: Tensor, upper: Tensor, strict: Tensor, atol: float, in_logits: Tensor, line: Linearization
) -> Constraints:
    """The constraints of a linearization, with the tolerance in their bounds."""
    lower, upper, measured = (t.to(WIDE).flatten() for t in (lower, upper, line.measured))
    slack = _TOLERANCE * atol
    # An order must hold without tolerance.
    least = torch.where(strict.flatten(), torch.maximum(lower - slack, 0.1 * lower), lower - slack)
    most = upper + slack
    inside = measured.clamp(_LOGIT_MARGIN, 1.0 - _LOGIT_MARGIN)
    factor = torch.where(in_logits, 1.0 / (inside * (1.0 - inside)), 1.0)
    # A logit of a number outside (0, 1) is infinite: no bound.
    low, high = (
        torch.where(in_logits, torch.logit(bound.clamp(0.0, 1.0)), bound) for bound in (least, most)
    )
    values = torch.where(in_logits, torch.logit(inside), measured)
    return Constraints(values, line.jacobian.to(WIDE) * factor[:, None], low, high)


def _positive(step: Tensor, change: Tensor) -> Tensor:
    """A change of the gradient, mixed with the step so that the curvature along it is positive."""
    square, product = step.square().sum(), step @ change
    lacks = product < _MINIMUM_CURVATURE * square
    mix = (1.0 - _MINIMUM_CURVATURE) * square / (square - product).clamp_min(1e-30)
    return torch.where(lacks, mix * change + (1.0 - mix) * step, change)


def _relax(damping: Tensor, ratio: Tensor) -> Tensor:
    """The damping after a step that was accepted."""
    lowered = torch.where(damping < 0.3, 0.0, _LOWER * damping)
    raised = 2.0 * damping.clamp_min(0.25)
    return torch.where(ratio > 0.5, lowered, torch.where(ratio < 0.1, raised, damping))


def _solve(
    at: Constraints,
    values: Tensor,
    slope: Tensor,
    pairs: tuple[Tensor, Tensor],
    rho: Tensor,
    damping: Tensor,
    free: Tensor,
    held: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The step of a quadratic program and its multipliers; entries not free move by ``held``."""
    jacobian = at.jacobian * free
    rows = torch.cat([(slope * free)[None], jacobian])
    inverse = _apply_inverse(pairs, damping, rows) * free
    unconstrained, weighted = -inverse[0], inverse[1:]
    offset = values + at.jacobian @ (held * (1.0 - free))
    gram = jacobian @ weighted.T
    multipliers = solve_dual(
        0.5 * (gram + gram.T), offset + jacobian @ unconstrained, at.lower, at.upper, rho
    )
    return unconstrained - multipliers @ weighted + held * (1.0 - free), multipliers


def _apply_inverse(pairs: tuple[Tensor, Tensor], damping: Tensor, rows: Tensor) -> Tensor:
    """The inverse of the curvature times rows ``(k, N)``, by the two loops of L-BFGS."""
    steps, changes = pairs[0], pairs[1] + damping * pairs[0]
    products = (steps * changes).sum(1)
    weights = torch.where(products > 0.0, 1.0 / products.clamp_min(1e-300), 0.0)
    shares = []
    for step, change, weight in zip(steps.flip(0), changes.flip(0), weights.flip(0), strict=True):
        shares.append(weight * (rows @ step))
        rows = rows - shares[-1][:, None] * change
    rows = rows / (1.0 + damping)
    for step, change, weight in zip(steps, changes, weights, strict=True):
        rows = rows + (shares.pop() - weight * (rows @ change))[:, None] * step
    return rows


def _hold_bounds(
    project: Callable[[Tensor], Tensor],
    point: Tensor,
    solve: Callable[..., tuple[Tensor, Tensor]],
    move: Tensor,
    multipliers: Tensor,
) -> tuple[Tensor, Tensor]:
    """The program's step where a projection moves entries back to their bounds: these are held."""
    held = torch.zeros_like(point, dtype=torch.bool)
    for _ in range(_BOUND_ROUNDS):
        rest, leaving = hold(point + move, project)
        held = held | leaving
        move, multipliers = solve(1.0 - held.to(WIDE), rest - point)
    return move, multipliers
