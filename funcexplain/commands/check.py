"""The command ``check``: tries everything that a config names, without a search.

What it says of the inputs, and its warnings, are those of ``run``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands import outputs
from funcexplain.commands.comparing import ask_each
from funcexplain.commands.config import Config
from funcexplain.commands.environment import torch_threads
from funcexplain.commands.folder import check_writable
from funcexplain.commands.history import History
from funcexplain.commands.inputs import Inputs, hash_inputs, make_loader
from funcexplain.commands.printing import (
    PrintLine,
    aligned,
    fault_lines,
    prices_line,
    print_plain,
    weights_table,
)
from funcexplain.commands.reading import read_all, require_plots
from funcexplain.engine.forward import weights_of
from funcexplain.markets.sanity import find_faults
from funcexplain.networks.adapt import Adapted
from funcexplain.reports.wording import met

_MAX_ASSETS = 12
_FAR = 8.0  # sigmas
_SURE = 0.999
_WINDOWS = 64  # tried for one-hot weights
_SUM_TOLERANCE = 1e-3


def check_config(
    path: str | Path,
    *,
    settings: Iterable[str] = (),
    trust_model: bool = False,
    print_line: PrintLine = print_plain,
) -> dict:
    """Check everything that a config names without solving, and the gradient of the first search.

    It prints today's weights, and the range of the features in the last window and in history.
    """
    load = make_loader(trust_model=trust_model, say=print_line)
    found = ask_each(
        read_all(path, settings), lambda config: _check(config, load, print_line), print_line
    )
    code = max(question["exit_code"] for question in found.values())
    if code == 0:
        print_line(f"{path} is valid; funcexplain run {path} solves it")
    return found.get(None, {"exit_code": code, "questions": found})


def _check(config: Config, load: Callable[[Config], Inputs], print_line: PrintLine) -> dict[str, Any]:
    """Check one question."""
    require_plots(config)
    check_writable(Path(config.output.folder))
    with torch_threads(config.method.threads):
        inputs = load(config)
        describe_inputs(inputs, print_line)
        faults = find_faults(inputs.history.prices)
        for line in fault_lines(faults):
            print_line(line)
        assert inputs.network is not None
        query, problem = inputs.query, inputs.query.problem
        first = problem[(0,) * len(problem.dims)]
        checked = fe.check_gradient(first, rtol=0.05)
        verdict, flat = checked.verdict, all(slope.gradient == 0.0 for slope in checked.slopes)
        if flat and float(first.criterion.error(query.held[0], first.args["target"])) == 0.0:
            verdict = met(query.ahead)
        elif flat or not checked.ok:
            raise ValueError(f"network: {verdict} A search by gradients needs differentiable layers")
        for line in today_lines(inputs):
            print_line(line)
        print_line(verdict)
    return {
        "exit_code": 0,
        "question": query.sentence,
        "searches": int(torch.Size(problem.shape).numel()),
        "gradient": verdict,
        "today": outputs.by_name(query.names, query.today[-1]),
        "faults": [fault._asdict() for fault in faults],
        "sum": outputs.as_json(float(query.today[-1].sum())),
        "parameters": sum(parameter.numel() for parameter in inputs.network.parameters()),
        "digest": hash_inputs(inputs),
        "warnings": list(find_warnings(inputs)),
    }


def today_lines(inputs: Inputs) -> Iterator[str]:
    """Today's weights and their sum, the features against history, parameters and digest."""
    query, history = inputs.query, inputs.history
    today = query.today[-1]
    order = today.abs().argsort(descending=True, stable=True).tolist()
    yield from weights_table({"today": today}, query.names, order[:_MAX_ASSETS])
    left = len(order) - _MAX_ASSETS
    yield f"Sum of {'all ' if left > 0 else ''}weights: {100 * float(today.sum()):.2f}%"
    for name, members in query.groups.items():
        total = sum(float(today[query.names.index(asset)]) for asset in members)
        yield f"{name}: {100 * total:.2f}%"
    yield ""
    yield from feature_lines(history, query.positions[-1])
    assert inputs.network is not None
    count = sum(parameter.numel() for parameter in inputs.network.parameters())
    yield f"Parameters: {count}; digest of the network: {hash_inputs(inputs)['network']}"


