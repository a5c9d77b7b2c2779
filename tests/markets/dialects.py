"""A catalogue of price files that people have: the same prices in many dialects, written by code."""

import bz2
import datetime as dt
import gzip
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

NAMES = ("GOLD", "OIL", "RICE")
DAYS = [dt.date(2024, 1, 15) + dt.timedelta(days=day) for day in range(26) if day % 7 < 5]
_RETURNS = np.random.default_rng(0).normal(0.0, 0.01, size=(len(DAYS), 3)).cumsum(axis=0)
VALUES = (np.array([2063.7, 70.4, 1712.5]) * np.exp(_RETURNS)).round(2)

Format = Callable[[Any], str]


class Case(NamedTuple):
    """A file: how it is called, what it holds, and what a reader is to find in it."""

    name: str
    content: bytes
    assets: tuple[str, ...] = NAMES
    columns: tuple[int, ...] = (0, 1, 2)


def plain(value: float) -> str:
    return f"{value:.2f}"


def comma(value: float) -> str:
    return plain(value).replace(".", ",")


def grouped(mark: str, decimal: str = ".") -> Format:
    return lambda value: f"{value:,.2f}".replace(",", "\0").replace(".", decimal).replace("\0", mark)


def quoted(form: Format) -> Format:
    return lambda value: f'"{form(value)}"'


def table(
    day: Format = str,
    price: Format = plain,
    separator: str = ",",
    *,
    header: Sequence[str] = ("date", *NAMES),
) -> list[str]:
    """Lines of a wide table."""
    rows = zip(DAYS, VALUES, strict=True)
    body = [separator.join([day(when), *map(price, values)]) for when, values in rows]
    return [separator.join(header), *body]


def text(lines: Iterable[str], end: str = "\n") -> bytes:
    return (end.join(lines) + end).encode()


def frame_rows(fields: Sequence[str], by_asset: bool = False) -> tuple[list[tuple[str, str]], list[Any]]:
    """Labels (field, asset) and rows of a frame that has several fields of each asset."""
    labels = [(field, name) for field in fields for name in NAMES]
    if by_asset:
        labels = [(field, name) for name in NAMES for field in fields]
    factors = {"Open": 0.99, "High": 1.02, "Low": 0.97, "Close": 1.25, "Adj Close": 1.0, "Volume": 1e5}
    if "Adj Close" not in fields:
        factors["Close"] = 1.0
    rows = []
    for day, values in zip(DAYS, VALUES, strict=True):
        known = dict(zip(NAMES, values, strict=True))
        rows.append([str(day), *(repr(round(float(known[a] * factors[f]), 4)) for f, a in labels)])
    return labels, rows


FIELDS = ("Open", "High", "Low", "Close", "Volume")
ADJUSTED = ("Adj Close", *FIELDS)


def yfinance(fields: Sequence[str], names: Sequence[str], *, by_asset: bool = False) -> bytes:
    labels, rows = frame_rows(fields, by_asset)
    levels = [[names[0], *(f for f, _ in labels)], [names[1], *(a for _, a in labels)]]
    head = [*(levels[::-1] if by_asset else levels), ["Date", *("" for _ in labels)]]
    return text(",".join(row) for row in [*head, *rows])


def flat(form: Callable[[str, str], str], fields: Sequence[str] = FIELDS) -> bytes:
    labels, rows = frame_rows(fields, by_asset=True)
    return text(",".join(row) for row in [["Date", *(form(f, a) for f, a in labels)], *rows])


def one(head: str, row: Callable[[dt.date, float], str]) -> bytes:
    """A file of one asset."""
    days = zip(DAYS, VALUES[:, 0].tolist(), strict=True)
    return text([head, *(row(day, value) for day, value in days)])


def long(
    head: str, row: Callable[[dt.date, str, float], str], *, by_asset: bool = False, end: str = "\n"
) -> bytes:
    """One line for each day and asset."""
    cells = [(d, a, float(VALUES[i, j])) for i, d in enumerate(DAYS) for j, a in enumerate(NAMES)]
    if by_asset:
        cells.sort(key=lambda cell: NAMES.index(cell[1]))
    return text([head, *(row(*cell) for cell in cells)], end)


def fields_of(day: dt.date, name: str, value: float) -> str:
    return "\n".join([f"{day},{name},open,{1.1 * value:.3f}", f"{day},{name},close,{value:.2f}"])


def epoch(scale: int) -> Format:
    zero = dt.date(1970, 1, 1)
    return lambda day: str((day - zero).days * 86_400 * scale)


def zoned(day: dt.date) -> str:
    return f"{day} 00:00:00{'-05:00' if day < dt.date(2024, 1, 30) else '-04:00'}"


def strf(form: str) -> Format:
    return lambda day: day.strftime(form)


