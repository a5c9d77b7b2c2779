"""The weights of a network, read from a file as data and matched to the network's names.

Reading never runs code: safetensors are parsed by `solutions.archive`, and torch's files are loaded with
``weights_only=True``, only by versions of torch in which that is safe. A checkpoint may hold more than a
state_dict, and names may have a prefix that training added.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from funcexplain.networks.versions import loads_safely
from funcexplain.solutions.archive import read_safetensors

Say = Callable[[str], object]
"""Receives a line about what was sniffed."""

_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# Names under which checkpoints keep the state_dict, the likeliest first.
_STATES = ("state_dict", "model_state_dict", "model", "network", "net", "weights", "params", "module")
# Prefixes of names, by torch.nn.DataParallel, torch.compile and training frameworks.
_COMPILED = "_orig_mod."
_PREFIXES = ("module.", _COMPILED, "model.", "net.", "network.")
# Words in the names of what a checkpoint holds beside a network.
_TRAINING = {
    "loss",
    "losses",
    "criterion",
    "metric",
    "metrics",
    "train",
    "val",
    "test",
    "ema",
    "hparams",
}
_MAX_NAMED = 3
_SCALING = ("mean", "std")
_MAX_LENGTH = 300  # characters of an error of the user's code


def one_line(error: BaseException | str) -> str:
    """An error of the user's code on one line, cut to a maximum length."""
    kind = "" if isinstance(error, str) else type(error).__name__
    words = " ".join(str(error).split())
    words = words if len(words) <= _MAX_LENGTH else words[: _MAX_LENGTH - 3] + "..."
    return ": ".join(filter(None, (kind, words)))


def load_weights(network: nn.Module, path: str, factory: str, say: Say) -> None:
    """Load the weights of a file into a network, and convert it to their dtype."""
    state = read_weights(path)
    own = network.state_dict()
    if leftover := [name for name in _SCALING if name in state and name not in own]:
        state = {name: tensor for name, tensor in state.items() if name not in leftover}
        say(f'Weights: {path} holds units, too, which features.scaling = "weights" uses')
    state = _fit_names(state, network, path, say)
    dtypes = {tensor.dtype for tensor in state.values() if _is_floating(tensor)}
    if len(dtypes) == 1:
        network.to(dtypes.pop())  # loading would cast the weights to the network's dtype, silently
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"network.weights: the weights in {path!r} do not fit the network of {factory}: "
            f"{one_line(str(error))}"
        ) from None


def read_weights(path: str) -> dict[str, Any]:
    """Read a ``state_dict``, alone or in a checkpoint, without running code."""
    loaded = read_file("network.weights", path)
    state = next(_states(loaded), None)
    if state is None:
        raise ValueError(
            f"network.weights: {path!r} must hold a state_dict, tensors by name, got "
            f"{type(loaded).__name__} of something else; write one with "
            "torch.save(network.state_dict(), path)"
        )
    return state


def read_scaling(where: str, path: str) -> tuple[Tensor, Tensor]:
    """Read ``mean`` and ``std`` from a file of tensors, such as that of the weights."""
    loaded = read_file(where, path)
    tables: list[Any] = [loaded, *loaded.values()] if isinstance(loaded, Mapping) else []
    for table in tables:
        found = [table.get(name) for name in _SCALING] if isinstance(table, Mapping) else []
        if found and all(map(_is_floating, found)):
            mean, std = (torch.as_tensor(value) for value in found)
            return mean, std
    raise ValueError(
        f"{where}: expected floating tensors called mean and std in {path!r}, got none; save them with "
        "the weights, as in torch.save({'state_dict': network.state_dict(), 'mean': mean, 'std': std})"
    )


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def read_file(where: str, path: str) -> Any:
    """Read what a file of tensors holds, without running code."""
    if path.endswith(".safetensors"):
        return read_safetensors(where, path)
    if not path.endswith(_SUFFIXES):
        known = f".safetensors, {', '.join(_SUFFIXES)} or .pt2"
        raise ValueError(f"{where}: expected a file {known}, got {path!r}")
    if not loads_safely():
        raise ValueError(
            f"{where}: reading {path!r} needs torch 2.10, got {torch.__version__}, in which a crafted "
            "file can run code or corrupt memory; upgrade torch, or write the weights with "
            "safetensors.torch.save_file(network.state_dict(), 'weights.safetensors')"
        )
    check_exists(path, where)
    if is_script(path):
        raise ValueError(
            f"{where}: {path!r} is TorchScript, a whole network whose code would run; leave out "
            "network.factory, and if you trust who made it, add --trust-model"
        )
    _check_stored(where, path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise type(error)(
            f"{where}: cannot read {path!r}: {error.strerror}; check its permissions"
        ) from None
    except Exception as error:  # its type depends on the file
        raise ValueError(
            f"{where}: {path!r} is damaged or holds more than tensors; write one with "
            "torch.save(network.state_dict(), path)"
        ) from error


def read_tensors(where: str, path: str) -> Any:
    """Read tensors as `read_file` does, or an array of ``numpy.save``."""
    if not path.endswith(".npy"):
        return read_file(where, path)
    check_exists(path, where)
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float64))
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise ValueError(f"{where}: {path!r} is not of numpy.save: {one_line(error)}") from None


