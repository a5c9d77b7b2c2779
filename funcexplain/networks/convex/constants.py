"""Searches whose results are constants for derivatives, and which work under ``vmap``.

A convex program is solved in two stages. The first, a search, finds which weights are on a bound; it
loops, compacts and stops early, so it needs plain tensors and branches on values. Its result is locally
constant, so its derivative is zero. The second stage recomputes the solution from that result with
ordinary operations of torch, which carry all derivatives. `constant` runs the first stage.
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
    """Call a search on detached tensors, under any torch.func transform; all derivatives are zero.

    Its arguments and results are tensors with the same leading dimensions. It may branch on values.
    """
    return _Constant.apply(search, *(tensor.detach() for tensor in tensors))
