"""The method of `closest`: sequential quadratic programming, from a hit to the closest one.

It minimizes ``|z - z_r|**2 / 2`` subject to ``lower <= m(z) <= upper``, the target with its tolerance.
Each step solves a quadratic program, with linearized constraints and the Lagrangian's curvature from its
gradients at earlier points. A step must decrease the augmented Lagrangian: its multipliers cancel what
the constraints' curvature costs to first order, so that a step along the surface is not rejected.

References:
    S. P. Han (1977), A Globally Convergent Method for Nonlinear Programming,
    https://doi.org/10.1007/BF00932858; K. Schittkowski (1982), The Nonlinear Programming Method of
    Wilson, Han, and Powell with an Augmented Lagrangian Type Line Search Function,
    https://doi.org/10.1007/BF01395810; H. B. Nielsen (1999), Damping Parameter in Marquardt's Method,
    https://www2.imm.dtu.dk/pubdb/edoc/tr99_05.pdf
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.problems.problem import Args, Problem, identity
from funcexplain.solvers.constraints import Constraints, are_shares, bound_values, constrain, to_logits
from funcexplain.solvers.damped_step import WIDE, hold
from funcexplain.solvers.gauss_newton import (
    Linearization,
    bind_jacobian,
    choose_jacobian,
    linearize,
    project_flat,
    unknown_linearization,
)
from funcexplain.solvers.gradient import where_rows
from funcexplain.solvers.quadratic_program import solve_program
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
# rho, in multiples of the typical multiplier; and its growth where it does not keep the target.
_PRICE, _PRICE_GROWTH = 3.0, 4.0
# The penalty of the augmented Lagrangian, in typical multipliers per unit of a constraint.
_PENALTY = 5.0
# Damping: at first, its factors after a step that fails or succeeds, and what is small enough to drop.
_DAMPING, _RAISE, _LOWER, _NEGLIGIBLE = 1.0, 4.0, 0.2, 0.05
_MINIMUM_RATIO = 1e-3
# A gradient of the Lagrangian smaller than this fraction of the distance counts as zero.
_STATIONARY = 1e-2
# By this fraction of the squared distance, a stationary point may be further than another hit; and two
# distances that are the same.
_SLACK, _SAME = 2e-3, 1e-9
# Evaluations without progress that end a search, as at a kink; and what counts as progress.
_PATIENCE, _PROGRESS = 8, 1e-3
# Rounds of the active set of bounds on z.
_BOUND_ROUNDS = 3
_TINY = torch.finfo(WIDE).tiny


class Program(NamedTuple):
    """The program behind a step, by which its trial is judged.

    Attributes:
        multipliers: of the constraints, ``(K,)``.
        decrease: of the augmented Lagrangian, as the program predicts it.
        penalty: of the augmented Lagrangian.
        rho: maximum of a multiplier, the price of a violation.
        damping: curvature that is added.
    """

    multipliers: Tensor
    decrease: Tensor
    penalty: Tensor
    rho: Tensor
    damping: Tensor


class SequentialQuadraticState(NamedTuple):
    """The state of the method.

    Attributes:
        z: the last point that was accepted.
        reference: the point that it approaches, ``(N,)``.
        line: the linearization at ``z``.
        in_logits: which measures are constrained by their logits, ``(K,)``.
        program: the one whose step is under trial.
        pairs: the last M steps and the changes of the Lagrangian's gradient along them, ``(2, M, N)``;
            zero where there were fewer.
        distance: smallest mean squared distance of a hit; NaN before the first evaluation.
        waited: evaluations since the last progress.
    """

    z: Tensor
    reference: Tensor
    line: Linearization
    in_logits: Tensor
    program: Program
    pairs: Tensor
    distance: Tensor
    waited: Tensor


class Trial(NamedTuple):
    """What an evaluation says of the step that led to it.

    Attributes:
        accepts: whether the search continues from the evaluated point.
        finite: whether it has finite values.
        usable: whether it is a hit.
        closer: whether it is the closest hit.
        distance: its mean squared distance from the reference.
        ratio: the actual to the predicted decrease.
        waited: evaluations since the last progress.
    """

    accepts: Tensor
    finite: Tensor
    usable: Tensor
    closer: Tensor
    distance: Tensor
    ratio: Tensor
    waited: Tensor


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
        advance = partial(self._advance, problem)
        bound = bind_jacobian(problem, stopping, partial(_init, problem), advance)
        return bound._replace(advance_in_place=advance if problem.project is identity else None)

    def _advance(self, problem: Problem, state: State, args: Args, at: Evaluation) -> Advance:
        """Judge the evaluated point, and step from the better one: of one row, or of rows that lead.

        Bounds on ``z`` are of one row alone.
        """
        carried: SequentialQuadraticState = state.optimizer
        rows, target, first = state.status.ndim, args["target"], carried.distance.isnan()
        here, dtype = linearize(problem, at, args), carried.pairs.dtype
        lower, upper, strict = bound_values(problem.criterion, at.weights, target, self.atol, rows)
        shares = are_shares(here.measured, at.weights, strict, rows)
        in_logits = where_rows(first, shares, carried.in_logits)
        lower, upper = to_logits(lower, in_logits), to_logits(upper, in_logits)
        before, after = (
            constrain(line.measured, lower, upper, in_logits) for line in (carried.line, here)
        )
        point, tried = (z.flatten(rows).to(dtype) for z in (carried.z, state.z))
        hits = problem.criterion.error(at.weights, target, rows, self.atol) <= self.atol
        trial = _judge(carried, before, after, point, tried, here.jacobian, hits)
        accepts = trial.accepts
        pairs = _learn(carried, before, after, here, tried - point, trial.finite)

        # The next program is at the better point.
        z, point = where_rows(accepts, state.z, carried.z), where_rows(accepts, tried, point)
        at_point = Constraints(*(where_rows(accepts, *both) for both in zip(after, before, strict=True)))
        measured, nearest = (
            where_rows(accepts, *both) for both in zip(here[:2], carried.line[:2], strict=True)
        )
        jacobian = choose_jacobian(accepts, here.jacobian, carried.line.jacobian)
        line = Linearization(measured, nearest, jacobian)
        slope = point - carried.reference
        norm = slope.square().sum(-1, dtype=WIDE).sqrt()
        squares = line.jacobian.square().sum(-1).to(WIDE) * at_point.factors.square()
        typical = norm / squares.mean(-1).sqrt().clamp_min(_TINY)  # of a multiplier
        program = _settle(carried.program, before, after, trial, first, typical)
        following, taken, program = _plan(
            problem, args, z, point, slope, line.jacobian.to(dtype), at_point, pairs, program
        )

        residual = slope + _combine(program.multipliers * at_point.factors, line)
        residual = torch.where(taken == 0.0, 0.0, residual)  # what a bound holds may have any slope
        kept = torch.where(trial.closer, trial.distance, carried.distance)
        # Of the point that is answered with: here, or where the search was before a trial that failed.
        here_counts = trial.usable & (trial.distance <= (1.0 + _SLACK) * kept)
        there_counts = (norm.square() / slope.shape[-1] - kept).abs() <= _SAME * kept
        met = torch.where(accepts, here_counts, there_counts)
        ends = met & (residual.norm(dim=-1) <= _STATIONARY * norm)
        ends = ends | (trial.usable & (trial.distance == 0.0))
        stays = ~(following != z).flatten(rows).any(-1)
        gives_up = ~ends & ((trial.waited >= _PATIENCE) | stays)
        # A stationary point replaces a hit that is not one, if little closer.
        best = torch.where(ends & accepts & ~first, torch.inf, carried.distance).to(z.dtype)
        # A trial that misses is not closer than the best one, and does not end the search.
        unknown = torch.inf if self.from_hits else torch.finfo(z.dtype).max
        failed = torch.where(first, unknown, carried.distance.to(z.dtype))
        # Where it gives up, a gradient that is not finite ends the search, but not as stationary.
        grads = torch.where(ends.unsqueeze(-1), 0.0, residual)
        grads = torch.where(gives_up.unsqueeze(-1), torch.inf, grads).to(z.dtype)
        return Advance(
            z=where_rows(ends, state.z, following),
            carried=SequentialQuadraticState(
                *(z, carried.reference, line, in_logits, program, pairs),
                *(torch.where(first & ~trial.usable, unknown, kept), trial.waited),
            ),
            value=torch.where(trial.usable, trial.distance.to(z.dtype), failed),
            best=best,
            loss=kept.to(z.dtype),
            grads=grads.view(z.shape),
        )


def _init(problem: Problem, z: Tensor, args: Args) -> SequentialQuadraticState:
    zero = z.new_zeros((), dtype=WIDE)
    line = unknown_linearization(problem, z, args)
    values, entries = line.measured.to(WIDE), torch.zeros_like(z).flatten()
    entries = entries.to(torch.promote_types(z.dtype, torch.float32))
    reference = problem.encode(args["reference"], args).flatten().to(entries)
    program = Program(values, zero, zero + 1.0, zero, zero)
    return SequentialQuadraticState(
        *(z, reference, line, values.to(torch.bool), program),
        *(entries.expand(2, _MEMORY, -1).clone(), zero + torch.nan, zero.to(torch.int64)),
    )


def _judge(
    carried: SequentialQuadraticState,
    before: Constraints,
    after: Constraints,
    point: Tensor,
    tried: Tensor,
    jacobian: Tensor,
    hits: Tensor,
) -> Trial:
    """Whether a step from ``point`` to ``tried`` decreases the augmented Lagrangian."""
    program, first = carried.program, carried.distance.isnan()
    slope, step = point - carried.reference, tried - point
    distance = (tried - carried.reference).square().mean(-1, dtype=WIDE)
    finite = distance.isfinite() & jacobian.sum((-2, -1)).isfinite()
    usable = hits & finite
    closer = usable & (first | (distance < carried.distance))
    price = partial(before.price, multipliers=program.multipliers, penalty=program.penalty)
    actual = price(before.values) - price(after.values)
    actual = actual - (step * (slope + 0.5 * step)).sum(-1, dtype=WIDE)
    ratio = actual / program.decrease.clamp_min(_TINY)
    accepts = finite & (first | (ratio > _MINIMUM_RATIO))
    progress = accepts & (actual > _PROGRESS * 0.5 * slope.square().sum(-1, dtype=WIDE))
    progress = progress | (closer & (distance < (1.0 - _PROGRESS) * carried.distance))
    waited = torch.where(first | progress, 0, carried.waited + 1)
    return Trial(accepts, finite, usable, closer, distance, ratio, waited)


def _learn(
    carried: SequentialQuadraticState,
    before: Constraints,
    after: Constraints,
    here: Linearization,
    step: Tensor,
    finite: Tensor,
) -> Tensor:
    """The pairs with that of a trial, also of one that is not accepted."""
    multipliers = carried.program.multipliers
    old = _combine(multipliers * before.factors, carried.line)
    change = step + _combine(multipliers * after.factors, here) - old
    pair = torch.stack([step, _positive(step, change)], -2)
    pair = where_rows(finite, pair, torch.zeros_like(pair)).unsqueeze(-2)
    return torch.cat([carried.pairs[..., 1:, :], pair], -2)


def _settle(
    program: Program,
    before: Constraints,
    after: Constraints,
    trial: Trial,
    first: Tensor,
    typical: Tensor,
) -> Program:
    """The settings of the next program: the prices of a violation, and the damping."""
    saturated = program.multipliers.abs().amax(-1) >= 0.99 * program.rho
    grows = trial.accepts & saturated & (after.violation() > 0.5 * before.violation())
    rho = torch.where(grows, _PRICE_GROWTH * program.rho, program.rho)
    return program._replace(
        penalty=(_PENALTY * typical).clamp_min(_TINY),
        rho=torch.where(first, _PRICE * typical, rho),
        damping=torch.where(first, _DAMPING, _damp(program.damping, trial.ratio, trial.accepts)),
    )


def _plan(
    problem: Problem,
    args: Args,
    z: Tensor,
    point: Tensor,
    slope: Tensor,
    jacobian: Tensor,
    at: Constraints,
    pairs: Tensor,
    program: Program,
) -> tuple[Tensor, Tensor, Program]:
    """Solve a program: the point to which it leads, the step there ``(N,)``, and what it predicts."""
    damping, penalty = program.damping, program.penalty
    matrix = torch.cat([slope.unsqueeze(-2), jacobian], -2)
    curvature = (pairs.flatten(-3, -2), damping)
    solve = partial(solve_program, matrix, at.factors, *curvature, at.lower, at.upper, program.rho)
    move, multipliers = solve(at.values)
    following = point + move
    if problem.project is not identity:
        project = partial(project_flat, problem, z, args)
        move, multipliers = _hold_bounds(project, point, at, jacobian, solve, move, multipliers)
        following = project(point + move)
    following = following.to(z.dtype).view(z.shape)
    taken = following.view(point.shape).to(point.dtype) - point
    products = (matrix @ taken.unsqueeze(-1)).squeeze(-1).to(WIDE)
    change = at.factors * products[..., 1:]
    falls = products[..., 0] - (multipliers * change).sum(-1)
    falls = falls - damping * taken.square().sum(-1, dtype=WIDE)
    price = partial(at.price, multipliers=multipliers, penalty=penalty)
    decrease = price(at.values) - price(at.values + change) - 0.5 * falls
    return following, taken, program._replace(multipliers=multipliers, decrease=decrease)


def _combine(multipliers: Tensor, line: Linearization) -> Tensor:
    """The rows of a Jacobian, times multipliers and added, ``(N,)``."""
    jacobian = line.jacobian.to(torch.promote_types(line.jacobian.dtype, torch.float32))
    return (multipliers.to(jacobian.dtype).unsqueeze(-2) @ jacobian).squeeze(-2)


def _positive(step: Tensor, change: Tensor) -> Tensor:
    """A change of the gradient, mixed with the step so that the curvature along it is positive."""
    square, product = step.square().sum(-1, keepdim=True), (step * change).sum(-1, keepdim=True)
    lacks = product < _MINIMUM_CURVATURE * square
    mix = (1.0 - _MINIMUM_CURVATURE) * square / (square - product).clamp_min(1e-30)
    return torch.where(lacks, mix * change + (1.0 - mix) * step, change)


def _damp(damping: Tensor, ratio: Tensor, accepts: Tensor) -> Tensor:
    """The damping after a trial: less where the program predicted it well, more where it failed."""
    factor = (1.0 - (2.0 * ratio.clamp(0.0, 1.0) - 1.0) ** 3).clamp_min(_LOWER)
    less = factor * damping
    less = torch.where(less < _NEGLIGIBLE, 0.0, less)
    return torch.where(accepts, less, (_RAISE * damping).clamp_min(_DAMPING))


def _hold_bounds(
    project: Callable[[Tensor], Tensor],
    point: Tensor,
    at: Constraints,
    jacobian: Tensor,
    solve: Callable[..., tuple[Tensor, Tensor]],
    move: Tensor,
    multipliers: Tensor,
) -> tuple[Tensor, Tensor]:
    """The program's step where a projection moves entries back to their bounds: these are held."""
    held = torch.zeros_like(point, dtype=torch.bool)
    for _ in range(_BOUND_ROUNDS):
        rest, leaving = hold(point + move, project)
        held = held | leaving
        fixed = torch.where(held, rest.to(point.dtype) - point, 0.0)
        values = at.values + at.factors * (jacobian @ fixed)
        move, multipliers = solve(values, (~held).to(point.dtype))
        move = move + fixed
    return move, multipliers
