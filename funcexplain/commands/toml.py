"""Write a config as TOML text that parses to the same config; the standard library only reads TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from datetime import date, time
from typing import Any

from funcexplain.commands.config import Config


def to_plain(value: Any) -> Any:
    """Convert a config, or a value in one, to the types of TOML; entries that are None are left out.

    Example:
        >>> from funcexplain.commands.config import WindowPart
        >>> to_plain(WindowPart(assets=("EUR",)))
        {'assets': ['EUR']}
    """
    if is_dataclass(value):
        entries = dict(vars(value))
        settings = entries.pop("settings", {})  # a method's are entries of its table
        value = entries | settings
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items() if item is not None}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def to_toml(config: Config) -> str:
    """Write a config as TOML with one table per field.

    Example:
        >>> from funcexplain.commands.config import parse_config
        >>> table = {"network": {"factory": "mine:make"}, "prices": {"file": "ecb"}}
        >>> print(to_toml(parse_config({**table, "question": {"top": "EUR"}})))
        [network]
        factory = "mine:make"
        ...
    """
    blocks = []
    for name, table in to_plain(config).items():
        lines = [f"{_key(key)} = {format_toml(value)}" for key, value in table.items() if value != {}]
        blocks.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def format_toml(value: Any) -> str:
    """Format one value: a table or list on one line, text, a number or a date."""
    if isinstance(value, Mapping):
        items = (f"{_key(name)} = {format_toml(item)}" for name, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(format_toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except for DEL, which JSON does not escape.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return value.isoformat() if isinstance(value, date | time) else repr(value)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else format_toml(name)