WIDE = table()
GERMAN = "Januar Februar".split()


def in_german(day: dt.date) -> str:
    return f"{day.day}. {GERMAN[day.month - 1]} {day.year}"


def csv(name: str, lines: Iterable[str]) -> Case:
    return Case(name, text(lines))


def between(lines: list[str], line: str) -> list[str]:
    return [*lines[:6], line, *lines[6:]]


def clocked(row: str) -> str:
    return row.replace(",", ",16:00,", 1)


def in_r(field: str, asset: str) -> str:
    return f"{asset}.{field.replace('Adj Close', 'Adjusted')}"


def case(content: bytes, name: str = "mine.csv", **about: Any) -> Case:
    return Case(name, content, **about)


AAPL: dict[str, Any] = {"name": "AAPL.csv", "assets": ("AAPL",), "columns": (0,)}
DATES: dict[str, Format] = {
    "slashes": strf("%Y/%m/%d"),
    "points, year first": strf("%Y.%m.%d"),
    "digits": strf("%Y%m%d"),
    "German": strf("%d.%m.%Y"),
    "German without zeros": lambda day: f"{day.day}.{day.month}.{day.year}",
    "German, two digits": strf("%d.%m.%y"),
    "British": strf("%d/%m/%Y"),
    "American": strf("%m/%d/%Y"),
    "American, two digits": strf("%m/%d/%y"),
    "American without zeros": lambda day: f"{day.month}/{day.day}/{day.year}",
    "dashes, day first": strf("%d-%m-%Y"),
    "names of months": strf("%d-%b-%Y"),
    "names of months, two digits": strf("%d-%b-%y"),
    "English in words": quoted(strf("%b %d, %Y")),
    "German in words": in_german,
    "weekdays": quoted(strf("%a, %d %b %Y")),
    "seconds": epoch(1),
    "milliseconds": epoch(1000),
    "Excel's numbers": lambda day: str((day - dt.date(1899, 12, 30)).days),
    "midnight": strf("%Y-%m-%d 00:00:00"),
    "Zulu": strf("%Y-%m-%dT00:00:00.000Z"),
    "zones": zoned,
    "close of trading": strf("%Y-%m-%d 16:00"),
    "afternoon": strf("%m/%d/%Y 4:00:00 PM"),
    "zone by name": strf("%Y-%m-%d 16:00:00 EST"),
    "day of the week": lambda day: "{}-W{:02}-{}".format(*day.isocalendar()),
}
NUMBERS: dict[str, tuple[str, Format]] = {
    "semicolons": (";", plain),
    "tabs": ("\t", plain),
    "bars": ("|", plain),
    "blanks": (" ", plain),
    "blanks after commas": (", ", plain),
    "decimal commas": (";", comma),
    "decimal commas, tabs": ("\t", comma),
    "decimal commas, quoted": (",", quoted(comma)),
    "thousands": (",", quoted(grouped(","))),
    "German thousands": (";", grouped(".", ",")),
    "Swiss thousands": (";", grouped("'")),
    "typographic Swiss thousands": (";", grouped("\u2019")),
    "French thousands": (";", grouped("\u202f", ",")),
    "blank thousands": (";", grouped(" ", ",")),
    "dollars": (",", quoted(lambda value: "$" + grouped(",")(value))),
    "euros": (";", lambda value: comma(value) + " €"),
    "quotes": (",", quoted(plain)),
    "exponents": (",", lambda value: f"{value:.8e}"),
}

