"""Everything that a config names, loaded and checked: in this process, and in each worker."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands.config import Config, MethodConfig
from funcexplain.commands.history import History, load_history
from funcexplain.commands.network import load_network
from funcexplain.commands.question import Query, build_query, pin_dates

# Losses recorded per search: enough for a curve, and few even if there are thousands of steps.
_MAX_RECORDED_LOSSES = 250


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that a config names, loaded and checked.

    Attributes:
        config: the config, with its dates written out.
        network: the network.
        history: the windows.
        query: the question as a problem.
    """

    config: Config
    network: nn.Module
    history: History
    query: Query


def load_inputs(config: Config, *, trust_model: bool = False) -> Inputs:
    """Load everything that a config names; errors name the remedy."""
    make_method(config.method)
    network = load_network(config.network, trust_model=trust_model)
    floats = [p.dtype for p in network.parameters() if p.is_floating_point()]
    history = load_history(config.prices, config.features, floats[0] if floats else torch.float32)
    return Inputs(pin_dates(config, history), network, history, build_query(config, network, history))


def hash_inputs(inputs: Inputs) -> dict[str, str]:
    """Short hashes of the network and of the prices, to detect changes."""

    def of(*tensors: Tensor) -> str:
        whole = hashlib.sha256()
        for tensor in tensors:
            whole.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()[:16]

    return {
        # Today's weights detect changes of the network's code, which is not part of its state.
        "network": of(*inputs.network.state_dict().values(), inputs.query.today),
        "prices": of(torch.as_tensor(inputs.history.prices.values)),
    }


def make_method(method: MethodConfig) -> Any:
    """Make the method of a config, which checks its settings."""
    try:
        return getattr(fe, method.name)(**method.settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method: {error}") from None


def solve_settings(method: MethodConfig) -> dict[str, Any]:
    """Settings of `fe.solve` for the method of a config."""
    return {
        "max_steps": method.max_steps,
        "atol": method.atol,
        "keep": "best",
        "patience": method.patience,
        "history": max(1, -(-method.max_steps // _MAX_RECORDED_LOSSES)),
    }
