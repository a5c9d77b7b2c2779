"""Few changes: the closest hit by the sum of absolute changes instead of squares.

Around the last answer, ``sum(|d_g|)`` over groups of entries is the weighted square
``sum(|d_g|**2 / (|e_g| + eps))``, with ``e`` the changes of that answer. A change of variables makes it
the plain distance that `SequentialQuadratic` minimizes: an entry is searched in units of
``sqrt(|e_g| + eps)``, or, where the number of groups is to be small, of ``|e_g| + eps``. As ``eps``
falls from round to round, most changes vanish; in the end these are returned to the reference, bit for
bit, and the others are searched once more.

References:
    I. Daubechies, R. DeVore, M. Fornasier, S. Güntürk (2010), Iteratively Reweighted Least Squares
    Minimization for Sparse Recovery, https://doi.org/10.1002/cpa.20303;
    E. Candès, M. Wakin, S. Boyd (2008), Enhancing Sparsity by Reweighted l1 Minimization,
    https://doi.org/10.1007/s00041-008-9045-x
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace

import torch
from torch import Tensor

from funcexplain.engine.execution import Execution
from funcexplain.engine.solve import search
from funcexplain.problems.coordinates import change_variables
from funcexplain.problems.grid import mapped_dims, take_rows
from funcexplain.problems.problem import Args, Map, Problem
from funcexplain.problems.sparsity import keep_unchanged
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.gradient import where_rows
from funcexplain.solvers.sequential_quadratic import SequentialQuadratic
from funcexplain.solvers.state import Stopping

# Rounds: the power of a group's change in its units, and eps as a fraction of a typical change. A sum of
# changes has the power 1/2; more makes what is small vanish sooner.
_SUM = [(0.5, 0.3**number) for number in range(9)] + [(0.75, 1e-4 * 0.1**number) for number in range(4)]
_FEW = [(1.0, 0.1**number) for number in range(10)]
# So much units differ from one end of a window to the other, so that equal changes do not stay equal.
_TILT = 0.05
# A group that changes less than this fraction of the largest change is returned to the reference.
_NEGLIGIBLE = 1e-3
# The method itself ends its search: within this tolerance nothing is a hit.
_NEVER = Stopping(atol=-1.0)
# One function for all searches, so that what is tried of a network is remembered.
_START = operator.itemgetter("start")


def approach(
    problem: Problem,
    found: Solution,
    method: SequentialQuadratic,
    steps: int,
    chunk_size: int | None,
) -> Solution:
    """Approach the reference from hits, in the plain distance of the search space."""
    execution = Execution(steps, chunk_size=chunk_size)
    refined = search(_starting_at(problem, found.z), method, _NEVER, execution)
    return _merge(found, refined, method.atol)


def reweight(
    problem: Problem,
    found: Solution,
    atol: float,
    steps: int,
    chunk_size: int | None,
    *,
    groups: Tensor | None = None,
    few: bool = False,
) -> Solution:
    """Approach the reference from hits, with few and small changes of groups of entries.

    Args:
        problem: the question or grid.
        found: its answers; rows that do not hit stay as they are.
        atol: tolerance of a hit.
        steps: maximum number of steps of each round.
        chunk_size: as for `solve`.
        groups: number of each entry's group, in the shape of the search space. Default: one per entry.
        few: whether to minimize the number of changed groups, in any units, instead of the sum of
            changes; unchanged groups stay unchanged.

    Returns:
        The hits with the changes of the last round.
    """
    first, lead = _sizes(problem, found.z, groups), len(problem.shape)
    count = first[(0,) * lead].numel()
    tilt = 1.0 + _TILT * torch.linspace(0.0, 1.0, count, device=first.device).to(first)
    in_units, encode, decode = _in_units(problem, first)
    for power, factor in (*(_FEW if few else _SUM), (1.0 if few else 0.5, None)):
        sizes = _sizes(problem, found.z, groups)
        typical = first if few else _largest(sizes, lead)
        if factor is None:
            units = torch.where(sizes > _NEGLIGIBLE * typical, sizes**power, 0.0)
        else:
            units = (sizes + factor * typical) ** power
            if power > 0.5:
                units = units * (tilt if groups is None else tilt[groups.flatten()]).view(
                    sizes.shape[lead:]
                )
        method = SequentialQuadratic(atol, from_hits=factor is not None)
        changed = replace(in_units, args={**in_units.args, "units": units})
        inside = replace(found, z=map_points(encode, changed, found.z))
        inside = approach(changed, inside, method, steps, chunk_size)
        moved = (inside.x != found.x).flatten(lead).any(-1)
        z = where_rows(moved, map_points(decode, changed, inside.z), found.z)
        found = replace(inside, z=z)
        if interrupted(found):
            break
    return found


def interrupted(found: Solution) -> bool:
    """Whether Ctrl-C was pressed."""
    return bool((found.codes == int(Status.INTERRUPTED)).any())


def _largest(sizes: Tensor, lead: int) -> Tensor:
    """The maximum of each row, in a shape that broadcasts."""
    return sizes.flatten(lead).amax(-1).view(*sizes.shape[:lead], *[1] * (sizes.ndim - lead))


def _sizes(problem: Problem, z: Tensor, groups: Tensor | None) -> Tensor:
    """The change of each entry's group in the search space, for every row."""

    def size(z: Tensor, args: Args) -> Tensor:
        change = z - problem.encode(args["reference"], args)
        if groups is None:
            return change.abs()
        squares = change.new_zeros(int(groups.max()) + 1)
        squares = squares.index_add(0, groups.flatten(), change.square().flatten())
        return squares.sqrt()[groups]

    return map_points(size, problem, z)


