"""Modules that stand in for a replaced layer: the layer to its parent, the replacement when called.

A parent may look at its parts: at their class, their attributes, their weights. A stand-in therefore has
the layer's class, attributes and hooks, while its ``forward`` calls the replacement, whose tables of
parameters, buffers and children are also its own, so that ``functional_call`` reaches them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from funcexplain.networks.references import REGISTRIES, TABLES, subclass


def stand_in(layer: nn.Module, replacement: nn.Module, original: nn.Module) -> nn.Module:
    """Make the stand-in of a layer.

    Args:
        layer: private copy of ``original``; it may be a part of ``replacement``. Its hooks move to the
            stand-in, except those that the original does not have.
        replacement: the module to call instead.
        original: the caller's layer.
    """
    cls = type(layer)
    face: Any = object.__new__(cls)
    attributes = vars(face)
    attributes.update(vars(layer))
    for name in TABLES & attributes.keys():
        table, own = vars(layer)[name], vars(original)[name]
        attributes[name] = own.copy()
        if name in REGISTRIES:
            attributes[name] = vars(replacement)[name]
        elif isinstance(table, dict):
            for key in own:
                table.pop(key, None)
    attributes["forward"] = lambda *inputs, **named: replacement(*inputs, **named)
    attributes["_replacement"] = replacement

    def find(self: nn.Module, name: str) -> Any:
        try:
            return cls.__getattr__(self, name)
        except AttributeError:
            return getattr(layer, name)

    overrides: dict[str, Any] = {}
    if cls.__call__ is not nn.Module.__call__:
        overrides["__call__"] = nn.Module.__call__
    if any(vars(layer)[name].keys() - attributes[name].keys() for name in REGISTRIES):
        overrides["__getattr__"] = find
    if overrides:
        face.__class__ = subclass(cls, overrides)
    return face


def replacement_of(part: nn.Module) -> nn.Module:
    """The replacement of a stand-in; any other part itself."""
    return vars(part).get("_replacement", part)
