"""The smallest change that still hits: first a hit, then steps towards the reference along the target.

Near a hit the windows that hit are those with ``r + J d = 0``, a plane in the search space. The point of
it that is nearest to the reference is the aim of every step. The plane is only a tangent: a step that
loses the target is corrected, back to where it is hit to first order, and the part of the way that a
step goes grows while that works and shrinks while it does not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.interrupts import deferred_interrupts
from funcexplain.engine.rows import Settings, solve_rows
from funcexplain.engine.solve import solve
from funcexplain.problems.checks import check_count, check_number, check_positive
from funcexplain.problems.mapping import vmap
from funcexplain.problems.problem import Args, Problem, check_problem
from funcexplain.solutions.solution import Solution
from funcexplain.solvers.gauss_newton import (
    LEAST_SHARE,
    WIDE,
    Advance,
    DampedParts,
    Line,
    levenberg_marquardt,
    residual_of,
    sloped,
)
from funcexplain.solvers.jacobian import Linearized
from funcexplain.solvers.state import Rules, State, begin, function_key, make_objective, where_rows

# Newton's corrections of a step: two double the digits twice.
_CORRECTIONS = 2


class Approach(NamedTuple):
    """What is carried: the nearest hit so far.

    Attributes:
        z: the point.
        line: its evaluation to first order.
        size: mean squared distance from the reference; NaN before the first evaluation.
        share: of the way to its aim that the next step goes.
        corrections: of the step that is tried, which lost the target.
    """

    z: Tensor
    line: Line
    size: Tensor
    share: Tensor
    corrections: Tensor


def closest(
    problem: Problem,
    method: Any = None,
    *,
    atol: float = 1e-3,
    max_steps: int = 100,
    refinements: int = 40,
    chunk_size: int | None = None,
) -> Solution:
    """Find, for every row, a hit with as small a change from the reference as possible.

    Minimizes ``mean((z - z_r)**2)`` where ``max |weights - target| <= atol``, in units of the search
    space (sigmas after `standardize`; ``z_r`` is the reference there). A search as by `solve` finds a
    hit; steps of constrained Gauss-Newton then go along the windows that hit towards the reference,
    ``z + share * (z_r + J' (J J')^-1 (J (z - z_r) - r) - z)``. A row never gets further away. A local
    minimum is found, as by any search; starts help.

    Args:
        problem: the question or grid. Penalties steer the first search alone.
        method: of the first search; default ``levenberg_marquardt()``.
        atol: how near is a hit.
        max_steps: most updates of the first search.
        refinements: steps towards the reference, each with one Jacobian.
        chunk_size: as for `solve`.

    Returns:
        The solution of the first search; of rows that hit with ``x``, ``weights``, ``loss`` and
        ``error`` of the closest point found. ``num_steps`` counts all steps.

    Raises:
        TypeError, ValueError: as `solve` does.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, fe.targets.at_least(0, 0.6), torch.zeros(1, 1, 2))
        >>> fe.closest(p).weights
        tensor([0.6000, 0.4000])

    References:
        S. Wachter, B. Mittelstadt, C. Russell (2017), Counterfactual Explanations without Opening the
        Black Box, on the closest possible world, https://arxiv.org/abs/1711.00399;
        J. B. Rosen (1961), The Gradient Projection Method for Nonlinear Programming, Part II,
        https://doi.org/10.1137/0109044
    """
    check_problem("closest", problem)
    check_number("closest", "atol", atol, minimum=0.0)
    check_count("closest", "max_steps", max_steps)
    check_count("closest", "refinements", refinements)
    if chunk_size is not None:
        check_positive("closest", "chunk_size", chunk_size)
    if not problem.dims:
        row = vmap(problem, seed=problem.args["seed"][None])
        return closest(
            row,
            method,
            atol=atol,
            max_steps=max_steps,
            refinements=refinements,
            chunk_size=chunk_size,
        )[0]
    method = levenberg_marquardt() if method is None else method
    found = solve(problem, method, max_steps=max_steps, atol=atol, chunk_size=chunk_size)
    settings = Settings(refinements, 0, chunk_size, "auto", False, None)
    begun, rules = _begun_at(problem, found.x), Rules()
    with torch.no_grad(), deferred_interrupts():
        near = solve_rows(begun, _make_parts(begun, rules, atol), rules, settings)
    return _merged(found, near, atol)


def _begun_at(problem: Problem, x: Tensor) -> Problem:
    """The problem with a start of every row's own."""
    dims = tuple(dim._replace(varying=dim.varying | {"x0"}) for dim in problem.dims)
    return replace(
        problem,
        args={**problem.args, "x0": x},
        dims=dims,
        start=lambda args: problem.encode(args["x0"], args),
    )