def map_points(function: Map, problem: Problem, z: Tensor) -> Tensor:
    """Apply ``(z, args) -> tensor`` to the search point of every row."""
    if not problem.dims:
        return function(z, problem.args)
    rows = torch.arange(math.prod(problem.shape), device=z.device)
    args = take_rows(problem.dims, problem.args, rows)
    points = z.flatten(0, len(problem.dims) - 1)
    flat = torch.func.vmap(function, (0, mapped_dims(problem.dims, args)))(points, args)
    return flat.view(*problem.shape, *flat.shape[1:])


def _in_units(problem: Problem, units: Tensor) -> tuple[Problem, Map, Map]:
    """The search for changes from the reference in these units, and its maps; where zero, for none."""
    dims = tuple(dim._replace(varying=dim.varying | {"units"}) for dim in problem.dims)

    def encode(u: Tensor, args: Args) -> Tensor:
        change = u - problem.encode(args["reference"], args)
        return torch.where(args["units"] > 0.0, change / args["units"], 0.0)

    def decode(z: Tensor, args: Args) -> Tensor:
        return problem.encode(args["reference"], args) + args["units"] * z

    args = {**problem.args, "units": units}
    changed = change_variables(
        replace(problem, args=args, dims=dims, penalties=(), costs=()), encode, decode
    )
    return replace(changed, decode=keep_unchanged(changed.decode, problem)), encode, decode


def _starting_at(problem: Problem, z: Tensor) -> Problem:
    """The problem with a start for every row."""
    dims = tuple(dim._replace(varying=dim.varying | {"start"}) for dim in problem.dims)
    args = {**problem.args, "start": z}
    return replace(problem, args=args, dims=dims, start=_START)


def _merge(found: Solution, refined: Solution, atol: float) -> Solution:
    """Of rows that hit the closest point, of others what was found."""
    closer = found.hit & (refined.error <= atol)
    names = ("x", "z", "weights", "loss", "error")
    pairs = ((getattr(refined, name), getattr(found, name)) for name in names)
    fields: dict[str, Tensor] = {
        name: where_rows(closer, *pair) for name, pair in zip(names, pairs, strict=True)
    }
    settled = torch.where(refined.codes == int(Status.STALLED), int(Status.CLOSEST), int(Status.HIT))
    codes = torch.where(closer, settled, found.codes)
    codes = torch.where(refined.codes == int(Status.INTERRUPTED), refined.codes, codes)
    status = codes if found.dims else Status(int(codes))
    num_steps = found.num_steps + torch.where(found.hit, refined.num_steps, 0)
    return replace(found, **fields, status=status, num_steps=num_steps)  # type: ignore[arg-type]
