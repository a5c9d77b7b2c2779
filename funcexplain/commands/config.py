"""The config of a run: TOML, read and checked into frozen dataclasses, with a default for most entries.

Here every entry is checked alone: whether it is known, of its kind, within bounds. Whether the entries
make sense together, and with the network and the prices, is seen where these are loaded. Nothing of
torch is needed, so that a mistyped key is told at once. All paths are relative to the current folder.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from funcexplain.commands.entries import (
    by_name,
    choice,
    day,
    entry,
    flag,
    inside,
    names,
    nearest,
    number,
    positive,
    read_table,
    refused,
    text,
    whole,
)

MOST_ROWS = 10**6

# Settings of each method, and what they are if they are not given. Those of adam are for a search in
# sigmas, as the demo has them: an eps as large as a typical gradient leaves alone what hardly matters.
METHODS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.2, "betas": [0.5, 0.999], "eps": 0.03},
    "sgd": {"lr": 0.1, "momentum": 0.0},
    "levenberg_marquardt": {"residual": "auto", "damping": 10.0},
}
LOSSES = ("auto", "cosine_distance", "cross_entropy", "js", "kl", "mae", "mse")


@dataclass(frozen=True)
class Range:
    """Days on which windows end: every so many from a first one to a last one."""

    start: date | None = entry(day, None)
    end: date | None = entry(day, None)
    every: int = entry(whole(1), 1)


Days = str | tuple[date, ...] | Range


def _factory(where: str, value: Any) -> str:
    module, colon, function = text(where, value).partition(":")
    dotted = [*module.split("."), *function.split(".")]
    if not colon or not all(part.isidentifier() for part in dotted):
        raise refused(where, 'text such as "package.module:make"', value)
    return value


def _arguments(where: str, value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        raise refused(where, "a table of keyword arguments, such as {n_assets = 16}", value)
    return value or None


def _days(where: str, value: Any) -> Days:
    if isinstance(value, dict):
        return read_table(Range, where, value)
    if value == "all":
        return Range()
    if value == "last":
        return "last"
    if isinstance(value, list):
        if not value or len(set(map(str, value))) < len(value):
            raise refused(where, "a list of dates, none twice", value)
        return tuple(day(f"{where}[{index}]", item) for index, item in enumerate(value))
    if not isinstance(value, str | date):
        raise refused(where, '"last", "all", a date, a list of dates, or {start, end, every}', value)
    return (day(where, value),)


@dataclass(frozen=True)
class Parts:
    """Parts of a window, by asset, channel and day; what is not given does not restrict them."""

    assets: tuple[str, ...] | None = entry(names, None)
    channels: tuple[str, ...] | None = entry(names, None)
    last_days: int | None = entry(whole(1), None)


def _parts(where: str, value: Any) -> Parts:
    return read_table(Parts, where, value)


@dataclass(frozen=True)
class Group:
    """So much in several assets together."""

    assets: tuple[str, ...] = entry(names)
    weight: float | None = entry(number, None)
    at_least: float | None = entry(number, None)
    at_most: float | None = entry(number, None)


def _groups(where: str, value: Any) -> tuple[Group, ...]:
    tables = [value] if isinstance(value, dict) else value
    if not isinstance(tables, list) or not tables:
        raise refused(where, 'a table such as {assets = ["EUR", "CHF"], at_least = 0.5}', value)
    groups = tuple(read_table(Group, f"{where}[{index}]", table) for index, table in enumerate(tables))
    for index, group in enumerate(groups):
        bounds = (group.at_least, group.at_most)
        if (group.weight is None) == (bounds == (None, None)):
            raise ValueError(f"{where}[{index}]: give either weight, or at_least and at_most (or one)")
    return groups


@dataclass(frozen=True)
class Starts:
    """Where searches begin: beside the window, at a distance in sigmas drawn from a seed."""

    number: int = entry(whole(1, 10**5), 4)
    jitter: float = entry(positive, 0.05)
    seed: int = entry(whole(0, 2**32 - 1), 0)


def _starts(where: str, value: Any) -> Starts:
    return read_table(Starts, where, value)


def _settings(where: str, value: Any) -> Any:
    """A setting of a method, which the method itself checks; here it is only what TOML has for one."""
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str):
            number(where, item)
    return value


@dataclass(frozen=True)
class Network:
    """The network: who makes it, and its weights."""

    factory: str | None = entry(_factory, None)
    arguments: dict[str, Any] | None = entry(_arguments, None)
    weights: str | None = entry(text, None)


@dataclass(frozen=True)
class Market:
    """The price history."""

    file: str = entry(text)
    assets: tuple[str, ...] | None = entry(names, None)
    start: date | None = entry(day, None)
    end: date | None = entry(day, None)


@dataclass(frozen=True)
class Features:
    """How windows are made of prices."""

    lookback: int = entry(whole(1), 20)
    span: int = entry(whole(2), 20)
    channels: tuple[str, ...] = entry(names, ("return", "momentum", "volatility"))


@dataclass(frozen=True)
class Question:
    """What is asked, of which days, and what may move."""

    target: dict[str, float] | None = entry(by_name, None)
    at_least: dict[str, float] | None = entry(by_name, None)
    at_most: dict[str, float] | None = entry(by_name, None)
    top: str | None = entry(text, None)
    exit: tuple[str, ...] | None = entry(names, None)
    group: tuple[Group, ...] | None = entry(_groups, None)
    shift: dict[str, float] | None = entry(by_name, None)
    turnover: float | None = entry(positive, None)
    concentration: float | None = entry(positive, None)
    loss: str = entry(choice(*LOSSES), "auto")
    date: Days = entry(_days, "last")
    search: str = entry(choice("features", "scenario"), "features")
    covariance: str = entry(choice("sample", "exponential", "ledoit_wolf"), "sample")
    free: Parts = entry(_parts, Parts())
    frozen: Parts = entry(_parts, Parts())


WORDS = ("target", "at_least", "at_most", "top", "exit", "group", "shift", "turnover", "concentration")
"""Entries of a question that say what is asked for."""


@dataclass(frozen=True)
class Method:
    """How the search goes."""

    name: str = entry(choice(*METHODS), "adam")
    max_steps: int = entry(whole(0), 1000)
    atol: float = entry(positive, 1e-3)
    patience: int | None = entry(whole(1), None)
    starts: Starts = entry(_starts, Starts())
    threads: int = entry(whole(1, 1024), 1)
    settings: dict[str, Any] = entry(lambda where, value: value, None)


def _method(where: str, value: Any) -> Method:
    """The settings of a method stand among the other entries."""
    if not isinstance(value, dict):
        raise refused(where, "a table", value)
    name = choice(*METHODS)(inside(where, "name"), value.get("name", "adam"))
    own = METHODS[name]
    common = [key for key in Method.__dataclass_fields__ if key != "settings"]
    for key in value:
        if key not in own and key not in common:
            known = (*own, *common)
            raise ValueError(f"{inside(where, key)}: {name} has no such setting; {nearest(key, known)}")
    given = {key: _settings(inside(where, key), value[key]) for key in own if key in value}
    rest = {key: value[key] for key in common if key in value}
    return read_table(Method, where, {**rest, "settings": {**own, **given}})


@dataclass(frozen=True)
class Output:
    """What is written, and where to."""

    folder: str = entry(text, "run")
    report: bool = entry(flag, True)
    picture: bool = entry(flag, True)
    title: str | None = entry(text, None)


def _table(kind: type) -> Any:
    return lambda where, value: read_table(kind, where, value)


@dataclass(frozen=True)
class Config:
    """All of it, one field for each table."""

    network: Network = entry(_table(Network))
    prices: Market = entry(_table(Market))
    question: Question = entry(_table(Question))
    features: Features = entry(_table(Features), Features())
    method: Method = entry(_method, Method(settings=METHODS["adam"]))
    output: Output = entry(_table(Output), Output())


def read_config(path: str | Path) -> Config:
    """Read a config file, and refuse what is wrong in it by itself.

    Args:
        path: a TOML file.

    Returns:
        The config, with defaults filled in.

    Raises:
        ValueError: it is no TOML, a key is unknown or missing, or an entry is not of its kind; the
            message names the file and the entry.
        OSError: it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "config.toml")
        >>> _ = path.write_text('''
        ...     network.factory = "mine:make"
        ...     prices.file = "ecb"
        ...     question.target = {EUR = 0.4}
        ... ''')
        >>> read_config(path).method.max_steps
        1000
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise IsADirectoryError(f"{str(path)!r} is {kind}; name a config file, such as config.toml")
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no config file {str(path)!r}; is its name right?") from None
    except OSError as error:
        raise type(error)(f"cannot read {str(path)!r}: {error.strerror}; may you read it?") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no TOML file: {error}; see https://toml.io") from None
    try:
        return checked(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def checked(table: dict[str, Any]) -> Config:
    """The config in a table, as `read_config` reads it from a file."""
    config = read_table(Config, "", table)
    network, question = config.network, config.question
    exported = (network.weights or "").endswith(".pt2")
    if network.factory is None and not exported:
        raise ValueError('network.factory: missing; name the function, as in factory = "mine:make"')
    if exported and (network.factory or network.arguments):
        raise ValueError(
            "network.factory: a .pt2 file is the whole network; leave out factory, arguments"
        )
    if not any(getattr(question, word) is not None for word in WORDS):
        raise ValueError(f"question: nothing is asked for; give at least one of {', '.join(WORDS)}")
    if question.shift is not None and len(question.shift) > 1:
        raise ValueError(
            "question.shift: one asset is shifted, funded by all others; use target for several"
        )
    if question.search == "scenario" and (question.free.channels or question.frozen.channels):
        raise ValueError(
            "question.frozen: a scenario computes all channels from the same returns: none can be held; "
            'freeze assets or days, or take search = "features"'
        )
    return config
