"""The command ``why``: what moved the network's weights between two dates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.adapting import any_problem, output_names
from funcexplain.commands.entries import read_date
from funcexplain.commands.environment import torch_threads
from funcexplain.commands.folder import make_folder
from funcexplain.commands.history import History, window_ending_on
from funcexplain.commands.inputs import load_single
from funcexplain.commands.outputs import as_json, by_name, write_files
from funcexplain.commands.printing import PrintLine, points_table, prices_line, print_plain
from funcexplain.commands.question import evaluate_weights
from funcexplain.commands.reading import read_one, require_plots
from funcexplain.markets.periods import unit_of
from funcexplain.reports.drawing import new_figure
from funcexplain.reports.plots import plot_attribution, plot_waterfall

TABLE, PICTURE = "why.csv", "why.png"

# The parts are complete where they miss no change by more than this share of the largest.
_TOLERANCE = 1e-3
# Weights whose parts are printed, of those that change most.
_MAX_WEIGHTS = 5


class Split(NamedTuple):
    """The change of the weights between two dates.

    Attributes:
        before: weights on the first date, ``(A,)``.
        after: weights on the second date.
        parts: of the change, by what moved: names of groups and parts ``(A, G)``.
        entries: parts ``(A, C, L, A)`` by the entries of a window, if gradients give them.
        error: largest distance of a sum of parts from its change.
        complete: whether that is within the tolerance.
    """

    before: Tensor
    after: Tensor
    parts: dict[str, tuple[Sequence[str], Tensor]]
    entries: Tensor | None
    error: float
    complete: bool


def explain_change(
    path: str | Path,
    *,
    start: str,
    end: str,
    question: str | None = None,
    settings: Iterable[str] = (),
    trust_model: bool = False,
    print_line: PrintLine = print_plain,
) -> dict:
    """Split the change of the weights between two dates over channels, days and assets.

    Args:
        path: the config file.
        start: first date, on which a window ends.
        end: second date.
        question: name or number of the question, if the config asks several.
        settings: entries to set in the config, as in `run_config`.
        trust_model: whether a ``.pt2`` file may run its code.
        print_line: called with each line of output.

    Returns:
        The weights, the parts and their distance from the change, as JSON values: shares of the
        portfolio.
    """
    config = read_one(path, settings, question)
    require_plots(config)
    first, last = read_date("--from", start), read_date("--to", end)
    if first >= last:
        raise ValueError(f"--from: must be before --to, got {first} and {last}; exchange them")
    with torch_threads(config.method.threads):
        network, history = load_single(config, trust_model=trust_model)
        places = [
            window_ending_on(history, day, option) for option, day in (("--from", first), ("--to", last))
        ]
        folder = make_folder(Path(config.output.folder))
        names = output_names(config.network, history.prices.assets)
        weights = evaluate_weights(network, history.windows[places], history, names)
        split = split_change(network, history.windows[places], weights, history, names)
    print_line(prices_line(history.prices))
    for line in _lines(split, names, (str(first), str(last)), unit_of(history.period)):
        print_line(line)
    draw = partial(_draw, split, names, history, (str(first), str(last)))
    drawn = draw if config.output.picture else None
    files = write_files(folder, TABLE, _blocks(split, names), PICTURE, drawn)
    print_line(f"{folder}: {', '.join(files)}")
    named = {
        f"by_{kind}": {name: by_name(moved, row) for name, row in zip(names, parts, strict=True)}
        for kind, (moved, parts) in split.parts.items()
    }
    results = {
        "exit_code": 0,
        "from": str(first),
        "to": str(last),
        "unit": "share of the portfolio",
        "method": _method(split),
        "before": by_name(names, split.before),
        "after": by_name(names, split.after),
        "change": by_name(names, split.after - split.before),
        **named,
        "error": split.error,
        "complete": split.complete,
        "folder": str(folder),
        "files": files,
    }
    return as_json(results)


def split_change(
    network: Any, windows: Tensor, weights: Tensor, history: History, outputs: tuple[str, ...]
) -> Split:
    """Split the change between windows ``(2, C, L, A)``; by Shapley values where gradients miss it."""
    before, after = weights
    problem = any_problem(network, windows[1], history, outputs)
    names = {
        "channel": history.channels,
        "day": [str(day) for day in range(1 - history.lookback, 1)],
        "asset": history.prices.assets,
    }
    largest = float((after - before).abs().max())
    allowed = _TOLERANCE * max(largest, _TOLERANCE * float(weights.abs().max()))
    found = fe.attribute(problem, windows[0], windows[1], tolerance=_TOLERANCE)
    entries: Tensor | None = found.values
    error = float(found.error)
    if error <= allowed:
        sums = {"channel": (2, 3), "day": (1, 3), "asset": (1, 2)}
        parts = {kind: (names[kind], found.values.sum(dims)) for kind, dims in sums.items()}
    else:
        entries, parts, error = None, {}, 0.0
        for kind, groups in {"channel": "channels", "day": "days", "asset": "assets"}.items():
            exact = fe.attribute(problem, windows[0], windows[1], method="shapley", groups=groups)
            parts[kind], error = (names[kind], exact.values), max(error, float(exact.error))
    return Split(before, after, parts, entries, error, error <= allowed)


def _method(split: Split) -> str:
    return "integrated gradients" if split.entries is not None else "Shapley values"


def _most(split: Split) -> list[int]:
    """The weights that change most, largest first."""
    change = (split.after - split.before).abs()
    return change.argsort(descending=True, stable=True).tolist()


def _lines(split: Split, assets: Sequence[str], dates: tuple[str, str], unit: str) -> Iterator[str]:
    """The tables, and how complete they are."""
    change, order = split.after - split.before, _most(split)
    yield f"What moved the network's weights from {dates[0]} to {dates[1]}?"
    names, parts = split.parts["channel"]
    columns = dict(zip(names, parts.T, strict=True))
    yield from points_table(
        "Changes in percentage points, by channel",
        "Weights",
        [assets[index] for index in order],
        {name: column[order] for name, column in columns.items()},
        {dates[0]: split.before[order], dates[1]: split.after[order]},
        total="change",
    )
    top = order[:_MAX_WEIGHTS]
    for kind, title, by in (
        ("asset", "Asset", "the assets whose prices moved"),
        ("day", unit.capitalize(), f"the {unit}s of the window, of which 0 is the last"),
    ):
        names, parts = split.parts[kind]
        heading = f"Parts of the largest changes in percentage points, by {by}"
        yield from points_table(heading, title, names, {assets[k]: parts[k] for k in top})
    yield ""
    verdict = "add up to" if split.complete else "DO NOT add up to"
    yield (
        f"The parts {verdict} the changes: the largest distance is {100 * split.error:.2g} percentage "
        f"points, of a largest change of {100 * float(change[order[0]]):+.2f} ({_method(split)})."
    )


def _blocks(split: Split, assets: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
    """Lines of the csv file: one for each weight, what moved it, and its group."""
    for kind, (names, parts) in split.parts.items():
        yield {
            "weight": np.repeat(np.array(assets, dtype=object), len(names)),
            "by": np.full(parts.numel(), kind, dtype=object),
            "name": np.tile(np.array(names, dtype=object), len(assets)),
            "part": parts.flatten().double().numpy(),
        }


def _draw(split: Split, weights: Sequence[str], history: History, dates: tuple[str, str]) -> Any:
    """Draw the weight that changes most: its parts by asset, and by entry where they are known."""
    weight, assets = _most(split)[0], history.prices.assets
    figure = new_figure(12.0, 5.4)
    grid = figure.add_gridspec(1, 2, width_ratios=[5, 7])
    for place, kind in enumerate(("asset",) if split.entries is not None else ("asset", "channel")):
        names, parts = split.parts[kind]
        plot_waterfall(
            float(split.before[weight]),
            parts[weight],
            names=names,
            name=weights[weight],
            ends=dates,
            ax=figure.add_subplot(grid[place]),
        )
    if split.entries is not None:
        plot_attribution(
            split.entries[weight],
            assets=assets,
            channels=history.channels,
            name=weights[weight],
            ax=figure.add_subplot(grid[1]),
        )
    return figure
