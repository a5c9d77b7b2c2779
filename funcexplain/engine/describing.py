"""Describe values as text that is equal in every process that builds the same value.

Tensors are described by digests; functions by name, code, and the values that they capture or refer to;
objects by type and attributes; networks by their layers. References of the user's code are followed
through all of the user's modules. Code of installed packages is described by name and version (without a
version it is followed within its package), and their objects by what pickle stores; inside a package,
objects of others are names, since their state (counters, caches) may differ between processes. The
user's properties and methods never run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import random
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from functools import lru_cache, partial
from os import environ
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, Literal

import numpy as np
import optree
import torch
from torch import Tensor, nn

from funcexplain.engine.parts import (
    ARRAYS,
    BASES,
    PLAIN,
    WRAPPERS,
    attributes_of,
    is_mapping,
    members_of,
    parts_of_module,
)
from funcexplain.engine.references import (
    instructions,
    is_library,
    is_users,
    package_of,
    references,
    release_of,
)
from funcexplain.networks.network import Network
from funcexplain.networks.opaque import Opaque

_SEQUENCES = (list, tuple, deque)
# Containers that belong to a process, not to what it computes.
_OF_PROCESS = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, type(environ))
_WRAPPED = ("__wrapped__", "__func__", "fget", "func", "args", "keywords", "dispatcher", "code")
# Packages whose objects are not what pickle stores of them, which has code, or counters of the process.
_NOT_STORED = ("torch", "cvxpy")
# Generators that each process seeds for itself.
_OWN_GENERATORS = (np.random.mtrand._rand, random._inst, torch.default_generator)


def describe_value(value: Any) -> str:
    """Describe a function, a network or a setting in one line.

    Functions, classes and objects get a number where they first occur, and are described at the end of
    the line, so that they may refer to each other.

    Example:
        >>> describe_value({"lr": 0.1, "residual": None})
        "{'lr': 0.1, 'residual': None}"
    """
    return _Description().whole(value)


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
            digest.update(_bytes(leaf))
        else:
            digest.update(describe_value(leaf).encode())
    one = leaves[0] if len(leaves) == 1 and isinstance(leaves[0], Tensor) else None
    kind = f"{len(leaves)} tensors" if one is None else f"{one.dtype} {tuple(one.shape)}"
    return f"{kind} {_short(digest)}"


class _Description:
    """One description. Its numbered parts form a list, not a recursion, which has a limit."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        # Parts and the packages of their owners. The list keeps parts alive, so that ids stay unique.
        self._parts: list[tuple[Any, str]] = []
        self._open: set[int] = set()  # containers that are being described
        self._params: set[int] = set()  # tensors of networks that are arguments of their functions

    def whole(self, value: Any) -> str:
        """Describe a value and all its parts."""
        texts = [self.of(value, "")]
        for number, (part, home) in enumerate(self._parts):  # which grows meanwhile
            texts.append(f"<{number}> {self._inside(part, home)}")
        return "; ".join(texts)

    def alone(self, value: Any) -> str:
        """Describe a value and the parts that it names directly."""
        text = self.of(value, "")
        return text + "".join([self._inside(*part) for part in list(self._parts)])

    def of(self, value: Any, home: str) -> str:
        """Describe a part; ``home`` is the package that owns it, empty for any."""
        kind = type(value)
        if isinstance(value, Enum):
            return f"{self.of(kind, home)}.{value._name_}={self.of(value._value_, home)}"
        if isinstance(value, PLAIN) and not is_users(kind.__module__):
            return repr(value)
        if isinstance(value, Tensor):
            return digest_of_tree(value)
        if isinstance(value, np.ma.MaskedArray):
            return f"masked({self._all((value.data, value.mask), home)})"
        if isinstance(value, np.ndarray):
            # The bytes of objects are addresses.
            inside = value.tolist() if value.dtype.hasobject else None
            digest = _short(hashlib.sha256(value.tobytes())) if inside is None else self.of(inside, home)
            return f"{value.dtype} {value.shape} {digest}"
        if any(value is one for one in _OWN_GENERATORS):
            return _name(kind)
        if isinstance(value, torch.Generator):
            return f"{_name(kind)} {digest_of_tree(value.get_state())}"
        if isinstance(value, FunctionType | type):
            return self._number(value, home) if _has_inside(value) else _name(value)
        if isinstance(value, BuiltinFunctionType):
            bound = not isinstance(value.__self__, ModuleType | type | None)
            return f"{self.of(value.__self__, home)}.{_name(value)}" if bound else _name(value)
        if isinstance(value, MethodType):
            return f"{self.of(value.__self__, home)}.{self.of(value.__func__, home)}"
        if isinstance(value, ModuleType):
            return self._number(value, home) if is_users(value.__name__) else f"module {value.__name__}"
        if isinstance(value, partial) and kind is partial:
            return f"partial({self._all((value.func, *value.args, value.keywords), home)})"
        if isinstance(value, _OF_PROCESS):
            return _name(kind)
        if isinstance(value, (set, frozenset, *_SEQUENCES)) or is_mapping(value):
            return self._container(value, home)
        return self._object(value, home)

    def _number(self, value: Any, home: str) -> str:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._parts)
            self._parts.append((value, home))
        named = value if isinstance(value, FunctionType | type) else type(value)
        return f"{_name(named)}<{self._numbers[id(value)]}>"

    def _all(self, values: Iterable[Any], home: str) -> str:
        return ", ".join([self.of(value, home) for value in values])

    def _named(self, values: Mapping[str, Any], home: str) -> str:
        return ", ".join([f"{name}={self.of(values[name], home)}" for name in sorted(values)])

    def _container(self, value: Any, home: str) -> str:
        """The items of a container, read by the methods of its base, and what a user's class adds."""
        if id(value) in self._open:
            return "itself"
        self._open.add(id(value))
        kind = type(value)
        if is_mapping(value):
            items = dict.items(value) if isinstance(value, dict) else value.items()
            # In their order, on which a program may depend.
            pairs = [f"{self.of(key, home)}: {self.of(part, home)}" for key, part in items]
            text = f"{'' if kind is dict else kind.__name__}{{{', '.join(pairs)}}}"
        elif isinstance(value, set | frozenset):
            base: Any = set if isinstance(value, set) else frozenset
            # Sorted before any gets a number: the order of a set is another one in every process.
            parts = sorted(base.__iter__(value), key=lambda part: _Description().alone(part))
            text = f"{kind.__name__}{{{self._all(parts, home)}}}"
        else:
            base = next(base for base in _SEQUENCES if isinstance(value, base))
            text = f"{kind.__name__}({self._all(base.__iter__(value), home)})"
        self._open.discard(id(value))
        attributes = attributes_of(value)  # such as the default of a defaultdict
        if is_users(kind.__module__):
            text = f"{self.of(kind, home)} {text}"
        return f"{text}({self._named(attributes, home)})" if attributes else text

    def _object(self, value: Any, home: str) -> str:
        kind = type(value)
        package, library = package_of(kind.__module__), is_library(kind.__module__)
        whole = isinstance(value, nn.Module | SimpleNamespace) or dataclasses.is_dataclass(value)
        whole = whole or is_users(kind.__module__) or package == "funcexplain"
        if whole or not (_is_named(kind.__module__) or home not in ("", package)):
            return self._number(value, home)
        # A callable with a name, such as an operation of torch; a wrapper, such as a cache; of a library
        # also numbers, such as those of a distribution.
        names = ("__name__", *(_WRAPPED if isinstance(value, WRAPPERS) else _WRAPPED[:1]))
        parts = [part for name in names if (part := getattr(value, name, None)) is not None]
        if not parts and package not in _NOT_STORED and (not home or is_users(home)):
            with suppress(Exception):  # of any type: it cannot be pickled, like a lock
                return f"{_name(kind)} {self._stored(value, home)}"
        if library:
            attributes = sorted(attributes_of(value).items())
            parts += [part for _, part in attributes if isinstance(part, (*ARRAYS, FunctionType))]
        return f"{_name(kind)}({self._all(parts, home)})" if parts else _name(kind)

    def _stored(self, value: Any, home: str) -> str:
        """A digest of what pickle stores of an object; the user's parts of it are described instead."""
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, lambda part: part is not value and self.of(part, home))
        pickler.fast = True  # no memo, which shows what is one object
        pickler.dump(value)
        return _short(hashlib.sha256(buffer.getvalue()))

    def _inside(self, value: Any, home: str) -> str:
        """Describe what is inside a numbered part."""
        if isinstance(value, FunctionType):
            return self._function(value, home)
        if isinstance(value, type):
            return f"({self._named(members_of(value), package_of(value.__module__))})"
        if isinstance(value, ModuleType):
            inside = {name: part for name, part in vars(value).items() if not name.startswith("__")}
            return f"{value.__name__} ({self._named(inside, package_of(value.__name__))})"
        kind = type(value)
        package, library = package_of(kind.__module__), is_library(kind.__module__)
        if isinstance(value, nn.Module):
            foreign = home not in ("", package) and not is_users(kind.__module__)
            attributes = parts_of_module(value, plain_only=foreign and not library)
            tables = (value._parameters, value._buffers)
            tensors = {name: t for table in tables for name, t in table.items() if t is not None}
            attributes |= {name: t for name, t in tensors.items() if id(t) not in self._params}
        else:
            attributes = attributes_of(value)
        # What these have found out in this process is not part of what they are.
        if isinstance(value, Network):
            self._params |= {id(t) for t in (*value.own.values(), *value._current.values())}
            attributes = {"module": value.module}
        elif isinstance(value, Opaque):
            attributes = {name: part for name, part in attributes.items() if name != "fault"}
        base: Any = next((base for base in BASES if isinstance(value, base)), None)
        number = "" if base is None else f" {base.__repr__(value)}"
        return f"{self.of(kind, home)}{number}({self._named(attributes, home if library else package)})"

    def _function(self, function: FunctionType, home: str) -> str:
        """The values a function captures; outside of libraries also its code and references."""
        captured = []
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # a name without a value yet
                captured.append(cell.cell_contents)
        captured += [default for default in (function.__defaults__, function.__kwdefaults__) if default]
        text, module = f"({self._all(captured, home)})", _module_of(function)
        attributes = vars(function)
        if not is_users(module):
            attributes = {name: part for name, part in attributes.items() if name == "__wrapped__"}
        if attributes:
            text += f" {self._named(attributes, home)}"
        if _is_named(module):
            return text
        found = dict(references(function))
        if not is_users(module):
            found = {name: part for name, part in found.items() if _belongs(part, package_of(module))}
        # What code reads of a module is found by name.
        found = {n: part.__name__ if isinstance(part, ModuleType) else part for n, part in found.items()}
        return f"{text} {_code(function.__code__)} {self._named(found, package_of(module))}"


