"""The layout of a grid's rows in ``args``, and how rows are selected.

An entry of ``args`` begins with the dimensions along which it varies, outermost first; an entry that
does not vary is shared by all rows. A grid of targets and starts thus stores its targets and its starts,
and never their product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor
from torch._C import _functorch

from funcexplain.problems.checks import as_index


class RowDim(NamedTuple):
    """One dimension of a grid of rows.

    Attributes:
        name: name of the dimension.
        size: number of rows along it.
        varying: names of the entries of ``args`` that vary along it.
    """

    name: str
    size: int
    varying: frozenset[str]


class Rule(NamedTuple):
    """A condition on data of ``args``, for every row.

    Attributes:
        names: names of the entries; each broadcasts to one window.
        broken: from these entries to a bool tensor, True where the rule is broken.
        text: the condition, and how to report a violation.
    """

    names: tuple[str, ...]
    broken: Callable[..., Tensor]
    text: str


def check_rules(where: str, rules: Iterable[Rule], dims: Sequence[RowDim], args: dict[str, Any]) -> None:
    """Raise if a rule is broken in a row of the outermost dimension; NaN breaks none."""
    for rule in rules:
        if dims[0].varying.isdisjoint(rule.names):
            continue
        entries = [aligned(dims, args, name, ndim=3) for name in rule.names]
        rows = rule.broken(*entries).flatten(1).any(1).nonzero()
        if len(rows):
            raise ValueError(f"{where}: {rule.text} in row {int(rows[0])}")


def varying_dims(dims: Sequence[RowDim], name: str) -> list[int]:
    """The dimensions along which an entry varies; it begins with these, in this order.

    Example:
        >>> dims = (RowDim("target", 3, frozenset({"target"})), RowDim("start", 2, frozenset({"x0"})))
        >>> varying_dims(dims, "x0")
        [1]
    """
    return [index for index, dim in enumerate(dims) if name in dim.varying]


def mapped_dims(dims: Sequence[RowDim], args: dict[str, Any]) -> dict[str, int | None]:
    """The ``in_dims`` of ``torch.func.vmap`` for the data that `take_rows` returns."""
    return {name: 0 if varying_dims(dims, name) else None for name in args}


def aligned(dims: Sequence[RowDim], args: dict[str, Any], name: str, *, ndim: int = 0) -> Tensor:
    """A view of an entry that broadcasts over the grid, with size one where it does not vary.

    Its own dimensions are filled up to ``ndim``.
    """
    along, value = varying_dims(dims, name), args[name]
    lead = [dim.size if index in along else 1 for index, dim in enumerate(dims)]
    own = value.shape[len(along) :]
    return value.reshape(*lead, *[1] * (ndim - len(own)), *own)


def take_rows(dims: Sequence[RowDim], args: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """Take rows by their numbers, int64 ``(B,)``, in row-major order.

    Returns:
        Data in which each varying entry begins with a dimension of size ``B``.

    Example:
        >>> dims = (RowDim("target", 3, frozenset({"target"})), RowDim("start", 2, frozenset({"x0"})))
        >>> args = {"target": torch.arange(3), "x0": torch.arange(2), "seed": torch.tensor(7)}
        >>> take_rows(dims, args, torch.tensor([0, 3]))
        {'target': tensor([0, 1]), 'x0': tensor([0, 1]), 'seed': tensor(7)}
    """
    selected = {}
    for name, value in args.items():
        along = varying_dims(dims, name)
        if along:
            number, last = row_numbers(dims, along, rows), len(along) - 1
            value = optree.tree_map(lambda leaf: leaf.flatten(0, last)[number], value)  # noqa: B023
        selected[name] = value
    return selected


def map_rows(function: Callable[..., Any], *dims: int | dict[str, int | None]) -> Callable[..., Any]:
    """``torch.func.vmap`` of rows that lead, without its checks, which cost as much as a small network.

    Args:
        function: of one row; it returns a tree of tensors.
        dims: for each argument 0, if all of its tensors lead with the rows, or `mapped_dims`.

    Example:
        >>> scaled = map_rows(lambda z, args: z * args["factor"], 0, {"factor": None})
        >>> scaled(torch.tensor([1.0, 2.0]), {"factor": torch.tensor(3.0)})
        tensor([3., 6.])
    """

    def mapped(*values: Any) -> Any:
        _load_rules()
        parts: Any = []
        for value, along in zip(values, dims, strict=True):
            names = (
                [name for name, dim in along.items() if dim == 0] if isinstance(along, dict) else None
            )
            parts.append(value if names is None else {name: value[name] for name in names})
        found: Any = optree.tree_flatten(parts)
        leaves, tree = found[:2]
        size = len(leaves[0])
        with torch.autograd.graph.disable_saved_tensors_hooks("torch.func.vmap supports no such hooks"):
            level = _functorch._vmap_increment_nesting(size, "error")
            try:
                rows = [_functorch._add_batch_dim(leaf, 0, level) for leaf in leaves]
                inside = [
                    value | row if isinstance(along, dict) else row
                    for value, row, along in zip(
                        values, optree.tree_unflatten(tree, rows), dims, strict=True
                    )
                ]
                out = function(*inside)
                return optree.tree_map(lambda t: _functorch._remove_batch_dim(t, level, size, 0), out)
            finally:
                _functorch._vmap_decrement_nesting()

    return mapped


@cache
def _load_rules() -> None:
    """Load rules of ``torch.func.vmap`` that are written in Python."""
    torch.func.vmap(torch.neg)(torch.zeros(1))


def by_model(
    dims: tuple[RowDim, ...], args: dict[str, Any], rows: Tensor, least: int
) -> Iterator[tuple[tuple[RowDim, ...], dict[str, Any], Tensor]]:
    """Group rows by model if params vary and models have at least ``least`` rows on average.

    A product of all rows of one model with its matrix costs a fraction of a batch of products; with few
    rows per model, one batch of all models is faster.

    Yields:
        Dimensions and data in which params do not vary, and the row numbers of the group.
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
    """Row numbers in the sub-grid spanned by the dimensions ``along``."""
    number = torch.zeros_like(rows)
    for index in along:
        inner = math.prod(dim.size for dim in dims[index + 1 :])
        number = number * dims[index].size + rows // inner % dims[index].size
    return number


def select(
    dims: tuple[RowDim, ...], args: dict[str, Any], place: int, item: Any
) -> tuple[tuple[RowDim, ...], dict[str, Any]]:
    """Select along the dimension ``place``: an int removes the dimension, a slice keeps part of it."""
    dim = dims[place]
    index: Any = as_index(item)
    kept: tuple[RowDim, ...] = ()
    if isinstance(item, slice):
        index = torch.tensor(range(dim.size)[item], dtype=torch.int64, device="cpu")
        kept = (dim._replace(size=len(index)),)
    elif index is None:
        raise TypeError(f"problem: index must hold ints and slices, got {type(item).__name__}")
    elif not -dim.size <= index < dim.size:
        raise IndexError(f"problem: row must be one of {dim.size} along {dim.name}, got {item}")
    selected = {}
    for name, value in args.items():
        if name in dim.varying:
            before = (slice(None),) * varying_dims(dims, name).index(place)
            value = optree.tree_map(lambda leaf: leaf[(*before, index)], value)  # noqa: B023
        selected[name] = value
    return dims[:place] + kept + dims[place + 1 :], selected
