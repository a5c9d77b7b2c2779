"""A plain call of the caller's own module that leaves it unchanged."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import CellType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from funcexplain.networks.objects import attributes, setter
from funcexplain.networks.references import TABLES
from funcexplain.networks.versions import eager

# An OrderedDict keeps an order of its own, which methods of dict do not know.
_CONTAINERS = (OrderedDict, dict, list, set, deque)
# How the state of other objects is read and written.
_STATES: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    CellType: (
        lambda cell: cell.cell_contents,
        lambda cell, held: setattr(cell, "cell_contents", held),
    ),
    np.ndarray: (np.copy, np.copyto),
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    np.random.Generator: (
        lambda generator: generator.bit_generator.state,
        lambda generator, state: setattr(generator.bit_generator, "state", state),
    ),
    np.random.RandomState: (np.random.RandomState.get_state, np.random.RandomState.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
}


def call_in_eval_mode(module: nn.Module, windows: Tensor) -> Any:
    """The module's own output in eval mode.

    Its attributes, tables, buffers and modes are restored afterwards, also changes of parameters by its
    own ``train`` and ``eval``. For other state, see `containers_kept`.

    Args:
        module: the caller's module.
        windows: ``(N, C, L, A)``.
    """
    parts = list(module.modules())
    sets_mode = any(overrides_mode(part) for part in parts)
    with ExitStack() as stack:
        if any(type(part).__name__ == "OptimizedModule" for part in parts):
            stack.enter_context(eager())
        stack.enter_context(containers_kept([*_tables(parts)]))
        stack.enter_context(_classes_and_modes_kept(parts))
        tensors = [t for part in parts if not _is_program(part) for t in part._buffers.values()]
        for tensor in [*tensors, *(module.parameters() if sets_mode else ())]:
            if tensor is not None and tensor.layout is torch.strided:
                stack.enter_context(_kept_tensor(tensor))
        if sets_mode:
            module.eval()
        else:
            for part in parts:
                if part.training:
                    # A module may guard its attributes.
                    assign = setattr if _is_program(part) else object.__setattr__
                    assign(part, "training", False)
        return module(windows.clone())


@contextmanager
def containers_kept(containers: Sequence[Any]) -> Iterator[None]:
    """Restore the contents of mutable containers, tensors, arrays and generators."""
    with ExitStack() as stack:
        tensors = [container for container in containers if isinstance(container, Tensor)]
        for tensor in tensors:
            stack.enter_context(_kept_tensor(tensor))
        kept = [(item, _contents(item)) for item in containers if not isinstance(item, Tensor)]
        try:
            yield
        finally:
            for container, contents in kept:
                _put_back(container, contents)


def captured_containers(module: nn.Module) -> Iterator[Any]:
    """The containers that only the closures of hooks hold, such as a list that records features."""
    for part in module.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            for hook in vars(part).get(name, {}).values():
                for cell in getattr(hook, "__closure__", None) or ():
                    with suppress(ValueError):  # a name without a value yet
                        if isinstance(cell.cell_contents, _CONTAINERS):
                            yield cell.cell_contents


def overrides_mode(part: nn.Module) -> bool:
    """Whether a class defines its own ``train`` or ``eval``."""
    kind = type(part)
    return kind.train is not nn.Module.train or kind.eval is not nn.Module.eval


def _is_program(part: nn.Module) -> bool:
    return isinstance(part, torch.jit.ScriptModule)


def _tables(parts: Sequence[nn.Module]) -> Iterator[Any]:
    """Attributes of modules, the containers among them, and torch's tables that are in use."""
    for part in parts:
        if not _is_program(part):
            yield vars(part)
            held = attributes(part)
            if len(held) > len(vars(part)):  # it has slots
                yield part
            for name, value in held.items():
                if isinstance(value, _CONTAINERS) and (value or name not in TABLES):
                    yield value


@contextmanager
def _classes_and_modes_kept(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Restore state outside of tables: classes, which a first call may change, and modes of programs."""
    kept = [(part, type(part), part.training) for part in parts]
    try:
        yield
    finally:
        for part, kind, training in kept:
            if type(part) is not kind:
                part.__class__ = kind
            if _is_program(part):
                part.train(training)


@contextmanager
def _kept_tensor(tensor: Tensor) -> Iterator[None]:
    """Put a tensor's memory, values and version back."""
    alias, values, wants = tensor.data, tensor.detach().clone(), tensor.requires_grad
    with torch.autograd._unsafe_preserve_version_counter(tensor):
        try:
            yield
        finally:
            with torch.no_grad():
                if not torch.equal(alias, values):
                    alias.copy_(values)
                if tensor.data_ptr() != alias.data_ptr():
                    tensor.data = alias
            tensor.requires_grad_(wants)


def _contents(container: Any) -> Any:
    """A shallow copy of what a container holds, without methods of the caller's."""
    if state := _STATES.get(type(container)):
        return state[0](container)
    base = _base(container)
    if base is None:
        return attributes(container)
    return [*base.items(container)] if issubclass(base, dict) else [*base.__iter__(container)]


def _put_back(container: Any, contents: Any) -> None:
    if state := _STATES.get(type(container)):
        state[1](container, contents)
        return
    base = _base(container)
    if base is None:
        for name, value in contents.items():
            setter(container, name)(value)
        for name in attributes(container).keys() - contents.keys():
            object.__delattr__(container, name)
        return
    base.clear(container)
    (base.extend if base in (list, deque) else base.update)(container, contents)


def _base(container: Any) -> Any:
    """The built-in type of a container; None for an object with attributes."""
    return next((kind for kind in _CONTAINERS if isinstance(container, kind)), None)


class Generators:
    """Context that restores the states of all global random generators."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.state = device, self._read(device)

    def rewind(self) -> None:
        """Restore the states now."""
        torch.set_rng_state(self.state[0])
        np.random.set_state(self.state[1])  # noqa: NPY002 (a network may use it)
        random.setstate(self.state[2])
        if self.state[3] is not None:
            torch.cuda.set_rng_state(self.state[3], self.device)

    def have_moved(self) -> bool:
        """Whether a number was drawn."""
        now = self._read(self.device)
        pairs = ((self.state[0], now[0]), (self.state[3], now[3]))
        if not all(a is b or torch.equal(a, b) for a, b in pairs):
            return True
        (_, before, *others_before), (_, after, *others) = self.state[1], now[1]
        by_numpy = not np.array_equal(before, after) or others_before != others
        return by_numpy or self.state[2] != now[2]

    def __enter__(self) -> Generators:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.rewind()

    @staticmethod
    def _read(device: torch.device) -> tuple[Any, ...]:
        on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        of_numpy = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state(), of_numpy, random.getstate(), on_gpu