class _Pickler(pickle.Pickler):
    """Stores descriptions instead of arrays, the user's own values, and sets, which have no order."""

    def __init__(self, buffer: io.BytesIO, describe: Callable[[Any], str | Literal[False]]) -> None:
        super().__init__(buffer, protocol=4)
        self._describe = describe

    def persistent_id(self, part: Any) -> str | None:
        """The text that replaces a part, if any."""
        kind = part if isinstance(part, type) else type(part)
        own = isinstance(part, (*ARRAYS, set, frozenset, torch.Generator)) or is_users(kind.__module__)
        own = own or (isinstance(part, FunctionType) and is_users(_module_of(part)))
        own = own or any(part is one for one in _OWN_GENERATORS)
        return (self._describe(part) or None) if own else None


@lru_cache(maxsize=4096)
def _code(code: CodeType) -> str:
    """A digest of operations and constants, without file and line numbers."""
    steps = [
        (step, _code(part) if isinstance(part, CodeType) else _Description().of(part, ""))
        for step, part in instructions(code)
    ]
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    counts = (code.co_posonlyargcount, code.co_argcount, code.co_flags)
    handlers = getattr(code, "co_exceptiontable", b"")  # since Python 3.11
    return _short(hashlib.sha256(repr((steps, arguments, counts, handlers)).encode()))


