"""Write a config as TOML text that parses to the same config; the standard library only reads TOML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from typing import Any

from funcexplain.commands.config import Config, MethodConfig


def to_plain(value: Any) -> Any:
    """Convert a config to dicts, lists, text and numbers; entries that are None are left out.

    Args:
        value: a dataclass of a config, or a value in one.

    Returns:
        The same in types that TOML has; dates stay dates.

    Example:
        >>> from funcexplain.commands.config import WindowPart
        >>> to_plain(WindowPart(assets=("EUR",)))
        {'assets': ['EUR']}
    """
    if isinstance(value, MethodConfig):
        entries = {field.name: getattr(value, field.name) for field in fields(value)}
        settings = entries.pop("settings")
        return to_plain({**entries, **settings})
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items() if item is not None}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def to_toml(config: Config) -> str:
    """Write a config as text.

    Args:
        config: the config.

    Returns:
        TOML with one table per field.

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
        lines = [f"[{_key(name)}]", *_lines(table)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        if value != {}:
            yield f"{_key(name)} = {format_toml(value)}"


def format_toml(value: Any) -> str:
    """Format one value: a table or list on one line, text, a number or a date."""
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{_key(name)} = {format_toml(item)}" for name, item in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(format_toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except for DEL, which JSON does not escape.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return value.isoformat() if isinstance(value, date) else repr(value)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else format_toml(name)
