"""The method of `reach`: spectral projected gradient in a ball around the reference.

A step goes along the gradient, as far as the change of gradients along the last step suggests (Barzilai
and Borwein), and is projected. A step that does not lower the value is rejected and shortened. On a
linear objective the first step from the center ends at the solution.

References:
    E. G. Birgin, J. M. Martínez, M. Raydan (2000), Nonmonotone Spectral Projected Gradient Methods on
    Convex Sets, https://doi.org/10.1137/S1052623497330963
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.problems.problem import Args, Problem
from funcexplain.solvers.gradient import backward_value_and_grad, make_objective, with_gradient
from funcexplain.solvers.state import (
    Advance,
    BoundMethod,
    Evaluation,
    Objective,
    State,
    Stopping,
    ValueAndGrad,
)

# The length of a step before projection, in radii: of the first one, and the largest.
_FIRST, _LARGEST = 2.0, 1e3
# Its factor where a step fails, and where the gradient has not turned.
_SHORTEN, _LENGTHEN = 0.2, 4.0
# A projected step shorter than this power of eps, in radii, counts as none.
_STILL = 0.6


class BallAscentState(NamedTuple):
    """The best point, its value and gradient, and the factor of the next step."""

    z: Tensor
    value: Tensor
    grads: Tensor
    factor: Tensor


class BallAscent(NamedTuple):
    """Minimize within a ball, onto which `Problem.project` projects; ``args`` have its radius."""

    name: str

    def bind(
        self, problem: Problem, stopping: Stopping, gradient: Callable[[Objective], ValueAndGrad]
    ) -> BoundMethod:
        """Return the functions of one row's step."""
        return BoundMethod(
            problem=problem,
            init=_init,
            evaluate=with_gradient(make_objective(problem), gradient),
            backward=partial(with_gradient, gradient=backward_value_and_grad),
            advance=partial(self._advance, problem),
            stopping=stopping._replace(keep="best"),
        )

    def _advance(self, problem: Problem, state: State, args: Args, at: Evaluation) -> Advance:
        carried: BallAscentState = state.optimizer
        radius = args[self.name]
        first = carried.value.isnan()
        finite = at.value.isfinite() & at.slopes.sum().isfinite()
        improves = finite & (first | (at.value < carried.value))
        step, turn = state.z - carried.z, at.slopes - carried.grads
        curvature, square = (step * turn).sum(), step.square().sum()
        spectral = torch.where(
            curvature > 0.0, square / curvature, _LENGTHEN * carried.factor
        ).clamp_min(0.1 * carried.factor)
        factor = torch.where(improves, spectral, _SHORTEN * carried.factor)
        z = torch.where(improves, state.z, carried.z)
        grads = torch.where(improves, at.slopes, carried.grads)
        norm = torch.linalg.vector_norm(grads, dtype=torch.float64).to(z.dtype)
        unit = radius / norm.clamp_min(torch.finfo(z.dtype).tiny)
        factor = torch.where(first, _FIRST * unit, torch.minimum(factor, _LARGEST * unit))
        following = problem.project(z - factor * grads, args)
        tiny = radius * torch.finfo(z.dtype).eps ** _STILL
        still = (problem.project(z - unit * grads, args) - z).abs().amax() <= tiny
        ends = still | ((following - z).abs().amax() <= tiny * _SHORTEN) | (norm == 0.0)
        best = torch.where(improves, at.value, carried.value)
        return Advance(
            z=torch.where(ends, state.z, following),
            carried=BallAscentState(z, best, grads, factor),
            # A non-finite trial does not end the search: it continues from the best point.
            value=torch.where(finite | first, at.value, carried.value),
            best=state.kept.value,
            loss=at.loss,
            grads=torch.where(ends, 0.0, grads),
        )


def _init(z: Tensor, args: Args) -> BallAscentState:
    del args
    unknown = z.new_full((), torch.nan)
    return BallAscentState(z, unknown, torch.zeros_like(z), unknown)
