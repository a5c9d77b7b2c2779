"""Tables of a config about features and groups, and readers shared with `config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from funcexplain.commands.entries import (
    bad_entry,
    checked,
    entry,
    integer_between,
    is_integer,
    key_path,
    one_of,
    read_amounts,
    read_names,
    read_number,
    read_share,
    read_table,
    read_text,
)


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _is_index(value: Any) -> bool:
    return is_integer(value) and abs(value) <= 1000


read_factory = checked(
    'text such as "package.module:make"',
    lambda text: text.count(":") == 1 and all(map(_is_dotted, text.split(":"))),
    read_text,
)
read_package = checked('the name of an installed package such as "deepdow"', _is_dotted, read_text)
read_horizon = checked(
    'an index of a horizon, or "mean"', lambda value: value == "mean" or _is_index(value)
)
_read_index = checked('a name such as "weights", or an index', _is_index)


def read_output(where: str, value: Any) -> str | int:
    """Read a name or an index."""
    return (read_text if isinstance(value, str) else _read_index)(where, value)


def read_arguments(where: str, value: Any) -> dict[str, Any] | None:
    """Read a table of keyword arguments; an empty one is None."""
    if not isinstance(value, dict):
        raise bad_entry(where, "a table of keyword arguments, such as {n_assets = 16}", value)
    return value or None


def read_inputs(where: str, value: Any) -> dict[str, Any]:
    """Read more inputs by name: a number, a list, weights by asset, or a file of a tensor."""
    if not isinstance(value, dict) or not value:
        raise bad_entry(where, "a table of inputs by name, such as {today = {EUR = 0.4}}", value)
    if unnamed := [name for name in value if not name.isidentifier()]:
        raise bad_entry(where, "names of arguments", unnamed[0])
    return {name: _read_input(key_path(where, name), given) for name, given in value.items()}


def _read_input(where: str, value: Any) -> Any:
    """Read one input, to any depth of lists."""
    if isinstance(value, dict):
        return read_amounts(where, value)
    if isinstance(value, list):
        return [_read_input(f"{where}[{index}]", item) for index, item in enumerate(value)]
    return read_text(where, value) if isinstance(value, str) else read_number(where, value)


@dataclass(frozen=True)
class FeaturesConfig:
    """How to make windows from prices: from channels by name, by a function, or from a file."""

    lookback: int = entry(integer_between(1), 20)
    span: int = entry(integer_between(2), 20)
    channels: tuple[str, ...] | None = entry(read_names, None)
    factory: str | None = entry(read_factory, None)
    arguments: dict[str, Any] | None = entry(read_arguments, None)
    of: str = entry(one_of("auto", "returns", "prices"), "auto")
    file: str | None = entry(read_text, None, path=())
    scaling: str | None = entry(read_text, None, path=("weights",))


@dataclass(frozen=True)
class GroupsConfig:
    """Groups of assets by name, such as sectors."""

    file: str = entry(read_text, path=())


@dataclass(frozen=True)
class GroupConfig:
    """Weight of several assets together."""

    assets: tuple[str, ...] = entry(read_names)
    weight: float | None = entry(read_share, None)
    at_least: float | None = entry(read_share, None)
    at_most: float | None = entry(read_share, None)


def read_group_goals(where: str, value: Any) -> tuple[GroupConfig, ...]:
    """Read a goal of a group, or a list of them."""
    tables = [value] if isinstance(value, dict) else value
    if not isinstance(tables, list) or not tables:
        raise bad_entry(where, 'a table such as {assets = ["EUR", "CHF"], at_least = 0.5}', value)
    groups = tuple(
        read_table(GroupConfig, f"{where}[{index}]", table) for index, table in enumerate(tables)
    )
    for index, group in enumerate(groups):
        bounds = (group.at_least, group.at_most)
        if (group.weight is None) == (bounds == (None, None)):
            raise ValueError(f"{where}[{index}]: give either weight, or at_least and at_most (or one)")
    return groups


def check_features(features: FeaturesConfig) -> None:
    """Raise if the config defines windows in two ways."""
    if features.file and (features.factory or features.arguments):
        raise ValueError(
            "features.file: holds the windows, so that no function makes them; leave out file or factory"
        )
    if features.arguments and not features.factory:
        raise ValueError('features.arguments: needs factory, such as "mine:features"; add one')