def feature_lines(history: History, position: int) -> Iterator[str]:
    """The range of each channel in today's window, and in the days before it."""
    window, past = history.windows[position].double(), history.until(position)
    rows = [("Features", "today", "history")]
    for name, now, days in zip(history.channels, window, past, strict=True):
        rows.append((name, _range(now), _range(days)))
    yield from aligned(rows, "<8", ">22", ">22")


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.3g} to {float(values.max()):.3g}"


def find_warnings(inputs: Inputs) -> Iterator[str]:
    """Signs that windows are not what the network was trained with, or outputs are not weights."""
    network, history, query = inputs.network, inputs.history, inputs.query
    window = query.references[-1].double()
    if isinstance(network, Adapted) and network.scaled:
        scaled, units = (window - network.mean.double()) / network.std.double(), "the given units"
    else:
        mean, std = (value.double() for value in history.scale(query.positions[-1]))
        scaled = torch.where(std > 0, (window - mean) / torch.where(std > 0, std, 1.0), 0.0)
        units = "history"
    far = scaled.abs().amax((1, 2))
    for name, size in zip(history.channels, far.tolist(), strict=True):
        if size > _FAR:
            yield (
                f"features: {name} is up to {size:.0f} sigmas of {units} away from its mean in the last "
                "window; check that features are those that the network was trained with, such as "
                "z-scores in place of raw returns, and features.scaling"
            )
    sums = query.today.double().sum(-1)
    invested = (sums - 1.0).abs() <= _SUM_TOLERANCE
    neutral = sums.abs() <= _SUM_TOLERANCE
    if not bool((invested | neutral).all()):
        yield (
            f"network: its weights sum to {float(sums[-1]):.3g} today, not to one; if they are logits, "
            'set network.normalize = "softmax"'
        )
    if len(query.names) > 1 and bool(invested.all()):
        places = torch.linspace(0, len(history.windows) - 1, _WINDOWS).long().unique()
        rows = query.from_reference
        row = rows[(0,) * len(rows.dims)]
        weights = weights_of(row, history.windows[places], row.args, skip_errors=True)
        if bool((weights.amax(-1) > _SURE).all()):
            yield (
                f"network: its weights are one-hot at all {len(places)} windows tried; if that is not "
                "how it was trained, its features were in other units: see features.scaling and channels"
            )


def describe_inputs(inputs: Inputs, print_line: PrintLine) -> None:
    """Print prices, network, question and search."""
    problem, method = inputs.query.problem, inputs.config.method
    print_line(prices_line(inputs.history.prices))
    assert inputs.network is not None
    dtype = str(inputs.history.windows.dtype).removeprefix("torch.")
    for network in (inputs.network, *inputs.others):
        module = network.network if isinstance(network, Adapted) else network
        count = sum(parameter.numel() for parameter in module.parameters())
        print_line(f"Network: {type(module).__name__} with {count} parameters, {dtype}")
    if inputs.query.market is None:
        print_line("Market: each channel by itself; its changes come from no path of prices")
    else:
        print_line(f"Market: {inputs.query.market}, from the prices up to each date")
    print_line(inputs.query.sentence)
    dims = " x ".join(f"{dim.size} {dim.name}s" for dim in problem.dims) or "1 search"
    kind = "the first hit" if method.answer == "first" else "then towards the reference"
    for warning in find_warnings(inputs):
        warnings.warn(warning, stacklevel=2)
    print_line(
        f"Search: {dims}, {method.name}, at most {method.max_steps} steps, atol {method.atol:g}, {kind}"
    )
