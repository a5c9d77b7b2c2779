"""Readers of single config entries: check a value and convert it, or raise.

A reader is a function ``(where, value) -> value``, where ``where`` is the path of the entry. `entry`
attaches one to the field of a dataclass, and `read_table` fills the dataclass from a table, with a
suggestion for unknown keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, field, fields
from datetime import date, datetime, time
from difflib import get_close_matches
from typing import Any, TypeVar

Reader = Callable[[str, Any], Any]
T = TypeVar("T")

_MAX_LENGTH = 60  # characters of a value in a message


def entry(read: Reader, *default: Any, path: tuple[str, ...] | None = None) -> Any:
    """Declare a dataclass field with its reader; without a default, the entry is required.

    ``path`` declares paths, with the names that may stand in their place.
    """
    metadata = {"read": read, "path": path}
    return field(default=default[0] if default else MISSING, metadata=metadata)


def read_table(kind: type[T], where: str, value: Any) -> T:
    """Fill a dataclass, whose fields are declared by `entry`, from a table.

    ``where`` is the path of the table, such as ``"method.starts"``; empty for the whole file.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Starts:
        ...     number: int = entry(integer_between(1), 4)
        >>> read_table(Starts, "starts", {"number": 2})
        Starts(number=2)
        >>> read_table(Starts, "starts", {"numbr": 2})
        Traceback (most recent call last):
        ValueError: starts.numbr: unknown key; did you mean 'number'?
    """
    if not isinstance(value, dict):
        raise bad_entry(where, "a table", value)
    known = {spec.name: spec for spec in fields(kind)}  # type: ignore[arg-type]  # is a dataclass
    for key in value:
        if key not in known:
            raise ValueError(f"{key_path(where, key)}: unknown key; {suggest(key, known)}")
    for name, spec in known.items():
        if spec.default is MISSING and name not in value:
            raise ValueError(f"{key_path(where, name)}: missing; give one")
    return kind(
        **{name: known[name].metadata["read"](key_path(where, name), value[name]) for name in value}
    )


def key_path(where: str, key: str) -> str:
    """Path of an entry of a table."""
    return f"{where}.{key}" if where else key


def abbreviate(value: Any) -> str:
    """A value as text for a message, cut to a maximum length."""
    try:
        text = str(value) if isinstance(value, date | time) else repr(value)
    except ValueError:  # an integer of too many digits to print
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "..."


def bad_entry(where: str, expected: str, value: Any) -> ValueError:
    """Make the error for an unexpected value."""
    return ValueError(f"{where}: expected {expected}, got {abbreviate(value)}")


def suggest(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """Suggest the closest known name, or list all of them if none is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    if not close:  # an abbreviation, or capitals
        close = [n for n in known if n.lower().startswith(name.lower()[:3]) and name][:1]
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(known)}"


def checked(expected: str, valid: Callable[[Any], bool], read: Reader | None = None) -> Reader:
    """Make a reader of values that pass a test, after another reader."""

    def check(where: str, value: Any) -> Any:
        value = value if read is None else read(where, value)
        if not valid(value):
            raise bad_entry(where, expected, value)
        return value

    return check


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, and not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def integer_between(minimum: int, maximum: int = 10**6) -> Reader:
    """Make a reader of integers within bounds."""
    expected = f"an integer in {minimum} ... {maximum}"
    return checked(expected, lambda value: is_integer(value) and minimum <= value <= maximum)


read_flag = checked("true or false", lambda value: isinstance(value, bool))
read_text = checked(  # paths and names cannot have a zero byte
    "text in quotes", lambda value: isinstance(value, str) and bool(value.strip()) and "\0" not in value
)


def read_number(where: str, value: Any, *, minimum: float = -math.inf) -> float:
    """Read a finite number, not below a minimum."""
    try:
        valid = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        valid = False
    if not valid or value < minimum:
        bounds = "" if math.isinf(minimum) else f" >= {minimum:g}"
        raise bad_entry(where, f"a number{bounds}", value)
    return float(value)


_HINT = 'a number such as 0.4, or text such as "40%"'
_MAX_SHARE = 10.0  # a weight of 1000 percent is a percentage without its sign


