"""References and kinds of Python objects, found without calling their code."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import random
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import (
    BuiltinMethodType,
    CellType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

CONTAINERS = (OrderedDict, defaultdict, dict, list, set, deque)
PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
CACHED = type(functools.lru_cache(lambda: None))
METHODS = (BuiltinMethodType, MethodWrapperType)
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_GLOBAL_GENERATORS = (
    torch.default_generator,
    np.random.random.__self__,  # type: ignore[attr-defined]
    random.random.__self__,  # type: ignore[attr-defined]
)
# Objects that are not looked into, the large graphs of torch.fx and logging among them.
LEAVES = (
    Tensor,
    fx.Graph,
    fx.Node,
    logging.Logger,
    ModuleType,
    type,
    str,
    bytes,
    int,
    float,
    type(None),
)


def base_of(cls: type) -> Any:
    """The built-in class that holds an object's contents."""
    return next(base for base in (*CONTAINERS, SimpleNamespace, object) if issubclass(cls, base))


def is_container(cls: type) -> bool:
    """Whether objects of a class are data that forward passes may write to."""
    record = getattr(cls, "__dataclass_params__", None)
    return issubclass(cls, (*CONTAINERS, SimpleNamespace)) or (record is not None and not record.frozen)


def is_state(value: Any) -> bool:
    """Whether forward passes may write to an object's numbers: a plain tensor or array, a generator."""
    if type(value) is Tensor:
        return value.layout is torch.strided
    if type(value) is np.ndarray:
        return value.flags.writeable and not value.dtype.hasobject
    return type(value) in GENERATORS and not any(value is one for one in _GLOBAL_GENERATORS)


def clone(value: Any) -> Any:
    """A copy of an object for which `is_state` holds; of a tensor without its graph."""
    if isinstance(value, Tensor):
        return clone_tensor(value).requires_grad_(value.requires_grad)
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    return copy.deepcopy(value)


def is_closed(cls: type) -> bool:
    """Whether objects of a class are copied only if they refer to copied ones."""
    transparent = (tuple, functools.partial, MethodType, *METHODS)
    return not (issubclass(cls, transparent) or is_container(cls))


def referent(proxy: Any) -> Any:
    """The referent of a weak proxy, or ``None``."""
    try:
        return proxy.__init__.__self__
    except ReferenceError:
        return None


@functools.lru_cache(maxsize=1024)
def _slots(cls: Any) -> dict[str, Any]:
    """The slots of a class, by their names in it."""
    return {
        name: slot
        for base in cls.__mro__
        if "__slots__" in vars(base)
        for name, slot in vars(base).items()
        if type(slot) is MemberDescriptorType
    }


def attributes(value: Any) -> dict[str, Any]:
    """An object's attributes, its slots included, without calling its code."""
    found: dict[str, Any] = {}
    cls: Any = type(value)
    for name, slot in _slots(cls).items():
        with contextlib.suppress(AttributeError):  # a slot without a value
            found[name] = slot.__get__(value)
    if cls.__dictoffset__:
        found.update(object.__getattribute__(value, "__dict__"))
    return found


def setter(value: Any, name: str) -> Callable[[Any], None]:
    """A function that sets an attribute without calling the object's code."""
    cls: Any = type(value)
    slot = _slots(cls).get(name)
    if slot is not None:
        return functools.partial(slot.__set__, value)
    return functools.partial(object.__getattribute__(value, "__dict__").__setitem__, name)


def clone_tensor(tensor: Tensor) -> Tensor:
    """A detached copy of a tensor, of its class and with its attributes."""
    new, cls = tensor.detach().clone(), type(tensor)
    if cls not in (Tensor, nn.Parameter):
        if type(new) is not cls:  # as of subclasses of Parameter
            new = Tensor._make_subclass(cls, new)
        for name, value in vars(tensor).items():
            vars(new).setdefault(name, value)
    return new


def contents(value: Any) -> list[Any]:
    """All that an object refers to."""
    cls = type(value)
    if cls in PROXIES:
        return [referent(value)]
    if issubclass(cls, weakref.WeakMethod):
        return [getattr(value(), "__self__", None)]
    if issubclass(cls, weakref.ref):
        return [value(), value.__callback__]
    if issubclass(cls, METHODS):
        return [value.__self__]
    if cls is MethodType:
        return [value.__func__, value.__self__]
    if cls is CACHED:
        return [value.__wrapped__]
    if cls is CellType:
        try:
            return [value.cell_contents]
        except ValueError:  # empty
            return []
    if issubclass(cls, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    found: list[Any] = []
    if cls is FunctionType:
        found = [*(value.__closure__ or ()), *(value.__kwdefaults__ or {}).values()]
        found.append(value.__defaults__)
    elif issubclass(cls, dict):
        found = [*dict.keys(value), *dict.values(value)]
        found += [value.default_factory] if issubclass(cls, defaultdict) else []
    else:
        base = next((b for b in (list, tuple, set, frozenset, deque) if issubclass(cls, b)), None)
        found = [] if base is None else list(base.__iter__(value))
    return [*found, *attributes(value).values()]
