"""Finds days, assets and prices in a grid of text: wide, long, transposed, with several header rows.

Prices are not checked here: assets and days are selected first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from funcexplain.markets.dialects import GAPS, Dialect, is_date, read_dates
from funcexplain.markets.fields import (
    DATE_NAMES,
    FIELDS,
    best_price,
    choose_prices,
    label_columns,
    plain,
)
from funcexplain.markets.grids import Grid

Row = tuple[int, list[str]]  # line and cells

_ID_NAMES = set(
    "ticker symbol asset isin name instrument security id sid code currency permno ric cusip sedol "
    "stock fund pair wkn".split()
)
# A price, perhaps with a currency sign; not a percentage, and not 1.2M.
_PRICE = re.compile(r"[^\w%]*\d[\d.,'\u2019\s]*(e[-+]?\d+)?[^\w%]*", re.IGNORECASE)
_SAMPLE = 200  # rows that show where the dates are
_CLOCK = re.compile(r"\d\d?:\d\d(:\d\d)?")


@dataclass(frozen=True, eq=False)
class Table:
    """Prices as text, one row for each day, in the order of the file.

    Attributes:
        where: the file, for messages.
        assets: names of the assets.
        dates: of the rows, in any order.
        lines: of the rows.
        cells: prices of each row, as text.
        separator: of the file.
        notes: what was sniffed, in words.
    """

    where: str
    assets: tuple[str, ...]
    dates: NDArray[np.datetime64]
    lines: list[int]
    cells: list[list[str]]
    separator: str
    notes: tuple[str, ...]


def find_table(grid: Grid, dialect: Dialect) -> Table:
    """Find days, assets and prices in a grid.

    Raises:
        ValueError: if there is no header, no date or no asset, or a row does not fit.

    Example:
        >>> rows = [["Price", "Close", "Volume"], ["Ticker", "GOLD", "GOLD"], ["Date", "", ""]]
        >>> rows = [*enumerate([*rows, ["2024-01-02", "2063.7", "9"]], start=1)]
        >>> table = find_table(Grid("mine.csv", rows), Dialect())
        >>> table.assets, table.cells
        (('GOLD',), [['2063.7']])
    """
    where, rows, notes = grid.where, grid.rows, [*grid.notes]
    if dialect.header is not None:
        rows = [row for row in rows if row[0] >= dialect.header]
    if not rows:
        raise ValueError(f"{where}: expected a header row such as 'date,EUR,JPY', got an empty file")
    found = _find_days(rows, dialect.date_format)
    if found is None and (turned := _transposed(rows)) is not None:
        rows, found = turned, _find_days(turned, dialect.date_format)
        notes.append("one row for each asset")
    if found is None:
        raise _no_days(where, rows)
    place, first = found
    header, body = [row for _, row in rows[:first]], rows[first:]
    body = [row for row in body if row[1] not in header]  # repeated where files were joined
    last = max(n for n, (_, row) in enumerate(body, start=1) if _dated(row, place, dialect.date_format))
    if len(body) > last:
        notes.append(f"without the last {len(body) - last} lines, which have no date")
        body = body[:last]
    if not header:
        got = ",".join(body[0][1])[:40]
        raise ValueError(
            f"{where}: expected a header row such as 'date,EUR,JPY', got the data row {got!r}"
        )
    width = max(len(row) for row in header)
    if all(len(row) == width + 1 and row[-1] for _, row in body):  # R has no name for its names of rows
        header, width = [["", *row] for row in header], width + 1
    header = [[cell.strip("<># ") for cell in _padded(row, width)] for row in header]
    named = max(k + 1 for row in header for k, cell in enumerate(row) if cell)
    body = [(line, _fit(row, named, width, f"{where}, line {line}")) for line, row in body]
    if (pairs := _in_pairs(header, body, place, dialect.date_format)) is not None:
        header, body, place, width = [["date", "asset", "price"]], pairs, 0, 3
    texts = [row[place] for _, row in body]
    ignored = {place}
    if place + 1 < width and all(_CLOCK.fullmatch(row[place + 1]) for _, row in body):
        texts = [f"{text} {row[place + 1]}" for text, (_, row) in zip(texts, body, strict=True)]
        ignored.add(place + 1)
    places = [f"{where}, line {line}" for line, _ in body]
    dates, written = read_dates(texts, places, dialect.date_format)
    if written != "YYYY-MM-DD":
        notes.append(f"dates {written}")
    columns = [k for k in range(width) if k not in ignored and not _is_index(header, body, k, place)]
    names = _long_columns(header[-1], body, columns, texts)
    if names:
        assets, picked, lines, cells = _pivot(where, header[-1], body, columns, names, dates)
        dates, notes = picked, [*notes, "one row for each day and asset"]
    else:
        if not columns:
            raise _no_asset(where, header[-1])
        columns = _without_words(body, columns, header[-1], notes)
        labels = label_columns(header, columns, place)
        assets, kept, more = choose_prices(labels, columns, grid.name)
        notes += more
        lines, cells = [line for line, _ in body], [[row[k] for k in kept] for _, row in body]
    _check_names(where, header, assets)
    return Table(where, tuple(assets), dates, lines, cells, grid.separator, tuple(notes))


# --- rows ------------------------------------------------------------------------------------------


def _dated(row: list[str], place: int, date_format: str | None) -> bool:
    if place >= len(row):
        return False
    return any(is_date(row[place], date_format, numbers=numbers) for numbers in (False, True))


def _find_days(rows: list[Row], date_format: str | None) -> tuple[int, int] | None:
    """The first column whose cells are dates, from some row on at least half, and that row."""
    rows = rows[:_SAMPLE]
    for numbers in (False, True):
        for place in range(max(len(row) for _, row in rows)):
            dated = [
                place < len(row) and is_date(row[place], date_format, numbers=numbers) for _, row in rows
            ]
            if any(dated):
                first = dated.index(True)
                if 2 * sum(dated) >= len(rows) - first:
                    return place, first
    return None


def _transposed(rows: list[Row]) -> list[Row] | None:
    """Rows of days from rows of assets, if a header has the dates."""
    cells = [row for _, row in rows]
    width = len(cells[0])
    if 2 * sum(map(is_date, cells[0])) < width or any(len(row) != width for row in cells):
        return None
    return [(number, list(row)) for number, row in enumerate(zip(*cells, strict=True), start=1)]


def _no_days(where: str, rows: list[Row]) -> ValueError:
    """The error for a file without dates."""
    header, body = rows[0][1], rows[1:]
    if len(header) < 2 and all(len(row) < 2 for _, row in body):
        return _no_asset(where, header)
    if not body:
        return ValueError(f"{where}: expected at least 2 days of prices, got 0")
    line, row = body[0]
    return ValueError(
        f"{where}, line {line}: expected a column of dates such as 2024-01-31, got "
        f"{','.join(row)[:40]!r}; add one, or give date_format or header"
    )


def _no_asset(where: str, header: list[str]) -> ValueError:
    got = next(iter(header), "")
    return ValueError(
        f"{where}: expected a date column and at least 1 asset, separated by commas, got the "
        f"header {got!r}"
    )


def _fit(row: list[str], named: int, width: int, where: str) -> list[str]:
    """A row of as many cells as the header has, where those without a name may be missing."""
    if len(row) > width and not any(row[width:]):
        row = row[:width]
    if not named <= len(row) <= width:
        raise ValueError(
            f"{where}: expected {width} cells as in the header, got {len(row)}; give every day one "
            "price per asset"
        )
    return _padded(row, width)


def _padded(row: list[str], width: int) -> list[str]:
    return row + [""] * (width - len(row))


# --- columns ---------------------------------------------------------------------------------------


def _is_index(header: list[list[str]], body: list[Row], column: int, place: int) -> bool:
    """Whether a column has no name and is empty or left of the dates, as the row numbers of a frame."""
    label = next((row[column] for row in header[::-1] if row[column]), "")
    if label and not label.startswith("Unnamed"):
        return plain(label) == "index" and column < place
    return column < place or not any(row[column] for _, row in body)


def _is_number(text: str) -> bool:
    """Whether a cell may be a price, or none."""
    return text.lower() in GAPS or _PRICE.fullmatch(text) is not None


def _without_words(body: list[Row], columns: list[int], names: list[str], notes: list[str]) -> list[int]:
    """Columns that may hold prices: not those of words, percentages or volumes such as 1.2M."""

    def has_words(column: int) -> bool:
        if any(_PRICE.fullmatch(row[column]) for _, row in body):
            return False
        return any(row[column].lower() not in GAPS for _, row in body)

    dropped = [column for column in columns if has_words(column)]
    if not dropped or len(dropped) == len(columns):
        return columns
    notes.append(f"without {', '.join(repr(names[k]) for k in dropped)} (no prices)")
    return [column for column in columns if column not in dropped]


def _in_pairs(
    header: list[list[str]], body: list[Row], place: int, date_format: str | None
) -> list[Row] | None:
    """Rows of day, asset and price, if every other column has dates, of the asset beside it."""
    width = len(header[0])
    others = range(place, width, 2)
    if width - place < 4 or (width - place) % 2:
        return None
    if not all(_dated(row, k, date_format) or not row[k] for _, row in body for k in others):
        return None
    rows = []
    for k in others:
        labels = [row[column] for row in header for column in (k, k + 1)]
        known = [label for label in labels if plain(label) not in {"", *DATE_NAMES, *FIELDS}]
        rows += [(line, [row[k], next(iter(known), ""), row[k + 1]]) for line, row in body if row[k]]
    return rows


def _long_columns(names: list[str], body: list[Row], columns: list[int], days: list[str]) -> list[int]:
    """The columns of text of a long table, that of the assets first; none if it is wide."""
    repeated = len(set(days)) < len(days)
    named = [k for k in columns if plain(names[k]) in _ID_NAMES]
    if not (repeated or named):
        return []
    texts = [k for k in columns if not all(_is_number(row[k]) for _, row in body)]
    ids = [k for k in named if k in texts or repeated] or (texts if repeated else [])

    def is_key(column: int) -> bool:
        return len({(day, row[column]) for day, (_, row) in zip(days, body, strict=True)}) == len(body)

    best = next(filter(is_key, ids), ids[0] if ids else None)
    return [] if best is None else [best, *(k for k in texts if k != best)]


def _pivot(
    where: str,
    header: list[str],
    body: list[Row],
    columns: list[int],
    texts: list[int],
    dates: NDArray[np.datetime64],
) -> tuple[list[str], NDArray[np.datetime64], list[int], list[list[str]]]:
    """Assets, days, lines and cells of a table with one row for each day and asset."""
    asset = texts[0]
    kept = list(zip(body, dates.tolist(), dates, strict=True))
    for field in texts[1:]:  # a table of one row for each day, asset and field
        known = {plain(row[field]) for _, row in body}
        if known <= FIELDS and (price := best_price(known)):
            kept = [item for item in kept if plain(item[0][1][field]) == price]
    values = [k for k in columns if k not in texts]
    fields = {plain(header[k]): k for k in values}
    if len(values) != 1 and (best := best_price(fields)) is None:
        listed = ", ".join(repr(header[k]) for k in values) or "none"
        raise ValueError(f"{where}: expected one column of prices, got {listed}; call it close")
    value = values[0] if len(values) == 1 else fields[best or ""]
    assets = list(dict.fromkeys(row[asset] for (_, row), *_ in kept))
    places = {name: place for place, name in enumerate(assets)}
    rows: dict[object, tuple[int, list[str]]] = {}
    days = {}
    for (line, row), day, stamp in sorted(kept, key=lambda item: item[1]):
        cells = rows.setdefault(day, (line, [""] * len(assets)))[1]
        days[day] = stamp
        before, place = cells[places[row[asset]]], places[row[asset]]
        if before and before != row[value]:
            raise ValueError(
                f"{where}, line {line}: date {stamp} appears twice for {row[asset]!r}; "
                "keep one of the rows"
            )
        cells[place] = row[value]
    lines, cells_of = zip(*rows.values(), strict=True)
    return assets, np.array([*days.values()]), [*lines], [*cells_of]


def _check_names(where: str, header: list[list[str]], assets: Sequence[str]) -> None:
    if not assets:
        raise _no_asset(where, header[-1])
    for name in _repeated(assets):
        if not name:
            at = [*header[-1], ""].index("") + 1
            raise ValueError(f"{where}: column {at} of the header has no name; give it one")
        raise ValueError(f"{where}: the asset {name!r} has two columns; rename or remove one")


def _repeated(names: Sequence[str]) -> Iterator[str]:
    """Names that are empty, or that appeared before."""
    seen = set()
    for name in names:
        if not name or name in seen:
            yield name
        seen.add(name)
