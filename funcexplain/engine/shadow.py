"""What a target costs at the closest market: the multipliers of its active bounds."""

from __future__ import annotations

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

# A bound is active where a value is beyond it, or within this fraction of the tolerance.
_CLOSE = 0.2


def shadow_prices(solution: Solution, problem: Problem, *, atol: float = 1e-3) -> Tensor:
    """How much further away the closest market is if the target asks for one percentage point more.

    At the closest market ``z - z_r = J' y``, where ``J`` is the Jacobian of what the target measures and
    ``y`` are the multipliers of its active bounds, zero for the others. If such a bound ``b`` moves, the
    distance changes by ``d|z - z_r| / db = y / |z - z_r|``. Weights that sum to one share a constant:
    the prices of a whole allocation sum to zero, and only their differences have a meaning.

    Args:
        solution: the answer of `closest`, or of its rows.
        problem: the question or grid.
        atol: the tolerance of the answer.

    Returns:
        Sigmas (units of the search space) per percentage point, of each number that the target
        measures, ``(K,)``, of an allocation ``(A,)``, with the problem's rows in front. Positive where
        a higher value is further away, zero where no bound is active, NaN where the target is missed.

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
    check_answer("shadow_prices", solution, problem)
    atol = check_number("shadow_prices", "atol", atol, minimum=0.0, strict=True)
    if problem.project is not identity:
        raise ValueError(
            "shadow_prices: problem must have no bounds that project, got one with clip; box bounds the "
            "search by a change of variables"
        )
    rows = np.ndindex(*problem.shape)
    with deferred_interrupts(), torch.no_grad():
        found = [_prices(problem[row] if row else problem, solution.z[row], atol) for row in rows]
    if not found:
        raise ValueError(f"shadow_prices: expected at least one row, got a grid of {problem.shape}")
    return torch.stack(found).reshape(*problem.shape, *found[0].shape)


def _prices(problem: Problem, z: Tensor, atol: float) -> Tensor:
    """The prices of one row, in the shape of what is measured."""
    raise_pending()
    args, criterion = problem.args, problem.criterion
    with bound(problem.apply, args["params"]):
        evaluate = with_backward_jacobian(make_objective(problem), measure_of(problem))
        at = evaluate(z, args)
    measured = criterion.compare(at.weights, args["target"])[0]
    if not bool(criterion.error(at.weights, args["target"], atol=atol) <= atol):
        return torch.full_like(measured, torch.nan)
    lower, upper, _ = (each.flatten().to(WIDE) for each in criterion.bounds(args["target"]))
    values, jacobian = measured.flatten().to(WIDE), at.slopes.to(WIDE)
    change = (z - problem.encode(args["reference"], args)).flatten().to(WIDE)
    at_lower, at_upper = values <= lower + _CLOSE * atol, values >= upper - _CLOSE * atol
    # Multipliers are positive at a lower bound, negative at an upper one, of any sign at an equality.
    sign = torch.where(lower == upper, 0.0, at_lower.to(WIDE) - at_upper.to(WIDE))
    active = at_lower | at_upper | (lower == upper)
    prices = torch.zeros_like(values)
    while active.any():
        some = jacobian[active]
        solved = torch.linalg.pinv(some @ some.mT, hermitian=True) @ (some @ change)
        prices = torch.zeros_like(values).masked_scatter(active, solved)
        wrong = active & (prices * sign < 0.0)
        if not wrong.any():
            break
        active = active & ~wrong
        prices = torch.where(active, prices, 0.0)
    length = change.norm()
    prices = torch.where(length > 0.0, 0.01 * prices / length, 0.0)
    return prices.to(measured.dtype).view(measured.shape)
