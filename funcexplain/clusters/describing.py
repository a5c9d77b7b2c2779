"""Describe values as text that is equal in every process that builds the same value.

Tensors are described by digests; functions by name, code, and the values they capture or refer to;
objects by type and attributes; networks by their layers. Names are enough for libraries, whose versions
are part of the fingerprint, and for objects of another package than their owner, whose internal state,
such as counters, may differ between processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, np.generic)
_LIBRARIES = sys.stdlib_module_names | {"funcexplain", "numpy", "optree", "torch"}
# Attributes of every torch module; layers and hooks are described separately, tensors are `params`.
_OF_TORCH = vars(nn.Module()).keys() - {"training"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def describe_value(value: Any) -> str:
    """Describe a function, a network or a setting in one line.

    Example:
        >>> describe_value({"lr": 0.1, "residual": None})
        'lr=0.1, residual=None'
    """
    return _Description().of(value, "")


def digest_of_tree(value: Any) -> str:
    """Describe a tree of tensors by one digest of their dtypes, shapes and numbers.

    Example:
        >>> digest_of_tree(torch.zeros(2))
        'torch.float32 (2,) 689a7733ca64bc8b'
    """
    digest, leaves = hashlib.sha256(), optree.tree_leaves(value)
    for path, leaf in zip(optree.tree_paths(value), leaves, strict=True):
        digest.update(repr(path).encode())
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
        else:
            digest.update(describe_value(leaf).encode())
    one = leaves[0] if len(leaves) == 1 and isinstance(leaves[0], Tensor) else None
    kind = f"{len(leaves)} tensors" if one is None else f"{one.dtype} {tuple(one.shape)}"
    return f"{kind} {_short(digest)}"


class _Description:
    """One description; a value that occurs twice is described once."""

    def __init__(self) -> None:
        # Keeps the values alive, so that their ids stay unique.
        self._known: dict[int, tuple[Any, str]] = {}

    def of(self, value: Any, home: str) -> str:
        """Describe a part; ``home`` is the package that owns it, empty for any."""
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, Tensor):
            return digest_of_tree(value)
        if isinstance(value, np.ndarray):
            return f"{value.dtype} {value.shape} {_short(hashlib.sha256(value.tobytes()))}"
        if id(value) not in self._known:
            self._known[id(value)] = (value, "itself")
            self._known[id(value)] = (value, self._whole(value, home))
        return self._known[id(value)][1]

    def _all(self, values: Iterable[Any], home: str) -> str:
        return ", ".join(self.of(value, home) for value in values)

    def _named(self, values: Mapping[Any, Any], home: str) -> str:
        named = {str(key): value for key, value in values.items()}
        return ", ".join(f"{name}={self.of(named[name], home)}" for name in sorted(named))

    def _whole(self, value: Any, home: str) -> str:
        if isinstance(value, Mapping):
            return self._named(value, home)
        if isinstance(value, set | frozenset):
            return "{" + ", ".join(sorted(self.of(part, home) for part in value)) + "}"
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}({self._all(value, home)})"
        if isinstance(value, partial):
            return f"partial({self._all((value.func, *value.args, value.keywords), home)})"
        if isinstance(value, MethodType):
            return f"{self.of(value.__self__, home)}.{self.of(value.__func__, home)}"
        if isinstance(value, FunctionType):
            inside = self._all(self._inside(value), home)
            return f"{_name(value)}({inside})" if inside else _name(value)
        if isinstance(value, Enum):
            return f"{_name(type(value))}.{value.name}={self.of(value.value, home)}"
        if isinstance(value, BuiltinFunctionType):
            return _name(value)
        if isinstance(value, type):
            members = self._named(dict(_class_members(value)), _package(value))
            return f"{_name(value)}({members})" if members else _name(value)
        return self._object(value, home)

    def _object(self, value: Any, home: str) -> str:
        kind, package = type(value), _package(type(value))
        library, foreign = package in _LIBRARIES, home not in ("", package)
        if isinstance(value, nn.Module):
            attributes = _of_module(value, plain_only=foreign and not library)
        elif dataclasses.is_dataclass(value) or package == "funcexplain" or not (library or foreign):
            attributes = _attributes(value)
        else:
            # A callable with a name, such as an operation of torch, or a wrapper, such as a cache.
            names = [getattr(value, name, None) for name in ("__name__", "__wrapped__")]
            inside = self._all((name for name in names if name is not None), home)
            return f"{_name(kind)}({inside})" if inside else _name(kind)
        return f"{self.of(kind, home)}({self._named(attributes, home if library else package)})"

    def _inside(self, function: FunctionType) -> Iterator[Any]:
        """Values that a function captures; for the caller's functions, also code and globals."""
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # a name without a value yet
                yield cell.cell_contents
        yield from (default for default in (function.__defaults__, function.__kwdefaults__) if default)
        package = _package(function)
        if package in _LIBRARIES:
            return
        yield self._code(function.__code__)
        for name in sorted({*_names(function.__code__)} & function.__globals__.keys()):
            value = function.__globals__[name]
            if isinstance(value, FunctionType | type):
                if _package(value) == package:
                    yield value
            elif isinstance(value, (*_PLAIN, Tensor, np.ndarray)) and not name.startswith("__"):
                yield value

    def _code(self, code: CodeType) -> str:
        """A digest of instructions and constants, without file and line numbers."""
        constants = [
            self._code(c) if isinstance(c, CodeType) else self.of(c, "") for c in code.co_consts
        ]
        return _short(hashlib.sha256(repr((code.co_code, constants, code.co_names)).encode()))


def _class_members(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods and constants of a class and its bases, except those of libraries."""
    for base in reversed(kind.__mro__):
        if _package(base) in _LIBRARIES:
            continue
        for name, member in vars(base).items():
            if isinstance(member, staticmethod | classmethod):
                yield name, member.__func__
            elif isinstance(member, property):
                yield name, member.fget
            elif isinstance(member, FunctionType) or (
                isinstance(member, _PLAIN) and not name.startswith("__")
            ):
                yield name, member


def _attributes(value: Any) -> dict[str, Any]:
    """Attributes of an object, including slots."""
    slots = (slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ()))
    slotted = {slot: getattr(value, slot) for slot in slots if hasattr(value, slot)}
    return slotted | getattr(value, "__dict__", {})


def _of_module(module: nn.Module, *, plain_only: bool) -> dict[str, Any]:
    """Attributes of a module, its hooks and layers, and its generated code."""
    attributes = {name: part for name, part in vars(module).items() if name not in _OF_TORCH}
    if plain_only:
        numbers = (*_PLAIN, Tensor, np.ndarray)
        attributes = {name: part for name, part in attributes.items() if isinstance(part, numbers)}
    attributes |= {name: [*getattr(module, name).values()] for name in _HOOKS}
    return attributes | {"layers": dict(module.named_children()), "code": _generated_code(module)}


def _generated_code(module: nn.Module) -> str | None:
    """The code of a traced or exported module."""
    if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule):
        with suppress(RuntimeError, AttributeError):  # a submodule without its own forward
            return str(module.code)
    return None


def _names(code: CodeType) -> Iterator[str]:
    """Names that code refers to, including nested functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _name(value: Any) -> str:
    # The module of a script has another name in its child processes.
    module = str(getattr(value, "__module__", None)).replace("__mp_main__", "__main__")
    return f"{module}.{value.__qualname__}"


def _package(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "builtins").partition(".")[0]


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:16])
