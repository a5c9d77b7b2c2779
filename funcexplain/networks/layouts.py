"""Layouts of windows: ``"n l (c a)"`` is samples, days, and channels times assets as one axis.

The library's windows are ``"n c l a"``: samples, channels, lookback, assets. Axes in parentheses are
merged, the last varies fastest; ``1`` is an axis of size one, and an axis of size one may be left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import permutations

from torch import Tensor

AXES = "ncla"
OWN = "n c l a"
"""The layout of the library's windows."""
_TOKEN = re.compile(r"\s*(?:\(\s*([ncla](?:\s+[ncla])*)\s*\)|([ncla1]))(?=\s|\(|$)")

Groups = tuple[tuple[str, ...], ...]


def parse_layout(where: str, pattern: str) -> Groups:
    """Read a layout: a tuple of the axes that each axis merges, ``()`` for one of size one.

    Raises:
        ValueError: if it is not a layout, or an axis appears twice.

    Example:
        >>> parse_layout("adapt", "n l (c a)")
        (('n',), ('l',), ('c', 'a'))
    """
    groups, place = list[tuple[str, ...]](), 0
    while isinstance(pattern, str) and (found := _TOKEN.match(pattern, place)):
        groups.append(tuple(found[1].split()) if found[1] else () if found[2] == "1" else (found[2],))
        place = found.end()
    axes = [axis for group in groups for axis in group]
    valid = isinstance(pattern, str) and not pattern[place:].strip()
    if not valid or len(set(axes)) < len(axes) or "n" not in axes:
        raise ValueError(
            f"{where}: layout must name the axes n, c, l, a (samples, channels, days, assets), such as "
            f'"n l (c a)", got {pattern!r}'
        )
    merged = next(group for group in groups if "n" in group)
    if merged not in (("n",), ("n", "a")) or (merged == ("n", "a") and groups[0] != merged):
        raise ValueError(
            f'{where}: layout must keep the samples n apart, or merge them as "(n a)" in front for a '
            f"network of single assets, got {pattern!r}"
        )
    return tuple(groups)


def arrange(groups: Groups, x: Tensor) -> Tensor:
    """Windows ``(N, C, L, A)`` in a layout.

    Example:
        >>> import torch
        >>> arrange(parse_layout("adapt", "n l (c a)"), torch.zeros(5, 3, 20, 4)).shape
        torch.Size([5, 20, 12])
    """
    size = dict(zip(AXES, x.shape, strict=True))
    named = [axis for group in groups for axis in group]
    rest = [axis for axis in AXES if axis not in named]
    if any(size[axis] != 1 for axis in rest):
        raise ValueError(
            f"adapt: layout must name every axis of more than one entry, got {format_layout(groups)!r} "
            f"for windows of shape {tuple(x.shape)}"
        )
    ordered = x.permute([AXES.index(axis) for axis in named + rest])
    return ordered.reshape([math.prod(size[axis] for axis in group) for group in groups])


def format_layout(groups: Sequence[Sequence[str]]) -> str:
    """A layout as text.

    Example:
        >>> format_layout((("n",), (), ("c", "a")))
        'n 1 (c a)'
    """
    texts = ["1" if not group else " ".join(group) for group in groups]
    return " ".join(f"({text})" if len(text) > 1 else text for text in texts)


def candidates(shape: Sequence[int]) -> Iterator[str]:
    """Layouts that networks have, for windows ``(C, L, A)``; the library's own is the first."""
    yield OWN
    single = [axis for axis, size in zip("cla", shape, strict=True) if size == 1]
    for left_out in (*((axis,) for axis in single), ()):
        axes = [axis for axis in "cla" if axis not in left_out]
        for order in permutations(axes):
            for cuts in range(2 ** (len(order) - 1)):
                groups: list[list[str]] = [["n"]]
                for place, axis in enumerate(order):
                    if place and cuts >> (place - 1) & 1:
                        groups[-1].append(axis)
                    else:
                        groups.append([axis])
                if format_layout(groups) != OWN:
                    yield format_layout(groups)
    yield from ("(n a) l c", "(n a) c l", "(n a) (l c)", "(n a) (c l)", "l n (c a)", "l n (a c)")
