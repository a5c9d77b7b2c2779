"""Everything that a config names, loaded and checked: in this process, and in each worker."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands.adapting import fit_network, output_names
from funcexplain.commands.config import Config
from funcexplain.commands.groups import load_groups
from funcexplain.commands.history import History, load_history
from funcexplain.commands.method import MethodConfig
from funcexplain.commands.network import load_network
from funcexplain.commands.question import Query, build_query, pin_dates
from funcexplain.commands.weights import Say

# Losses recorded per search: enough for a curve, and few even if there are thousands of steps.
_MAX_RECORDED_LOSSES = 250
REFINEMENTS = 40


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that a config names, loaded and checked.

    Attributes:
        config: the config, with its dates written out.
        network: the network, the first of several; None if only its recorded weights are known.
        history: the windows.
        query: the question as a problem.
        others: the other networks.
    """

    config: Config
    network: nn.Module | None
    history: History
    query: Query
    others: Sequence[nn.Module] = ()


def load_inputs(config: Config, *, trust_model: bool = False, say: Say = lambda line: None) -> Inputs:
    """Load everything that a config names; errors name the remedy, and ``say`` gets what was sniffed."""
    return make_loader(trust_model=trust_model, say=say)(config)


def make_loader(*, trust_model: bool, say: Say) -> Callable[[Config], Inputs]:
    """Make a `load_inputs` for the questions of a file, which loads networks and prices only once."""
    kept: list[Any] = []  # the entries that name them, and what was loaded

    def load(config: Config) -> Inputs:
        make_method(config.method)
        entries = (config.network, config.prices, config.features, config.question.benchmark)
        if kept[:1] != [entries]:
            kept[:] = entries, *load_market(config, trust_model=trust_model, say=say)
        _, networks, history = kept
        network, *others = networks
        groups = load_groups(config.groups, history.prices.assets)
        query = build_query(config, network, history, others=others, groups=groups)
        return Inputs(pin_dates(config, history), network, history, query, others)

    return load


def load_market(
    config: Config, *, trust_model: bool = False, say: Say = lambda line: None
) -> tuple[list[nn.Module], History]:
    """Load the networks of a config, and its prices in windows of the first one's dtype."""
    members = config.network.members()
    networks = [load_network(one, trust_model=trust_model, say=say) for one in members]
    floats = [p.dtype for p in networks[0].parameters() if p.is_floating_point()]
    dtype = floats[0] if floats else torch.float32
    history = load_history(config.prices, config.features, dtype, members[0])
    fitted = [
        fit_network(network, replace(config, network=member), history, say)
        for network, member in zip(networks, members, strict=True)
    ]
    return fitted, history


def load_single(config: Config, *, trust_model: bool = False) -> tuple[nn.Module, History]:
    """Load the only network of a config, and its prices."""
    if (count := len(config.network.members())) > 1:
        raise ValueError(f"network: this command asks one network, got {count}; name one of them")
    (network,), history = load_market(config, trust_model=trust_model)
    return network, history


def load_recorded(config: Config, summary: Mapping[str, Any], dtype: torch.dtype) -> Inputs:
    """Load what a config names but its network, whose weights today are in the summary of a run.

    No code that the config names runs. Away from today's windows the weights of the question are NaN.
    """
    if len(config.network.members()) > 1:
        raise ValueError(
            "network: a report about several networks needs them; --trust-config builds them"
        )
    history = load_history(config.prices, config.features, dtype)
    names = output_names(config.network, history.prices.assets)
    groups = load_groups(config.groups, history.prices.assets)

    def recorded(kind: str) -> Tensor:
        rows = [[answer[kind].get(name) for name in names] for answer in summary["answers"]]
        return torch.tensor(np.array(rows, dtype=float), dtype=dtype)

    weights = recorded("today"), recorded("unshocked")
    query = build_query(config, None, history, weights, groups=groups)
    if query.dates != [answer.get("date") for answer in summary["answers"]]:
        raise ValueError("question.date: the dates changed since the run; run again, or restore them")
    return Inputs(pin_dates(config, history), None, history, query)


def hash_inputs(inputs: Inputs) -> dict[str, str]:
    """Short hashes of the network, if it is loaded, and of the prices, to detect changes."""

    def of(*tensors: Tensor) -> str:
        whole = hashlib.sha256()
        for tensor in tensors:
            whole.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()[:16]

    hashes = {}
    if inputs.network is not None:
        # Today's weights detect changes of the network's code, which is not part of its state.
        states = [t for one in (inputs.network, *inputs.others) for t in one.state_dict().values()]
        hashes["network"] = of(*states, inputs.query.today)
    return hashes | {"prices": of(torch.as_tensor(inputs.history.prices.values))}


def make_method(method: MethodConfig) -> Any:
    """Make the method of a config, which checks its settings."""
    try:
        return getattr(fe, method.name)(**method.settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method: {error}") from None


def refinement_settings(method: MethodConfig) -> dict[str, Any]:
    """Settings of `fe.closest` for refining hits; empty if the first hit is the answer."""
    if method.answer == "first":
        return {}
    if method.few is None:
        return {"refinements": REFINEMENTS}
    groups = "entries" if method.few == "shocks" else method.few
    return {"refinements": REFINEMENTS, "norm": "l1", "groups": groups}


def solve_settings(method: MethodConfig) -> dict[str, Any]:
    """Settings of `fe.solve` for the method of a config."""
    return {
        "max_steps": method.max_steps,
        "atol": method.atol,
        "keep": "best",
        "compile": "auto" if method.name == "adam" else False,
        "patience": method.patience,
        "history": max(1, -(-method.max_steps // _MAX_RECORDED_LOSSES)),
    }
