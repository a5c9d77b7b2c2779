"""Redirect the references of a network from the caller's modules to their private copies.

A module refers to others not only through its children: a bound method in an attribute, a layer in a
list, a hook that closes over a dict. `redirect` follows such references as ``copy.deepcopy`` does, with
one memo, so that what was one object is one object in the copy. It copies

- objects that refer to a copied module or a registered tensor, also indirectly;
- lists, dicts, sets, deques, plain records, tensors, arrays and generators that attributes hold, so that
  writing to them does not change the caller's.

Anything else is shared: data frames, locks, modules outside of the tree, objects held only by closures,
and objects that cannot be copied. User code is never called.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from types import CellType, FunctionType, MethodType
from typing import Any, NamedTuple

from torch import Tensor, nn

from funcexplain.networks.objects import (
    CACHED,
    LEAVES,
    METHODS,
    PROXIES,
    attributes,
    base_of,
    clone,
    contents,
    is_closed,
    is_container,
    is_state,
    referent,
    setter,
)

# The tables that nn.Module itself keeps. They are copied with their module.
TABLES = {name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set)}
REGISTRIES = ("_parameters", "_buffers", "_modules")


class Place(NamedTuple):
    """A place outside of a module's own tables that holds a registered tensor."""

    tensor: Tensor
    put: Callable[[Tensor], None]


def redirect(
    modules: Iterable[nn.Module], copies: dict[int, Any], tensors: Iterable[Tensor]
) -> tuple[list[Place], list[Any]]:
    """Make private modules refer to copies, in place.

    Args:
        modules: the private modules.
        copies: copies of the caller's objects, by ``id``. An object that is its own copy is not
            traversed.
        tensors: the registered tensors.

    Returns:
        ``(places, originals)``: where the copies hold registered tensors, and the caller's own mutable
        objects that were copied (lists, dicts, sets, deques, cells, tensors, arrays, generators, and
        objects with attributes).
    """
    modules = list(modules)
    copier = _Copier(copies, tensors)
    copier.choose([*(value for module in modules for value in _values(module)), *_closures(modules)])
    for module in modules:
        copier.rewrite(module)
    copier.fill()
    return copier.places, copier.originals


