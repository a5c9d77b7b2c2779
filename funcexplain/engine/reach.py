"""How far markets can move the weights: their extremes over a ball of the search space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcexplain.engine.execution import Execution
from funcexplain.engine.reweighting import interrupted, map_points
from funcexplain.engine.solve import search
from funcexplain.networks.network import Apply, bound, deferred_interrupts, warn_of_noise
from funcexplain.networks.noise import normal
from funcexplain.networks.pickling import Unpicklable
from funcexplain.problems.checks import (
    check_callable,
    check_count,
    check_is_tensor,
    check_number,
    check_positive,
)
from funcexplain.problems.criterion import EXACT
from funcexplain.problems.grid import RowDim, aligned
from funcexplain.problems.problem import Args, Problem, check_search
from funcexplain.solutions.solution import Solution
from funcexplain.solvers.ball_ascent import BallAscent
from funcexplain.solvers.state import Stopping

_CENTER, _OFFSET, _RADIUS, _POINT = "reach.center", "reach.offset", "reach.radius", "reach.point"
# Of many searches for an end, the best points go on after a few steps.
_FEW_STEPS, _KEPT = 25, 4
# The first steps climb a scale that is nearly logarithmic between these: small weights have a slope.
_SMALL, _LARGE = 1e-4, 0.1
# No search ends by a hit.
_NEVER = Stopping(atol=-1.0)


class Reach(NamedTuple):
    """The minimum and maximum values found; several radii and the problem's rows are leading dimensions.

    Attributes:
        lower: minima: weights ``(A,)``, or the values of ``measure``.
        upper: maxima, of the same shape.
    """

    lower: Tensor
    upper: Tensor


def reach(
    problem: Problem,
    radius: float | Sequence[float],
    *,
    measure: Callable[[Tensor], Tensor] | None = None,
    starts: int = 32,
    max_steps: int = 100,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Reach:
    """Find the minimum and maximum weight of every asset over all markets within a radius.

    ``lower[k] = min w_k(z)`` and ``upper[k] = max w_k(z)`` subject to ``|z - z_r| <= radius``, where
    ``z_r`` is the reference in the search space. In a scenario these are the markets of at most
    ``radius`` sigmas. Both are inner bounds, from searches with several starts: each value was reached
    by a market that was found, and others may go further. For a network that is linear in the search
    point they are exact.

    Args:
        problem: the question, or a grid; target, loss and penalties have no effect.
        radius: maximum ``|z - z_r|``, > 0; or several, increasing, for the curve of each bound over the
            radius. Results within a smaller radius count for larger ones.
        measure: differentiable function ``weights -> values``, ``(A,)`` to a scalar or vector, such as
            ``lambda w: w[:3].sum()``. Default: every weight.
        starts: searches for each bound: one from the reference, the others from random points within the
            radius. After 25 steps, the best 4 continue.
        max_steps: maximum number of steps of each search, each with one gradient.
        seed: seed of the starts, >= 0.
        chunk_size: as for `solve`.

    Returns:
        The bounds. NaN where the network's weights are not finite.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        TypeError: for another type.
        ValueError: if a number is out of range, or a grid has no rows.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.reach(p, radius=1.0)
        Reach(lower=tensor([0.1956, 0.1956]), upper=tensor([0.8044, 0.8044]))
    """
    check_search("reach", problem)
    radii = _check_radii(radius)
    check_positive("reach", "starts", starts)
    check_count("reach", "max_steps", max_steps)
    check_count("reach", "seed", seed)
    if chunk_size is not None:
        check_positive("reach", "chunk_size", chunk_size)
    if 0 in problem.shape:
        raise ValueError(f"reach: expected at least one row, got a grid of {problem.shape}")
    warn_of_noise("reach", problem.apply)
    shape, problem, like = problem.shape, *_measured(problem, measure)
    with deferred_interrupts(), torch.no_grad():
        grid = _grid(problem, torch.atleast_1d(like), radii, starts, seed)
        few = min(max_steps, _FEW_STEPS) if starts > _KEPT else 0
        if few:
            found = _search(replace(grid, loss=_downhill_from_small), few, chunk_size)
            grid = _go_on(grid, found)
        found = _search(grid, max_steps - few, chunk_size)
    # A search for one end may find a better one of another.
    values = found.weights.flatten(0, 1)
    unknown = values.isnan()
    lower = torch.where(unknown, torch.inf, values).amin(0).cummin(0).values
    upper = torch.where(unknown, -torch.inf, values).amax(0).cummax(0).values
    ends = (torch.where(lower > upper, torch.nan, end) for end in (lower, upper))
    several = (len(radii),) if np.ndim(radius) else ()
    return Reach(*(end.reshape((*several, *shape, *like.shape)) for end in ends))


def _search(grid: Problem, max_steps: int, chunk_size: int | None) -> Solution:
    """Search every row; raises after Ctrl-C."""
    # The other starts are not the caller's.
    execution = Execution(max_steps, chunk_size=chunk_size, checks_starts=False)
    found = search(grid, BallAscent(_RADIUS), _NEVER, execution)
    if interrupted(found):
        raise KeyboardInterrupt
    return found


def _go_on(grid: Problem, found: Solution) -> Problem:
    """The searches for each end from its best points, of whichever end's search found them."""
    directions = grid.args["target"]
    scores = torch.einsum("eb...k,dk->deb...", found.weights, directions).flatten(1, 2)
    best = scores.nan_to_num(nan=-torch.inf).topk(_KEPT, 1).indices
    points = found.z.flatten(0, 1)
    inner = points.shape[best.ndim - 1 :]
    places = best.view(*best.shape, *[1] * len(inner)).expand(*best.shape, *inner)
    points = points.expand(len(best), *points.shape).gather(1, places)
    dims = [dim._replace(varying=dim.varying | {_POINT}) for dim in grid.dims]
    dims[1] = RowDim("begin", _KEPT, frozenset({_POINT}))
    args = {name: value for name, value in grid.args.items() if name != _OFFSET}
    return replace(
        grid, args={**args, _POINT: points}, dims=tuple(dims), start=lambda args: args[_POINT]
    )


