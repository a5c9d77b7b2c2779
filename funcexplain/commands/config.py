"""The config of a run: TOML, parsed into frozen dataclasses, with a default for most entries.

This module checks each entry separately: known key, right type, within bounds. Whether the entries fit
together, and fit the network and the prices, is checked when those are loaded. torch is not imported, so
that a mistyped key is reported at once. Paths stay relative to the config's folder; `commands.reading`
makes them relative to the current one.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from funcexplain.commands.entries import (
    bad_entry,
    checked,
    entry,
    integer_between,
    one_of,
    one_or_more,
    read_amounts,
    read_date,
    read_flag,
    read_names,
    read_non_negative,
    read_share,
    read_table,
    read_text,
)
from funcexplain.commands.method import DEFAULT, METHODS, MethodConfig, read_method
from funcexplain.commands.overrides import set_entries, split_questions
from funcexplain.commands.prices import PricesConfig
from funcexplain.commands.sections import (
    FeaturesConfig,
    GroupConfig,
    GroupsConfig,
    check_features,
    read_arguments,
    read_factory,
    read_group_goals,
    read_horizon,
    read_inputs,
    read_output,
    read_package,
)
from funcexplain.solutions.reading import MIB, read_bytes
from funcexplain.solutions.writing import check_regular

MAX_SEARCHES = 10**6
MAX_DEPTH = 16
"""Maximum number of parts of a key, and of tables and lists within one another."""

# Parts are bare or quoted; one that begins in the middle of another is not looked at.
_PART = r"""(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*"""
_LONG_KEY = re.compile(rf"(?<![\w-])(?:{_PART}\.[ \t]*){{{MAX_DEPTH}}}", re.ASCII)

PROGRAMS = (".pt2", ".ts", ".jit", ".torchscript")
"""Suffixes of files that are whole networks; loading one runs code."""
MARKETS = ("normal", "student_t", "filtered_history")
"""Models of returns, by their names in `fe.models`."""
LOSSES = ("auto", "cosine_distance", "cross_entropy", "js", "kl", "mae", "mse")


@dataclass(frozen=True)
class DateRange:
    """Every n-th date on which a window ends, from a first date to a last one."""

    start: date | None = entry(read_date, None)
    end: date | None = entry(read_date, None)
    every: int = entry(integer_between(1), 1)


Dates = str | tuple[date, ...] | DateRange


def _table(kind: type) -> Any:
    return lambda where, value: read_table(kind, where, value)


def _dates(where: str, value: Any) -> Dates:
    if isinstance(value, dict):
        return read_table(DateRange, where, value)
    if value == "all":
        return DateRange()
    if value == "last":
        return "last"
    if isinstance(value, list):
        if not value or len(set(map(str, value))) < len(value):
            raise bad_entry(where, "a list of dates, none twice", value)
        return tuple(read_date(f"{where}[{index}]", item) for index, item in enumerate(value))
    if not isinstance(value, str | date):
        raise bad_entry(where, '"last", "all", a date, a list of dates, or {start, end, every}', value)
    return (read_date(where, value),)


@dataclass(frozen=True)
class WindowPart:
    """Part of a window, by asset, channel and day; a field that is None does not restrict it."""

    assets: tuple[str, ...] | None = entry(read_names, None)
    channels: tuple[str, ...] | None = entry(read_names, None)
    last_days: int | None = entry(integer_between(1), None)


_leverage = checked(  # inf assumes nothing
    "a number > 0, or inf",
    lambda value: value > 0.0,
    lambda where, value: value if value == math.inf else read_non_negative(where, value),
)


def _radii(where: str, value: Any) -> tuple[float, ...]:
    """A positive number, or a list of them that increases."""
    radii = value if isinstance(value, list) else [value]
    numbers = [read_non_negative(where, radius) for radius in radii]
    if not numbers or numbers[0] == 0.0 or sorted({*numbers}) != numbers:
        raise bad_entry(where, "a number > 0, or a list of them that increases", value)
    return tuple(numbers)


@dataclass(frozen=True)
class NetworkConfig:
    """The network: the function that makes it, the package or folder of that, and its weights.

    A list of any of the first three is of several networks, which share the others.
    """

    factory: str | tuple[str, ...] | None = entry(one_or_more(read_factory), None)
    arguments: dict[str, Any] | tuple[dict[str, Any] | None, ...] | None = entry(
        one_or_more(read_arguments), None
    )
    weights: str | tuple[str, ...] | None = entry(one_or_more(read_text), None, path=())
    package: str | None = entry(read_package, None)
    folder: str = entry(read_text, ".", path=())
    layout: str | None = entry(read_text, None)
    output: str | int | None = entry(read_output, None)
    horizon: str | int | None = entry(read_horizon, None)
    normalize: str | None = entry(one_of("softmax", "sum"), None)
    outputs: tuple[str, ...] | None = entry(read_names, None)
    inputs: dict[str, Any] | None = entry(read_inputs, None, path=())
    window: str | int | None = entry(read_output, None)

    def members(self) -> list[NetworkConfig]:
        """Each network of several, or the only one.

        Example:
            >>> [one.weights for one in NetworkConfig("mine:make", weights=("a.pt", "b.pt")).members()]
            ['a.pt', 'b.pt']
        """
        given = {name: getattr(self, name) for name in ("factory", "arguments", "weights")}
        lists = {name: value for name, value in given.items() if isinstance(value, tuple)}
        sizes = {name: len(value) for name, value in lists.items()}
        if len({*sizes.values()}) > 1:
            named = ", ".join(f"{count} of {name}" for name, count in sizes.items())
            raise ValueError(f"network: lists must have one entry for each network, got {named}")
        count = max(sizes.values(), default=1)
        return [
            replace(self, **{name: value[at] for name, value in lists.items()}) for at in range(count)
        ]


@dataclass(frozen=True)
class QuestionConfig:
    """The goals, the dates, and which entries are free to change."""

    name: str | None = entry(read_text, None)
    target: dict[str, float] | None = entry(read_amounts, None)
    at_least: dict[str, float] | None = entry(read_amounts, None)
    at_most: dict[str, float] | None = entry(read_amounts, None)
    top: str | None = entry(read_text, None)
    exit: tuple[str, ...] | None = entry(read_names, None)
    group: tuple[GroupConfig, ...] | None = entry(read_group_goals, None)
    shift: dict[str, float] | None = entry(read_amounts, None)
    move: dict[str, float] | None = entry(read_amounts, None)
    turnover: float | None = entry(
        lambda where, value: read_non_negative(where, read_share(where, value)), None
    )
    concentration: float | None = entry(read_non_negative, None)
    leverage: float | None = entry(_leverage, None)
    benchmark: dict[str, float] | None = entry(read_amounts, None)
    loss: str = entry(one_of(*LOSSES), "auto")
    date: Dates = entry(_dates, "last")
    search: str = entry(one_of("auto", "scenario", "features"), "auto")
    ahead: int | None = entry(integer_between(1), None)
    market: str = entry(one_of("auto", *MARKETS), "auto")
    how_likely: bool = entry(read_flag, False)
    draws: int | None = entry(integer_between(2, 10**5), None)
    reach: tuple[float, ...] | None = entry(_radii, None)
    covariance: str = entry(one_of("sample", "exponential", "ledoit_wolf"), "sample")
    free: WindowPart = entry(_table(WindowPart), WindowPart())
    frozen: WindowPart = entry(_table(WindowPart), WindowPart())


GOALS = (
    *("target", "at_least", "at_most", "top", "exit", "group", "shift", "move", "turnover"),
    "concentration",
)
"""Entries of a question that state a goal."""


@dataclass(frozen=True)
class OutputConfig:
    """Which files to write, and where."""

    folder: str = entry(read_text, "run", path=())
    report: bool = entry(read_flag, True)
    picture: bool = entry(read_flag, True)
    title: str | None = entry(read_text, None)


@dataclass(frozen=True)
class Config:
    """A whole config, one field per table."""

    network: NetworkConfig = entry(_table(NetworkConfig))
    prices: PricesConfig = entry(_table(PricesConfig))
    question: QuestionConfig = entry(_table(QuestionConfig))
    features: FeaturesConfig = entry(_table(FeaturesConfig), FeaturesConfig())
    groups: GroupsConfig | None = entry(_table(GroupsConfig), None)
    method: MethodConfig = entry(read_method, MethodConfig(settings=METHODS[DEFAULT]))
    output: OutputConfig = entry(_table(OutputConfig), OutputConfig())


def read_configs(path: str | Path, settings: Iterable[str] = ()) -> dict[str | None, Config]:
    """Read a TOML file, set and check its entries, and fill in the defaults, for each of its questions.

    Returns:
        The configs by the labels of their questions; a single question has the label None.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "config.toml")
        >>> _ = path.write_text('''
        ...     network.factory = "mine:make"
        ...     prices.file = "ecb"
        ...     question.target = {EUR = 0.4}
        ... ''')
        >>> read_configs(path)[None].method.max_steps
        100
    """
    path = Path(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no config file {str(path)!r}; check the name")
    check_regular("config", path, name="a config file, such as config.toml")
    content = read_bytes("config", path, MIB, "shorten its lists")
    try:
        table = set_entries(parse_toml(content.decode("utf-8-sig")), settings)
        return {label: parse_config(one) for label, one in split_questions(table, path.parent)}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a TOML file: {error}; see https://toml.io") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML whose keys and values are nested a little: deep ones take quadratic time or overflow.

    Example:
        >>> parse_toml("network.factory = 'mine:make'")
        {'network': {'factory': 'mine:make'}}
        >>> parse_toml("a." * 50_000 + "b = 1")
        Traceback (most recent call last):
        ValueError: keys and values must be nested at most 16 deep, got more; ...
    """
    with suppress(RecursionError):
        if not _LONG_KEY.search(text):
            table = tomllib.loads(text)
            level: list[Any] = [table]
            for _ in range(MAX_DEPTH):
                level = [item for value in level for item in _inside(value)]
            if not level:
                return table
    raise ValueError(f"keys and values must be nested at most {MAX_DEPTH} deep, got more; flatten them")


