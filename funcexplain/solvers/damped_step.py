"""The step of a damped Gauss-Newton model: in closed form, or within the bounds of a projection.

The model of the objective around a point is ``|r + J d|**2 + g'd + d'C d / 2 + lam |d|**2``, with
the gradient ``g`` and the diagonal curvature ``C`` of the penalties. Bounds are known by their
projection alone: an entry is held where the projection of a descent step moves it back.

References:
    S. Mehrotra (1992), On the Implementation of a Primal-Dual Interior Point Method,
    https://doi.org/10.1137/0802028; J. J. Moré, G. Toraldo (1991), On the Solution of Large Quadratic
    Programming Problems with Bound Constraints, https://doi.org/10.1137/0801008; M. Hintermüller,
    K. Ito, K. Kunisch (2002), The Primal-Dual Active Set Strategy as a Semismooth Newton Method,
    https://doi.org/10.1137/S1052623401383558
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

WIDE = torch.float64
# Minimum damping, as a fraction of the Gram matrix's trace: the system stays solvable in float64.
MINIMUM_SHIFT = 1e-12
# Interior-point iterations, each of which divides the gap by about five, and rounds of the active set.
_ITERATIONS, _ROUNDS = 10, 2
# How much the iterations center, and how much of the way to a bound they go.
_CENTERING, _TO_BOUNDARY = 0.1, 0.995
# Bounds further away than this many unbounded steps are moved to that distance.
_REACH = 10.0
# A projection that goes through other units may change the last digits of an entry within bounds.
_ROUNDING = 1e2
# A decrease smaller than this fraction of the objective counts as zero.
_STATIONARY = 1e-15


class PenaltyTerms(NamedTuple):
    """The penalties' value, gradient ``(N,)`` and diagonal curvature; without any, zeros ``()``."""

    value: Tensor
    gradient: Tensor
    curvature: Tensor


class Model(NamedTuple):
    """Residuals ``(K,)``, their Jacobian ``(K, N)``, the penalties, and the damping, in float64."""

    r: Tensor
    jacobian: Tensor
    penalty: PenaltyTerms
    lam: Tensor

    def gradient(self, step: Tensor) -> Tensor:
        """Gradient after a step, damping included."""
        moved = (self.r + self.jacobian @ step) @ self.jacobian
        return 2.0 * moved + self.penalty.gradient + (self.penalty.curvature + 2.0 * self.lam) * step

    def curvature(self) -> Tensor:
        """Diagonal of the Hessian, positive."""
        diagonal = 2.0 * self.jacobian.square().sum(0) + self.penalty.curvature + 2.0 * self.lam
        return diagonal + torch.finfo(WIDE).tiny

    def curvature_along(self, step: Tensor) -> Tensor:
        """Half the second derivative along a step."""
        diagonal = 0.5 * self.penalty.curvature + self.lam
        return (self.jacobian @ step).square().sum() + (diagonal * step.square()).sum()

    def decrease(self, gradient: Tensor, step: Tensor) -> Tensor:
        """Decrease by a step from where the gradient is ``gradient``."""
        return -(gradient @ step) - self.curvature_along(step)


def minimize_freely(model: Model) -> Tensor:
    """The minimizer of the model, by Woodbury: a (K, K) system."""
    r, jacobian, penalty, lam = model
    if penalty.curvature.ndim == 0:  # no penalties
        y, _ = solve_gram(jacobian @ jacobian.T, r, lam, WIDE)
        return -y @ jacobian
    shift = MINIMUM_SHIFT * jacobian.square().sum() + torch.finfo(WIDE).tiny
    gradient, curvature = 0.5 * penalty.gradient, 0.5 * penalty.curvature + torch.maximum(lam, shift)
    weighted = jacobian / curvature
    y = _solve_shifted(weighted @ jacobian.T, r - weighted @ gradient)
    return -(gradient / curvature + y @ weighted)


