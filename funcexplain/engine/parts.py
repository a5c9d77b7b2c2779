"""The parts of Python values, read without running the user's methods or properties."""

from __future__ import annotations

import datetime
import operator
import re
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from functools import cached_property, partialmethod, singledispatchmethod
from pathlib import PurePath
from types import EllipsisType, FunctionType, MemberDescriptorType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from funcexplain.engine.references import is_users

BASES = (bool, int, float, complex, str, bytes)
# Values whose repr tells all, in every process.
PLAIN = (
    *(*BASES, type(None), bytearray, range, slice, EllipsisType, np.generic, np.dtype),
    *(Decimal, Fraction, datetime.date, datetime.time, datetime.timedelta, PurePath, re.Pattern),
    *(operator.attrgetter, operator.itemgetter, operator.methodcaller),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
ARRAYS = (Tensor, np.ndarray)
WRAPPERS = (
    *(property, staticmethod, classmethod, cached_property, partialmethod, singledispatchmethod),
    torch.jit.ScriptFunction,
)
# Attributes of every torch module; layers, hooks and tensors are described separately.
_OF_TORCH = vars(nn.Module()).keys() - {"training"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def members_of(kind: type) -> dict[str, Any]:
    """Bases, methods and constants of a class; of a user's class also all other values."""
    members: dict[str, Any] = {"bases": kind.__bases__}
    for name, member in vars(kind).items():
        named = not name.startswith("__") and not isinstance(member, MemberDescriptorType)
        value = is_users(kind.__module__) or isinstance(member, PLAIN)
        if isinstance(member, (FunctionType, *WRAPPERS)) or (named and value and name != "_abc_impl"):
            members[name] = member
    return members


def attributes_of(value: Any) -> dict[str, Any]:
    """Attributes of an object, including slots, without its own ``__getattr__`` and properties.

    Example:
        >>> attributes_of(nn.Tanh())["training"]
        True
    """
    attributes = {}
    for kind in type(value).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, MemberDescriptorType):
                with suppress(AttributeError):  # a slot without a value
                    attributes[name] = member.__get__(value)
    with suppress(AttributeError):
        attributes |= object.__getattribute__(value, "__dict__")
    return attributes


def parts_of_module(module: nn.Module, *, plain_only: bool) -> dict[str, Any]:
    """Attributes of a module, its hooks and layers, and its generated code."""
    attributes = {name: part for name, part in vars(module).items() if name not in _OF_TORCH}
    if plain_only:
        numbers = (*PLAIN, *ARRAYS)
        attributes = {name: part for name, part in attributes.items() if isinstance(part, numbers)}
    attributes |= {name: [*getattr(module, name).values()] for name in _HOOKS}
    # Not named_children, which names a layer that occurs twice once.
    return attributes | {"layers": dict(module._modules.items()), "code": _generated_code(module)}


def _generated_code(module: nn.Module) -> str | None:
    """The code of a traced or exported module."""
    if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule):
        with suppress(RuntimeError, AttributeError):  # a submodule without its own forward
            return str(module.code)
    return None


def is_mapping(value: Any) -> bool:
    """Whether items can be read without methods of the user's."""
    foreign = isinstance(value, Mapping) and not is_users(type(value).__module__)
    return foreign or isinstance(value, dict)
