"""The user's network: made by a function that the config names, with weights from a file.

`commands.factories` checks what may be called.
Reading a file of weights never runs code: safetensors are parsed here, ``.pt`` is loaded with
``weights_only=True``, and only by versions of torch in which that is safe. An exported program
(``.pt2``) is code, and is loaded only if the user trusts it. The user's code cannot change the random
states of this process.
"""

from __future__ import annotations

import importlib
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from funcexplain.commands.config import NetworkConfig
from funcexplain.commands.environment import fixed_seed, importable
from funcexplain.commands.factories import check_factory, check_module
from funcexplain.networks.versions import load_program, loads_safely
from funcexplain.solutions.archive import read_safetensors

_MAX_LENGTH = 300  # characters of an error of the user's code


def load_network(config: NetworkConfig, *, trust_model: bool = False) -> nn.Module:
    """Make the network of a config, in eval mode and in the dtype of its weights.

    Raises:
        ValueError: if the function is not found, raises or does not return a module, or the weights do
            not fit the network.
        OSError: if a file cannot be read.

    Example:
        >>> load_network(NetworkConfig("torch.nn:Linear", {"in_features": 2, "out_features": 1}))
        Linear(in_features=2, out_features=1, bias=True)
    """
    assert not isinstance(config.factory, tuple)
    assert not isinstance(config.weights, tuple)
    if config.factory is None:
        return _load_exported(config.weights or "", trust_model)
    with fixed_seed(), importable(os.path.abspath(config.folder)):
        network = _make(config.factory, config)
    if config.weights is not None:
        _load_weights(network, config.weights, config.factory)
    return network.eval()


def one_line(error: BaseException | str) -> str:
    """An error of the user's code on one line, cut to a maximum length."""
    kind = "" if isinstance(error, str) else type(error).__name__
    words = " ".join(str(error).split())
    words = words if len(words) <= _MAX_LENGTH else words[: _MAX_LENGTH - 3] + "..."
    return ": ".join(filter(None, (kind, words)))


def _make(factory: str, config: NetworkConfig) -> nn.Module:
    where, arguments = "network.factory", config.arguments or {}
    assert not isinstance(arguments, tuple)
    package, folder = config.package, Path(config.folder)
    name, _, function = factory.partition(":")
    check_module(name, function, package, folder)
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
    check_factory(factory, found, package, folder)
    if isinstance(found, nn.Module):
        if arguments:
            raise ValueError(f"{where}: {factory} is a network already; leave out network.arguments")
        return found
    try:
        network = found(**arguments)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{where}: {factory} raised {one_line(error)}; check network.arguments; --debug shows where"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"{where}: {factory} must return a torch.nn.Module, got {type(network).__name__}"
        )
    return network


def _load_weights(network: nn.Module, path: str, factory: str) -> None:
    state = read_weights(path)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        network.to(dtypes.pop())  # loading would cast the weights to the network's dtype, silently
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"network.weights: the weights in {path!r} do not fit the network of {factory}: "
            f"{one_line(str(error))}"
        ) from None


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a ``state_dict`` from ``.safetensors``, ``.pt`` or ``.pth``, without running code."""
    where = "network.weights"
    if path.endswith(".safetensors"):
        return read_safetensors(where, path)
    if not path.endswith((".pt", ".pth")):
        raise ValueError(f"{where}: expected a file .safetensors, .pt or .pt2, got {path!r}")
    if not loads_safely():
        raise ValueError(
            f"{where}: reading {path!r} needs torch 2.10, got {torch.__version__}, in which a crafted "
            "file can run code or corrupt memory; upgrade torch, or write the weights with "
            "safetensors.torch.save_file(network.state_dict(), 'weights.safetensors')"
        )
    _check_exists(path)
    _check_stored(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise type(error)(
            f"{where}: cannot read {path!r}: {error.strerror}; check its permissions"
        ) from None
    except Exception as error:  # its type depends on the file
        raise ValueError(
            f"{where}: {path!r} is damaged or holds more than tensors; write one with "
            "torch.save(network.state_dict(), path)"
        ) from error
    tensors = isinstance(state, Mapping) and all(isinstance(t, Tensor) for t in state.values())
    if not tensors or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"{where}: {path!r} must hold a state_dict, tensors by name, got {type(state).__name__} of "
            "something else; write one with torch.save(network.state_dict(), path)"
        )
    return dict(state)


def _check_stored(path: str) -> None:
    """Raise if a zip claims to hold more than its size: torch.save neither compresses nor overlaps."""
    with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > os.path.getsize(path):
            raise ValueError(
                f"network.weights: {path!r} must not hold more than its own size, as a compressed zip "
                "does; write one with torch.save(network.state_dict(), path)"
            )


def _load_exported(path: str, trust_model: bool) -> nn.Module:
    if not trust_model:
        raise ValueError(
            f"network.weights: loading {path!r} runs code from it; if you trust who made it, add "
            "--trust-model, else use a factory with weights as .safetensors"
        )
    _check_exists(path)
    with fixed_seed():
        try:
            return load_program(path)
        except Exception as error:  # its type depends on the file
            raise ValueError(
                f"network.weights: {path!r} cannot be loaded as a program of torch.export.save: "
                f"{one_line(error)}"
            ) from error


def _check_exists(path: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"network.weights: there is no file {path!r}; check the name")
