"""References of a function, read from its code without running it, and the owner of that code.

Code is the user's unless its module is installed (under ``site-packages`` or in the standard library) or
belongs to a library whose version is part of a fingerprint. Scripts, notebooks and editable installs are
the user's, since they may change between two runs.
"""

from __future__ import annotations

import dis
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from importlib import import_module, metadata
from importlib.util import find_spec, resolve_name
from itertools import pairwise
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

LIBRARIES = frozenset({"funcexplain", "numpy", "optree", "torch"})
_SCRIPTS = ("__main__", "__mp_main__")  # the second name is that of a script in its child processes
_STDLIB = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
# Written to a nested class by its body: neither comments nor line numbers change what code does.
_UNREAD = ("__doc__", "__firstlineno__", "__static_attributes__")


def package_of(module: str) -> str:
    """The top-level package of a module.

    Example:
        >>> package_of("torch.nn.modules")
        'torch'
    """
    return module.partition(".")[0]


def is_library(module: str) -> bool:
    """Whether a module belongs to Python or to a library whose version is part of a fingerprint.

    Example:
        >>> is_library("torch.nn"), is_library("functools"), is_library("__main__")
        (True, True, False)
    """
    # Types of what Cython compiled are in a module without a file.
    if package_of(module) in LIBRARIES or module.startswith("_cython_"):
        return True
    # By its file, since a user's file may shadow a module of the standard library.
    file = _file_of(module)
    if file is None:
        return package_of(module) in sys.stdlib_module_names
    return not _is_package_folder(file) and file.startswith(_STDLIB)


def is_users(module: str) -> bool:
    """Whether a module is the user's own code, not an installed package.

    Example:
        >>> is_users("__main__"), is_users("pytest"), is_users("unknown")
        (True, False, True)
    """
    if module in _SCRIPTS:
        return True
    return not is_library(module) and not _is_package_folder(_file_of(module) or "")


def release_of(module: str) -> str | None:
    """The version of the installed package of a module; None for libraries and the user's own code.

    Example:
        >>> import pytest
        >>> release_of("pytest") == pytest.__version__, release_of("torch"), release_of("__main__")
        (True, None, None)
    """
    return None if is_library(module) or is_users(module) else _release(package_of(module))


@cache
def _release(package: str) -> str | None:
    version = getattr(sys.modules.get(package), "__dict__", {}).get("__version__")
    if not isinstance(version, str):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
        return None
    return version


@cache
def _is_package_folder(file: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _file_of(module: str) -> str | None:
    """The file of an imported module, or of its package if the module itself is unknown."""
    for name in (module, package_of(module)):
        # Not by getattr, which may run a module's own __getattr__.
        known = getattr(sys.modules.get(name), "__dict__", {})
        if isinstance(known.get("__file__"), str):
            return str(known["__file__"])
    return None


def instructions(code: CodeType) -> Iterator[tuple[int, Any]]:
    """Operations with their constants, names or numbers, without docstrings and line numbers."""
    for this, following in pairwise([*dis.get_instructions(code), None]):
        assert this is not None
        if this.argval in _UNREAD or (following and following.argval in _UNREAD):
            continue
        by_value = this.opcode in dis.hasconst or this.opcode in dis.hasname
        yield this.opcode, this.argval if by_value else this.arg


def references(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Names that a function refers to, with their values, in alphabetical order.

    Globals, and attributes of the user's modules, whose names occur in the code; modules that the
    function imports or captures are included. Globals that the function assigns are its state and
    left out.

    Example:
        >>> def scale(x):
        ...     return FACTOR * x
        >>> scale.__globals__["FACTOR"] = 2.0
        >>> dict(references(scale))
        {'FACTOR': 2.0}
    """
    names, imports = _names(function.__code__)
    scope = {name: value for name, value in function.__globals__.items() if name in names}
    for name, level in imports:
        scope |= _imported(name, level, function.__globals__.get("__package__"))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a name without a value yet
            scope |= {name: cell.cell_contents} if isinstance(cell.cell_contents, ModuleType) else {}
    yield from _resolve(scope, names, "", set())


@lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[frozenset[str], list[tuple[str, int]]]:
    """Names of globals and attributes in code, but for globals that it assigns; and its imports."""
    codes = list(_nested(code))
    steps = [step for code in codes for step in dis.get_instructions(code)]
    names = {name for code in codes for name in code.co_names if not name.startswith("__")}
    names -= {step.argval for step in steps if step.opname == "STORE_GLOBAL"}
    triples = zip(steps, steps[1:], steps[2:], strict=False)
    imports = [(n.argval, level.argval) for level, _, n in triples if n.opname == "IMPORT_NAME"]
    return frozenset(names), imports


def _resolve(
    scope: Mapping[str, Any], names: frozenset[str], prefix: str, seen: set[int]
) -> Iterator[tuple[str, Any]]:
    """The values in a scope, and those of these names in the user's modules there."""
    for name, value in sorted(scope.items(), key=lambda item: item[0]):
        yield prefix + name, value
        if isinstance(value, ModuleType) and id(value) not in seen and is_users(value.__name__):
            seen.add(id(value))
            inside = {key: part for key, part in vars(value).items() if key in names}
            yield from _resolve(inside, names, f"{prefix}{name}.", seen)


def _imported(name: str, level: int, package: str | None) -> dict[str, ModuleType]:
    """A module that code imports, if it is the user's; the code itself would import it when it runs."""
    with suppress(Exception, SystemExit):  # of any type: not there, or it cannot be imported here
        full = resolve_name("." * level + name, package or "")
        spec = find_spec(package_of(full))
        if spec is not None and is_users(spec.name) and not _is_package_folder(spec.origin or ""):
            return {full: import_module(full)}
    return {}


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Code and the code of functions and classes inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
