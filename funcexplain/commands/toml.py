"""A config as TOML text that reads back as the same config; the standard library only reads TOML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from typing import Any

from funcexplain.commands.config import Config, Method


def plain(value: Any) -> Any:
    """A config as dicts, lists, text and numbers; entries that are not there are left out.

    Args:
        value: a dataclass of a config, or what stands in one.

    Returns:
        What TOML has for it; dates stay dates.

    Example:
        >>> from funcexplain.commands.config import Parts
        >>> plain(Parts(assets=("EUR",)))
        {'assets': ['EUR']}
    """
    if isinstance(value, Method):
        entries = {place.name: getattr(value, place.name) for place in fields(value)}
        settings = entries.pop("settings")
        return plain({**entries, **settings})
    if is_dataclass(value):
        value = {place.name: getattr(value, place.name) for place in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def to_toml(config: Config) -> str:
    """Write a config as text.

    Args:
        config: the config.

    Returns:
        TOML with a table for each of its parts.

    Example:
        >>> from funcexplain.commands.config import checked
        >>> table = {"network": {"factory": "mine:make"}, "prices": {"file": "ecb"}}
        >>> print(to_toml(checked({**table, "question": {"top": "EUR"}})))
        [network]
        factory = "mine:make"
        ...
    """
    blocks = []
    for name, table in plain(config).items():
        lines = [f"[{_key(name)}]", *_lines(table)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        if value != {}:
            yield f"{_key(name)} = {as_value(value)}"


def as_value(value: Any) -> str:
    """One value as it stands behind the key: a table or list on one line, text, a number or a date."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {as_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the last control character, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return value.isoformat() if isinstance(value, date) else repr(value)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else as_value(name)