def _check_radii(radius: Any) -> list[float]:
    """Radii from one or several of them; raises unless they are positive and increase."""
    if isinstance(radius, Tensor):
        radius = radius.tolist()
    if not isinstance(radius, list | tuple):
        return [check_number("reach", "radius", radius, minimum=0.0, strict=True)]
    radii = [check_number("reach", "radius", each, minimum=0.0, strict=True) for each in radius]
    if not radii or sorted(set(radii)) != radii:
        raise ValueError(f"reach: radius must be numbers that increase, got {radii}; sort them")
    return radii


def _measured(problem: Problem, measure: Any) -> tuple[Problem, Tensor]:
    """The problem whose network returns what is measured, and a tensor of its shape."""
    row = problem[(0,) * len(problem.dims)] if problem.dims else problem
    like = row.criterion.weights_like(row.args["target"])
    if measure is None:
        return problem, like
    check_callable("reach", "measure", measure)
    shape = like.shape
    like = measure(like.clone())
    check_is_tensor("reach", "the output of measure", like)
    if like.ndim > 1 or not like.numel() or not like.is_floating_point():
        raise ValueError(
            f"reach: measure must map weights {tuple(shape)} to a floating scalar or vector, got "
            f"{like.dtype} of shape {tuple(like.shape)}"
        )
    return replace(problem, apply=_Measured(problem.apply, measure)), like


class _Measured(Unpicklable):
    """A network and a function of its weights."""

    def __init__(self, apply: Apply, measure: Callable[[Tensor], Tensor]) -> None:
        self.apply, self.measure = apply, measure

    def __call__(self, params: Any, x: Tensor) -> Tensor:
        """Map one window to what is measured of its weights."""
        return self.measure(self.apply(params, x)).reshape(-1)

    def bind(self, params: Any) -> AbstractContextManager[None]:
        """Keep parameters in the network."""
        return bound(self.apply, params)


def _grid(problem: Problem, like: Tensor, radii: list[float], starts: int, seed: int) -> Problem:
    """The searches: for each end, start and radius, and each row of the problem."""
    references = aligned(problem.dims, problem.args, "reference")
    references = references.expand(*problem.shape, *references.shape[-3:])
    center = map_points(problem.encode, problem, references)
    point = center[(0,) * len(problem.shape)]
    noise = [
        normal(torch.tensor(seed * starts + start), point.shape, point.dtype) for start in range(starts)
    ]
    offsets = torch.stack(noise).to(center)
    offsets[0] = 0.0  # from the reference
    eye = torch.eye(like.numel(), dtype=like.dtype, device=like.device)
    directions = torch.cat([eye, -eye]).view(-1, *like.shape)

    def project(z: Tensor, args: Args) -> Tensor:
        change = z - args[_CENTER]
        length = torch.linalg.vector_norm(change)
        inside = torch.where(length > args[_RADIUS], args[_RADIUS] / length, 1.0)
        return problem.project(args[_CENTER] + inside * change, args)

    def start(args: Args) -> Tensor:
        # Only what the window depends on: other entries would use up a part of the radius.
        def window(z: Tensor) -> Tensor:
            x = problem.decode(z, args)
            return (x * torch.arange(1, x.numel() + 1).to(x).cos().view(x.shape)).sum()

        offset = torch.where(torch.func.grad(window)(args[_CENTER]) != 0.0, args[_OFFSET], 0.0)
        length = torch.linalg.vector_norm(offset)
        unit = torch.where(length > 0.0, offset / length, 0.0)
        return project(args[_CENTER] + args[_RADIUS] * unit, args)

    dims = tuple(dim._replace(varying=(dim.varying - {"target"}) | {_CENTER}) for dim in problem.dims)
    ends = RowDim("end", len(directions), frozenset({"target"}))
    begins = RowDim("begin", starts, frozenset({_OFFSET}))
    sizes = RowDim("size", len(radii), frozenset({_RADIUS}))
    return replace(
        problem,
        args={
            **problem.args,
            **{"target": directions, _CENTER: center, _OFFSET: offsets},
            _RADIUS: center.new_tensor(radii),
        },
        dims=(ends, begins, sizes, *dims),
        criterion=EXACT,
        loss=_downhill,
        penalties=(),
        costs=(),
        start=start,
        project=project,
    )


def _downhill(values: Tensor, direction: Tensor) -> Tensor:
    """The objective: a value's negative, or itself."""
    return -(values * direction).sum()


def _downhill_from_small(values: Tensor, direction: Tensor) -> Tensor:
    """Likewise, on a scale that increases with the values."""
    return _downhill(values + _LARGE * torch.asinh(values / _SMALL), direction)
