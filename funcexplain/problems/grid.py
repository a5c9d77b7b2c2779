"""How the rows of a grid lie in ``args``: dimensions, and rows picked out of them.

An entry of ``args`` that varies along some dimensions leads with their sizes, outermost first; one that
varies along none is shared by all rows. A grid of targets and starts thus holds its targets and its
starts, and never their product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from funcexplain.problems.checks import as_index


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


def varying_dims(dims: Sequence[RowDim], name: str) -> list[int]:
    """Which dimensions an entry varies along; it leads with these, in this order.

    Example:
        >>> dims = (RowDim("target", 3, frozenset({"target"})), RowDim("start", 2, frozenset({"x0"})))
        >>> varying_dims(dims, "x0")
        [1]
    """
    return [place for place, dim in enumerate(dims) if name in dim.varying]


def mapped_dims(dims: Sequence[RowDim], args: dict[str, Any]) -> dict[str, int | None]:
    """The ``in_dims`` with which ``torch.func.vmap`` maps what `take` returns."""
    return {name: 0 if varying_dims(dims, name) else None for name in args}


def aligned(dims: Sequence[RowDim], args: dict[str, Any], name: str) -> Tensor:
    """View an entry so that it broadcasts with others over the grid: size one where it does not vary."""
    along, value = varying_dims(dims, name), args[name]
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
    taken = {}
    for name, value in args.items():
        along = varying_dims(dims, name)
        if along:
            number, last = row_numbers(dims, along, rows), len(along) - 1
            value = optree.tree_map(lambda leaf: leaf.flatten(0, last)[number], value)  # noqa: B023
        taken[name] = value
    return taken


def by_model(
    dims: tuple[RowDim, ...], args: dict[str, Any], rows: Tensor, least: int
) -> Iterator[tuple[tuple[RowDim, ...], dict[str, Any], Tensor]]:
    """Split rows of a grid whose params vary by their models, if these have ``least`` rows on average.

    Rows of one model share its matrices, and a product with one matrix costs a fraction of a batch of
    products; with few rows per model the batch of all models is better.

    Yields:
        Dimensions and data in which params do not vary, and the numbers of the rows that they are for.
    """
    along = varying_dims(dims, "params")
    number, last = row_numbers(dims, along, rows), len(along) - 1
    models = number.unique()
    if not along or not len(rows) or len(rows) < least * len(models):
        yield dims, args, rows
        return
    shared = tuple(dim._replace(varying=dim.varying - {"params"}) for dim in dims)
    for model in models:
        params = optree.tree_map(lambda leaf: leaf.flatten(0, last)[model], args["params"])  # noqa: B023
        yield shared, {**args, "params": params}, rows[number == model]


def row_numbers(dims: Sequence[RowDim], along: list[int], rows: Tensor) -> Tensor:
    """Number rows within the smaller grid of some of the dimensions."""
    number = torch.zeros_like(rows)
    for place in along:
        inner = math.prod(dim.size for dim in dims[place + 1 :])
        number = number * dims[place].size + rows // inner % dims[place].size
    return number


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
    dim = dims[place]
    if not isinstance(item, slice):
        item = as_index(item)
        if item is None:
            raise TypeError("problem: rows are picked by int or slice, one for each dimension")
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
            before = (slice(None),) * varying_dims(dims, name).index(place)
            value = optree.tree_map(lambda leaf: leaf[(*before, index)], value)  # noqa: B023
        selected[name] = value
    return dims[:place] + left + dims[place + 1 :], selected
