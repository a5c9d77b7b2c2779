"""The step of a batch as machine code: traced once, compiled by torch's Inductor.

The step is traced through all transforms (vmap, the backward pass) to a graph of plain tensor
operations, and Inductor turns these into a few fused loops. Shapes are part of the code: a batch keeps
its size, and there is one trace for each size. A network that branches on values (``.item()``, a solver
outside of torch) cannot be traced; the search then continues uncompiled.

Values that the step reads in Python (globals, closures, attributes) become constants of the code. The
key of the code therefore describes them, and answers are evaluated uncompiled.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import optree
import torch
from torch import Tensor

from funcexplain.engine.describing import describe_value
from funcexplain.networks.versions import compiles
from funcexplain.problems.problem import Args
from funcexplain.solvers.gradient import where_rows
from funcexplain.solvers.state import Info, Method, State, Step, Stopping

Compile = bool | str
# A step, or several, that hold rows whose budget of updates (the last argument) is spent.
Code = Callable[[State, Args, Tensor], tuple[State, Info]]
_OPTIONS = {
    # It would turn small convolutions channels-last, which costs 2.6 times here.
    "layout_optimization": False,
    # Believe what the processor reports: trying it takes six seconds, and with a compiler that is too
    # old for it the search continues uncompiled.
    "cpp.vec_isa_ok": True,
}
# Seconds that a compilation takes without a warm cache; "auto" compiles longer searches.
_COMPILATION = 20.0

# Compiled steps, least recently used first, so that a second search of the kind begins at once; of
# steps that cannot be compiled, the reason.
_CODE: OrderedDict[tuple[Any, ...], Code | str] = OrderedDict()
_MAXIMUM_KEPT = 16
_ALIKE = 0.01

_logger = logging.getLogger("funcexplain")


class Origin(NamedTuple):
    """The parts of a batched step.

    Attributes:
        functions: of the problem, the network first.
        method: what searches.
        stopping: when a search ends.
        layout: how rows share a batch.
    """

    functions: tuple[Any, ...]
    method: Method
    stopping: Stopping
    layout: tuple[Any, ...]


class Compiler:
    """Compiles steps, one for each size of a batch, and remembers what cannot be compiled.

    Args:
        wanted: ``True``, ``False`` or ``"auto"``.
        unroll: steps in one call; more save the overhead of calls where a batch is small.
    """

    def __init__(self, wanted: Compile, unroll: int = 1) -> None:
        self.wanted, self.unroll, self.in_use = wanted, unroll, False
        self._reads, self._used = "", set[tuple[Any, ...]]()

    def pays(self, seconds_left: float) -> bool:
        """Whether a search that would take this long uncompiled should be compiled."""
        return self.wanted is True or (self.wanted == "auto" and seconds_left > 3 * _COMPILATION)

    def give_up(self) -> None:
        """Continue uncompiled."""
        self.wanted = self.in_use = False

    def forget(self) -> None:
        """Continue uncompiled, and drop the outdated code."""
        self.give_up()
        for key in self._used:
            _CODE.pop(key, None)

    def outdated(self, origin: Origin) -> bool:
        """Whether the step reads other values than when it was compiled, for example after a callback.

        The network is not described again, which takes time: answers are evaluated uncompiled.
        """
        return self.in_use and _describe((origin.functions[1:], origin.method)) != self._reads

    def compile(
        self, step: Step, origin: Origin, state: State, args: Args, max_steps: int
    ) -> Step | None:
        """Compile ``unroll`` steps in one; if that is impossible, log why and return None.

        Args:
            step: of a batch of rows.
            origin: its parts.
            state: a state, for its shapes.
            args: data, for their shapes.
            max_steps: number of updates after which several steps in one call stop.

        Returns:
            A step whose infos are stacked in front, one for each of ``unroll`` steps.
        """
        leaves, tree = _flatten((state, args))
        kinds = (
            (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        )
        made = (*(_hashable(part) for part in (*origin.functions, origin.method)), *origin[2:])
        made = (made, defaults(state.z.device), self.unroll, tree, *kinds)
        functions, method = _describe(origin.functions), _describe(origin.method)
        self._reads = _describe((origin.functions[1:], origin.method))
        # What a network writes in each call (its last attention) tells nothing of it.
        key = made if made in _CODE else (made, functions, method)
        code, budget = _CODE.pop(key, None), torch.tensor(max_steps, device=state.status.device)
        if callable(code) and key not in self._used:
            code = code if self._moves_alike(code, step, state, args, budget) else None
        if code is None:
            began = time.monotonic()
            code = _compiled(step, state, args, self.unroll)
            if method != _describe(origin.method):
                key, code = made, "the method changes what it reads (a counter, a learning rate)"
            elif functions != _describe(origin.functions):
                key = made
            if not isinstance(code, str):
                seconds = time.monotonic() - began
                _logger.info(f"compiled a step of {len(state.status)} rows in {seconds:.1f} s")
        _CODE[key] = code
        self._used.add(key)
        while len(_CODE) > _MAXIMUM_KEPT:
            _CODE.popitem(last=False)
        if isinstance(code, str):
            level = logging.WARNING if self.wanted is True else logging.INFO
            _logger.log(level, f"cannot be compiled, goes on uncompiled: {code}")
            self.give_up()
            return None
        self.in_use = True
        return lambda state, args: code(state, args, budget)

    def _moves_alike(self, code: Code, step: Step, state: State, args: Args, budget: Tensor) -> bool:
        """Whether code of an earlier search still moves rows as the step does, but for rounding.

        By medians: Adam makes a whole step of a gradient that is only rounding.
        """
        plain = state
        for _ in range(self.unroll):
            plain = _held(plain.num_steps > budget, plain, step(plain, args)[0])
        moves, differences = plain.z - state.z, code(state, args, budget)[0].z - plain.z
        seen = moves.isfinite() & differences.isfinite() & (moves != 0.0)
        moves, differences = moves[seen].abs(), differences[seen].abs()
        return not len(moves) or bool(differences.median() <= _ALIKE * moves.median())


def _describe(value: Any) -> str:
    """The values functions read; empty if indescribable, such as tensors of an ended transform."""
    try:
        return describe_value(value)
    except Exception:
        return ""


class _Itself:
    """Replaces a value that cannot be hashed; equal only to itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _hashable(value: Any) -> Any:
    """A value, or its hashable substitute."""
    try:
        hash(value)
    except TypeError:
        return _Itself(value)
    return value