CASES: dict[str, Case] = {
    **{f"dates: {name}": csv("mine.csv", table(form)) for name, form in DATES.items()},
    **{
        f"numbers: {name}": csv("mine.csv", table(str, form, mark, header=("date", *NAMES)))
        for name, (mark, form) in NUMBERS.items()
    },
    "German Excel": csv("mine.csv", table(strf("%d.%m.%Y"), grouped(".", ","), ";")),
    "sep": csv("mine.csv", ["sep=;", *table(separator=";")]),
    "byte order mark": case(b"\xef\xbb\xbf" + text(WIDE)),
    "UTF-16": case("\n".join(WIDE).encode("utf-16")),
    "UTF-16 without a mark": case("\n".join(WIDE).encode("utf-16-le")),
    "UTF-16, tabs": case("\n".join(table(separator="\t")).encode("utf-16")),
    "Windows": case(text(WIDE).replace(b"OIL", b"\xd6L"), assets=("GOLD", "ÖL", "RICE")),
    "carriage returns": case(text(WIDE, "\r\n")),
    "old Macintosh": case(text(WIDE, "\r")),
    "gzip": case(gzip.compress(text(WIDE)), "mine.csv.gz"),
    "gzip by its bytes": case(gzip.compress(text(WIDE)), "mine.csv"),
    "bzip2": case(bz2.compress(text(WIDE)), "mine.csv.bz2"),
    "another suffix": case(text(WIDE), "MINE.TXT"),
    "newest first": csv("mine.csv", [WIDE[0], *WIDE[:0:-1]]),
    "blank rows": csv("mine.csv", [line for row in WIDE for line in (row, "", ",,,")]),
    "footer": csv("mine.csv", [*WIDE, "", "Source: an exchange", "Mean,2063,70,1712"]),
    "preamble": csv("mine.csv", ["Closing prices", "Made on 2024-03-01,by me", "", *WIDE]),
    "comments": csv("mine.csv", ["# closing prices", f"# {WIDE[0]}", *WIDE[1:]]),
    "trailing commas": csv("mine.csv", [f"{line}," for line in WIDE]),
    "trailing commas of the days": csv("mine.csv", [WIDE[0], *(f"{line},," for line in WIDE[1:])]),
    "empty column": csv("mine.csv", [line.replace(",", ",,", 1) for line in WIDE]),
    "numbered rows": csv("mine.csv", [f"{n or ''},{row}" for n, row in enumerate(WIDE)]),
    "units": csv("mine.csv", [WIDE[0], ",USD,USD,USD", *WIDE[1:]]),
    "two levels": csv("mine.csv", [",Metal,Energy,Food", *WIDE]),
    "no name of the dates": csv("mine.csv", [WIDE[0].replace("date", ""), *WIDE[1:]]),
    "a line twice": csv("mine.csv", between(WIDE, WIDE[5])),
    "header again": csv("mine.csv", between(WIDE, WIDE[0])),
    "names of rows": csv("mine.csv", [WIDE[0].removeprefix("date,"), *WIDE[1:]]),
    "transposed": csv("mine.csv", map(",".join, zip(*(row.split(",") for row in WIDE), strict=True))),
    "dates last": csv("mine.csv", [",".join(row.split(",")[1:] + row.split(",")[:1]) for row in WIDE]),
    "holidays": csv("mine.csv", between(WIDE, "2024-01-20,,,")),
    "quoted header": csv("mine.csv", ['"Date","GOLD","OIL","RICE"', *WIDE[1:]]),
    "a clock": csv("mine.csv", [WIDE[0].replace(",", ",time,", 1), *(clocked(row) for row in WIDE[1:])]),
    "a comment": csv("mine.csv", [f"{WIDE[0]},remark", *(f"{row},closed early" for row in WIDE[1:])]),
    "a date for each asset": case(
        text(["Date,GOLD,Date,OIL,Date,RICE"])
        + text(
            ",".join(f"{day},{value:.2f}" for value in values)
            for day, values in zip(DAYS, VALUES, strict=True)
        )
    ),
    # several fields of each asset
    "yfinance": case(yfinance(FIELDS, ("Price", "Ticker"))),
    "yfinance, adjusted": case(yfinance(ADJUSTED, ("", ""))),
    "yfinance by asset": case(yfinance(ADJUSTED, ("Price", "Ticker"), by_asset=True)),
    "one field": case(yfinance(("Close",), ("Price", "Ticker"))),
    "merged cells": case(
        text([",GOLD,,OIL,,RICE,", "Date" + ",Open,Close" * 3])
        + text(
            ",".join([str(day), *(f"{x:.2f}" for v in values for x in (1.1 * v, v))])
            for day, values in zip(DAYS, VALUES, strict=True)
        )
    ),
    "flat names": case(flat(lambda field, asset: f"{asset}_{field}")),
    "flat names, field first": case(flat(lambda field, asset: f"{field} {asset}", ADJUSTED)),
    "quantmod": case(flat(in_r, ADJUSTED)),
    "tuples": case(flat(lambda field, asset: f"\"('{field}', '{asset}')\"")),
    "one asset": case(
        one("Date,Open,High,Low,Close,Adj Close,Volume", lambda d, v: f"{d},1,2,1,9,{v},100"), **AAPL
    ),
    "Stooq": case(one("Date,Open,High,Low,Close,Volume", lambda d, v: f"{d},1,2,1,{v},100"), **AAPL),
    "Investing": case(
        one(
            '"Date","Price","Open","High","Low","Vol.","Change %"',
            lambda d, v: f'"{d:%m/%d/%Y}","{v:,.2f}","1,000.0","2,000.0","1.00","","1.3%"',
        ),
        **AAPL,
    ),
    "German Investing": case(
        one(
            '"Datum","Zuletzt","Eröffn.","Hoch","Tief","Vol.","+/- %"',
            lambda d, v: f'"{d:%d.%m.%Y}","{comma(v)}","1,1","1,3","1,0","12,3K","0,1%"',
        ),
        **AAPL,
    ),
    "Nasdaq": case(
        one("Date,Close/Last,Volume,Open,High,Low", lambda d, v: f"{d:%m/%d/%Y},${v},9,$1,$2,$1"), **AAPL
    ),
    "MetaTrader": case(
        one(
            "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>",
            lambda d, v: f"{d:%Y.%m.%d}\t00:00:00\t1\t2\t1\t{v}\t9\t0\t2",
        ),
        **AAPL,
    ),
    "only a close": case(one("Date,Close", lambda d, v: f"{d},{v}"), **AAPL),
    # one line for each day and asset
    "long": case(long("date,ticker,close", lambda d, a, v: f"{d},{a},{v}")),
    "long by asset": case(long("date,ticker,close", lambda d, a, v: f"{d},{a},{v}", by_asset=True)),
    "long, asset first": case(long("symbol;datum;kurs", lambda d, a, v: f"{a};{d:%d.%m.%Y};{comma(v)}")),
    "long, all fields": case(
        long("Date,Symbol,Open,High,Low,Close,Volume", lambda d, a, v: f"{d},{a},1,2,1,{v},9")
    ),
    "long, field by field": case(long("date,ticker,field,value", fields_of)),
    "long with currencies": case(long("date,currency,name,price", lambda d, a, v: f"{d},USD,{a},{v}")),
    "long without names": case(long("when,what,how much", lambda d, a, v: f"{d},{a},{v}")),
}  # fmt: skip

