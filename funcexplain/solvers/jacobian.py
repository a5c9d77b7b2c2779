"""Jacobian of what a target measures: of one question by torch.func, of rows by one reverse pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.chunks import is_out_of_memory
from funcexplain.solvers.gradient import Objective

Measure = Callable[[Tensor, Any], Tensor]


class Linearized(NamedTuple):
    """A point's evaluation to first order; of many rows, all lead with them.

    Attributes:
        loss: misfit.
        weights: allocation.
        jacobian: slopes of what is measured of the weights, ``(K, N)`` for N entries searched.
    """

    loss: Tensor
    weights: Tensor
    jacobian: Tensor


def linearize(fn: Objective, measure: Measure) -> Callable[[Tensor, Any], Linearized]:
    """Linearize one question by torch.func: pure, so that it can be mapped.

    Args:
        fn: ``(z, args) -> (value, (loss, weights))``.
        measure: ``(weights, args) -> measured``, K numbers.

    Returns:
        Function ``(z, args) -> Linearized``.

    Example:
        >>> fn = lambda z, args: (z.sum(), (z.sum(), 2.0 * z))
        >>> linearize(fn, lambda weights, args: weights)(torch.ones(2), {}).jacobian
        tensor([[2., 0.],
                [0., 2.]])
    """

    def linearized(z: Tensor, args: Any) -> Linearized:
        def measured(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            _, (loss, weights) = fn(z, args)
            return measure(weights, args).flatten(), (loss, weights)

        jacobian, (loss, weights) = torch.func.jacrev(measured, has_aux=True)(z)
        return Linearized(loss, weights, jacobian.flatten(1))

    return linearized


def linearize_rows(fn: Objective, measure: Measure) -> Callable[[Tensor, Any], Linearized]:
    """Linearize rows, which depend on no others, by one forward pass and one batched reverse pass.

    Args:
        fn: ``(z, args) -> (value, (loss, weights))`` of rows.
        measure: ``(weights, args) -> measured`` of rows.

    Returns:
        Function ``(z, args) -> Linearized``, all detached.

    Example:
        >>> fn = lambda z, args: (z.sum(1), (z.sum(1), 2.0 * z))
        >>> linearize_rows(fn, lambda weights, args: weights)(torch.ones(3, 2), {}).jacobian.shape
        torch.Size([3, 2, 2])
    """

    def linearized(z: Tensor, args: Any) -> Linearized:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            _, (loss, weights) = fn(z, args)
            measured = measure(weights, args).flatten(1)
            # The sum over rows: each depends on its own entries alone.
            directions = torch.eye(measured.shape[1], dtype=measured.dtype, device=measured.device)
            directions = directions[:, None].expand(-1, *measured.shape)
            jacobian = _pulled_back(measured, z, directions)
        return Linearized(loss.detach(), weights.detach(), jacobian.flatten(2).movedim(0, 1))

    return linearized


def _pulled_back(measured: Tensor, z: Tensor, directions: Tensor) -> Tensor:
    """The pullback of each direction."""
    if not measured.requires_grad:  # the network ignores its input, or cuts the graph
        return z.detach().new_zeros(len(directions), *z.shape)

    def pull(direction: Tensor, batched: bool = False) -> Tensor:
        (slope,) = torch.autograd.grad(
            measured, z, direction, retain_graph=True, is_grads_batched=batched, materialize_grads=True
        )
        return slope

    try:
        return pull(directions, batched=True)
    except RuntimeError as error:  # a custom function that cannot be mapped: one by one
        if is_out_of_memory(error):
            raise
        return torch.stack([pull(direction) for direction in directions])
