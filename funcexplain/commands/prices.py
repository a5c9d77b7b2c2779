"""The entries of ``[prices]``: the file, the assets and days to use, and how to read it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date
from typing import Any

from funcexplain.commands.entries import (
    Reader,
    checked,
    entry,
    integer_between,
    one_of,
    read_date,
    read_names,
    read_text,
)
from funcexplain.markets.dialects import Dialect
from funcexplain.markets.selection import GAPS

SHIPPED = ("ecb", "sp500")
"""Price histories by name, in place of a file."""


def _character(example: str) -> Reader:
    """Make a reader of one character, which may be a blank or a tab."""
    expected = f'one character, such as "{example}"'
    return checked(expected, lambda value: isinstance(value, str) and len(value) == 1)


@dataclass(frozen=True)
class PricesConfig:
    """The price history; fields shared with `Dialect` are sniffed if None."""

    file: str = entry(read_text, path=SHIPPED)
    assets: tuple[str, ...] | None = entry(read_names, None)
    start: date | None = entry(read_date, None)
    end: date | None = entry(read_date, None)
    gaps: str = entry(one_of(*GAPS), "refuse")
    separator: str | None = entry(_character(";"), None)
    decimal: str | None = entry(one_of(".", ","), None)
    thousands: str | None = entry(_character("."), None)
    date_format: str | None = entry(read_text, None)
    header: int | None = entry(integer_between(1), None)
    encoding: str | None = entry(read_text, None)
    sheet: str | None = entry(read_text, None)

    @property
    def dialect(self) -> dict[str, Any]:
        """How to read the file, as far as it is given."""
        given = {field.name: getattr(self, field.name) for field in fields(Dialect)}
        return {name: value for name, value in given.items() if value is not None}
