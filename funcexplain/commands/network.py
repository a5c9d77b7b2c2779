"""The user's network: made by a function that a config names, with weights out of a file.

A file of weights is data and is read as such: safetensors by hand, ``.pt`` with ``weights_only=True``.
An exported program (``.pt2``) is code, and is loaded only where the user says that it can be trusted.
What the user's code prints, seeds or draws at random does not reach beyond it.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from funcexplain.commands.config import Network
from funcexplain.solutions.archive import read_safetensors

_LONGEST = 300  # letters of somebody else's message


def load_network(asked: Network, *, trust_model: bool = False) -> nn.Module:
    """Make the network of a config, and give it its weights.

    Args:
        asked: the table ``[network]``.
        trust_model: whether a ``.pt2`` file may run its code.

    Returns:
        The network, in the dtype of its weights.

    Raises:
        ValueError: the function is not found, fails or returns no module, or the weights are those of
            another network.
        OSError: a file cannot be read.

    Example:
        >>> load_network(Network("torch.nn:Linear", {"in_features": 2, "out_features": 1}))
        Linear(in_features=2, out_features=1, bias=True)
    """
    if asked.factory is None:
        return _exported(asked.weights or "", trust_model)
    with untouched(), importable(os.getcwd()):
        network = _made(asked.factory, asked.arguments or {})
    if asked.weights is not None:
        _give(network, asked.weights, asked.factory)
    return network.eval()


@contextmanager
def untouched() -> Iterator[None]:
    """Keep the random states of torch, numpy and Python as they are; begin with torch's seed 0."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 (the user's)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Let modules of a folder be imported, as ``python -m`` does."""
    before = list(sys.path)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def in_short(error: BaseException | str) -> str:
    """What somebody else's error says, on one line and cut."""
    kind = "" if isinstance(error, str) else type(error).__name__
    words = " ".join(str(error).split())
    words = words if len(words) <= _LONGEST else words[: _LONGEST - 3] + "..."
    return ": ".join(filter(None, (kind, words)))


def _made(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    where = "network.factory"
    name, _, function = factory.partition(":")
    try:
        made: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(
                f"{where}: no module {error.name!r}, neither installed nor in the current folder; run "
                "from the folder that it is in, or install it"
            ) from None
        raise ValueError(
            f"{where}: importing {name!r} raised {in_short(error)}; install that"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{where}: importing {name!r} raised {in_short(error)}; --debug shows where"
        ) from error
    for part in function.split("."):
        if not hasattr(made, part):
            raise ValueError(f"{where}: {name!r} has no {function!r}; name a function that is in it")
        made = getattr(made, part)
    if isinstance(made, nn.Module) and not arguments:
        return made
    if not callable(made) or isinstance(made, nn.Module):
        raise ValueError(f"{where}: {factory} must be a function, got {type(made).__name__}")
    try:
        made = made(**arguments)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{where}: {factory} raised {in_short(error)}; is network.arguments what it takes? "
            "--debug shows where"
        ) from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{where}: {factory} must return a torch.nn.Module, got {type(made).__name__}")
    return made


def _give(network: nn.Module, path: str, factory: str) -> None:
    state = read_weights(path)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        network.to(dtypes.pop())  # loading would cast the weights to the network's dtype, silently
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"network.weights: {path!r} holds the weights of another network than {factory} makes: "
            f"{in_short(str(error))}"
        ) from None


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a network's ``state_dict`` from safetensors or from what ``torch.save`` wrote; runs no code.

    Args:
        path: a file that ends in ``.safetensors``, ``.pt`` or ``.pth``.

    Returns:
        Tensors by name.

    Raises:
        ValueError: it holds something else.
        OSError: it cannot be read.
    """
    where = "network.weights"
    if path.endswith(".safetensors"):
        return read_safetensors(where, path)
    if not path.endswith((".pt", ".pth")):
        raise ValueError(f"{where}: expected a file .safetensors, .pt or .pt2, got {path!r}")
    _must_exist(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise type(error)(f"{where}: cannot read {path!r}: {error.strerror}; may you read it?") from None
    except Exception as error:  # of many kinds, by what the file is
        raise ValueError(
            f"{where}: {path!r} is no file of tensors alone, or damaged; write one with "
            "torch.save(network.state_dict(), path)"
        ) from error
    tensors = isinstance(state, Mapping) and all(isinstance(t, Tensor) for t in state.values())
    if not tensors or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"{where}: {path!r} must hold a state_dict, tensors by name, got {type(state).__name__} of "
            "something else; write one with torch.save(network.state_dict(), path)"
        )
    return dict(state)


def _exported(path: str, trust_model: bool) -> nn.Module:
    if not trust_model:
        raise ValueError(
            f"network.weights: loading {path!r} runs code from it; if you trust who made it, add "
            "--trust-model, else take a factory and weights as .safetensors"
        )
    _must_exist(path)
    with untouched():
        try:
            return torch.export.load(path).module()
        except Exception as error:  # of many kinds, by what the file is
            raise ValueError(
                f"network.weights: {path!r} cannot be loaded as a program that torch.export.save wrote: "
                f"{in_short(error)}"
            ) from error


def _must_exist(path: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"network.weights: there is no file {path!r}; is its name right?")