def read_share(where: str, value: Any) -> float:
    """Read a share of the portfolio: a number, or text in percent.

    Example:
        >>> read_share("question.target.EUR", "40%")
        0.4
        >>> read_share("question.target.EUR", 40)
        Traceback (most recent call last):
        ValueError: question.target.EUR: expected a number such as 0.4, ... got 40; 40 percent is "40%"
    """
    if isinstance(value, str):
        share = math.nan
        with suppress(ValueError):
            share = parse_share(value.strip()) if "%" in value else math.nan
        if not math.isfinite(share):
            raise bad_entry(where, _HINT, value)
        return share
    share = read_number(where, value)
    if _MAX_SHARE < abs(share) <= 100.0:
        raise ValueError(f'{bad_entry(where, _HINT, value)}; {share:g} percent is "{share:g}%"')
    return share


def read_non_negative(where: str, value: Any) -> float:
    """Read a finite number, >= 0."""
    return read_number(where, value, minimum=0.0)


def one_of(*names: str) -> Reader:
    """Make a reader of one of several names."""

    def read(where: str, value: Any) -> str:
        if not isinstance(value, str):
            raise bad_entry(where, f"one of {', '.join(names)}", value)
        if value not in names:
            raise ValueError(f"{where}: unknown value {abbreviate(value)}; {suggest(value, names)}")
        return value

    return read


def one_or_more(read: Reader) -> Reader:
    """Make a reader of a value, or of a list of at least two, which becomes a tuple."""

    def read_all(where: str, value: Any) -> Any:
        if not isinstance(value, list):
            return read(where, value)
        if len(value) < 2:
            raise bad_entry(where, "one value, or a list of at least two", value)
        return tuple(read(f"{where}[{index}]", item) for index, item in enumerate(value))

    return read_all


def read_names(where: str, value: Any) -> tuple[str, ...]:
    """Read a name, or a list of distinct names."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise bad_entry(where, "a name or a list of names", value)
    seen = set()
    for index, name in enumerate(value):
        read_text(f"{where}[{index}]", name)
        if name in seen:
            raise ValueError(f"{where}: {name!r} appears twice; name it once")
        seen.add(name)
    return tuple(value)


def read_amounts(where: str, value: Any) -> dict[str, float]:
    """Read a table of shares by name."""
    if not isinstance(value, dict) or not value:
        raise bad_entry(where, "a table of numbers by asset, such as {EUR = 0.4}", value)
    return {name: read_share(key_path(where, name), amount) for name, amount in value.items()}


def read_date(where: str, value: Any) -> date:
    """Read a date, or a date and time without a zone, as TOML has it or as text."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = (date if len(value) <= 10 else datetime).fromisoformat(value)
    if not isinstance(value, date) or getattr(value, "tzinfo", None) is not None:
        raise bad_entry(where, "a date such as 2024-01-31", value)
    return value


def parse_amounts(where: str, text: str, expected: str, limit: float = math.inf) -> dict[str, float]:
    """Read numbers by name from text such as ``EUR=0.4,CHF=20%``; ``where`` is the option.

    A number without ``%`` must be below ``limit``: it is more likely a percentage without its sign.

    Example:
        >>> parse_amounts("--shock", "EUR=-5%", "NAME=CHANGE such as EUR=-5%")
        {'EUR': -0.05}
    """
    amounts: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.rpartition("="))
        try:
            amount = parse_share(number)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise ValueError(f"{where}: expected {expected}, got {part!r}")
        if amount >= limit and "%" not in number:
            raise ValueError(
                f"{where}: expected {expected}, got {part!r}; {number} percent is {name}={number}%"
            )
        if name in amounts:
            raise ValueError(f"{where}: {name} appears twice in {text!r}")
        amounts[name] = amount
    return amounts


def parse_share(text: str) -> float:
    """Read a number, or a percentage with ``%``; raises a ValueError for other text.

    Example:
        >>> parse_share("-5 %"), parse_share("0,4")
        (-0.05, 0.4)
    """
    number = float(text.removesuffix("%").replace(",", "."))
    return number / (100.0 if text.endswith("%") else 1.0)
