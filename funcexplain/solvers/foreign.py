"""Optimizers of other packages: pairs whose states may hold numbers or None, made mappable."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from funcexplain.problems.checks import check_pair
from funcexplain.solvers.gradient import is_readable


class Nothing(NamedTuple):
    """``None`` in a foreign optimizer's state: a node without leaves, which torch.func can map."""


class Number(NamedTuple):
    """A number or bool in a foreign optimizer's state, as a 0-dim tensor."""

    value: Tensor


def adapt(
    init: Callable[..., Any], update: Callable[..., Any]
) -> tuple[Callable[[Tensor], Any], Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]]]:
    """Adapt a foreign pair: torchopt's arguments, and states that torch.func can map."""
    try:
        known: Any = inspect.signature(update).parameters
    except ValueError:  # some built-in functions have no signature
        known = ()
    in_place = {"inplace": False} if "inplace" in known else {}

    def adapted_init(z: Tensor) -> Any:
        return optree.tree_map(partial(_encode, z, None), init(z), none_is_leaf=True)

    def adapted_update(grads: Tensor, state: Any, z: Tensor) -> tuple[Tensor, Any]:
        own = optree.tree_map(_decode, state, is_leaf=_is_encoded)
        if "params" in known:
            result = update(grads, own, params=z, **in_place)
        else:
            result = update(grads, own, z, **in_place)
        updates, own = check_pair(result)
        leaves = optree.tree_leaves(state, is_leaf=_is_encoded, none_is_leaf=True)
        following, structure = optree.tree_flatten(own, none_is_leaf=True)
        if len(leaves) != len(following):  # a state that has grown
            leaves = [None] * len(following)
        encoded = [_encode(z, old, new) for old, new in zip(leaves, following, strict=True)]
        return updates, optree.tree_unflatten(structure, encoded)

    return adapted_init, adapted_update


def _encode(z: Tensor, old: Any, leaf: Any) -> Any:
    """A leaf of a state as tensors; one that was a number remains one where it is mapped."""
    if leaf is None:
        return Nothing()
    if isinstance(leaf, bool | int | float):
        dtype = {bool: torch.bool, int: torch.int64}.get(type(leaf), torch.float64)
        return Number(torch.full((), leaf, dtype=dtype, device=z.device))
    return Number(leaf) if isinstance(old, Number) and isinstance(leaf, Tensor) else leaf


def _decode(leaf: Any) -> Any:
    """A leaf as its optimizer knows it; a number that is mapped is a tensor."""
    if isinstance(leaf, Nothing):
        return None
    if isinstance(leaf, Number):
        return leaf.value.item() if is_readable(leaf.value) else leaf.value
    return leaf


def _is_encoded(node: Any) -> bool:
    return isinstance(node, Nothing | Number)
