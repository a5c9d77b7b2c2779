"""Folding of mapped dimensions into a batch dimension and back, and checks of batch dimensions.

A dim is the dimension of a tensor's independent rows, ``None`` if all rows share the tensor. For tensors
mapped by ``torch.func.vmap``, dims do not count the mapped dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Dim = int | None
Dims = int | None | tuple[int | None, ...]
Tensors = tuple[Tensor, ...]


def move_to_front(t: Tensor, dim: Dim, size: int) -> Tensor:
    """Move the mapped dimension to the front; expand a tensor that is not mapped."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def fold(t: Tensor, batch: Dim, skip: int = 0) -> Tensor:
    """Fold the mapped dimension, the first, into the batch dim, as the slower of the two.

    The batch dim does not count the mapped dimension, nor the ``skip`` dimensions after it.
    """
    assert batch is not None
    batch = batch % (t.ndim - 1 - skip) + skip
    return t.movedim(0, batch).flatten(batch, batch + 1)


def unfold(t: Tensor, batch: Dim, size: int, skip: int = 0) -> Tensor:
    """Undo `fold`."""
    assert batch is not None
    batch = batch % (t.ndim - skip) + skip
    return t.unflatten(batch, (size, t.shape[batch] // size)).movedim(batch, 0)


def mask_other_rows(t: Tensor, row: int) -> Tensor:
    """Set all rows of the first dimension but one to zero."""
    index = torch.arange(t.shape[0], device=t.device).view(-1, *[1] * (t.ndim - 1))
    return torch.where(index == row, t, torch.zeros_like(t))


def select_row(tensors: Sequence[Tensor], dims: Sequence[Dim], row: int) -> list[Tensor]:
    """Select one row of every mapped tensor; ``dims`` are the mapped dimensions."""
    return [t if d is None else t.select(d, row) for t, d in zip(tensors, dims, strict=True)]


def narrow_rows(tensors: Sequence[Tensor], dims: Sequence[Dim], row: int, count: int) -> list[Tensor]:
    """Select the rows that belong to one of ``count`` folded rows."""
    return [
        t if d is None else t.narrow(d, row * (t.shape[d] // count), t.shape[d] // count)
        for t, d in zip(tensors, dims, strict=True)
    ]


def stack_rows(rows: Sequence[Tensors]) -> Tensors:
    """Undo `select_row`, with the mapped dimension first."""
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def dims_per_tensor(dims: Dims, count: int) -> tuple[Dim, ...]:
    """One dim for each of ``count`` tensors."""
    return dims if isinstance(dims, tuple) else (dims,) * count


def check_rows(noun: str, tensors: Any, dims: Dims, rows: int | None = None) -> None:
    """Raise unless a function's arguments or outputs (``noun``) are tensors with ``rows`` in their dims.

    The default number of rows is that of the first tensor with rows.
    """
    name = "in_batch" if noun == "argument" else "out_batch"
    several = isinstance(tensors, tuple | list)
    if not several or not all(isinstance(t, Tensor) for t in tensors):
        kinds = [type(t).__name__ for t in tensors] if several else type(tensors).__name__
        remedy = "; bind other arguments with functools.partial" if noun == "argument" else ""
        raise TypeError(f"opaque: every {noun} of fn must be a tensor, got {kinds}{remedy}")
    if isinstance(dims, tuple) and len(dims) != len(tensors):
        raise ValueError(f"opaque: {name}={dims} must hold one dim for each of {len(tensors)} {noun}s")
    for index, (t, dim) in enumerate(zip(tensors, dims_per_tensor(dims, len(tensors)), strict=True)):
        if dim is None:
            continue
        if not -t.ndim <= dim < t.ndim:
            raise ValueError(f"opaque: {name} is {dim} for {noun} {index}, of shape {tuple(t.shape)}")
        rows = t.shape[dim] if rows is None else rows
        if t.shape[dim] != rows:
            raise ValueError(
                f"opaque: expected {rows} rows in dim {dim} of {noun} {index}, as many as in the first "
                f"batched argument, got shape {tuple(t.shape)}; correct {name}, or the function"
            )