def _make_parts(problem: Problem, rules: Rules, atol: float) -> DampedParts:
    """Make the functions of one row's step."""
    criterion = problem.criterion

    def measure(weights: Tensor, args: Args) -> Tensor:
        return criterion.compare(weights, args["target"])[0]

    def init(args: Args) -> State:
        def carry(z: Tensor) -> Approach:
            weights = torch.zeros_like(criterion.weights_like(args["target"]))
            measured, none = measure(weights, args).flatten(), z.new_zeros((), dtype=WIDE)
            line = Line(measured, measured, measured[:, None] * torch.zeros_like(z).flatten())
            return Approach(z, line, none + torch.nan, none + 1.0, none)

        return begin(problem, rules, args, carry)

    def advance(state: State, args: Args, at: Linearized) -> Advance:
        carried: Approach = state.optimizer
        home = problem.encode(args["reference"], args).to(WIDE).flatten()
        measured, nearest = (t.flatten() for t in criterion.compare(at.weights, args["target"]))
        size = (state.z.flatten().to(WIDE) - home).square().mean()
        hits = (measured - nearest).abs().amax() <= atol
        usable = hits & size.isfinite() & at.jacobian.isfinite().all()
        first = carried.size.isnan()
        nearer = usable & (size < carried.size)
        takes = first | nearer
        here = Line(measured, nearest, at.jacobian)
        line = Line(*(torch.where(takes, *pair) for pair in zip(here, carried.line, strict=True)))
        z = torch.where(takes, state.z, carried.z)
        corrects = ~(hits | first) & (carried.corrections < _CORRECTIONS) & at.jacobian.isfinite().all()
        factor = torch.where(nearer, 2.0, torch.where(corrects | first, 1.0, 0.5))
        corrections = torch.where(corrects, carried.corrections + 1.0, 0.0)
        share = (carried.share * factor).clamp_max(1.0)
        base = Approach(z, line, torch.where(takes, size, carried.size), share, corrections)
        point, tried = z.flatten().to(WIDE), state.z.flatten().to(WIDE)
        onward = point + share * (_aim(line, point, home) - point)
        following = torch.where(corrects, _aim(here, tried, tried), onward)
        following = problem.project(following.to(z.dtype).view(z.shape), args)
        value = torch.where(usable, size, torch.inf).to(z.dtype)
        best = carried.size.to(z.dtype)
        return Advance(following, base, value, best, base.size.to(z.dtype), torch.zeros_like(z))

    key = (function_key(problem), "closest", atol, rules)
    return DampedParts(make_objective(problem), init, measure, advance, criterion, key)


def _aim(line: Line, point: Tensor, home: Tensor) -> Tensor:
    """Of the points that hit to first order the one nearest to ``home``."""
    in_logs = (line.measured > 0.0).all() & (line.nearest > 0.0).all()
    r, jacobian = residual_of(line, "auto", in_logs), sloped(line, "auto", in_logs)
    # What lies within its bounds ties nothing down.
    jacobian = torch.where((r != 0.0)[:, None], jacobian, 0.0)
    system = jacobian @ jacobian.T
    least = LEAST_SHARE * system.diagonal().sum() + torch.finfo(WIDE).tiny
    factor, failed = torch.linalg.cholesky_ex(
        system + least * torch.eye(len(r), dtype=WIDE, device=r.device)
    )
    lines = (jacobian @ (point - home) - r)[:, None]
    aim = home + jacobian.T @ torch.cholesky_solve(lines, factor)[:, 0]
    return torch.where(failed == 0, aim, point)


def _merged(found: Solution, near: Solution, atol: float) -> Solution:
    """Of rows that hit the closest point, of others what was found."""
    closer = found.hit & (near.error <= atol)
    names = ("x", "weights", "loss", "error")
    pairs = ((getattr(near, name), getattr(found, name)) for name in names)
    fields: Any = {name: where_rows(closer, *pair) for name, pair in zip(names, pairs, strict=True)}
    return replace(found, **fields, num_steps=found.num_steps + near.num_steps)
