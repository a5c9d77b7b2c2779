"""Selects assets and days of a table, and checks the selection."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from difflib import get_close_matches
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from funcexplain.markets.dialects import Dialect, Marks, read_price, sniff_marks
from funcexplain.markets.layouts import Table

GAPS = ("refuse", "drop_days", "forward_fill", "drop_assets")
"""Treatments of cells without a price."""


class Selection(NamedTuple):
    """Fields of `Prices`: prices of days and assets, their source, and notes on changes."""

    values: NDArray[np.float64]
    dates: NDArray[np.datetime64]
    assets: tuple[str, ...]
    source: str
    notes: tuple[str, ...]


def days_between(
    dates: NDArray[np.datetime64], start: date | None, end: date | None
) -> NDArray[np.bool_]:
    """Mask of the dates from a first to a last one, both included, with all their minutes.

    Example:
        >>> days = np.array(["2024-01-02T09:30", "2024-01-03T16:00"], dtype="datetime64[m]")
        >>> days_between(days, None, date(2024, 1, 3))
        array([ True,  True])
    """
    keep = np.ones(len(dates), dtype=bool)
    if start is not None:
        keep &= dates >= np.datetime64(start)
    if end is not None:
        last = np.datetime64(end)
        keep &= dates.astype(last.dtype) <= last
    return keep


def find_assets(where: str, wanted: Sequence[str] | None, known: Sequence[str]) -> list[int]:
    """Places of the wanted assets."""
    places = {name: place for place, name in enumerate(known)}
    for name in wanted or ():
        if name not in places:
            alike = [other for other in known if other.lower() == name.lower()]
            similar = alike or get_close_matches(name, known, n=1)
            hint = f"did you mean {similar[0]!r}?" if similar else f"choose from {', '.join(known)}"
            raise ValueError(f"{where}: assets: there is no {name!r} in the data; {hint}")
    return [places[name] for name in wanted or known]


def find_days(
    where: str, dates: NDArray[np.datetime64], start: date | None, end: date | None
) -> NDArray[np.bool_]:
    """Mask of the dates as `days_between`; raises if it is empty."""
    keep = days_between(dates, start, end)
    if not keep.any():
        raise ValueError(
            f"{where}: start: expected days between start and end, got none; there are {dates.min()} to "
            f"{dates.max()}"
        )
    return keep


def select(
    where: str,
    table: Table,
    dialect: Dialect,
    assets: Sequence[str] | None = None,
    start: date | None = None,
    end: date | None = None,
    gaps: str = "refuse",
) -> Selection:
    """Cut a table to assets and days, read its cells, and fill or drop gaps.

    Raises:
        ValueError: if an asset or a day is unknown, or the selection is not a price history.

    Example:
        >>> days = np.array(["2024-01-03", "2024-01-02"], dtype="datetime64[D]")
        >>> cells = [["1,5", "bad"], ["1,25", ""]]
        >>> table = Table("mine.csv", ("GOLD", "OIL"), days, [2, 3], cells, ";", ())
        >>> select("load", table, Dialect(), ["GOLD"]).values.tolist()
        [[1.25], [1.5]]
    """
    columns = find_assets(where, assets, table.assets)
    names, notes = [table.assets[column] for column in columns], [*table.notes]
    within = np.flatnonzero(find_days(where, table.dates, start, end)).tolist()
    rows = _in_order(table, columns, within, notes)
    cells = [[table.cells[row][column] for column in columns] for row in rows]
    marks = sniff_marks(table.where, list(chain(*cells)), dialect, table.separator)
    if marks.decimal == ",":
        notes.append("decimal comma")
    values = _read_all(cells, marks)
    if values is None:  # a gap, another mark or a fault
        values = np.empty((len(rows), len(columns)))
        for number, place in np.ndindex(values.shape):
            try:
                values[number, place] = read_price(cells[number][place], marks)
            except ValueError as error:
                raise ValueError(f"{_place(table, rows[number], names[place])}: {error}") from None
    dates = table.dates[rows]
    known = ~np.isnan(values)
    if len(columns) > 1 and not known.any(axis=1).all():  # nothing was traded
        kept = known.any(axis=1)
        notes.append(f"without {(~kept).sum()} days that have no price")
        values, dates, rows = values[kept], dates[kept], np.array(rows)[kept].tolist()
    if np.isnan(values).any():
        number, place = np.argwhere(np.isnan(values))[0].tolist()
        first = f"{_place(table, rows[number], names[place])}: expected a price, got a gap"
        first += f" ({table.cells[rows[number]][columns[place]]!r})"
        values, dates, names, note = _without_gaps(values, dates, names, gaps, first)
        notes.append(note)
    if len(dates) < 2:
        raise ValueError(f"{table.where}: expected at least 2 days of prices, got {len(dates)}")
    return Selection(values, dates, tuple(names), table.where, tuple(notes))


def _read_all(cells: list[list[str]], marks: Marks) -> NDArray[np.float64] | None:
    """All cells at once, None unless each is a plain number above zero."""
    if marks != Marks() or any("_" in cell for cell in chain(*cells)):
        return None
    try:
        values = np.array([[*map(float, row)] for row in cells])
    except ValueError:
        return None
    return values if bool(((values > 0) & np.isfinite(values)).all()) else None


def _place(table: Table, row: int, name: str) -> str:
    return f"{table.where}, line {table.lines[row]} ({table.dates[row]}), column {name!r}"


def _in_order(table: Table, columns: list[int], rows: list[int], notes: list[str]) -> list[int]:
    """Rows in ascending order of date, each date once."""
    steps = np.diff(table.dates[rows].astype(np.int64))
    if (steps < 0).any() and (steps <= 0).all():
        rows = rows[::-1]
        notes.append("newest first")
    kept: list[int] = []
    for row in rows:
        if kept and table.dates[row] <= table.dates[kept[-1]]:
            before = kept[-1]
            twice = table.dates[row] == table.dates[before]
            if twice and all(table.cells[row][k] == table.cells[before][k] for k in columns):
                continue
            what = "appears twice" if twice else f"comes after {table.dates[before]}"
            raise ValueError(
                f"{table.where}, line {table.lines[row]}: date {table.dates[row]} {what}; sort the "
                "days, oldest first, each once"
            )
        kept.append(row)
    if len(kept) < len(rows):
        notes.append(f"without {len(rows) - len(kept)} repeated lines")
    return kept


def _without_gaps(
    values: NDArray[np.float64],
    dates: NDArray[np.datetime64],
    names: list[str],
    gaps: str,
    first: str,
) -> tuple[NDArray[np.float64], NDArray[np.datetime64], list[str], str]:
    """Fill or drop gaps; ``first`` describes the first one. The last item says what was done."""
    missing = np.isnan(values)
    if gaps == "drop_days":
        kept = ~missing.any(axis=1)
        return values[kept], dates[kept], names, f"without {(~kept).sum()} days with gaps"
    if gaps == "drop_assets":
        whole = np.logical_not(missing.any(axis=0))
        dropped = [name for name, keep in zip(names, whole.tolist(), strict=True) if not keep]
        if not whole.any():
            raise ValueError(
                f"{first}, as every asset has; drop the days or fill them: choose other gaps"
            )
        left = [name for name in names if name not in dropped]
        return values[:, whole], dates, left, f"without {', '.join(dropped)}, which have gaps"
    if gaps == "forward_fill":
        starts = np.where(missing.all(axis=0), len(dates), (~missing).argmax(axis=0))
        if starts.any():
            late = int(starts.argmax())
            since = "none" if starts[late] == len(dates) else str(dates[starts[late]])
            raise ValueError(
                f"{first}, and no price before it to repeat; the first of {names[late]!r} is {since}: "
                "start there, or leave it out of assets"
            )
        last = np.maximum.accumulate(np.where(missing, 0, np.arange(len(dates))[:, None]), axis=0)
        return np.take_along_axis(values, last, axis=0), dates, names, f"{missing.sum()} gaps filled"
    raise ValueError(
        f'{first}; fill it or drop the day or the asset: gaps = "forward_fill", "drop_days" or '
        '"drop_assets" does'
    )
