"""The method of `closest`: sequential quadratic programming, from a hit to the closest one.

It minimizes ``|z - z_r|**2 / 2`` subject to ``lower <= m(z) <= upper``, the target with its tolerance.
Each step solves a quadratic program, with linearized constraints and the Lagrangian's curvature from its
gradients at earlier points. A step must decrease the augmented Lagrangian: its multipliers cancel what
the constraints' curvature costs to first order, so that a step along the surface is not rejected.
Shares of a portfolio, in (0, 1), are constrained by their logits, in which a softmax is nearly linear.

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
from funcexplain.solvers.damped_step import WIDE, hold
from funcexplain.solvers.gauss_newton import (
    Linearization,
    bind_jacobian,
    linearize,
    project_flat,
    unknown_linearization,
)
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
# The part of the tolerance that the program uses, so that rounding does not lose a hit.
_TOLERANCE = 0.95
# rho, in multiples of the typical multiplier; and its growth where it does not keep the target.
_PRICE, _PRICE_GROWTH = 3.0, 4.0
# The penalty of the augmented Lagrangian, in typical multipliers per unit of a constraint.
_PENALTY = 5.0
# Damping: of the first step, where a step fails, and what is small enough to leave away.
_DAMPING, _RAISE, _LOWER, _NEGLIGIBLE = 1.0, 4.0, 0.2, 0.05
_MINIMUM_RATIO = 1e-3
# A gradient of the Lagrangian smaller than this fraction of the distance counts as zero.
_STATIONARY = 1e-2
# By this fraction of the squared distance, a stationary point may be further than another hit; and two
# distances that are the same.
_SLACK, _SAME = 2e-3, 1e-9
# Evaluations without progress that end a search, as at a kink; and what counts as progress.
_PATIENCE, _PROGRESS = 8, 1e-3
_LOGIT_MARGIN = 1e-9
# Rounds of the active set of bounds on z.
_BOUND_ROUNDS = 3


class Constraints(NamedTuple):
    """Values that are constrained ``(K,)``, the factors of their rows of the Jacobian, and bounds."""

    values: Tensor
    factors: Tensor
    lower: Tensor
    upper: Tensor

    def violation(self, values: Tensor) -> Tensor:
        """Sum of the distances of some values from their bounds."""
        return ((self.lower - values).clamp_min(0.0) + (values - self.upper).clamp_min(0.0)).sum()

    def price(self, values: Tensor, multipliers: Tensor, penalty: Tensor) -> Tensor:
        """What the augmented Lagrangian adds to the objective."""
        known = torch.cat([multipliers, -multipliers]).clamp_min(0.0)
        beyond = torch.cat([values - self.upper, self.lower - values])
        grown = (known + penalty * beyond).clamp_min(0.0)
        return (grown.square() - known.square()).sum() / (2.0 * penalty)


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
        line: its linearization.
        in_logits: which measures are constrained by their logits, ``(K,)``.
        program: the one whose step is under trial.
        pairs: the last M steps and the changes of the Lagrangian's gradient along them, ``(2, M, N)``;
            zero where there were fewer.
        distance: smallest mean squared distance of a hit; NaN before the first evaluation.
        waited: evaluations since the last progress.
    """

    z: Tensor
    line: Linearization
    in_logits: Tensor
    program: Program
    pairs: Tensor
    distance: Tensor
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
        return bind_jacobian(problem, stopping, partial(_init, problem), partial(self._advance, problem))

    def _advance(self, problem: Problem, state: State, args: Args, at: Evaluation) -> Advance:
        carried: SequentialQuadraticState = state.optimizer
        program, dtype = carried.program, carried.pairs.dtype
        reference = problem.encode(args["reference"], args).flatten().to(dtype)
        point, tried = carried.z.flatten().to(dtype), state.z.flatten().to(dtype)
        here, first = linearize(problem, at, args), carried.distance.isnan()
        lower, upper, strict = problem.criterion.bounds(args["target"])
        in_logits = torch.where(first, _are_shares(here, at.weights, strict), carried.in_logits)
        constrain = partial(_constrain, lower, upper, strict, self.atol, in_logits)
        before, after = constrain(carried.line), constrain(here)

        # The trial: is it a hit, and does it decrease the augmented Lagrangian?
        slope, step = point - reference, torch.where(first, 0.0, tried - point)
        distance = (tried - reference).square().mean(dtype=WIDE)
        finite = distance.isfinite() & here.jacobian.sum().isfinite()
        hits = problem.criterion.error(at.weights, args["target"], atol=self.atol) <= self.atol
        usable = hits & finite
        closer = usable & (first | (distance < carried.distance))
        price = partial(before.price, multipliers=program.multipliers, penalty=program.penalty)
        actual = price(before.values) - price(after.values)
        actual = actual - (step * (slope + 0.5 * step)).sum(dtype=WIDE)
        ratio = actual / program.decrease.clamp_min(torch.finfo(WIDE).tiny)
        accepts = finite & (first | (ratio > _MINIMUM_RATIO))
        progress = accepts & (actual > _PROGRESS * 0.5 * slope.square().sum(dtype=WIDE))
        progress = progress | (closer & (distance < (1.0 - _PROGRESS) * carried.distance))
        waited = torch.where(first | progress, 0, carried.waited + 1)

        # What the trial says of the curvature, also where it is not accepted.
        new, old = (program.multipliers * each.factors for each in (after, before))
        moved = new.to(dtype) @ here.jacobian.to(dtype) - old.to(dtype) @ carried.line.jacobian.to(dtype)
        pair = torch.stack([step, _positive(step, step + moved)])
        pair = torch.where(first | ~finite, 0.0, pair)
        pairs = torch.cat([carried.pairs[:, 1:], pair[:, None]], 1)

        # The next program is at the better point.
        violated, violates = before.violation(before.values), after.violation(after.values)
        saturated = program.multipliers.abs().amax() >= 0.99 * program.rho
        grows = accepts & saturated & (violates > 0.5 * violated)
        z, point = torch.where(accepts, state.z, carried.z), torch.where(accepts, tried, point)
        line = Linearization(
            *(torch.where(accepts, *pair) for pair in zip(here, carried.line, strict=True))
        )
        slope, at_point, jacobian = point - reference, constrain(line), line.jacobian.to(dtype)
        mean_square = (jacobian.square().sum(1).to(WIDE) * at_point.factors.square()).mean()
        norm = slope.square().sum(dtype=WIDE).sqrt()
        typical = norm / mean_square.sqrt().clamp_min(torch.finfo(WIDE).tiny)
        penalty = (_PENALTY * typical).clamp_min(torch.finfo(WIDE).tiny)
        rho = torch.where(grows, _PRICE_GROWTH * program.rho, program.rho)
        rho = torch.where(first, _PRICE * typical, rho)
        damping = torch.where(first, _DAMPING, _damp(program.damping, ratio, accepts))

        rows = torch.cat([slope[None], jacobian])
        bounds = at_point.lower, at_point.upper
        solve = partial(
            solve_program, rows, at_point.factors, pairs.flatten(0, 1), damping, *bounds, rho
        )
        move, multipliers = solve(at_point.values)
        if problem.project is not identity:
            project = partial(project_flat, problem, z, args)
            move, multipliers = _hold_bounds(
                project, point, at_point, jacobian, solve, move, multipliers
            )
        following = problem.project((point + move).to(z.dtype).view(z.shape), args)
        taken = following.flatten().to(dtype) - point
        products = (rows @ taken).to(WIDE)
        change = at_point.factors * products[1:]
        falls = products[0] - multipliers @ change - damping * taken.square().sum(dtype=WIDE)
        price = partial(at_point.price, multipliers=multipliers, penalty=penalty)
        decrease = price(at_point.values) - price(at_point.values + change) - 0.5 * falls

        residual = slope + (multipliers * at_point.factors).to(dtype) @ jacobian
        residual = torch.where(taken == 0.0, 0.0, residual)  # what a bound holds may have any slope
        kept = torch.where(closer, distance, carried.distance)
        # Of the point that is answered with: here, or where the search was before a trial that failed.
        here_counts = usable & (distance <= (1.0 + _SLACK) * kept)
        there_counts = (norm.square() / len(slope) - kept).abs() <= _SAME * kept
        met = torch.where(accepts, here_counts, there_counts)
        ends = met & (residual.norm() <= _STATIONARY * norm) | (usable & (distance == 0.0))
        gives_up = ~ends & ((waited >= _PATIENCE) | ~(following != z).any())
        # A stationary point replaces a hit that is not one, if little closer.
        best = torch.where(ends & accepts & ~first, torch.inf, carried.distance).to(z.dtype)
        # A trial that misses is not closer than the best one, and does not end the search.
        unknown = torch.inf if self.from_hits else torch.finfo(z.dtype).max
        failed = torch.where(first, unknown, carried.distance.to(z.dtype))
        # Where it gives up, a gradient that is not finite ends the search, but not as stationary.
        grads = torch.where(gives_up, torch.inf, torch.where(ends, 0.0, residual))
        return Advance(
            z=torch.where(ends, state.z, following),
            carried=SequentialQuadraticState(
                *(z, line, in_logits, Program(multipliers, decrease, penalty, rho, damping), pairs),
                *(torch.where(first & ~usable, unknown, kept), waited),
            ),
            value=torch.where(usable, distance.to(z.dtype), failed),
            best=best,
            loss=kept.to(z.dtype),
            grads=grads.to(z.dtype).view(z.shape),
        )


def _init(problem: Problem, z: Tensor, args: Args) -> SequentialQuadraticState:
    zero = z.new_zeros((), dtype=WIDE)
    line = unknown_linearization(problem, z, args)
    values, entries = line.measured.to(WIDE), torch.zeros_like(z).flatten()
    pairs = entries.to(torch.promote_types(z.dtype, torch.float32)).expand(2, _MEMORY, -1).clone()
    program = Program(values, zero, zero + 1.0, zero, zero)
    return SequentialQuadraticState(
        z, line, values.to(torch.bool), program, pairs, zero + torch.nan, zero.to(torch.int64)
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
    return Constraints(torch.where(in_logits, torch.logit(inside), measured), factor, low, high)


def _positive(step: Tensor, change: Tensor) -> Tensor:
    """A change of the gradient, mixed with the step so that the curvature along it is positive."""
    square, product = step.square().sum(), step @ change
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
