"""The network of a config as one of the library's: layout, outputs, units, inputs and benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands.config import Config, NetworkConfig
from funcexplain.commands.history import History, positions
from funcexplain.commands.weights import Say, one_line, read_scaling, read_tensors
from funcexplain.networks.adapt import adapt, fitting_layouts
from funcexplain.networks.layouts import OWN, arrange, parse_layout

ALL = "..."
"""Means all assets in ``network.outputs``."""
_ROUNDING = 1e-6


def output_names(config: NetworkConfig, assets: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the network's weights: those of the assets, or the config's.

    Example:
        >>> output_names(NetworkConfig(outputs=("...", "CASH")), ("EUR", "JPY"))
        ('EUR', 'JPY', 'CASH')
    """
    given = config.outputs or (ALL,)
    names = tuple(name for item in given for name in (assets if item == ALL else (item,)))
    if len({*names}) < len(names):
        raise ValueError(f"network.outputs: expected different names, got {', '.join(names)}")
    return names


def any_problem(
    network: nn.Module, x0: Tensor, history: History, names: tuple[str, ...], mask: Tensor | None = None
) -> fe.Problem:
    """A problem of a network for what needs no target; ``names`` are those of its weights."""
    assets = history.prices.assets
    return fe.problem(
        network,
        x0.new_full((len(names),), 1.0 / len(names)),
        x0,
        mask=mask,
        assets=assets,
        outputs=None if names == assets else names,
        leverage=math.inf,
    )


def fit_network(network: nn.Module, config: Config, history: History, say: Say) -> nn.Module:
    """Adapt the network of a config to the windows of its history.

    Args:
        network: as it was loaded, in eval mode.
        config: the config.
        history: the windows.
        say: called with a line about the layout, where the config does not give it.
    """
    own, window = config.network, history.windows[-1]
    names = output_names(own, history.prices.assets)
    settings: dict[str, Any] = {
        name: getattr(own, name)
        for name in ("output", "horizon", "normalize", "window")
        if getattr(own, name) is not None
    }
    if config.features.scaling is not None:
        settings |= _read_units(config, window)
    if own.inputs is not None:
        settings["inputs"] = {
            name: _read_input(f"network.inputs.{name}", value, names, window)
            for name, value in own.inputs.items()
        }
    try:
        adapt(network, **settings)
    except ValueError as error:
        raise ValueError(f"network.{str(error).removeprefix('adapt: ')}") from None
    layout = own.layout or _find_layout(network, window, len(names), settings, say)
    try:
        arrange(parse_layout("network", layout), window[None])
    except ValueError as error:
        raise ValueError(f"network.layout: {error}") from None
    if config.question.benchmark is not None:
        settings["benchmark"] = _read_benchmark(config.question.benchmark, names, window)
    if layout == OWN and not settings and _returns_tensor(network, window):
        return network
    return adapt(network, layout=layout, **settings)


def _find_layout(
    network: nn.Module, window: Tensor, count: int, settings: Mapping[str, Any], say: Say
) -> str:
    """The layout that fits; the library's own if none does, at which the network says why."""
    found = fitting_layouts(network, window, count, **settings)
    if len(found) > 1:
        raise ValueError(
            f"network.layout: several fit the network, {', '.join(map(repr, found))}; give the one that "
            f'it was trained with, as in layout = "{found[0]}"'
        )
    if not found:
        more = fitting_layouts(network, window, count + 1, **settings)
        if more:
            raise ValueError(
                f"network.outputs: the network returns {count + 1} weights for {count} names; name them "
                f'all, as in outputs = ["{ALL}", "CASH"]'
            )
        return OWN
    if found[0] != OWN:
        say(f'Layout: "{found[0]}", the only one that fits the network')
    return found[0]


def _returns_tensor(network: nn.Module, window: Tensor) -> bool:
    """Whether a network returns ``(1, A)`` for a window, or raises; `adapt` explains anything else."""
    try:
        with torch.no_grad():
            out = network(window[None])
    except Exception:  # any type: this runs the user's network, which is called again
        return True
    return isinstance(out, Tensor) and out.ndim == 2


def _read_units(config: Config, window: Tensor) -> dict[str, Tensor]:
    """Mean and std of the network's features."""
    where, path = "features.scaling", config.features.scaling or ""
    if path == "weights":
        if config.network.weights is None:
            raise ValueError(f'{where}: "weights" needs network.weights, which holds mean and std')
        assert isinstance(config.network.weights, str)
        path = config.network.weights
    units = dict(zip(("mean", "std"), read_scaling(where, path), strict=True))
    for name, value in units.items():
        shaped = value.view(-1, 1, 1) if value.ndim == 1 else value
        try:
            torch.broadcast_to(shaped, window.shape)
        except RuntimeError:
            raise ValueError(
                f"{where}: {name} must have one number for each of {len(window)} channels, or broadcast "
                f"to a window {tuple(window.shape)}, got shape {tuple(value.shape)}"
            ) from None
        if not bool(value.isfinite().all()) or (name == "std" and bool((value <= 0).any())):
            raise ValueError(f"{where}: mean must be finite and std > 0, got others in {path!r}")
        units[name] = shaped.to(window)
    return units


def _read_input(where: str, value: Any, names: tuple[str, ...], window: Tensor) -> Tensor:
    """One more input: weights by asset, numbers, or the tensor in a file."""
    if isinstance(value, Mapping):
        return _by_name(where, value, names, window)
    if isinstance(value, str):
        return _read_tensor(where, value).to(window)
    try:
        return torch.tensor(value, dtype=window.dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where}: expected numbers in lists of one length, {one_line(error)}"
        ) from None


def _read_tensor(where: str, path: str) -> Tensor:
    """The only tensor in a file."""
    loaded = read_tensors(where, path)
    if isinstance(loaded, Mapping) and len(loaded) == 1:
        (loaded,) = loaded.values()
    if not isinstance(loaded, Tensor):
        raise ValueError(f"{where}: expected one tensor in {path!r}, got {type(loaded).__name__}")
    return loaded


def _read_benchmark(given: Mapping[str, float], names: tuple[str, ...], window: Tensor) -> Tensor:
    """Weights of the benchmark; those that are not named are zero."""
    total = sum(given.values())
    if abs(total - 1.0) > _ROUNDING:
        raise ValueError(
            f"question.benchmark: expected weights that sum to 1, got {total:g}; name all its assets"
        )
    return _by_name("question.benchmark", given, names, window)


def _by_name(where: str, given: Mapping[str, float], names: tuple[str, ...], window: Tensor) -> Tensor:
    """Numbers by name as a vector, zero for the others."""
    positions(where, list(given), names)
    return torch.tensor([given.get(name, 0.0) for name in names], dtype=window.dtype)


def describe_layouts(window: Tensor) -> str:
    """The remedy for a network that takes windows in another layout."""
    shape = ", ".join(map(str, window.shape))
    return (
        f"windows have shape (n, {shape}), samples, channels, days, assets; for another layout set "
        f'network.layout, such as "n l (c a)", or wrap the network:\n'
        "def forward(self, x):\n    return self.network(x.permute(0, 2, 1, 3).flatten(2))"
    )