def _inside(value: Any) -> Iterable[Any]:
    """The values in a table or list."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def parse_config(table: dict[str, Any]) -> Config:
    """Parse a table as `read_configs` parses a file."""
    config = read_table(Config, "", table)
    question = config.question
    for network in config.network.members():
        _check_network(network)
    check_features(config.features)
    if not any(getattr(question, goal) is not None for goal in GOALS):
        raise ValueError(f"question: no goal is given; give at least one of {', '.join(GOALS)}")
    if question.shift is not None and len(question.shift) > 1:
        raise ValueError(
            f"question.shift: expected one asset, funded by all others, got {len(question.shift)}; use "
            "move for several, which leaves the others unchanged, or target"
        )
    channels = question.free.channels or question.frozen.channels
    if question.search == "scenario" and channels:
        raise ValueError(
            "question.frozen: a scenario computes all channels from the same returns, so that channels "
            'cannot be frozen; freeze assets or days, or use search = "features"'
        )
    for name in ("how_likely", "draws"):
        if getattr(question, name) and question.ahead is None:
            raise ValueError(
                f"question.{name}: needs ahead, the number of days to come: what has happened has no "
                f"probability; add ahead = 10, or leave {name} out"
            )
    search, given = question.search, config.features.file
    if search == "auto":  # single channels cannot move along a path of prices
        search = "features" if channels or given else "scenario"
    if search == "scenario" and given:
        raise ValueError(
            "question.search: a scenario computes windows from returns, and features.file holds them "
            'without that; use search = "features", or features.factory'
        )
    if search == "features":
        for name, default in (("ahead", None), ("market", "auto")):
            if getattr(question, name) != default:
                raise ValueError(
                    f"question.{name}: needs a scenario, in which all channels follow one path of "
                    'prices, got search = "features"; leave one of them out'
                )
    return replace(config, question=replace(question, search=search))


def _check_network(network: NetworkConfig) -> None:
    """Raise unless the entries of one network fit together."""
    weights = network.weights or ""
    assert isinstance(weights, str)
    if network.factory is None and not weights.endswith((*PROGRAMS, ".pt", ".pth")):
        raise ValueError('network.factory: missing; name the function, as in factory = "mine:make"')
    if network.factory is None and (network.arguments or network.package):
        raise ValueError(
            "network.factory: missing, but arguments or package are given; add it, or leave them out: a "
            "file such as .pt2 is the whole network"
        )
    if network.factory and weights.endswith(PROGRAMS):
        raise ValueError(
            "network.factory: a .pt2 file is the whole network; leave out factory, arguments, package"
        )
