"""Jacobian of what a target measures: of one row by torch.func, or by one plain reverse pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from funcexplain.networks.checks import is_out_of_memory
from funcexplain.networks.network import slope
from funcexplain.networks.rounding import agree
from funcexplain.problems.problem import Args
from funcexplain.solvers.gradient import is_readable
from funcexplain.solvers.state import Evaluate, Evaluation, Objective
from funcexplain.solvers.structure import column_jacobian

Measure = Callable[[Tensor, Args], Tensor]
# Evaluations from one check of a Jacobian's structure to the next; the first one is checked.
_CHECK_EVERY = 4


def with_jacobian(objective: Objective, measure: Measure) -> Evaluate:
    """Evaluate one row with its Jacobian by torch.func: pure, so that it can be mapped.

    Args:
        objective: ``(z, args) -> (value, (loss, weights))``.
        measure: ``(weights, args) -> measured``, K numbers.

    Returns:
        Function ``(z, args) -> Evaluation`` with slopes ``(K, N)`` for N entries searched.

    Example:
        >>> fn = lambda z, args: (z.sum(), (z.sum(), 2.0 * z))
        >>> with_jacobian(fn, lambda weights, args: weights)(torch.ones(2), {}).slopes
        tensor([[2., 0.],
                [0., 2.]])
    """

    def evaluate(z: Tensor, args: Args) -> Evaluation:
        def measured(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            value, (loss, weights) = objective(z, args)
            return measure(weights, args).flatten(), (value, loss, weights)

        jacobian, (value, loss, weights) = torch.func.jacrev(measured, has_aux=True)(z)
        return Evaluation(value, loss, weights, jacobian.flatten(1))

    return evaluate


def with_backward_jacobian(objective: Objective, measure: Measure) -> Evaluate:
    """Evaluate with the Jacobian by one forward pass and one batched reverse pass.

    Args:
        objective: ``(z, args) -> (value, (loss, weights))``, of one question, or of rows that depend on
            no others.
        measure: ``(weights, args) -> measured``, of rows, too.

    Returns:
        Function ``(z, args) -> Evaluation``, all detached.

    Example:
        >>> fn = lambda z, args: (z.sum(1), (z.sum(1), 2.0 * z))
        >>> with_backward_jacobian(fn, lambda weights, args: weights)(torch.ones(3, 2), {}).slopes.shape
        torch.Size([3, 2, 2])
    """
    maps: bool | None = None  # whether directions share a reverse pass, once that was tried
    columns: bool | None = None  # whether each asset is scored from its own column, likewise
    count = 0

    def evaluate(z: Tensor, args: Args) -> Evaluation:
        nonlocal maps, columns, count
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value, (loss, weights) = objective(z, args)
            rows = value.ndim
            measured = measure(weights, args).flatten(rows)
        readable, slopes = is_readable(measured), None
        if columns is not False and (readable or columns):
            checks = readable and count % _CHECK_EVERY == 0
            slopes = column_jacobian(measured, weights, z, args.get("factor"), checks=checks)
            columns, count = slopes is not None, count + 1
        if slopes is None:
            # Of rows, the pullback of their sum: each depends on its own entries alone.
            directions = torch.eye(measured.shape[-1], dtype=measured.dtype, device=measured.device)
            if rows:
                directions = directions[:, None].expand(-1, *measured.shape)
            jacobian, maps = _pull_back(measured, z, directions, maps)
            slopes = jacobian.flatten(rows + 1).movedim(0, rows)
        return Evaluation(value.detach(), loss.detach(), weights.detach(), slopes)

    return evaluate


def _pull_back(
    measured: Tensor, z: Tensor, directions: Tensor, maps: bool | None
) -> tuple[Tensor, bool | None]:
    """The pullback of each direction, and whether they can share a pass.

    A pass of several directions is mapped. It is held against a plain one of a combination before it is
    believed; a custom function that cannot be mapped, or not correctly, has a pass for each direction.
    """
    if not measured.requires_grad:  # the network ignores its input, or cuts the graph
        return z.detach().new_zeros(len(directions), *z.shape), maps

    def pull(direction: Tensor, batched: bool = False) -> Tensor:
        return slope(measured, z, direction, batched=batched, retain_graph=True)

    if maps is not False:
        try:
            jacobian = pull(directions, batched=True)
            if maps is None and is_readable(jacobian):
                # Not of equal parts: the weights of a portfolio sum to one, whatever it depends on.
                parts = torch.arange(len(directions)).to(measured).cos().view(-1, *[1] * measured.ndim)
                combined = (parts.view(-1, *[1] * z.ndim) * jacobian).sum(0)
                maps = agree(combined, pull((parts * directions).sum(0)))
            if maps is not False:
                return jacobian, maps
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
    return torch.stack([pull(direction) for direction in directions]), False
