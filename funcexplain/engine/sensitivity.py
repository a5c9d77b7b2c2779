"""How the closest answer moves with its target and its network, by implicit differentiation.

At a closest answer ``z - z_r = J' y`` and ``g(z) = b``, for the active bounds ``b`` with multipliers
``y``. With ``H = I - sum y_i d2 g_i / dz2``, changes of ``b`` and of the params move it by

    ``H dz - J' dy = d(J' y) / dparams``   and   ``J dz = db - dg / dparams``,

one linear system for all of them.

References:
    A. V. Fiacco (1976), Sensitivity Analysis for Nonlinear Programming Using Penalty Methods,
    https://doi.org/10.1007/BF01580677
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from torch import Tensor

from funcexplain.engine.shadow import ClosestPoint, check_closest, closest_point
from funcexplain.networks.network import bound, deferred_interrupts, raise_pending
from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.solution import Solution
from funcexplain.solvers.damped_step import WIDE
from funcexplain.solvers.gauss_newton import measure_of
from funcexplain.solvers.gradient import make_objective

# A point is an answer of `closest` if ``z - z_r`` and ``J' y`` differ by at most this share.
_STATIONARY = 0.1
_MAX_STEPS = 20
# Rows of a Hessian that are computed at a time.
_CHUNK = 128


class Sensitivity(NamedTuple):
    """Derivatives of the closest answer, with the problem's rows in front.

    Attributes:
        target: of the window with respect to each bound of the target, ``(K, C, L, A)``; for an
            allocation ``(A, C, L, A)``.
        params: of the window along the given change of the params, ``(C, L, A)``; None without one.
    """

    target: Tensor
    params: Tensor | None


def sensitivity(
    solution: Solution, problem: Problem, *, params: Any = None, atol: float = 1e-3
) -> Sensitivity:
    """Differentiate the closest answer by its target, and along a change of the network's params.

    ``target[k]`` is ``dx* / db_k`` for the bound ``b_k``: zero where it is not active. Weights that sum
    to one can only move together: for an allocation, only combinations that sum to zero are meaningful.
    With ``params``, ``x*`` moves by about `Sensitivity.params` if these are added to the network's own,
    for example by more training. The network must have second derivatives almost everywhere.

    Args:
        solution: the answer of `closest`, or of its rows; best with a small ``atol``.
        problem: the question or grid.
        params: a change of the params, such as ``new - old`` for each tensor: like ``args["params"]`` of
            one row.
        atol: the tolerance of the answer.

    Returns:
        The derivatives; NaN where the target is missed or the answer is not a closest one, but for
            instance a saddle point near which the search ended.

    Raises:
        TypeError, ValueError: if the solution does not answer the problem, ``params`` do not have the
            structure of the problem's, ``atol`` is not positive, or the problem has bounds that project.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
        >>> _ = torch.nn.init.eye_(network[1].weight)
        >>> p = fe.problem(network, fe.targets.at_least(0, 1.0), torch.zeros(1, 1, 2))
        >>> fe.sensitivity(fe.closest(p), p).target.shape
        torch.Size([1, 1, 1, 2])
    """
    atol = check_closest("sensitivity", solution, problem, atol)
    rows = np.ndindex(*problem.shape)
    by_target, by_params = [], []
    with deferred_interrupts(), torch.no_grad():
        for index in rows:
            row = problem[index] if index else problem
            change = None if params is None else _check_change(params, row.args["params"])
            moves = _derivatives(row, solution.z[index], change, atol)
            by_target.append(moves[: None if change is None else -1])
            by_params.append(moves[-1])

    def stacked(each: list[Tensor]) -> Tensor:
        return torch.stack(each).reshape(*problem.shape, *each[0].shape)

    return Sensitivity(stacked(by_target), None if params is None else stacked(by_params))


def _check_change(change: Any, params: Any) -> list[Tensor | None]:
    """The change of each leaf of the params, None for those that are not floating."""
    leaves, tree = optree.tree_flatten(params)
    try:
        changes: list[Any] = tree.flatten_up_to(change)
    except ValueError as error:
        raise ValueError(
            "sensitivity: params must have the structure of the problem's args['params'], got another: "
            f"{error}"
        ) from None
    for own, given in zip(leaves, changes, strict=True):
        if _is_floating(own) and not (isinstance(given, Tensor) and given.shape == own.shape):
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(
                f"sensitivity: params must have the shapes of the problem's, {tuple(own.shape)}, got "
                f"{got}"
            )
    return [g.to(o) if _is_floating(o) else None for o, g in zip(leaves, changes, strict=True)]


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _derivatives(problem: Problem, z: Tensor, change: list[Tensor | None] | None, atol: float) -> Tensor:
    """Derivatives of one row's window: by each number measured, then along the change of params."""
    raise_pending()
    at, args = closest_point(problem, z, atol), problem.args
    needed = {name: value for name, value in args.items() if name != "params"}
    measure, objective = measure_of(problem), make_objective(problem)

    def measured(z: Tensor, args: Args) -> Tensor:
        return measure(objective(z, args)[1][1], args).flatten()

    def curvature(z: Tensor, y: Tensor) -> Tensor:
        slope = torch.func.grad(lambda z: (y.to(z) * measured(z, args)).sum())
        hessian = torch.func.jacrev(slope, chunk_size=_CHUNK)(z).reshape(z.numel(), -1)
        return torch.eye(z.numel(), dtype=WIDE, device=z.device) - hessian.to(WIDE)

    with bound(problem.apply, args["params"]):
        count = measured(z, args).numel()
        size = count + (change is not None)
        unknown = args["x0"].new_full((size, *args["x0"].shape), torch.nan)
        if at is None or not _residual(at).norm() <= _STATIONARY * at.change.norm():
            return unknown
        bends = curvature(z, at.multipliers)
        refined = _refine(problem, z, at, bends, atol)
        if refined is not None:
            z, at = refined
            bends = curvature(z, at.multipliers)
        pull = torch.zeros(z.numel(), size, dtype=WIDE, device=z.device)
        shift = torch.eye(count, size, dtype=WIDE, device=z.device)
        if change is not None:
            steps = _along(measured, z, at.multipliers.to(z), args, change)
            pull[:, -1], shift[:, -1] = steps[0].flatten().to(WIDE), -steps[1].to(WIDE)
    moves = _solve(bends, at.jacobian[at.active], pull, shift[at.active]).to(z.dtype)
    if moves.isnan().any():
        return unknown

    def move(dz: Tensor) -> Tensor:
        return torch.func.jvp(lambda z: problem.decode(z, needed), (z,), (dz.view(z.shape),))[1]

    return torch.stack([move(dz) for dz in moves.T])


