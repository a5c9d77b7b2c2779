"""Everything that a config names, loaded and checked: here, and in each worker that has a share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands.config import Config, Method
from funcexplain.commands.history import History, load_history
from funcexplain.commands.network import load_network
from funcexplain.commands.question import Asked, ask, pinned

# Losses that are kept of a search: enough for its curve, also where there are thousands of them.
_KEPT_LOSSES = 250


@dataclass(frozen=True, eq=False)
class Ready:
    """Everything that a config names, loaded and checked.

    Attributes:
        config: the config, with its days written out.
        network: the network.
        history: the windows.
        asked: the question.
    """

    config: Config
    network: nn.Module
    history: History
    asked: Asked


def load(config: Config, *, trust_model: bool = False) -> Ready:
    """Load what a config names.

    Args:
        config: the config.
        trust_model: whether a ``.pt2`` file may run its code.

    Returns:
        The network, the windows, the question, and the config with its days written out.

    Raises:
        ValueError, TypeError, OSError, ImportError: the input is bad; the message says what to do.
    """
    method_of(config.method)
    network = load_network(config.network, trust_model=trust_model)
    floats = [p.dtype for p in network.parameters() if p.is_floating_point()]
    history = load_history(config.prices, config.features, floats[0] if floats else torch.float32)
    return Ready(pinned(config, history), network, history, ask(config, network, history))


def digest(ready: Ready) -> dict[str, str]:
    """Short hashes of the network's numbers and of the prices, by which a change is noticed."""

    def of(*tensors: Tensor) -> str:
        whole = hashlib.sha256()
        for tensor in tensors:
            whole.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()[:16]

    return {
        # What it holds today stands for the code, which is not in the numbers.
        "network": of(*ready.network.state_dict().values(), ready.asked.today),
        "prices": of(torch.as_tensor(ready.history.prices.values)),
    }


def method_of(method: Method) -> Any:
    """The method with its settings, which it checks itself."""
    try:
        return getattr(fe, method.name)(**method.settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method: {error}") from None


def search_settings(method: Method) -> dict[str, Any]:
    """Settings of `fe.solve`."""
    return {
        "max_steps": method.max_steps,
        "atol": method.atol,
        "keep": "best",
        "patience": method.patience,
        "history": max(1, -(-method.max_steps // _KEPT_LOSSES)),
    }
