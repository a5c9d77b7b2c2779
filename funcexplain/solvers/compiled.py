"""The step of a batch as machine code: traced once, compiled by torch's Inductor.

The step is traced through all transforms (vmap, the backward pass) to a graph of plain tensor
operations, and Inductor turns these into a few fused loops. Shapes are part of the code: a batch keeps
its size, and there is one trace for each size. What a network decides by its values (``.item()``, a
solver outside of torch) cannot be traced; then the search goes on as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from funcexplain.problems.problem import Args
from funcexplain.solvers.chunks import say
from funcexplain.solvers.step import Info, State, Step

Compile = bool | str
# Layout optimisation would turn small convolutions channels-last, which costs 2.6 times here.
_OPTIONS = {"layout_optimization": False}
# What a compilation takes without a warm cache, in seconds; "auto" compiles a search that is longer.
_COMPILATION = 20.0


class Compiler:
    """Compiles steps, one for each size of a batch, and remembers what cannot be compiled.

    Args:
        wanted: ``True``, ``False`` or ``"auto"``.
        unroll: steps in one call; more save the overhead of calls where a batch is small.
    """

    def __init__(self, wanted: Compile, unroll: int = 1) -> None:
        self.wanted, self.unroll = wanted, unroll
        self._compiled: dict[tuple[Any, ...], Step] = {}

    @property
    def in_use(self) -> bool:
        """Whether anything is compiled."""
        return bool(self._compiled)

    def pays(self, seconds_left: float) -> bool:
        """Whether a search that would take so long as it is should be compiled."""
        return self.wanted is True or (self.wanted == "auto" and seconds_left > 3 * _COMPILATION)

    def compile(self, step: Step, state: State, args: Args) -> Step | None:
        """Compile ``unroll`` steps in one, or return None, and say why, where that is impossible.

        The infos of the steps are stacked in front.
        """
        key = tuple((leaf.shape, leaf.dtype) for leaf in _tensors((state, args)))
        if key not in self._compiled:
            try:
                began = time.monotonic()
                self._compiled[key] = _compiled(step, state, args, self.unroll)
                say(f"compiled a step of {len(state.status)} rows in {time.monotonic() - began:.1f} s")
            except Exception as error:  # whatever the network, the tracer or the C++ compiler refuse
                reason = str(error).strip().splitlines() or [type(error).__name__]
                say(f"cannot be compiled, goes on as it is: {reason[0]}", urgent=self.wanted is True)
                self.wanted = False
                return None
        return self._compiled[key]


def _compiled(step: Step, state: State, args: Args, unroll: int) -> Step:
    leaves, spec = pytree.tree_flatten((state, args))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    out_spec: Any = None

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        nonlocal out_spec
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        state, args = pytree.tree_unflatten(filled, spec)
        infos = []
        for _ in range(unroll):
            state, info = step(state, args)
            infos.append(info)
        info = Info(*(torch.stack(column) for column in zip(*infos, strict=True)))
        results, out_spec = pytree.tree_flatten((state, info))
        return tuple(results)

    from torch.fx.experimental.proxy_tensor import make_fx

    tensors: list[Any] = [_dense(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
    graph = make_fx(flat)(*tensors)
    code: Callable[..., Any] = torch._inductor.compile(graph, tensors, options=dict(_OPTIONS))

    def compiled(state: State, args: Args) -> tuple[State, Info]:
        results = code(*[_dense(t) for t in _tensors((state, args))])
        return pytree.tree_unflatten(list(results), out_spec)

    return compiled


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _dense(t: Tensor) -> Tensor:
    """With strides of its own: code is compiled for one layout, and `vmap` expands what rows share."""
    return t.contiguous()