def _refine(
    problem: Problem, z: Tensor, at: ClosestPoint, bends: Tensor, atol: float
) -> tuple[Tensor, ClosestPoint] | None:
    """Newton steps with one Hessian to the answer that `closest` stops near; None if they fail."""
    wanted, start = at.measured.flatten(), _residual(at).norm()
    for _ in range(_MAX_STEPS):
        residual = _residual(at).norm()
        if residual <= torch.finfo(z.dtype).eps ** 0.5 * at.change.norm():
            return z, at
        missing = (wanted - at.measured.flatten()).to(WIDE)[at.active, None]
        step = _solve(bends, at.jacobian[at.active], -_residual(at)[:, None], missing)
        z = z + step.to(z.dtype).view(z.shape)
        following = closest_point(problem, z, 1.5 * atol)
        if following is None or not torch.equal(following.active, at.active):
            return None
        at = following
    return (z, at) if _residual(at).norm() < start else None


def _residual(at: ClosestPoint) -> Tensor:
    """The gradient of the Lagrangian, zero at a closest answer."""
    return at.change - at.jacobian.mT @ at.multipliers


def _along(
    measured: Callable[[Tensor, Args], Tensor],
    z: Tensor,
    y: Tensor,
    args: Args,
    change: list[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Derivatives of ``J' y`` and of what is measured along a change of params, by reverse passes."""
    leaves, tree = optree.tree_flatten(args["params"])
    places = [place for place, step in enumerate(change) if step is not None]

    def effect(z: Tensor, v: Tensor) -> Tensor:
        # Linear in v: the slope in v is the derivative of what is measured.
        def weighted(own: list[Tensor]) -> Tensor:
            filled = list(leaves)
            for place, leaf in zip(places, own, strict=True):
                filled[place] = leaf
            params = optree.tree_unflatten(tree, filled)
            return (v * measured(z, {**args, "params": params})).sum()

        slopes = torch.func.grad(weighted)([leaves[place] for place in places])
        steps = [change[place] for place in places]
        return sum((s * d).sum() for s, d in zip(slopes, steps, strict=True) if d is not None)

    return torch.func.grad(effect, argnums=(0, 1))(z, y)


def _solve(curvature: Tensor, jacobian: Tensor, pull: Tensor, shift: Tensor) -> Tensor:
    """Solve ``H dz - J' dy = pull`` and ``J dz = shift`` for ``dz``; rows of ``J`` may be dependent.

    ``dz`` is the shortest step to ``J dz = shift`` and one along the bounds, where ``H`` is positive
    definite at a strict minimum; NaN where it is not.
    """
    inverse = jacobian.mT @ torch.linalg.pinv(jacobian @ jacobian.mT, hermitian=True)
    across = inverse @ jacobian
    along = torch.eye(len(across), dtype=across.dtype, device=across.device) - across
    factor, failed = torch.linalg.cholesky_ex(along @ curvature @ along + across)
    shortest = inverse @ shift
    rest = torch.cholesky_solve(along @ (pull - curvature @ shortest), factor)
    return torch.where(failed == 0, shortest + along @ rest, torch.nan)
