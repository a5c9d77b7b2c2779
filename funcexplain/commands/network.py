"""The user's network: made by a function that the config names, with weights from a file.

`commands.factories` checks what may be called, and `commands.weights` reads the weights. An exported
program (``.pt2``) or TorchScript is code, and is loaded only if the user trusts it. The user's code
cannot change the random states of this process.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from funcexplain.commands.config import PROGRAMS, NetworkConfig
from funcexplain.commands.environment import fixed_seed, importable
from funcexplain.commands.factories import check_factory, check_module
from funcexplain.commands.weights import Say, check_exists, is_script, load_weights, one_line
from funcexplain.commands.weights import read_weights as read_weights
from funcexplain.networks.versions import load_program


def load_network(
    config: NetworkConfig, *, trust_model: bool = False, say: Say = lambda line: None
) -> nn.Module:
    """Make the network of a config, in eval mode and in the dtype of its weights.

    Args:
        config: the table of the config.
        trust_model: whether a file may run its code.
        say: called with a line for each change made to fit the weights.

    Example:
        >>> load_network(NetworkConfig("torch.nn:Linear", {"in_features": 2, "out_features": 1}))
        Linear(in_features=2, out_features=1, bias=True)
    """
    assert not isinstance(config.factory, tuple)
    assert not isinstance(config.weights, tuple)
    if config.factory is None:
        return _load_program(config.weights or "", trust_model)
    with fixed_seed(), importable(os.path.abspath(config.folder)):
        network = _make(config.factory, config)
    if config.weights is not None:
        load_weights(network, config.weights, config.factory, say)
    return network.eval()


def import_factory(where: str, factory: str, package: str | None, folder: Path) -> Any:
    """Import the object that an entry names, and check that it may be called."""
    name, _, function = factory.partition(":")
    check_module(name, function, package, folder, where)
    try:
        found: Any = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError)
        absent = getattr(error, "name", None)  # the factory's module, or one that it imports
        if missing and absent and f"{name}.".startswith(f"{absent}."):
            raise ValueError(
                f"{where}: no module {absent!r}, neither installed nor in the config's folder; put "
                "it there, name its folder as network.folder, or install it"
            ) from None
        remedy = "install that" if missing else "--debug shows where"
        raise ValueError(f"{where}: importing {name!r} raised {one_line(error)}; {remedy}") from error
    for part in function.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{where}: {name!r} has no {function!r}; name a function of this module")
        found = getattr(found, part)
    check_factory(factory, found, package, folder, where)
    return found


def call_factory(where: str, factory: str, found: Any, arguments: Mapping[str, Any]) -> Any:
    """What the object that an entry names returns for the arguments beside it."""
    try:
        return found(**arguments)
    except (Exception, SystemExit) as error:
        table = where.partition(".")[0]
        raise ValueError(
            f"{where}: {factory} raised {one_line(error)}; check {table}.arguments; --debug shows where"
        ) from error


def _make(factory: str, config: NetworkConfig) -> nn.Module:
    where, arguments = "network.factory", config.arguments or {}
    assert not isinstance(arguments, tuple)
    found = import_factory(where, factory, config.package, Path(config.folder))
    if isinstance(found, nn.Module):
        if arguments:
            raise ValueError(f"{where}: {factory} is a network already; leave out network.arguments")
        return found
    network = call_factory(where, factory, found, arguments)
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{where}: {factory} must return a torch.nn.Module, got {type(network).__name__}"
        )
    return network


def _load_program(path: str, trust_model: bool) -> nn.Module:
    """A whole network from a file: an exported program, or TorchScript."""
    if not path.endswith(PROGRAMS) and not is_script(path):
        raise ValueError(
            f"network.factory: missing; {path!r} holds the weights of a network, not the network: name "
            'the function that makes it, as in factory = "mine:make"'
        )
    if not trust_model:
        raise ValueError(
            f"network.weights: loading {path!r} runs code from it; if you trust who made it, add "
            "--trust-model, else use a factory with weights as .safetensors"
        )
    check_exists(path)
    kind = "a program of torch.export.save" if path.endswith(".pt2") else "TorchScript"
    with fixed_seed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        try:
            return load_program(path) if path.endswith(".pt2") else torch.jit.load(path, "cpu").eval()
        except Exception as error:  # its type depends on the file
            raise ValueError(
                f"network.weights: {path!r} cannot be loaded as {kind}: {one_line(error)}"
            ) from error