def is_script(path: str) -> bool:
    """Whether a file is TorchScript: a zip with code in it."""
    with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
    return False


def check_exists(path: str, where: str = "network.weights") -> None:
    """Raise unless there is a file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{where}: there is no file {path!r}; check the name")


def _states(loaded: Any) -> Iterator[dict[str, Any]]:
    """Tables with tensors by name, the likeliest state_dict first: those in a checkpoint, or all."""
    if not isinstance(loaded, Mapping):
        return
    for table in (*(loaded.get(name) for name in _STATES), loaded):
        if isinstance(table, Mapping) and any(isinstance(value, Tensor) for value in table.values()):
            yield {str(name): value for name, value in table.items()}


def _fit_names(state: dict[str, Any], network: nn.Module, path: str, say: Say) -> dict[str, Any]:
    """The network's own entries, without prefixes and with tied tensors; all entries if one is missing.

    Others may lie beside a prefix, or belong to the training: losses, metrics, settings.
    """
    own = network.state_dict().keys()
    fitting = dict[tuple[int, ...], tuple[str, dict[str, Any]]]()  # by their tensors
    for prefix, inner in _without_prefixes(state):
        filled = _fill_tied(inner, network)
        others = [name for name in filled if name not in own and isinstance(filled[name], Tensor)]
        if own <= filled.keys() and all(map(_is_of_training, others)):
            fitted = {name: filled[name] for name in own}
            fitting.setdefault((*map(id, fitted.values()),), (prefix, fitted))
            if not prefix:
                break
    if not fitting:
        return state
    if len(fitting) > 1:
        raise ValueError(
            f"network.weights: {path!r} holds several networks that fit, "
            f"{', '.join(repr(prefix) for prefix, _ in fitting.values())}; save the state_dict of one"
        )
    ((prefix, fitted),) = fitting.values()
    used = {id(value) for value in fitted.values()}
    others = [name for name, value in state.items() if id(value) not in used]
    if prefix:
        whose = "of all tensors" if not others else "of the network's tensors"
        say(f"Weights: stripped {prefix!r} from the names {whose}")
    if others:
        more = f" and {len(others) - _MAX_NAMED} more" if len(others) > _MAX_NAMED else ""
        say(f"Weights: left out {', '.join(others[:_MAX_NAMED])}{more}, which the network does not have")
    return fitted


def _without_prefixes(
    state: dict[str, Any], prefix: str = "", depth: int = 8
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries below each chain of known prefixes, by that chain, which is empty for all entries."""
    yield prefix, state
    for own in _PREFIXES if depth > 0 else ():
        below = {name.removeprefix(own): state[name] for name in state if name.startswith(own)}
        if below:
            yield from _without_prefixes(below, prefix + own, depth - 1)
    plain = {name.replace(_COMPILED, ""): value for name, value in state.items()}
    if len(plain) == len(state) and plain.keys() != state.keys() and not prefix.endswith(_COMPILED):
        yield from _without_prefixes(plain, prefix + _COMPILED, depth - 1)  # of parts


def _is_of_training(name: str) -> bool:
    """Whether an entry is of a loss or a metric, not of the network."""
    return not _TRAINING.isdisjoint(name.partition(".")[0].lower().split("_"))


def _fill_tied(state: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    """Add the other names of tied tensors, of which safetensors keeps one."""
    tensors: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    tensors |= dict(network.named_buffers(remove_duplicate=False))
    first = {id(tensors[name]): name for name in state if name in tensors}
    missing = {name: first.get(id(tensors[name])) for name in tensors if name not in state}
    return state | {name: state[other] for name, other in missing.items() if other is not None}


def _check_stored(where: str, path: str) -> None:
    """Raise if a zip claims to hold more than its size: torch.save neither compresses nor overlaps."""
    with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > os.path.getsize(path):
            raise ValueError(
                f"{where}: {path!r} must not hold more than its own size, as a compressed zip "
                "does; write one with torch.save(network.state_dict(), path)"
            )