def _is_named(module: str) -> bool:
    """Whether the name of a function or class, with the version of its package, determines its code."""
    return is_library(module) or release_of(module) is not None


def _has_inside(value: FunctionType | type) -> bool:
    """Whether there is more to a function or class than its name."""
    if isinstance(value, type):
        # torch makes classes of its own for parametrized layers of the user's.
        return not all(_is_named(base.__module__) for base in value.__mro__)
    captured = value.__closure__ or value.__defaults__ or value.__kwdefaults__
    return bool(captured) or "__wrapped__" in vars(value) or not _is_named(_module_of(value))


def _belongs(value: Any, package: str) -> bool:
    """Whether a global of an installed package is followed: a constant, or a part of that package."""
    if isinstance(value, FunctionType | type):
        return package_of(value.__module__ or "") == package
    return isinstance(value, (*PLAIN, *ARRAYS))


def _bytes(tensor: Tensor) -> Any:
    """The numbers of a tensor of any layout."""
    tensor = tensor.detach()
    if tensor.is_meta:
        return b""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    return tensor.flatten().contiguous().view(torch.uint8).numpy().data


def _module_of(function: FunctionType) -> str:
    """The module of a function's code, not that of the function that it wraps."""
    return str(function.__globals__.get("__name__"))


def _name(value: Any) -> str:
    # The module of a script has another name in its child processes.
    module = str(getattr(value, "__module__", None)).replace("__mp_main__", "__main__")
    release = release_of(module)
    return f"{module}.{value.__qualname__}{'' if release is None else f' {release}'}"


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:16])
