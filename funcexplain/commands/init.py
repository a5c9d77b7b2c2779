"""The command ``init``: writes a commented config for a network and a price file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from funcexplain.commands.config import Config, parse_config
from funcexplain.commands.guess import find_files, guess
from funcexplain.commands.inputs import load_inputs
from funcexplain.commands.outputs import by_name
from funcexplain.commands.overrides import set_entries
from funcexplain.commands.printing import PrintLine, print_plain
from funcexplain.commands.reading import rebase
from funcexplain.commands.toml import format_toml
from funcexplain.solutions.writing import check_regular, output_path, replaced

_SHARE, _MORE_THAN_TODAY = 0.2, 0.1
_SMALL = 0.05
_COMMENTS = {
    "network": "The function or class that makes the network, its weights, and how it takes windows.",
    "prices": "A csv or parquet file: a date column, and a column of prices for each asset.",
    "features": "How windows are made from prices.",
    "question": "What the network shall hold; several goals must hold together.",
    "output": "Where the answer goes.",
}
_MORE = {
    "network": (
        "arguments = {n_assets = 16}      # of the function",
        'layout = "n l (c a)"             # of its windows, if not "n c l a" (c channels, l days)',
        'output = "weights"               # name or index of the weights, if it returns more',
        'outputs = ["...", "CASH"]        # names of its weights, if not those of the assets',
        'normalize = "softmax"            # if it returns logits',
        "inputs = {today = {EUR = 0.4}}   # more inputs by their names",
    ),
    "prices": ('assets = ["EUR", "JPY"]          # in the order of the network; default: all',),
    "features": (
        'channels = ["return", "zscore(momentum(20), 60)", "rsi(14)"]',
        'factory = "mine:features"        # a function of log returns (days, assets), or of prices',
        'scaling = "weights"              # mean and std saved with the weights',
    ),
    "question": (
        'target = {EUR = "40%"}           # the others share the rest',
        'targets = "targets.csv"          # a question for each row: its name, then weights by asset',
        "move = {EUR = 0.05, JPY = -0.05} # from today, the others unchanged",
        "ahead = 10                       # shocks to the days to come, in place of those behind",
    ),
    "output": (),
}


def init_config(
    network: str | None = None,
    prices: str | None = None,
    *,
    weights: str | None = None,
    target: Mapping[str, float] | None = None,
    out: str | Path = "config.toml",
    trust_model: bool = False,
    print_line: PrintLine = print_plain,
) -> dict[str, Any]:
    """Write a commented config for a network and a price file, after trying how they fit together.

    Args:
        network: a Python file, ``FILE.py:function``, ``module:function`` or a file of a whole network.
            Default: the only Python file with a network in the current folder.
        prices: a price file, ``"ecb"`` or ``"sp500"``. Default: the only price file there.
        weights: a file of weights. Default: the only such file there.
        target: minimum weights by name. Default: 20 % of the smallest position.
        out: the config to write; it must not exist.
        trust_model: whether a file may run its code.
        print_line: called with each line of output.
    """
    path = output_path("init", out)
    check_regular("init", path, name="a config file, such as config.toml")
    if path.exists():
        raise FileExistsError(f"init: {str(out)!r} exists; name another file with --out, or remove it")
    table = first_table(
        network, prices, weights, target, path.parent, trust_model=trust_model, print_line=print_line
    )
    fits = "features" in table
    with replaced("init", path) as file:
        file.write(_commented(table).encode())
    if fits:
        print_line(f"{out}: funcexplain check {out} looks at it, funcexplain run {out} answers it")
    else:
        print_line(
            f"{out}: no window of up to 3 channels and 256 days fits the network; set lookback and "
            "channels or a factory in [features], and layout in [network]"
        )
    return {"exit_code": 0, "config": str(out), "fits": fits}


def first_table(
    network: str | None,
    prices: str | None,
    weights: str | None,
    target: Mapping[str, float] | None,
    folder: Path,
    *,
    trust_model: bool,
    print_line: PrintLine,
) -> dict[str, Any]:
    """The table of a config in a folder, without features if no window fits the network."""
    found = find_files(Path.cwd())
    for kind, given in (("network", network), ("prices", prices)):
        if given is None and kind not in found:
            raise ValueError(
                f"init: expected one file of {kind} in this folder, got none or several; name it, as in "
                "funcexplain init mine.py market.csv"
            )
    table, notes = guess(
        network or found["network"],
        prices or found["prices"],
        weights or found.get("weights"),
        folder,
        trust_model=trust_model,
        say=print_line,
    )
    for entry, note in notes.items():
        print_line(f"{entry}: {note}")
    table["question"] = {"at_least": dict(target or {})}
    if target is None:
        table["question"] = _first_question(table, folder, trust_model)
    table["output"] = {"folder": "run"}
    return table


def _first_question(table: dict[str, Any], folder: Path, trust_model: bool) -> dict[str, Any]:
    """The demo's question: more of the largest small position."""
    if "features" not in table:
        return {"at_least": {"NAME": _SHARE}}
    trial = parse_config({**table, "question": {"concentration": 1.0}})
    query = load_inputs(rebase(trial, folder, os.curdir), trust_model=trust_model).query
    today = by_name(query.names, query.today[-1])
    small = {name: weight for name, weight in today.items() if weight < _SMALL}
    name = max(small, key=small.__getitem__) if small else min(today, key=today.__getitem__)
    return {"at_least": {name: max(_SHARE, round(today[name] + _MORE_THAN_TODAY, 2))}}


def _commented(table: dict[str, Any]) -> str:
    """A table as TOML with comments on each part."""
    lines = ["# Paths are relative to this file. Every entry: docs/config.md of funcexplain."]
    for section, comment in _COMMENTS.items():
        lines += ["", f"[{section}]  # {comment}"]
        lines += [f"{name} = {format_toml(value)}" for name, value in table.get(section, {}).items()]
        given = table.get(section, {})
        lines += [f"# {line}" for line in _MORE[section] if line.partition(" ")[0] not in given]
    return "\n".join(lines) + "\n"


def first_config(
    network: str | None,
    prices: str | None,
    weights: str | None,
    target: Mapping[str, float] | None,
    *,
    settings: Iterable[str] = (),
    trust_model: bool = False,
    print_line: PrintLine = print_plain,
) -> Config:
    """The config of a first try: that of `init_config`, which is not written."""
    table = first_table(
        network, prices, weights, target, Path(), trust_model=trust_model, print_line=print_line
    )
    if "features" not in table:
        raise ValueError(
            "--network: no window of up to 3 channels and 256 days fits the network; write a config "
            "with funcexplain init, and set its [features]"
        )
    return parse_config(set_entries(table, settings))
