"""The function or class that a config names as the network's factory, checked before it is called.

A config is code: its factory is imported and called with its arguments. So that a mistake or an
untrusted config cannot call arbitrary functions, such as ``os:system``, a factory is one of

- a class of ``torch.nn.Module``,
- a function of a module in the config's folder, or in ``network.folder``,
- a function of the installed package that the config names as ``network.package``.

The module that defines a function counts, not the one through which it is reached. A module is
rejected before it is imported if its location already decides.
"""

from __future__ import annotations

import ast
import inspect
import sys
import sysconfig
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

_NO_NETWORKS = {"torch", "numpy", "optree", "pip", "setuptools", "pkg_resources"}
"""Packages whose functions run commands or load code; only their classes may be networks."""


def check_module(
    name: str, function: str, package: str | None, folder: Path, where: str = "network.factory"
) -> None:
    """Raise, before a module is imported, if no factory may come from it.

    Args:
        name: of the module.
        function: the name in it.
        package: the package that the config names.
        folder: the folder of the config, or the one that it names.
        where: the entry, for messages.
    """
    _check_package(package)
    if "__main__" in name.split("."):
        raise ValueError(f"{where}: {name!r} is a program; name a module with the network")
    if _is_standard(name):
        raise ValueError(
            f"{where}: expected a module with a network, got {name!r} of Python's standard "
            "library; name a module of your own, and rename it if it has the name of one of Python's"
        )
    foreign = name not in sys.modules and not _may_call(name, package, folder)
    if foreign and not _may_hold_class(name, function.partition(".")[0]):
        raise _foreign(where, f"{name}:{function}", name)


def check_factory(
    factory: str, found: Any, package: str | None, folder: Path, where: str = "network.factory"
) -> None:
    """Raise unless an imported object may be called, or is a network already."""
    if isinstance(found, nn.Module) or (isinstance(found, type) and issubclass(found, nn.Module)):
        return
    if isinstance(found, type):
        raise ValueError(
            f"{where}: {factory} must be a function or a class of torch.nn.Module, got the "
            f"class {found.__qualname__}; name one of those"
        )
    function = inspect.unwrap(getattr(found, "__func__", found))
    if not inspect.isfunction(function):
        raise ValueError(
            f"{where}: {factory} must be a function, got {type(found).__name__}; define one in "
            "a module of your own"
        )
    module = str(function.__globals__.get("__name__"))  # __module__ may be set to another
    if not _may_call(module, package, folder):
        raise _foreign(where, factory, module)


def _foreign(where: str, factory: str, module: str) -> ValueError:
    """The error for a function that was not defined in the folder or the named package."""
    top = module.partition(".")[0]
    remedy = "define one in a module of your own"
    if not _is_standard(module) and top not in _NO_NETWORKS:
        remedy = f'if you trust it, add package = "{top}" to [network]'
    return ValueError(
        f"{where}: {factory} must be a function of a module in the config's folder, or a class "
        f"of torch.nn.Module, got one of {module!r}; {remedy}"
    )


def _check_package(package: str | None) -> None:
    """Raise for a package whose functions are not networks."""
    if package and (_is_standard(package) or package.partition(".")[0] in _NO_NETWORKS):
        raise ValueError(
            f"network.package: expected an installed package with networks, got {package!r}; leave it "
            "out: classes of torch.nn.Module do not need it"
        )


def _may_call(module: str, package: str | None, folder: Path) -> bool:
    """Whether functions of a module may be called: one of the folder or of the named package."""
    if _is_standard(module) or module.partition(".")[0] in _NO_NETWORKS:
        return False
    return _in_folder(module, folder) or (bool(package) and f"{module}.".startswith(f"{package}."))


def _is_standard(module: str) -> bool:
    """Whether a module is one of Python's own."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return True
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    return not standard.isdisjoint(_folders(top))  # such as test


def _in_folder(module: str, folder: Path) -> bool:
    """Whether a module, or the package that it is in, is directly in a folder."""
    return folder.resolve() in _folders(module.partition(".")[0])


def _folders(top: str) -> set[Path]:
    """The folders that a top-level module is, or would be imported from; imports nothing."""
    try:
        # setuptools' own finder, which find_spec asks first, unloads distutils when it is asked for pip
        spec = (None if top in sys.modules else PathFinder.find_spec(top)) or find_spec(top)
    except (ValueError, ImportError):  # a module made by hand has none
        spec = None
    if spec is None:
        return set()
    places = spec.submodule_search_locations or ([str(spec.origin)] if spec.has_location else [])
    return {Path(place).resolve().parent for place in places}


def _may_hold_class(name: str, wanted: str) -> bool:
    """Whether a module may have a class of this name, as far as its source tells; executes nothing."""
    parts, places, origin = name.split("."), None, None
    for number in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:number]), places)
        if spec is None:
            return True
        places, origin = spec.submodule_search_locations, spec.origin
    try:
        tree = ast.parse(Path(str(origin)).read_bytes())
    except (OSError, ValueError, SyntaxError):
        return True
    for node in ast.walk(tree):
        if isinstance(node, ast.alias) and (node.asname or node.name) in (wanted, "*"):
            return True
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            return True
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
            return True
    return False
