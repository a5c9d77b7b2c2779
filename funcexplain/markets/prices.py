"""Real prices: the shipped sample of exchange rates, 20 US stocks, or the user's own csv or parquet.

A price history is a table with one row per trading day and one column per asset. Every source returns
the same frozen `Prices`, checked cell by cell: positive, finite, without gaps, in ascending order of
date. Other modules rely on these checks.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funcexplain.solutions.reading import MIB, check_size, too_large

_MAX_TEXT = 256 * MIB  # 20 years of daily prices of 5000 assets
_MAX_CELL = 100  # characters
_GAPS = {"", "n/a", "na", "null", "none", "-"}


@dataclass(frozen=True, eq=False)
class Prices:
    """A price history: one row per trading day, one column per asset.

    Attributes:
        values: float64 prices, shape ``(T, A)``, positive and finite.
        dates: the trading days, ``datetime64[D]``, shape ``(T,)``, strictly ascending.
        assets: the names of the assets, ``A`` of them.
        source: one line naming where the prices come from.

    Example:
        >>> prices = ecb()
        >>> prices.values.shape == (len(prices.dates), len(prices.assets))
        True
    """

    values: NDArray[np.float64]
    dates: NDArray[np.datetime64]
    assets: tuple[str, ...]
    source: str


def load(name_or_path: str | Path) -> Prices:
    """Load prices by name: ``"ecb"``, ``"sp500"``, or the path of a csv or parquet file.

    Args:
        name_or_path: ``"ecb"`` for `ecb`, ``"sp500"`` for `sp500`, a path that ends in ``.parquet`` for
            `read_parquet`, anything else for `read_csv`.

    Returns:
        The prices.

    Raises:
        FileNotFoundError: if it is neither a known name nor a file.
        ModuleNotFoundError: if the package with ``"sp500"`` is not installed, or pyarrow for parquet.
        ValueError: if the file is not a price history (see `read_csv`).

    Example:
        >>> load("ecb").assets[:3]
        ('EUR', 'JPY', 'GBP')
    """
    if not isinstance(name_or_path, str | PathLike):
        kind = type(name_or_path).__name__
        raise TypeError(f"load: name_or_path must be a name or a path, got {kind}")
    named = {"ecb": ecb, "sp500": sp500}
    if str(name_or_path) in named:
        return named[str(name_or_path)]()
    if not Path(name_or_path).is_file():
        raise FileNotFoundError(
            f"load: no price history {str(name_or_path)!r}; expected 'ecb', 'sp500' or the path "
            "of a csv or parquet file with a date column and one column of prices per asset"
        )
    return (read_parquet if Path(name_or_path).suffix == ".parquet" else read_csv)(name_or_path)


def ecb() -> Prices:
    """Prices in US dollars of 16 currencies, daily since 2010, from the shipped ECB sample.

    The European Central Bank publishes how much of each currency one euro buys. The price of a
    currency X in dollars is USD rate / X rate, and the price of the euro is the USD rate.

    Returns:
        Prices of EUR, JPY, GBP, CHF, SEK, NOK, PLN, HUF, CZK, AUD, NZD, CAD, SGD, KRW, MXN, ZAR.

    Example:
        >>> prices = ecb()
        >>> prices.assets[0], str(prices.dates[0]), float(prices.values[0, 0])
        ('EUR', '2010-01-04', 1.4389)

    References:
        ECB euro foreign exchange reference rates, <https://www.ecb.europa.eu/stats/eurofxref/>.
    """
    per_euro = read_csv(Path(__file__).with_name("data") / "ecb.csv.gz")
    dollars = per_euro.values[:, [per_euro.assets.index("USD")]]
    others = [index for index, name in enumerate(per_euro.assets) if name != "USD"]
    return Prices(
        values=np.concatenate([dollars, dollars / per_euro.values[:, others]], axis=1),
        dates=per_euro.dates,
        assets=("EUR", *(per_euro.assets[index] for index in others)),
        source="US dollars per unit of currency, computed from the euro foreign exchange "
        "reference rates of the European Central Bank",
    )


def sp500() -> Prices:
    """Daily closing prices of 20 S&P 500 stocks, 1990 to 2022, from the package ``skfolio``.

    Only the data file of the package is read; ``skfolio`` is not imported, and its dependencies are not
    needed: ``pip install --no-deps skfolio``.

    Returns:
        Prices in US dollars, adjusted for splits and dividends, 20 assets.

    Raises:
        ModuleNotFoundError: if ``skfolio`` is not installed.
        FileNotFoundError: if the installed ``skfolio`` does not contain the file.

    Example:
        >>> sp500().assets[:3]  # doctest: +SKIP
        ('AAPL', 'AMD', 'BAC')

    References:
        ``skfolio.datasets.load_sp500_dataset``, BSD-3-Clause, <https://skfolio.org>.
    """
    remedy = "install it with: pip install --no-deps skfolio"
    spec = find_spec("skfolio")  # does not import a top-level package
    if spec is None:
        raise ModuleNotFoundError(f"sp500: needs the data file of the package skfolio; {remedy}")
    for folder in spec.submodule_search_locations or []:
        path = Path(folder) / "datasets" / "data" / "sp500_dataset.csv.gz"
        if path.is_file():
            source = "20 stocks of the S&P 500, adjusted closing prices in US dollars, from skfolio"
            return replace(read_csv(path), source=source)
    raise FileNotFoundError(
        f"sp500: {spec.name} has no file datasets/data/sp500_dataset.csv.gz; {remedy}"
    )


def read_csv(path: str | Path) -> Prices:
    r"""Read prices from a csv file: a header row, a date column first, then one column per asset.

    Args:
        path: a comma separated file in UTF-8, plain or gzipped (``.gz``). Dates are ``YYYY-MM-DD`` and
            ascend; each other cell is a positive number. Blank lines are skipped.

    Returns:
        The prices, in the order of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a missing header, no asset, two columns of one name, fewer than two days, a
            ragged row, an unreadable, repeated or descending date, or a cell that is empty, not a
            number, not finite or not positive. The message names the file, the line and the column.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "mine.csv")
        >>> _ = path.write_text("date,GOLD,OIL\n2024-01-02,2063.7,70.4\n2024-01-03,2042.5,72.7\n")
        >>> read_csv(path).values
        array([[2063.7,   70.4],
               [2042.5,   72.7]])
    """
    path = _check_file("read_csv", path)
    return _check_rows(path, _rows(path))


def read_parquet(path: str | Path) -> Prices:
    """Read prices from a parquet file: a column of dates, then one column of numbers per asset.

    Args:
        path: the file. The column of dates is the first that holds dates or timestamps (where pandas
            keeps its index), else the first; cells are checked as in `read_csv`.

    Returns:
        The prices, in the order of the file.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a parquet file, or as in `read_csv`; the header is line 1.

    Example:
        >>> read_parquet("mine.parquet")  # doctest: +SKIP
        Prices(...)
    """
    path = _check_file("read_parquet", path)
    try:
        from pyarrow import ArrowException, compute, parquet, types
    except ImportError as error:
        raise ModuleNotFoundError(
            f"read_parquet: {path} needs pyarrow; install it with: pip install pyarrow, or save csv"
        ) from error
    try:
        _check_parquet(path, parquet.read_metadata(path))
        kinds = {column.name: column.type for column in parquet.read_schema(path)}
        for name, kind in kinds.items():
            if types.is_nested(kind):
                raise ValueError(f"{path}, column {name!r}: expected dates or prices, got {kind}")
        text = [name for name, kind in kinds.items() if not types.is_primitive(kind)]
        table = parquet.read_table(path, read_dictionary=text)
        lengths = [
            compute.max(compute.binary_length(part.dictionary)).as_py() or 0
            for column in table.columns
            for part in column.chunks
            if types.is_dictionary(part.type)
        ]
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: not readable as parquet ({error}); save it again") from None
    if max(lengths, default=0) > _MAX_CELL:
        raise ValueError(
            f"{path}: a cell must have at most {_MAX_CELL} characters, a date or a price, got "
            f"{max(lengths)}; keep only columns of dates and prices"
        )
    places = [place for place, column in enumerate(table.schema) if types.is_temporal(column.type)]
    names = list(table.column_names)
    names.insert(0, names.pop(places[0] if places else 0))
    columns = [table.columns[table.column_names.index(name)].to_pylist() for name in names]
    rows = [["" if cell is None else str(cell) for cell in row] for row in zip(*columns, strict=True)]
    midnight = re.compile(r"[ T]00:00:00(\+00:00)?$")
    dated = [[midnight.sub("", row[0]), *row[1:]] for row in rows]
    return _check_rows(path, enumerate([names, *dated], start=1))


def _check_parquet(path: Path, about: Any) -> None:
    """Raise if a file claims too many cells or bytes: repeated values take next to no room in it."""
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    cells = sum(g.column(place).num_values for g in groups for place in range(g.num_columns))
    if max(8 * cells, sum(group.total_byte_size for group in groups)) > _MAX_TEXT:
        raise too_large("read_parquet", path, _MAX_TEXT, "keep fewer days or assets")


def _check_file(where: str, path: str | Path) -> Path:
    if not isinstance(path, str | PathLike):
        raise TypeError(f"{where}: path must be a str or a path, got {type(path).__name__}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{where}: no such file: {path}")
    return Path(path)


def _check_rows(path: Path, numbered: Iterator[tuple[int, list[str]]]) -> Prices:
    """Check rows of text, the header first, each with its line number."""
    _, header = next(numbered, (0, []))
    assets = _assets(path, header)
    dates: list[datetime.date] = []
    values: list[list[float]] = []
    for line, row in numbered:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise ValueError(
                f"{where}: expected {len(header)} cells as in the header, got {len(row)}; "
                "give every day one price per asset"
            )
        date = _date(row[0], where)
        if dates and date <= dates[-1]:
            what = "appears twice" if date == dates[-1] else f"comes after {dates[-1]}"
            raise ValueError(f"{where}: date {date} {what}; sort the days, oldest first, each once")
        dates.append(date)
        cells = zip(row[1:], assets, strict=True)
        values.append([_price(cell, f"{where} ({date}), column {name!r}") for cell, name in cells])
    if len(dates) < 2:
        raise ValueError(f"{path}: expected at least 2 days of prices, got {len(dates)}")
    return Prices(np.array(values), np.array(dates, dtype="datetime64[D]"), assets, str(path))


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, stripped, each with its line number."""
    # utf-8-sig drops the byte order mark that spreadsheets write.
    open_: Any = gzip.open if path.suffix == ".gz" else open
    reader = csv.reader(())
    try:
        with open_(path, "rb") as content:
            check_size("read_csv", path, content, _MAX_TEXT, "keep fewer days or assets")
        with open_(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, [cell.strip() for cell in row]
    except (csv.Error, UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{path}, after line {reader.line_num}: not readable as comma separated UTF-8 "
            f"text ({error}); save it as plain csv or as csv.gz"
        ) from error


def _assets(path: Path, header: list[str]) -> tuple[str, ...]:
    """The names in the header, after the date column."""
    if not header or re.fullmatch(r"\d{4}-\d\d-\d\d.*", header[0]):
        got = f"the data row {','.join(header)[:40]!r}" if header else "an empty file"
        raise ValueError(f"{path}: expected a header row such as 'date,EUR,JPY', got {got}")
    names, seen = header[1:], set()
    if not names:
        raise ValueError(
            f"{path}: expected a date column and at least 1 asset, separated by commas, "
            f"got the header {header[0]!r}"
        )
    for index, name in enumerate(names):
        if not name:
            raise ValueError(f"{path}: column {index + 2} of the header has no name; give it one")
        if name in seen:
            raise ValueError(f"{path}: the asset {name!r} has two columns; rename or remove one")
        seen.add(name)
    return tuple(names)


def _date(text: str, where: str) -> datetime.date:
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):  # newer Pythons accept more formats
            raise ValueError
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{where}: expected a date YYYY-MM-DD, got {text!r}") from None


def _price(text: str, where: str) -> float:
    if text.lower() in _GAPS:
        raise ValueError(
            f"{where}: expected a price, got a gap ({text!r}); fill it or drop the day or the asset"
        )
    try:
        if "_" in text:  # float() accepts 1_000
            raise ValueError
        price = float(text)
    except ValueError:
        raise ValueError(f"{where}: expected a number with a decimal point, got {text!r}") from None
    if not math.isfinite(price) or price <= 0:
        raise ValueError(f"{where}: expected a finite price above zero, got {text!r}")
    return price