def solve_gram(gram: Tensor, r: Tensor, lam: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Solve a model without penalties: ``y`` of its minimizer ``-J'y``, and the decrease by that step.

    Args:
        gram: ``J J'``, ``(..., K, K)``.
        r: residuals, ``(..., K)``.
        lam: damping, ``(...)``.
        dtype: in which the Gram matrix was computed.

    Returns:
        ``y`` ``(..., K)``, and the decrease of the model without its damping.
    """
    eps = max(torch.finfo(dtype).eps, MINIMUM_SHIFT)
    shift = eps * gram.diagonal(dim1=-2, dim2=-1).sum(-1) + torch.finfo(WIDE).tiny
    lam = torch.maximum(lam, shift).unsqueeze(-1)
    y = _solve_shifted(gram / lam.unsqueeze(-1), r) / lam
    moved = (gram @ y.unsqueeze(-1)).squeeze(-1)
    return y, ((2.0 * r - moved) * moved).sum(-1)


def minimize_within(model: Model, point: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """A step that decreases the model within bounds, normally to its minimum there.

    An interior-point method comes close to the minimum even of ill-conditioned models. Rounds of an
    active set follow: each takes a projected gradient step, scaled by the diagonal of the Hessian, holds
    the entries that the projection moves at their bounds, and minimizes the model over the others, those
    included that leave a bound; entries that would cross one are held there, and the rest compensate.
    The better of both steps goes into the next round, so the decrease is never smaller than that of a
    projected gradient step.

    Args:
        model: the model around ``point``.
        point: feasible point, ``(N,)``.
        project: the projection of points ``(N,)``; it returns them in the dtype of the search.

    Returns:
        The step, ``(N,)``.
    """
    scale, step = 1.0 / model.curvature(), torch.zeros_like(point)
    gradient = model.gradient(step)
    reach = _REACH * torch.maximum(minimize_freely(model).abs(), scale * gradient.abs()).amax()
    lower, upper = (_probe(point, side * reach, project) for side in (-1.0, 1.0))
    step = _shorten(model, gradient, _approach_minimum(model, lower, upper))
    for _ in range(_ROUNDS):
        gradient = model.gradient(step)
        rest, held = hold(point + step - scale * gradient, project)
        cauchy = _shorten(model, gradient, rest - point - step)
        for _ in range(_ROUNDS):
            fixed, free = torch.where(held, rest - point, 0.0), ~held
            reduced = Model(
                model.r + model.jacobian @ fixed,
                model.jacobian * free,
                model.penalty._replace(gradient=model.penalty.gradient * free),
                model.lam,
            )
            rest, leaving = hold(point + fixed + minimize_freely(reduced) * free, project)
            held = held | leaving
        newton = rest - point
        newton = _shorten(model, gradient, newton - step)
        better = model.decrease(gradient, newton) > model.decrease(gradient, cauchy)
        step = step + torch.where(better, newton, cauchy)
    return step


def _approach_minimum(model: Model, lower: Tensor, upper: Tensor) -> Tensor:
    """The step between two bounds that nearly minimizes the model, by a primal-dual interior point."""
    tiny = torch.finfo(WIDE).tiny
    # An entry without room, as a frozen one, takes no part: it would end every step at once.
    room = (upper > lower).to(WIDE)
    penalty = model.penalty._replace(gradient=model.penalty.gradient * room)
    model = model._replace(jacobian=model.jacobian * room, penalty=penalty)
    margin = 0.1 * (upper - lower)
    step = torch.zeros_like(lower).clamp(lower + margin, upper - margin) * room
    slack = torch.where(room > 0, torch.stack([step - lower, upper - step]), 1.0).clamp_min(tiny)
    multiplier = room * torch.ones_like(slack) * (model.gradient(step).abs().amax() + tiny)
    sides = torch.tensor([[1.0], [-1.0]], dtype=slack.dtype, device=slack.device)
    for _ in range(_ITERATIONS):
        center = _CENTERING * (slack * multiplier).mean() / slack
        ratio = multiplier / slack
        gradient = model.penalty.gradient + (model.penalty.curvature + 2.0 * model.lam) * step
        barrier = model.penalty._replace(
            gradient=gradient - (sides * center).sum(0),
            curvature=model.penalty.curvature + ratio.sum(0),
        )
        residual = model.r + model.jacobian @ step
        move = minimize_freely(Model(residual, model.jacobian, barrier, model.lam))
        changes = torch.stack([sides * move, center - multiplier - ratio * sides * move])
        shrinking = (-changes / torch.stack([slack, multiplier])).amax()
        fraction = (_TO_BOUNDARY / shrinking.clamp_min(tiny)).clamp_max(1.0)
        step = step + fraction * move
        slack = (slack + fraction * changes[0]).clamp_min(tiny)
        multiplier = multiplier + fraction * changes[1]
    return step


def is_stationary(model: Model, point: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """Whether no step within bounds decreases the model without its damping, to rounding."""
    free = model._replace(lam=torch.zeros_like(model.lam))
    gradient = free.gradient(torch.zeros_like(point))
    ahead, _ = hold(point - gradient / free.curvature(), project)
    return gradient @ (point - ahead) <= _STATIONARY * (
        model.r.square().sum() + model.penalty.value.abs()
    )


def hold(aim: Tensor, project: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The projection of a point, and which entries it holds at a bound."""
    rest = project(aim)
    eps, aim, rest = torch.finfo(rest.dtype).eps, aim.to(rest.dtype).to(WIDE), rest.to(WIDE)
    return rest, (rest - aim).abs() > _ROUNDING * eps * (1.0 + aim.abs())


def _probe(point: Tensor, reach: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
    """How far all entries can move together by up to ``reach``."""
    rest = project(point + reach).to(WIDE)
    # A map such as exp may overflow.
    return torch.where(rest.isfinite(), rest - point, reach)


def _shorten(model: Model, gradient: Tensor, step: Tensor) -> Tensor:
    """A step, cut where the model is smallest along it."""
    curvature = 2.0 * model.curvature_along(step) + torch.finfo(WIDE).tiny
    return step * (-(gradient @ step) / curvature).clamp(0.0, 1.0)


def _solve_shifted(gram: Tensor, rhs: Tensor) -> Tensor:
    """``(gram + I)^-1 rhs``."""
    factor, failed = torch.linalg.cholesky_ex(
        gram + torch.eye(rhs.shape[-1], dtype=gram.dtype, device=gram.device)
    )
    solution = torch.cholesky_solve(rhs.unsqueeze(-1), factor).squeeze(-1)
    # A system that cannot be factored gives no step, and the damping grows until one can be.
    return torch.where((failed == 0).unsqueeze(-1), solution, 0.0)