REFUSED: dict[str, tuple[Case, str, dict[str, Any]]] = {
    "no header": (csv("mine.csv", WIDE[1:]), "expected a header row such as 'date,EUR,JPY'", {}),
    "day or month": (
        csv("mine.csv", [WIDE[0], *(f"0{n}/0{n + 1}/2024,1.5,2.5,3.5" for n in range(1, 6))]),
        'give date_format = "DD/MM/YYYY" or "MM/DD/YYYY"',
        {"date_format": "DD/MM/YYYY"},
    ),
    "decimal or thousands": (
        csv("mine.csv", [WIDE[0], *(f'{day},"1,234","2,345","3,456"' for day in DAYS)]),
        'give decimal = "," or thousands = ","',
        {"thousands": ","},
    ),
    "out of order": (
        csv("mine.csv", [WIDE[0], *WIDE[5:], *WIDE[1:5]]),
        "sort the days, oldest first, each once",
        {},
    ),
}


def parquet_cases() -> dict[str, Case]:
    """Files of pandas and of others, where pyarrow and pandas are installed."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")

    def saved(frame: Any, name: str = "mine.parquet") -> Case:
        stream = io.BytesIO()
        frame.to_parquet(stream)
        return Case(name, stream.getvalue())

    stamps = pandas.DatetimeIndex(pandas.to_datetime(DAYS), name="Date")
    wide = pandas.DataFrame(VALUES, stamps, NAMES)
    several = pandas.concat({"Close": wide, "Adj Close": wide, "Volume": 9 * wide}, axis=1)
    melted = wide.reset_index().melt("Date", var_name="ticker", value_name="close")
    return {
        "index": saved(wide),
        "suffix": saved(wide, "MINE.PARQUET"),
        "short suffix": saved(wide, "mine.pq"),
        "bytes": saved(wide, "mine"),
        "column": saved(wide.reset_index()),
        "text": saved(wide.reset_index().astype({"Date": str})),
        "zones": saved(wide.tz_localize("America/New_York")),
        "yfinance": saved(several),
        "long": saved(melted),
        "categories": saved(melted.astype({"ticker": "category"})),
    }


def excel_cases() -> dict[str, Case]:
    """Workbooks, where openpyxl is installed."""
    openpyxl = pytest.importorskip("openpyxl")

    def saved(*sheets: list[list[Any]], merged: Sequence[str] = ()) -> Case:
        book = openpyxl.Workbook()
        book.remove(book.active)
        for rows in sheets:
            sheet = book.create_sheet()
            for row in rows:
                sheet.append(row)
            for cells in merged:
                sheet.merge_cells(cells)
        stream = io.BytesIO()
        book.save(stream)
        return Case("mine.xlsx", stream.getvalue())

    rows = [[day, *values] for day, values in zip(DAYS, VALUES.tolist(), strict=True)]
    head = ["Date", *NAMES]
    twice = [[day, *(x for v in values for x in (1.1 * v, v))] for day, *values in rows]
    return {
        "dates": saved([head, *rows]),
        "text": saved([head, *([f"{day:%d.%m.%Y}", *values] for day, *values in rows)]),
        "second sheet": saved([], [head, *rows]),
        "preamble": saved([["Closing prices"], [], head, *rows]),
        "merged": saved(
            [[None, "GOLD", None, "OIL", None, "RICE", None], ["Date", *["Open", "Close"] * 3], *twice],
            merged=("B1:C1", "D1:E1", "F1:G1"),
        ),
    }
