"""Indices of rows: items in brackets, and the best row of each group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcexplain.problems.checks import as_index


def expand_index(index: Any, dims: Sequence[str]) -> list[Any]:
    """One item per leading dimension, with ``...`` written out; all items are checked.

    Args:
        index: an item, or a tuple of them: ints, slices, ``...``, one-dimensional int or bool tensors.
        dims: names of the row dimensions.

    Returns:
        At most one item for each of ``dims``.

    Raises:
        IndexError: for more items than dimensions.
        TypeError: for an item of another type.

    Example:
        >>> expand_index((..., 0), ("target", "start"))
        [slice(None, None, None), 0]
    """
    items = list(index) if isinstance(index, tuple) else [index]
    dots = [place for place, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1 or len(items) - len(dots) > len(dims):
        raise IndexError(f"solution: got the index {index!r} for {len(dims)} row dimensions {dims}")
    for place in dots:
        items[place : place + 1] = [slice(None)] * (len(dims) - len(items) + 1)
    for item in items:
        if drops_dim(item) and as_index(item) is None:
            raise TypeError(
                "solution: rows are picked by int, slice, ... or one-dimensional tensor, got "
                f"{type(item).__name__}"
            )
    return items


def drops_dim(item: Any) -> bool:
    """Whether an item picks one row and so removes its dimension; slices and tensors of rows do not."""
    return not (isinstance(item, slice) or (isinstance(item, Tensor) and item.ndim == 1))


def dim_number(dim: str | int, dims: Sequence[str]) -> int:
    """The number of a dimension, from its name or a number that may be negative."""
    if dim in dims:
        return dims.index(str(dim))
    if type(dim) is int and -len(dims) <= dim < len(dims):
        return dim % len(dims)
    raise ValueError(f"best: expected a dimension among {tuple(dims)} or its number, got {dim!r}")


def best_dims(
    names: Sequence[str | int], dims: Sequence[str], shape: Sequence[int], by: Any
) -> tuple[list[int], list[int]]:
    """The dimensions that `Solution.best` picks along, and those that remain; checks its arguments."""
    along = sorted({dim_number(name, dims) for name in names} if names else range(len(dims)))
    if by is not None and not isinstance(by, Tensor):
        raise TypeError(f"best: by must be a torch.Tensor, got {type(by).__name__}")
    if by is not None and tuple(by.shape) != tuple(shape):
        raise ValueError(f"best: by must have the rows' shape {tuple(shape)}, got {tuple(by.shape)}")
    if any(shape[dim] == 0 for dim in along):
        raise ValueError(f"best: expected rows along every dimension, got the shape {tuple(shape)}")
    return along, [dim for dim in range(len(dims)) if dim not in along]


def best_rows(rank: Tensor, hit: Tensor, along: Sequence[int], kept: Sequence[int]) -> Tensor:
    """Row-major number of the best row of each group: hits first, then the lowest rank.

    Args:
        rank: of every row, in the rows' shape; NaN ranks last.
        hit: where the target is hit, a bool tensor of the same shape.
        along: dimensions to pick along.
        kept: all others.

    Returns:
        Row numbers, int64, in the shape of the ``kept`` dimensions.

    Example:
        >>> best_rows(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([False, True, True]), [0], [])
        tensor(1)
    """
    numbers = torch.arange(rank.numel(), device=rank.device).reshape(rank.shape)
    ranks = rank.double().nan_to_num(nan=math.inf)
    # The dimensions to pick along become the last one.
    ranks, hit, numbers = (t.permute(*kept, *along).flatten(len(kept)) for t in (ranks, hit, numbers))
    # Stable sorts by rank, then by hit: the first of equal rows wins.
    order = ranks.argsort(dim=-1, stable=True)
    hits_first = (~hit.gather(-1, order)).to(torch.int8).argsort(dim=-1, stable=True)
    return numbers.gather(-1, order.gather(-1, hits_first))[..., 0]
