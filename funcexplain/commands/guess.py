"""A first config for a network and a price file: the factory, the window's size, layout and outputs."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from funcexplain.commands.adapting import ALL
from funcexplain.commands.config import PROGRAMS, NetworkConfig, PricesConfig
from funcexplain.commands.history import load_prices
from funcexplain.commands.network import load_network
from funcexplain.commands.prices import SHIPPED
from funcexplain.commands.weights import Say
from funcexplain.markets.features import CHANNELS
from funcexplain.networks.adapt import adapt, fitting_layouts, outputs_of
from funcexplain.networks.layouts import OWN

_PRICES = (".csv", ".csv.gz", ".parquet")
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# The likeliest lookbacks first; convolutions take any.
_LOOKBACKS = (
    *(20, 10, 5, 30, 40, 50, 60, 63, 21, 22, 12, 15, 16, 24, 26, 32, 36, 42, 48, 52, 64, 90, 96, 100),
    *(120, 125, 126, 128, 180, 200, 240, 250, 252, 256),
    *(n for n in range(1, 32) if n not in (5, 10, 12, 15, 16, 20, 21, 22, 24, 26, 30)),
)
_CHANNELS = (CHANNELS, CHANNELS[:1], CHANNELS[:2])
_MAKERS = ("make", "build", "make_network", "build_network", "network", "model", "make_model")
_DAYS = 20  # span of the features


def guess(
    network: str,
    prices: str,
    weights: str | None,
    folder: Path,
    *,
    trust_model: bool = False,
    say: Say = lambda line: None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Find out how a network takes windows of some prices, by calling it.

    Args:
        network: a Python file, ``FILE.py:function``, ``module:function``, or a file of a whole network.
        prices: a price file, or the name of a price history.
        weights: a file of weights.
        folder: of the config, to which its paths are relative; those given are relative to the current.
        trust_model: whether a file may run its code.
        say: called with a line about what was sniffed.

    Returns:
        The table of a config without its question, and without features if no window fits the network;
        and findings by the path of the entry.
    """
    table: dict[str, dict[str, Any]] = {"network": {}, "prices": {"file": prices}}
    own = table["network"]
    if network.endswith((*PROGRAMS, ".pt", ".pth")):
        own["weights"] = network
    else:
        own |= _find_factory(network)
        if weights is not None:
            own["weights"] = weights
    module = load_network(NetworkConfig(**own), trust_model=trust_model, say=say)
    assets = load_prices(PricesConfig(prices)).assets
    entries, features = next(_windows(module, len(assets)), ({}, None))
    notes = {f"network.{name}": f"{value}, which fits" for name, value in entries.items()}
    own |= entries
    if features is not None:
        table["features"] = features
    for section, name in (("network", "weights"), ("network", "folder"), ("prices", "file")):
        path = table[section].get(name)
        if path is not None and path not in SHIPPED:
            table[section][name] = os.path.relpath(path, folder)
    as_built = "none, so the network is as built; --weights names them"
    notes["network.weights"] = own.get("weights", as_built)
    if own.get("folder") == ".":
        del own["folder"]
    return table, notes


def find_files(folder: Path) -> dict[str, str]:
    """The only Python file with a network, file of prices and file of weights in a folder, by kind."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    kinds = {
        "network": [path for path in files if path.suffix == ".py" and _makers(path)],
        "prices": [path for path in files if path.name.lower().endswith(_PRICES)],
        "weights": [path for path in files if path.name.endswith(_WEIGHTS)],
    }
    return {kind: str(paths[0]) for kind, paths in kinds.items() if len(paths) == 1}


def _find_factory(text: str) -> dict[str, str]:
    """The entries ``factory`` and ``folder`` for a file or module."""
    path, colon, function = text.rpartition(":")
    if not colon:
        path, function = text, ""
    if not path.endswith(".py"):
        if not colon:
            raise ValueError(f"init: network must be a file such as mine.py, or mine:make, got {text!r}")
        return {"factory": text, "folder": "."}
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"init: there is no file {path!r}; check the name")
    if not function:
        makers = _makers(file)
        likely = [name for name in _MAKERS if name in makers][:1] or makers
        if len(likely) != 1:
            found = ", ".join(f"{path}:{name}" for name in likely) or "none"
            raise ValueError(
                f"init: expected one function or class that makes a network in {path!r}, got {found}; "
                f"name it, as in {path}:make"
            )
        function = likely[0]
    if not file.stem.isidentifier():
        raise ValueError(f"init: {path!r} must have a name that can be imported; rename it")
    return {"factory": f"{file.stem}:{function}", "folder": str(file.parent)}


def _makers(file: Path) -> list[str]:
    """Functions without required arguments that may make a network, and classes of modules."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    classes, functions = list[str](), list[str]()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(ast.unparse(b).endswith("Module") for b in node.bases):
            classes.append(node.name)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            required = len(node.args.posonlyargs + node.args.args) - len(node.args.defaults)
            if required == 0 and None not in node.args.kw_defaults:
                functions.append(node.name)
    named = [name for name in functions if name in _MAKERS]
    return named or classes or functions


def _windows(module: nn.Module, count: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Entries of ``network`` and ``features`` with which a network fits this number of assets."""
    floats = [p.dtype for p in module.parameters() if p.is_floating_point()]
    generator = torch.Generator().manual_seed(0)
    for search in (_own_entries, _layout_entries):
        for channels in _CHANNELS:
            for lookback in _LOOKBACKS:
                shape = (len(channels), lookback, count)
                window = 0.01 * torch.randn(shape, generator=generator, dtype=torch.float64)
                entries = search(module, window.to(floats[0] if floats else torch.float32), count)
                if entries is not None:
                    features: dict[str, Any] = {"lookback": lookback, "span": _DAYS}
                    if channels != CHANNELS:
                        features["channels"] = list(channels)
                    yield entries, features


def _own_entries(module: nn.Module, window: Tensor, count: int) -> dict[str, Any] | None:
    """Entries for a network that takes windows in the library's layout; None if it does not."""
    try:
        with torch.no_grad():
            out: Any = module(torch.stack([window, window.flip(-1)]))
    except Exception:  # any type: this runs the user's network
        return None
    entries: dict[str, Any] = {}
    if not isinstance(out, Tensor):
        fitting = [(key, value) for key, value in outputs_of(out) if _is_weights(value, count)]
        if not fitting:
            return None
        entries["output"], out = fitting[0]
    if not _is_weights(out, count):
        return None
    if out.ndim == 3:
        entries["horizon"] = "mean"
    if out.shape[-1] == count + 1:
        entries["outputs"] = [ALL, "CASH"]
    names = {name: value for name, value in entries.items() if name != "outputs"}
    fits = fitting_layouts(module, window, out.shape[-1], **names)[:1] == [OWN]
    return entries if fits else None


def _layout_entries(module: nn.Module, window: Tensor, count: int) -> dict[str, Any] | None:
    """Entries for a network that takes windows in another layout: the first that fits."""
    fitting = fitting_layouts(module, window, count)
    if not fitting:
        return None
    out = adapt(module, layout=fitting[0])(window[None]).detach()
    softmax = {"normalize": "softmax"} if float((out.sum(-1) - 1.0).abs().max()) > 1e-3 else {}
    return {"layout": fitting[0]} | (softmax if fitting[0].startswith("(n a)") else {})


def _is_weights(value: Any, count: int) -> bool:
    """Whether an output may be weights of two samples, perhaps with cash or for several horizons."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[:1] != (2,):
        return False
    return value.ndim in (2, 3) and value.shape[-1] in (count, count + 1)
