"""The smallest change that still hits: first a hit, then steps along the target to the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from funcexplain.engine.execution import Execution
from funcexplain.engine.solve import answer, check_history, search, solve
from funcexplain.networks.network import deferred_interrupts
from funcexplain.problems.checks import check_count, check_number, check_positive
from funcexplain.problems.problem import Problem, check_search
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.gauss_newton import levenberg_marquardt
from funcexplain.solvers.gradient import where_rows
from funcexplain.solvers.sequential_quadratic import SequentialQuadratic
from funcexplain.solvers.state import Stopping


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
    hit; sequential quadratic programming then goes on from there. A row never moves further away.

    A row ends as CLOSEST where the gradient of the Lagrangian, ``z - z_r + J'l`` with the multipliers
    ``l`` of the active bounds, is at most a hundredth of ``z - z_r``: a local minimum, as of any search,
    so several starts help. It ends as HIT where ``refinements`` are used up before, or where kinks of
    the network (ReLU) leave no such point.

    Args:
        problem: the question or grid. Penalties steer the first search alone.
        method: of the first search; default ``levenberg_marquardt()``.
        atol: the target is hit where ``max |weights - target| <= atol``.
        max_steps: maximum number of updates of the first search.
        refinements: maximum number of steps towards the reference, each with one Jacobian.
        chunk_size: as for `solve`.

    Returns:
        The solution of the first search; of rows that hit with ``x``, ``weights``, ``loss`` and
        ``error`` of the closest point found, and CLOSEST or HIT as ``status``. ``num_steps`` counts all
        steps. After Ctrl-C, rows whose second search was not over are INTERRUPTED, too; they keep the
        closest hit so far.

    Raises:
        TypeError, ValueError: as `solve` does.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, fe.targets.at_least(0, 0.6), torch.zeros(1, 1, 2))
        >>> fe.closest(p).weights  # within atol of 0.6
        tensor([0.5991, 0.4009])

    References:
        S. P. Han (1977), A Globally Convergent Method for Nonlinear Programming,
        https://doi.org/10.1007/BF00932858;
        S. Wachter, B. Mittelstadt, C. Russell (2017), Counterfactual Explanations without Opening the
        Black Box, on the closest possible world, https://arxiv.org/abs/1711.00399
    """
    check_search("closest", problem)
    atol = check_number("closest", "atol", atol, minimum=0.0)
    check_count("closest", "max_steps", max_steps)
    check_count("closest", "refinements", refinements)
    if chunk_size is not None:
        check_positive("closest", "chunk_size", chunk_size)
    if problem.dims:
        check_history("closest", problem, max_steps, "; pass fewer max_steps")
    method = levenberg_marquardt() if method is None else method
    execution = Execution(refinements, chunk_size=chunk_size)
    # The method itself ends its search: within this tolerance nothing is a hit.
    sequential, stopping = SequentialQuadratic(atol), Stopping(atol=-1.0)
    with deferred_interrupts() as hold:
        found = solve(problem, method, max_steps=max_steps, atol=atol, chunk_size=chunk_size)
        if not (found.codes == int(Status.INTERRUPTED)).any():
            start = _starting_at(problem, found.x)
            found = _merge(found, search(start, sequential, stopping, execution), atol)
        return answer(hold, found)


def _starting_at(problem: Problem, x: Tensor) -> Problem:
    """The problem with a start for every row."""
    dims = tuple(dim._replace(varying=dim.varying | {"x0"}) for dim in problem.dims)
    return replace(
        problem,
        args={**problem.args, "x0": x},
        dims=dims,
        start=lambda args: problem.encode(args["x0"], args),
    )


def _merge(found: Solution, refined: Solution, atol: float) -> Solution:
    """Of rows that hit the closest point, of others what was found."""
    closer = found.hit & (refined.error <= atol)
    names = ("x", "weights", "loss", "error")
    pairs = ((getattr(refined, name), getattr(found, name)) for name in names)
    fields: Any = {name: where_rows(closer, *pair) for name, pair in zip(names, pairs, strict=True)}
    codes = torch.where(
        closer & (refined.codes == int(Status.STALLED)), int(Status.CLOSEST), found.codes
    )
    codes = torch.where(refined.codes == int(Status.INTERRUPTED), refined.codes, codes)
    status = codes if found.dims else Status(int(codes))
    num_steps = found.num_steps + torch.where(found.hit, refined.num_steps, 0)
    return replace(found, **fields, status=status, num_steps=num_steps)
