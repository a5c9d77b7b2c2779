"""The method of `closest`: steps along the points that hit, towards the reference.

Near a hit the points that hit are those with ``r + J d = 0``, a plane in the search space. Every step
aims at the point of that plane nearest to the reference. The plane is only a tangent: a step that loses
the target is corrected, back to where it is hit to first order, and the fraction of the way that a step
goes grows while that works and shrinks while it does not.

References:
    J. B. Rosen (1961), The Gradient Projection Method for Nonlinear Programming, Part II,
    https://doi.org/10.1137/0109044
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.problems.problem import Args, Problem
from funcexplain.solvers.damped_step import MINIMUM_SHIFT, WIDE
from funcexplain.solvers.gauss_newton import (
    Linearization,
    bind_jacobian,
    linearize,
    residual_jacobian,
    residual_of,
    unknown_linearization,
)
from funcexplain.solvers.state import (
    Advance,
    BoundMethod,
    Evaluation,
    Objective,
    State,
    Stopping,
    ValueAndGrad,
)

# Newton's corrections of a step: two double the digits twice.
_CORRECTIONS = 2


class GradientProjectionState(NamedTuple):
    """What is carried: the closest hit so far.

    Attributes:
        z: the point.
        line: its linearization.
        distance: mean squared distance from the reference; NaN before the first evaluation.
        fraction: of the way to its aim that the next step goes.
        corrections: of the step that is tried, which lost the target.
    """

    z: Tensor
    line: Linearization
    distance: Tensor
    fraction: Tensor
    corrections: Tensor


class GradientProjection(NamedTuple):
    """Approach the reference from a hit, without losing the target by more than ``atol``."""

    atol: float

    def bind(
        self, problem: Problem, stopping: Stopping, gradient: Callable[[Objective], ValueAndGrad]
    ) -> BoundMethod:
        """Return the functions of one row's step: the Jacobian, and a step judged by its distance."""
        del gradient
        return bind_jacobian(problem, stopping, partial(_init, problem), partial(self._advance, problem))

    def _advance(self, problem: Problem, state: State, args: Args, at: Evaluation) -> Advance:
        carried: GradientProjectionState = state.optimizer
        reference = problem.encode(args["reference"], args).to(WIDE).flatten()
        here = linearize(problem, at, args)
        distance = (state.z.flatten().to(WIDE) - reference).square().mean()
        hits = problem.criterion.error(at.weights, args["target"], atol=self.atol) <= self.atol
        finite = here.jacobian.isfinite().all()
        usable = hits & distance.isfinite() & finite
        first = carried.distance.isnan()
        closer = usable & (distance < carried.distance)
        accepts = first | closer
        line = Linearization(
            *(torch.where(accepts, *pair) for pair in zip(here, carried.line, strict=True))
        )
        z = torch.where(accepts, state.z, carried.z)
        corrects = ~(hits | first) & (carried.corrections < _CORRECTIONS) & finite
        factor = torch.where(closer, 2.0, torch.where(corrects | first, torch.ones_like(distance), 0.5))
        fraction = (carried.fraction * factor).clamp_max(1.0)
        corrections = torch.where(corrects, carried.corrections + 1.0, 0.0)
        point, tried = z.flatten().to(WIDE), state.z.flatten().to(WIDE)
        onward = point + fraction * (_nearest_hit(line, point, reference) - point)
        following = torch.where(corrects, _nearest_hit(here, tried, tried), onward)
        following = problem.project(following.to(z.dtype).view(z.shape), args)
        kept = torch.where(accepts, distance, carried.distance)
        best = carried.distance.to(z.dtype)
        # A step that fails is no closer than the best point, and ends nothing.
        failed = torch.where(first, torch.inf, best)
        return Advance(
            z=following,
            carried=GradientProjectionState(z, line, kept, fraction, corrections),
            value=torch.where(usable, distance.to(z.dtype), failed),
            best=best,
            loss=kept.to(z.dtype),
            grads=torch.zeros_like(z),
        )


def _init(problem: Problem, z: Tensor, args: Args) -> GradientProjectionState:
    zero = z.new_zeros((), dtype=WIDE)
    line = unknown_linearization(problem, z, args)
    return GradientProjectionState(z, line, zero + torch.nan, zero + 1.0, zero)


def _nearest_hit(line: Linearization, point: Tensor, reference: Tensor) -> Tensor:
    """Of the points that hit to first order, the one nearest to ``reference``."""
    in_logs = (line.measured > 0.0).all() & (line.nearest > 0.0).all()
    r, jacobian = residual_of(line, "auto", in_logs), residual_jacobian(line, "auto", in_logs)
    # A value within its bounds constrains nothing.
    jacobian = torch.where((r != 0.0)[:, None], jacobian, 0.0)
    gram = jacobian @ jacobian.T
    shift = MINIMUM_SHIFT * gram.diagonal().sum() + torch.finfo(WIDE).tiny
    identity = torch.eye(len(r), dtype=WIDE, device=r.device)
    factor, failed = torch.linalg.cholesky_ex(gram + shift * identity)
    rhs = (jacobian @ (point - reference) - r)[:, None]
    nearest = reference + jacobian.T @ torch.cholesky_solve(rhs, factor)[:, 0]
    return torch.where(failed == 0, nearest, point)