def defaults(device: torch.device) -> tuple[Any, ...]:
    """The settings of torch that decide about new tensors and products: defaults and autocast."""
    one = torch.ones(1, 1, dtype=torch.float32, device=device)
    return torch.empty(0).dtype, torch.empty(0).device, (one @ one).dtype


def _compiled(step: Step, state: State, args: Args, unroll: int) -> Code | str:
    """Compile, or return the reason that the network, the tracer or the C++ compiler gives."""
    if not compiles():
        return f"compiled steps need torch 2.2, got {torch.__version__}"
    with _surroundings_kept():
        try:
            return _code(step, state, args, unroll)
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            if "_local_scalar_dense" in reason[0]:
                return "the network branches on values (.item(), an if, a solver outside of torch)"
            return reason[0]


@contextmanager
def _surroundings_kept() -> Iterator[None]:
    """Ignore warnings of torch's compiler; restore the filters, environment and path that it sets."""
    environment, path = dict(os.environ), list(sys.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
            sys.path[:] = path


def _code(step: Step, state: State, args: Args, unroll: int) -> Code:
    budget = torch.zeros((), dtype=torch.int64, device=state.status.device)
    leaves, tree = _flatten((state, args, budget))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    result_tree: Any = None

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        nonlocal result_tree
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        state, args, budget = _unflatten(tree, filled)
        infos = []
        for _ in range(unroll):
            following, info = step(state, args)
            state = following if unroll == 1 else _held(state.num_steps > budget, state, following)
            infos.append(info)
        info = Info(*(torch.stack(column) for column in zip(*infos, strict=True)))
        results, result_tree = _flatten((state, info))
        return tuple(results)

    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Strides are part of the code, too: what `vmap` expands for rows that share it gets its own memory.
    # Copies, since a tensor that occurs twice, as in a new state, would become one input.
    tensors: list[Any] = [
        leaf.clone(memory_format=torch.contiguous_format) for leaf in leaves if isinstance(leaf, Tensor)
    ]
    # A GPU is given all kernels of a step in one call.
    in_graph = budget.is_cuda
    options = {**_OPTIONS, "triton.cudagraphs": in_graph}
    graph = make_fx(flat)(*tensors)
    # Torch's cache on disk ignores what is compiled outside of such a context.
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    with tracing(TracingContext(mode)):
        code: Callable[..., Any] = torch._inductor.compile(graph, tensors, options=options)

    def compiled(state: State, args: Args, budget: Tensor) -> tuple[State, Info]:
        inputs = [leaf.contiguous() for leaf in tensors_of((state, args, budget))]
        if not in_graph:
            return _unflatten(result_tree, code(*inputs))
        torch.compiler.cudagraph_mark_step_begin()
        # The graph writes its next results to the same memory.
        return _unflatten(result_tree, [result.clone() for result in code(*inputs)])

    if in_graph:  # errors of a graph show when it is recorded
        code(*tensors)
    return compiled


def _held(flags: Tensor, state: State, following: State) -> State:
    """The next state, of flagged rows the present one."""
    trees: list[Any] = [state, following]
    return cast(State, optree.tree_map(lambda old, new: where_rows(flags, old, new), *trees))


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    return optree.tree_flatten(tree)


def _unflatten(tree: Any, leaves: Any) -> Any:
    return optree.tree_unflatten(tree, leaves)


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a tree."""
    return [leaf for leaf in optree.tree_leaves(tree) if isinstance(leaf, Tensor)]
