"""Real prices: the shipped exchange rates, 20 US stocks, or the user's own file or frame.

A price history is a table with one row per period, such as a trading day, and one column per asset.
Every source returns the same frozen `Prices`. The cells of the selected assets and days are checked:
positive, finite, without gaps, in ascending order of date. Other modules rely on that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funcexplain.markets.dialects import Dialect
from funcexplain.markets.grids import frame_grid, read_grid
from funcexplain.markets.layouts import find_table
from funcexplain.markets.selection import GAPS, find_assets, find_days, select


@dataclass(frozen=True, eq=False)
class Prices:
    """A price history: one row per trading day or other period, one column per asset.

    Attributes:
        values: float64 prices, shape ``(T, A)``, positive and finite.
        dates: the trading days, ``datetime64[D]``, shape ``(T,)``, strictly ascending; of minutes or
            seconds if there are several rows a day.
        assets: the names of the assets, ``A`` of them.
        source: one line naming where the prices come from.
        notes: what was sniffed, filled or dropped, in words.

    Example:
        >>> prices = ecb()
        >>> prices.values.shape == (len(prices.dates), len(prices.assets))
        True
    """

    values: NDArray[np.float64]
    dates: NDArray[np.datetime64]
    assets: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()

    @classmethod
    def from_frame(
        cls,
        df: Any,
        *,
        assets: Sequence[str] | None = None,
        start: date | None = None,
        end: date | None = None,
        gaps: str = "refuse",
    ) -> Prices:
        """Read prices from a pandas or polars frame.

        Args:
            df: the frame, dates in its index or in a column, laid out as the files of `load`: one column
                for each asset, several levels of names (such as yfinance's), or one row for each day and
                asset.
            assets: names to keep, in this order. Default: all.
            start: first day. Default: that of the frame.
            end: last day, included. Default: that of the frame.
            gaps: as in `load`.

        Returns:
            The prices.

        Raises:
            TypeError: if it is not a frame.
            ValueError: as `load`.

        Example:
            >>> import pandas
            >>> days = pandas.to_datetime(["2024-01-02", "2024-01-03"])
            >>> Prices.from_frame(pandas.DataFrame({"GOLD": [2063.7, 2042.5]}, days)).assets
            ('GOLD',)
        """
        grid = frame_grid("from_frame", df)
        table = find_table(grid, Dialect())
        return cls(*select("from_frame", table, Dialect(), assets, start, end, gaps))


def load(
    name_or_path: str | Path,
    *,
    assets: Sequence[str] | None = None,
    start: date | None = None,
    end: date | None = None,
    gaps: str = "refuse",
    **dialect: Any,
) -> Prices:
    r"""Load prices by name, ``"ecb"`` or ``"sp500"``, or from a csv, parquet or Excel file.

    Encoding, separator, decimal mark, order of dates, header rows and layout are sniffed: one column for
    each asset, one row for each asset, one row for each day and asset, or several fields of each asset
    as in yfinance, of which the adjusted close is used. ``Prices.notes`` lists the findings. Ambiguous
    files raise an error that names the setting that decides.

    Args:
        name_or_path: ``"ecb"`` for `ecb`, ``"sp500"`` for `sp500`, or a path: ``.parquet`` or ``.pq``
            (needs pyarrow), ``.xlsx`` (needs openpyxl), anything else is text, plain or gzipped.
        assets: names to keep, in this order. Default: all.
        start: first day. Default: that of the file.
        end: last day, included. Default: that of the file.
        gaps: cells without a price: ``"refuse"`` raises, ``"drop_days"`` and ``"drop_assets"`` drop
            their days or assets, ``"forward_fill"`` repeats the price before. Days without any price of
            several assets are left out.
        **dialect: fields of `Dialect`: ``separator, decimal, thousands, date_format, header, encoding,
            sheet``.

    Returns:
        The prices.

    Raises:
        FileNotFoundError: if it is neither a known name nor a file.
        ModuleNotFoundError: if a package for this kind of file is not installed.
        ValueError: if the file is not a price history: a missing header, no asset, two columns of one
            name, fewer than two days, a ragged row, a date that is unreadable, repeated or out of order,
            or a cell that is not a number above zero. The message names file, line and column.

    Example:
        >>> load("ecb", assets=["JPY", "EUR"]).assets
        ('JPY', 'EUR')
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "mine.csv")
        >>> _ = path.write_text("Datum;Gold;Öl\n03.01.2024;2.042,50;72,7\n02.01.2024;2.063,70;70,4\n")
        >>> load(path).notes
        ('separated by semicolons', 'dates DD.MM.YYYY', 'newest first', 'decimal comma')
    """
    if not isinstance(name_or_path, str | PathLike):
        kind = type(name_or_path).__name__
        raise TypeError(f"load: name_or_path must be a name or a path, got {kind}")
    _check_settings(gaps, dialect)
    named = {"ecb": ecb, "sp500": sp500}
    if str(name_or_path) in named:
        if dialect:
            raise ValueError(
                f"load: {min(dialect)}: only a file has one, got {str(name_or_path)!r}; leave it out"
            )
        prices = named[str(name_or_path)]()
        columns = find_assets("load", assets, prices.assets)
        keep = find_days("load", prices.dates, start, end)
        chosen = tuple(prices.assets[column] for column in columns)
        return replace(
            prices, values=prices.values[keep][:, columns], dates=prices.dates[keep], assets=chosen
        )
    if not Path(name_or_path).is_file():
        raise FileNotFoundError(
            f"load: no price history {str(name_or_path)!r}; expected 'ecb', 'sp500' or the path "
            "of a csv or parquet file with a date column and one column of prices per asset"
        )
    return _read(Path(name_or_path), Dialect(**dialect), None, assets, start, end, gaps)


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
    r"""Read prices from a file of text, plain or gzipped, as `load` does.

    Args:
        path: the file.

    Returns:
        The prices, in the order of the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: as `load`.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "mine.csv")
        >>> _ = path.write_text("date,GOLD,OIL\n2024-01-02,2063.7,70.4\n2024-01-03,2042.5,72.7\n")
        >>> read_csv(path).values
        array([[2063.7,   70.4],
               [2042.5,   72.7]])
    """
    return _read(_check_file("read_csv", path), Dialect(), "text")


def read_parquet(path: str | Path) -> Prices:
    """Read prices from a parquet file, as `load` does.

    Args:
        path: the file; its column of dates may be anywhere, as where pandas keeps its index.

    Returns:
        The prices, in the order of the file.

    Raises:
        ModuleNotFoundError: if pyarrow is not installed.
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a parquet file, or as `load`; the header is line 1.

    Example:
        >>> read_parquet("mine.parquet")  # doctest: +SKIP
        Prices(...)
    """
    return _read(_check_file("read_parquet", path), Dialect(), "parquet")


def _check_file(where: str, path: str | Path) -> Path:
    if not isinstance(path, str | PathLike):
        raise TypeError(f"{where}: path must be a str or a path, got {type(path).__name__}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{where}: no such file: {path}")
    return Path(path)


def _check_settings(gaps: str, dialect: dict[str, Any]) -> None:
    if gaps not in GAPS:
        raise ValueError(f"load: gaps must be one of {', '.join(GAPS)}, got {gaps!r}")
    known = [field.name for field in fields(Dialect)]
    for name in dialect:
        if name not in known:
            raise TypeError(f"load: unknown setting {name!r}; choose from {', '.join(known)}")


def _read(
    path: Path,
    dialect: Dialect,
    kind: str | None,
    assets: Sequence[str] | None = None,
    start: date | None = None,
    end: date | None = None,
    gaps: str = "refuse",
) -> Prices:
    table = find_table(read_grid(path, dialect, kind), dialect)
    return Prices(*select("load", table, dialect, assets, start, end, gaps))
