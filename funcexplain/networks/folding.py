"""Rows of a batch: mapped dimensions folded into it and taken out again, and checks that they are there.

A dim says where the independent rows of a tensor lie, ``None`` that all rows share it. For tensors that
``torch.func.vmap`` maps, dims do not count the mapped dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Dim = int | None
Dims = int | None | tuple[int | None, ...]
Tensors = tuple[Tensor, ...]


def front(t: Tensor, dim: Dim, size: int) -> Tensor:
    """Bring the mapped dimension to the front; what is not mapped is the same for all of ``size``."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def fold(t: Tensor, batch: Dim) -> Tensor:
    """Bring the mapped dimension from the front into the batch dim, the slower of the two."""
    assert batch is not None
    batch %= t.ndim - 1
    return t.movedim(0, batch).flatten(batch, batch + 1)


def unfold(t: Tensor, batch: Dim, size: int) -> Tensor:
    """Undo `fold`."""
    assert batch is not None
    batch %= t.ndim
    return t.unflatten(batch, (size, t.shape[batch] // size)).movedim(batch, 0)


def only_row(t: Tensor, row: int) -> Tensor:
    """Set all but one entry of the first dimension to zero."""
    index = torch.arange(t.shape[0], device=t.device).view(-1, *[1] * (t.ndim - 1))
    return torch.where(index == row, t, torch.zeros_like(t))


def take_row(tensors: Sequence[Tensor], dims: Sequence[Dim], row: int) -> list[Tensor]:
    """Take one row of every tensor that is mapped; ``dims`` are the mapped dimensions."""
    return [t if d is None else t.select(d, row) for t, d in zip(tensors, dims, strict=True)]


def stack_rows(rows: Sequence[Tensors]) -> Tensors:
    """Undo `take_row`, with the mapped dimension first."""
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def spread(dims: Dims, count: int) -> tuple[Dim, ...]:
    """One dim for each of ``count`` tensors."""
    return dims if isinstance(dims, tuple) else (dims,) * count


def check_rows(noun: str, tensors: Any, dims: Dims, rows: int | None = None) -> None:
    """Refuse arguments or outputs of a function that do not have the rows that their dims promise.

    Args:
        noun: ``"argument"`` or ``"output"``.
        tensors: the arguments or outputs, of any type.
        dims: where their rows should be.
        rows: how many there should be; ``None`` takes the number from the first tensor that has rows.

    Raises:
        TypeError: if they are no tuple or list of tensors.
        ValueError: if a dim is missing, or a tensor lacks it or has another number of rows in it.
    """
    name = "in_batch" if noun == "argument" else "out_batch"
    several = isinstance(tensors, tuple | list)
    if not several or not all(isinstance(t, Tensor) for t in tensors):
        kinds = [type(t).__name__ for t in tensors] if several else type(tensors).__name__
        remedy = "; bind what is no tensor by functools.partial" if noun == "argument" else ""
        raise TypeError(f"opaque: every {noun} of fn must be a tensor, got {kinds}{remedy}")
    if isinstance(dims, tuple) and len(dims) != len(tensors):
        raise ValueError(f"opaque: {name}={dims} must hold one dim for each of {len(tensors)} {noun}s")
    for index, (t, dim) in enumerate(zip(tensors, spread(dims, len(tensors)), strict=True)):
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
