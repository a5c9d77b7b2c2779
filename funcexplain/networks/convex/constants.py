"""Searches whose answers are constants: invisible to derivatives, at home under ``vmap``.

A convex program is solved in two moves. The first, a search, finds which weights sit on a bound; it
loops, compacts and stops early, so it must see plain tensors and decide by ``.item()``. Locally its
answer does not change, so no derivative passes through it. The second move recomputes the solution from
that answer with ordinary operations of torch, and carries all derivatives. `constant` makes the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Search = Callable[..., tuple[Tensor, ...]]


class _Constant(torch.autograd.Function):
    """Runs a search on plain tensors; a mapped dimension becomes one more leading dimension."""

    @staticmethod
    def forward(search: Search, *tensors: Tensor) -> tuple[Tensor, ...]:
        return search(*(tensor.contiguous() for tensor in tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.num_inputs = len(inputs)
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, ...]:
        del grads
        return (None,) * ctx.num_inputs

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], search: Search, *tensors: Tensor) -> Any:
        stacked = (
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims[1:], strict=True)
        )
        output = _Constant.apply(search, *stacked)
        return output, (0,) * len(output)


def constant(search: Search, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Call a search on detached tensors, under any torch.func transform.

    Args:
        search: function of tensors that share their leading dimensions, whatever these are, to a tuple
            of tensors that begin with the same dimensions. It may decide by values.
        tensors: its arguments, ``(..., *)``.

    Returns:
        What ``search`` returns; derivatives of any order and mode are zero.
    """
    return _Constant.apply(search, *(tensor.detach() for tensor in tensors))
