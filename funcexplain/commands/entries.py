"""Readers of single entries of a config: each takes where an entry stands and its value, or refuses it.

A reader is a function ``(where, value) -> value``. `entry` hangs one on the field of a dataclass, and
`read_table` fills the dataclass from a table, with a word on keys that it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from datetime import date, datetime
from difflib import get_close_matches
from typing import Any, TypeVar

Reader = Callable[[str, Any], Any]
T = TypeVar("T")

_SHOWN = 60  # letters of a value in a message


def entry(read: Reader, *default: Any) -> Any:
    """A field of a dataclass that is read by ``read``; without a default it has to be given."""
    return field(default=default[0] if default else MISSING, metadata={"read": read})


def read_table(kind: type[T], where: str, value: Any) -> T:
    """Fill a dataclass whose fields are `entry` from a table.

    Args:
        kind: the dataclass.
        where: where the table stands, such as ``"method.starts"``; empty for the whole file.
        value: the table.

    Returns:
        An instance of ``kind``.

    Raises:
        ValueError: it is no table, a key is unknown or missing, or an entry is refused.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Starts:
        ...     number: int = entry(whole(1), 4)
        >>> read_table(Starts, "starts", {"number": 2})
        Starts(number=2)
        >>> read_table(Starts, "starts", {"numbr": 2})
        Traceback (most recent call last):
        ValueError: starts.numbr: no such key; did you mean 'number'?
    """
    if not isinstance(value, dict):
        raise refused(where, "a table", value)
    known = {place.name: place for place in fields(kind)}  # type: ignore[arg-type]  # is a dataclass
    for key in value:
        if key not in known:
            raise ValueError(f"{inside(where, key)}: no such key; {nearest(key, known)}")
    for name, place in known.items():
        if place.default is MISSING and name not in value:
            raise ValueError(f"{inside(where, name)}: missing; give one")
    return kind(
        **{name: known[name].metadata["read"](inside(where, name), value[name]) for name in value}
    )


def inside(where: str, key: str) -> str:
    """Where an entry of a table stands."""
    return f"{where}.{key}" if where else key


def shown(value: Any) -> str:
    """A value as it stands in a message, cut where it is long."""
    text = str(value) if isinstance(value, date) else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def refused(where: str, expected: str, value: Any) -> ValueError:
    """The error for a value that is not what was expected."""
    return ValueError(f"{where}: expected {expected}, got {shown(value)}")


def nearest(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """Which known name may be meant; all of them if none comes near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    if not close:  # an abbreviation, or capitals
        close = [n for n in known if n.lower().startswith(name.lower()[:3]) and name][:1]
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose among {', '.join(known)}"


def text(where: str, value: Any) -> str:
    """Text that is not empty, without a zero byte, which no path and no name has."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise refused(where, "text in quotes", value)
    return value


def flag(where: str, value: Any) -> bool:
    """``true`` or ``false``."""
    if not isinstance(value, bool):
        raise refused(where, "true or false", value)
    return value


def whole(least: int, most: int = 10**6) -> Reader:
    """A whole number within bounds."""

    def read(where: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise refused(where, f"a whole number in {least} ... {most}", value)
        return value

    return read


def number(where: str, value: Any, *, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number within bounds."""
    try:
        good = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        good = False
    if not good or not least <= value <= most:
        bounds = "" if math.isinf(least) else f" >= {least:g}"
        bounds = bounds if math.isinf(most) else f" in {least:g} ... {most:g}"
        raise refused(where, f"a number{bounds}", value)
    return float(value)


def positive(where: str, value: Any) -> float:
    """A finite number, >= 0."""
    return number(where, value, least=0.0)


def choice(*names: str) -> Reader:
    """One of several names."""

    def read(where: str, value: Any) -> str:
        if not isinstance(value, str):
            raise refused(where, f"one of {', '.join(names)}", value)
        if value not in names:
            raise ValueError(f"{where}: no such choice: {shown(value)}; {nearest(value, names)}")
        return value

    return read


def names(where: str, value: Any) -> tuple[str, ...]:
    """A name, or a list of names, none twice."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise refused(where, "a name or a list of names", value)
    for index, name in enumerate(value):
        text(f"{where}[{index}]", name)
        if name in value[:index]:
            raise ValueError(f"{where}: {name!r} is named twice; name it once")
    return tuple(value)


def by_name(where: str, value: Any) -> dict[str, float]:
    """A table of numbers by name."""
    if not isinstance(value, dict) or not value:
        raise refused(where, "a table of numbers by asset, such as {EUR = 0.4}", value)
    return {name: number(inside(where, name), amount) for name, amount in value.items()}


def day(where: str, value: Any) -> date:
    """A date, bare or as text."""
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value)
        except ValueError:
            raise refused(where, "a date such as 2024-01-31", value) from None
    if not isinstance(value, date) or isinstance(value, datetime):
        raise refused(where, "a date such as 2024-01-31", value)
    return value
