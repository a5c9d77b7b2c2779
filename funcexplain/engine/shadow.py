"""Marginal costs of a target at the closest market: the multipliers of its active bounds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcexplain.networks.network import bound, deferred_interrupts, raise_pending
from funcexplain.problems.checks import check_number
from funcexplain.problems.problem import Problem, identity
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution
from funcexplain.solvers.damped_step import WIDE
from funcexplain.solvers.gauss_newton import measure_of
from funcexplain.solvers.gradient import make_objective
from funcexplain.solvers.jacobian import with_backward_jacobian
from funcexplain.solvers.quadratic_program import solve_dual

# The largest multiplier of the linearized question, in units of a typical one.
_PRICE = 1e3


def shadow_prices(solution: Solution, problem: Problem, *, atol: float = 1e-3) -> Tensor:
    """Compute how much further away the closest market is per additional percentage point of the target.

    At the closest market ``z - z_r = J' y``, where ``J`` is the Jacobian of the values that the target
    bounds and ``y`` are the multipliers, zero for inactive bounds. If a bound ``b`` moves, the distance
    changes by ``d|z - z_r| / db = y / |z - z_r|``. For weights that sum to one, only differences of
    prices are meaningful; the prices of a whole allocation are shifted to sum to zero.

    Args:
        solution: the answer of `closest`, or of its rows.
        problem: the question or grid.
        atol: the tolerance of the answer.

    Returns:
        Sigmas (units of the search space) per percentage point, for each value that the target bounds,
        ``(K,)``, or each weight of an allocation, ``(A,)``; the problem's rows lead. Positive where a
        higher value is further away, zero where no bound is active, NaN where the target is missed.

    Raises:
        TypeError, ValueError: if the solution does not answer the problem, ``atol`` is not positive, or
            the problem has bounds that project (`clip`).

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
        >>> _ = torch.nn.init.eye_(network[1].weight)
        >>> p = fe.problem(network, fe.targets.at_least(0, 1.0), torch.zeros(1, 1, 2))
        >>> fe.shadow_prices(fe.closest(p), p)
        tensor([0.0100])
    """
    atol = check_closest("shadow_prices", solution, problem, atol)
    rows = np.ndindex(*problem.shape)
    with deferred_interrupts(), torch.no_grad():
        found = [_prices(problem[row] if row else problem, solution.z[row], atol) for row in rows]
    return torch.stack(found).reshape(*problem.shape, *found[0].shape)


def check_closest(where: str, solution: Any, problem: Any, atol: Any) -> float:
    """Raise unless a solution answers a problem and may be a closest answer; returns the tolerance."""
    check_answer(where, solution, problem)
    atol = check_number(where, "atol", atol, minimum=0.0, strict=True)
    if problem.project is not identity:
        raise ValueError(
            f"{where}: problem must have no bounds that project, got one with clip; box bounds the "
            "search by a change of variables"
        )
    if 0 in problem.shape:
        raise ValueError(f"{where}: expected at least one row, got a grid of {problem.shape}")
    return atol


class ClosestPoint(NamedTuple):
    """A closest answer, where ``z - z_r = J' y``.

    Attributes:
        measured: the values that the target bounds, ``(K,)`` after flattening.
        jacobian: ``J``, ``(K, N)``, float64.
        change: ``z - z_r``, ``(N,)``, float64.
        active: which bounds are active, ``(K,)``.
        multipliers: ``y``, zero for the others, ``(K,)``, float64.
    """

    measured: Tensor
    jacobian: Tensor
    change: Tensor
    active: Tensor
    multipliers: Tensor


def closest_point(problem: Problem, z: Tensor, atol: float) -> ClosestPoint | None:
    """The multipliers of one row at its answer; None if it misses the target."""
    args, criterion = problem.args, problem.criterion
    with bound(problem.apply, args["params"]):
        evaluate = with_backward_jacobian(make_objective(problem), measure_of(problem))
        at = evaluate(z, args)
    measured = criterion.compare(at.weights, args["target"])[0]
    if not bool(criterion.error(at.weights, args["target"], atol=atol) <= atol):
        return None
    lower, upper, _ = (each.flatten().to(WIDE) for each in criterion.bounds(args["target"]))
    values, jacobian = measured.flatten().to(WIDE), at.slopes.to(WIDE)
    change = (z - problem.encode(args["reference"], args)).flatten().to(WIDE)
    equal = lower == upper
    # Within the tolerance a bound is where the value is.
    lower = torch.where(equal, values, torch.minimum(lower, values))
    upper = torch.where(equal, values, torch.maximum(upper, values))
    # The linearized question tells which bounds hold the point back, however near them it ended.
    gram = jacobian @ jacobian.mT
    price = _PRICE * change.norm() / gram.diagonal().mean().sqrt()
    program = solve_dual(gram, values - jacobian @ change, lower, upper, price.nan_to_num(posinf=0.0))
    active = equal | (program != 0.0)
    some = jacobian[active]
    solved = torch.linalg.pinv(some @ some.mT, hermitian=True) @ (some @ change)
    multipliers = torch.zeros_like(values).masked_scatter(active, solved)
    return ClosestPoint(measured, jacobian, change, active, multipliers)


def _prices(problem: Problem, z: Tensor, atol: float) -> Tensor:
    """The prices of one row, in the shape of what is measured."""
    raise_pending()
    at = closest_point(problem, z, atol)
    if at is None:
        target = problem.args["target"]
        weights = problem.criterion.weights_like(target)
        return torch.full_like(problem.criterion.compare(weights, target)[0], torch.nan)
    length = at.change.norm()
    prices = torch.where(length > 0.0, 0.01 * at.multipliers / length, 0.0)
    return prices.to(at.measured.dtype).view(at.measured.shape)
