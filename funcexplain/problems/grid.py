"""How the rows of a grid lie in ``args``: dimensions, and rows picked out of them.

An entry of ``args`` that varies along some dimensions leads with their sizes, outermost first; one that
varies along none is shared by all rows. A grid of targets and starts thus holds its targets and its
starts, and never their product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor


class RowDim(NamedTuple):
    """One dimension of a grid of rows.

    Attributes:
        name: what the dimension is called.
        size: rows along it.
        varying: names of the entries of ``args`` that vary along it.
    """

    name: str
    size: int
    varying: frozenset[str]


def places(dims: Sequence[RowDim], name: str) -> list[int]:
    """Which dimensions an entry varies along; it leads with these, in this order.

    Example:
        >>> dims = (RowDim("target", 3, frozenset({"target"})), RowDim("start", 2, frozenset({"x0"})))
        >>> places(dims, "x0")
        [1]
    """
    return [place for place, dim in enumerate(dims) if name in dim.varying]


def mapped_dims(dims: Sequence[RowDim], args: dict[str, Any]) -> dict[str, int | None]:
    """The ``in_dims`` with which ``torch.func.vmap`` maps what `take` returns."""
    return {name: 0 if places(dims, name) else None for name in args}


def aligned(dims: Sequence[RowDim], args: dict[str, Any], name: str) -> Tensor:
    """View an entry so that it broadcasts with others over the grid: size one where it does not vary."""
    along, value = places(dims, name), args[name]
    lead = [dim.size if place in along else 1 for place, dim in enumerate(dims)]
    return value.view(*lead, *value.shape[len(along) :])


def take(dims: Sequence[RowDim], args: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Take rows by their number in row-major order.

    Args:
        dims: dimensions of the grid.
        args: data of the grid.
        rows: numbers of rows, int64, ``(B,)``.

    Returns:
        Data in which each entry that varies leads with ``B``.

    Example:
        >>> dims = (RowDim("target", 3, frozenset({"target"})), RowDim("start", 2, frozenset({"x0"})))
        >>> args = {"target": torch.arange(3), "x0": torch.arange(2), "seed": torch.tensor(7)}
        >>> take(dims, args, torch.tensor([0, 3]))
        {'target': tensor([0, 1]), 'x0': tensor([0, 1]), 'seed': tensor(7)}
    """
    sizes = [dim.size for dim in dims]

    def numbers(along: list[int]) -> Tensor:
        """Row numbers within the smaller grid of some of the dimensions."""
        number = torch.zeros_like(rows)
        for place in along:
            number = number * sizes[place] + rows // math.prod(sizes[place + 1 :]) % sizes[place]
        return number

    taken = {}
    for name, value in args.items():
        along = places(dims, name)
        if along:
            number, last = numbers(along), len(along) - 1
            value = optree.tree_map(lambda leaf: leaf.flatten(0, last)[number], value)  # noqa: B023
        taken[name] = value
    return taken


def select(
    dims: tuple[RowDim, ...], args: dict[str, Any], place: int, item: Any
) -> tuple[tuple[RowDim, ...], dict[str, Any]]:
    """Select along one dimension: an int takes the dimension away, a slice keeps part of it.

    Args:
        dims: dimensions of the grid.
        args: data of the grid.
        place: number of the dimension.
        item: int or slice.

    Returns:
        Dimensions and data of what is left.

    Raises:
        IndexError: if there is no such row.
        TypeError: if ``item`` is neither int nor slice.
    """
    if isinstance(item, bool) or not (isinstance(item, slice) or hasattr(item, "__index__")):
        raise TypeError(f"problem: rows are picked by int or slice, got {type(item).__name__}")
    dim = dims[place]
    if isinstance(item, slice):
        index: Any = torch.tensor(range(dim.size)[item], dtype=torch.int64)
        left: tuple[RowDim, ...] = (dim._replace(size=len(index)),)
    else:
        if not -dim.size <= item < dim.size:
            raise IndexError(f"problem: no row {item} along {dim.name}, which has {dim.size}")
        index, left = item, ()
    selected = {}
    for name, value in args.items():
        if name in dim.varying:
            before = (slice(None),) * places(dims, name).index(place)
            value = optree.tree_map(lambda leaf: leaf[(*before, index)], value)  # noqa: B023
        selected[name] = value
    return dims[:place] + left + dims[place + 1 :], selected
