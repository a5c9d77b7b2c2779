"""What ``check`` prints about a network and its features, and the warnings of ``check`` and ``run``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from funcexplain.commands.history import History
from funcexplain.commands.inputs import Inputs, hash_inputs
from funcexplain.commands.printing import PrintLine, aligned, prices_line, weights_table
from funcexplain.engine.forward import weights_of
from funcexplain.networks.adapt import Adapted

_MAX_ASSETS = 12
_FAR = 8.0  # sigmas
_SURE = 0.999
_WINDOWS = 64  # tried for one-hot weights
_SUM_TOLERANCE = 1e-3


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
        row = query.from_reference
        row = row[(0,) * len(row.dims)] if row.dims else row
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