class _Copier:
    """One walk: `choose` what must be copied, `rewrite` modules, and `fill` the copies."""

    def __init__(self, copies: dict[int, Any], tensors: Iterable[Tensor]) -> None:
        self.copies = copies
        self.registered = {id(tensor) for tensor in tensors}
        self.chosen: set[int] = set()
        self.places: list[Place] = []
        self.originals: list[Any] = []
        self.unfilled: list[tuple[Any, Any]] = []

    def choose(self, roots: list[Any]) -> None:
        """Find the objects that must be copied."""
        found: dict[int, Any] = {}
        parents: dict[int, list[int]] = {}
        children: dict[int, list[Any]] = {}
        targets, stack = set(), list(roots)
        while stack:
            value = stack.pop()
            key = id(value)
            if key in found:
                continue
            found[key] = value
            if key in self.registered or key in self.copies:
                if self.copies.get(key) is not value:
                    targets.add(key)
                continue
            if issubclass(type(value), LEAVES) and not is_state(value):
                continue
            children[key] = contents(value)
            for child in children[key]:
                parents.setdefault(id(child), []).append(key)
            stack += children[key]

        def choose(key: int) -> None:
            """Choose an object and all that refer to it."""
            waiting = [key]
            while waiting:
                key = waiting.pop()
                if key not in self.chosen:
                    self.chosen.add(key)
                    waiting += parents.get(key, ())

        for key in targets:
            choose(key)
        before = -1
        while before < len(self.chosen):
            before, seen, stack = len(self.chosen), set(), list(roots)
            while stack:
                value = stack.pop()
                key = id(value)
                if key in seen or key not in children:
                    continue
                seen.add(key)
                if is_container(type(value)) or is_state(value):
                    choose(key)
                if key in self.chosen or not is_closed(type(value)):
                    stack += children[key]
        self.chosen -= targets

    def rewrite(self, module: nn.Module) -> None:
        """Redirect a private module's attributes and hooks."""
        for name, value in attributes(module).items():
            if name in TABLES:
                if name not in REGISTRIES and isinstance(value, dict):
                    for key, hook in list(value.items()):
                        value[key] = self.copy(hook)
            else:
                put = setter(module, name)
                new = self.copy(value)
                put(new)
                self.note(new, put)
        methods = {
            name: new
            for name, function in _own_functions(type(module))
            if (new := self.copy(function)) is not function
        }
        if methods:  # they close over what was copied
            module.__class__ = subclass(type(module), methods)

    def copy(self, value: Any) -> Any:
        """The copy of an object, or the object itself if it is shared."""
        key = id(value)
        if key not in self.copies and key in self.chosen:
            try:
                new = self._new(value)
            except Exception:
                new = value
            self.copies.setdefault(key, new)  # a cycle may have made it meanwhile
        return self.copies.get(key, value)

    def fill(self) -> None:
        """Give the copies of mutable objects their contents."""
        while self.unfilled:
            value, new = self.unfilled.pop()
            # Keys of a set or dict may refuse to be hashed, a class to be written to.
            with contextlib.suppress(Exception):
                self._fill(value, new)

    def note(self, value: Any, put: Callable[[Any], Any]) -> None:
        """Record the registered tensors in what ``put`` stores; it may be a tuple or a partial."""
        cls: Any = type(value)
        if id(value) in self.registered:
            self.places.append(Place(value, put))
        elif issubclass(cls, tuple) and value:
            items = list(value)
            self._note_items(items, lambda: put(tuple.__new__(cls, items)))
        elif issubclass(cls, functools.partial):
            items = [value.func, *value.args, *value.keywords.values()]
            names = list(value.keywords)
            split = len(items) - len(names)
            self._note_items(
                items,
                lambda: put(cls(*items[:split], **dict(zip(names, items[split:], strict=True)))),
            )
        elif issubclass(cls, METHODS) and id(value.__self__) in self.registered:
            self.note(value.__self__, lambda t: put(getattr(t, value.__name__)))

    def _note_items(self, items: list[Any], store: Callable[[], Any]) -> None:
        def put(index: int, item: Any) -> None:
            items[index] = item
            store()

        for index, item in enumerate(items):
            self.note(item, functools.partial(put, index))

    def _new(self, value: Any) -> Any:
        """A copy with its contents if it is immutable, without them otherwise."""
        cls, copy = type(value), self.copy
        if is_state(value):
            self.originals.append(value)
            return clone(value)
        if cls in PROXIES:
            return weakref.proxy(copy(referent(value)))
        if issubclass(cls, weakref.WeakMethod):
            method = value()
            return cls(MethodType(method.__func__, copy(method.__self__)))
        if issubclass(cls, weakref.KeyedRef):
            return cls(copy(value()), copy(value.__callback__), value.key)
        if issubclass(cls, weakref.ref):
            return cls(copy(value()))
        if issubclass(cls, METHODS):
            return object.__getattribute__(copy(value.__self__), value.__name__)
        if cls is MethodType:
            return MethodType(copy(value.__func__), copy(value.__self__))
        if cls is CACHED:
            return functools.lru_cache(**value.cache_parameters())(copy(value.__wrapped__))
        if issubclass(cls, functools.partial):
            named = {name: copy(item) for name, item in value.keywords.items()}
            return cls.__new__(cls, copy(value.func), *map(copy, value.args), **named)
        if issubclass(cls, tuple | frozenset):
            base: Any = tuple if issubclass(cls, tuple) else frozenset
            return base.__new__(cls, map(copy, value))
        if cls is CellType:
            new: Any = CellType()
        elif cls is FunctionType:
            cells = tuple(map(copy, value.__closure__ or ())) or None
            new = FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        else:
            base = base_of(cls)
            new = base.__new__(cls)
            if base is deque:
                deque.__init__(new, (), value.maxlen)
        self.copies[id(value)] = new
        self.unfilled.append((value, new))
        if cls is not FunctionType:
            self.originals.append(value)
        return new

    def _fill(self, value: Any, new: Any) -> None:
        cls, copy, note, put = type(value), self.copy, self.note, functools.partial
        if cls is CellType:
            with contextlib.suppress(ValueError):  # an empty cell
                new.cell_contents = copy(value.cell_contents)
                note(new.cell_contents, put(setattr, new, "cell_contents"))
            return
        if cls is FunctionType:
            new.__defaults__ = copy(value.__defaults__)
            new.__kwdefaults__ = value.__kwdefaults__ and {
                name: copy(item) for name, item in value.__kwdefaults__.items()
            }
            new.__qualname__, new.__module__ = value.__qualname__, value.__module__
            new.__doc__, new.__annotations__ = value.__doc__, value.__annotations__
            note(new.__defaults__, put(setattr, new, "__defaults__"))
            for name, item in (new.__kwdefaults__ or {}).items():
                note(item, put(new.__kwdefaults__.__setitem__, name))
        base = base_of(cls)
        if issubclass(base, dict):
            if base is defaultdict:
                vars(defaultdict)["default_factory"].__set__(new, copy(value.default_factory))
            for key, item in list(base.items(value)):
                key = copy(key)
                base.__setitem__(new, key, copy(item))
                note(base.__getitem__(new, key), put(base.__setitem__, new, key))
        elif base in (list, deque):
            base.extend(new, map(copy, base.__iter__(value)))
            for index, item in enumerate(base.__iter__(new)):
                note(item, put(base.__setitem__, new, index))
        elif base is set:
            set.update(new, map(copy, set.__iter__(value)))
        for name, item in attributes(value).items():
            store = setter(new, name)
            store(copy(item))
            note(copy(item), store)


def subclass(cls: type, methods: dict[str, Any]) -> Any:
    """A subclass of the same name that overrides methods."""
    return type(cls.__name__, (cls,), {**methods, "__module__": cls.__module__})


def _values(module: nn.Module) -> Iterator[Any]:
    """The objects that a module's attributes and hooks refer to."""
    for name, value in attributes(module).items():
        if name not in TABLES:
            yield value
        elif name not in REGISTRIES and isinstance(value, dict):
            yield from value.values()


def _closures(modules: Iterable[nn.Module]) -> Iterator[FunctionType]:
    """The methods with closures of modules' classes."""
    for cls in {type(module) for module in modules}:
        for _, function in _own_functions(cls):
            yield function


def _own_functions(cls: type) -> Iterator[tuple[str, FunctionType]]:
    """The functions with closures that a class outside of torch defines; later ones override."""
    for base in reversed(cls.__mro__):
        if base is not object and not base.__module__.startswith("torch."):
            for name, value in vars(base).items():
                if type(value) is FunctionType and value.__closure__:
                    yield name, value
