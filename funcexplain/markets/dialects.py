"""The format of dates and numbers in a file: given, or sniffed if unambiguous.

The comma of ``1,234`` or the order of ``01/02/2024`` can mean two things. All cells together usually
leave one; otherwise, reading raises and names the setting that decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GAPS = set("n/a na null none - -- . .. ? nan nat <na> n.a. #n/a #na nil missing".split()) | {
    *("", "#n/a n/a", "#div/0!", "#value!", "#ref!", "#num!"),
}
"""Cells without a price, in lower case."""

_CURRENCIES = "$€£¥ \u00a0\u202f"
_SPACES = " \u00a0\u202f"
_QUOTES = "'\u2019"  # as in Switzerland
_MARKS = re.compile(rf"[.,{_QUOTES}{_SPACES}]")
_OTHER_MARKS = f",{_QUOTES}{_SPACES}"


@dataclass(frozen=True)
class Dialect:
    """How to read a file of prices; fields that are None are sniffed.

    Attributes:
        separator: between the cells of a text file.
        decimal: decimal mark, ``"."`` or ``","``.
        thousands: mark between thousands, such as ``","`` or ``" "``.
        date_format: such as ``"DD.MM.YYYY"`` or ``"%d.%m.%Y"``.
        header: line of the header, from 1; lines before it are skipped.
        encoding: of a text file, such as ``"utf-8"`` or ``"cp1252"``.
        sheet: name of the sheet of an Excel file.
    """

    separator: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    date_format: str | None = None
    header: int | None = None
    encoding: str | None = None
    sheet: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and (len(self.separator) != 1 or self.separator in '"\r\n'):
            raise ValueError(f'separator: expected one character, such as ";", got {self.separator!r}')
        if self.decimal not in (None, ".", ","):
            raise ValueError(f'decimal: expected "." or ",", got {self.decimal!r}')
        if self.thousands is not None and (len(self.thousands) != 1 or self.thousands == self.decimal):
            raise ValueError(
                f"thousands: expected one character other than the decimal mark, got {self.thousands!r}"
            )
        if self.header is not None and self.header < 1:
            raise ValueError(f"header: expected a line number from 1, got {self.header!r}")


class Marks(NamedTuple):
    """The decimal mark, and the marks between thousands."""

    decimal: str = "."
    thousands: str = ""


# --- dates -----------------------------------------------------------------------------------------

# In the order of preference; of a pair of numbers without names, a and b are day and month or reverse.
_DATES = {
    "YYYY-MM-DD": r"(?P<y>\d{4})[-/.](?P<m>\d\d?)[-/.](?P<d>\d\d?)",
    "numbers": r"(?P<a>\d\d?)([-/.])(?P<b>\d\d?)\2(?P<y>\d{4}|\d\d)",
    "DD Mon YYYY": r"(?P<d>\d\d?)[-. /]*(?P<name>[^\W\d_]{3,9})[-. ,/]*(?P<y>\d{4}|\d\d)",
    "Mon DD, YYYY": r"(?P<name>[^\W\d_]{3,9})[. ]+(?P<d>\d\d?),? +(?P<y>\d{4})",
    "YYYY-MM-DD/YYYY-MM-DD": r"\d{4}-\d\d-\d\d/(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)",
    "YYYY-MM": r"(?P<y>(?:19|20)\d\d)-(?P<m>\d\d)",
    "YYYY-Www": r"(?P<y>(?:19|20)\d\d)-?W(?P<week>\d\d)(?:-?(?P<d>[1-7]))?",
    "Mon YYYY": r"(?P<name>[^\W\d_]{3,9})[-. ]+(?P<y>(?:19|20)\d\d)",
}
_NUMBERS = {  # which may also be prices or volumes
    "YYYYMMDD": r"(?P<y>(?:19|20)\d\d)(?P<m>0[1-9]|1[0-2])(?P<d>[0-3]\d)",
    "seconds since 1970": r"(?P<epoch>(?:[6-9]\d{8}|[1-3]\d{9})(?:\d{3})?)(?:\.0)?",
    "days since 1899-12-30": r"(?P<serial>[3-5]\d{4})(?:\.0)?",  # Excel's
}
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun|mo|di|mi|do|fr|sa|so)[a-z]*[.,]* )?"
_TIME = (
    r"(?:[T ,]+(?P<time>\d\d?:\d\d(?::\d\d(?:[.,]\d+)?)?|\d{6})\s*(?P<half>[ap]m)?"
    r"\s*(?P<zone>[A-Z][A-Z_/]*|[+-]\d\d:?\d\d)?)?"
)
_PATTERNS = {
    name: re.compile(
        _WEEKDAY + pattern + _TIME, re.IGNORECASE | re.ASCII if "name" not in pattern else re.I
    )
    for name, pattern in (_DATES | _NUMBERS).items()
}
_MONTHS = {
    name: number
    for number, names in enumerate(
        "jan feb mar,mär,mrz apr may,mai jun jul aug sep oct,okt nov dec,dez".split(), start=1
    )
    for name in names.split(",")
}


class Stamp(NamedTuple):
    """A local time, and its offset from UTC in minutes."""

    local: datetime
    offset: int


def is_date(text: str, date_format: str | None = None, *, numbers: bool = False) -> bool:
    """Whether a cell looks like a date, even of a day that does not exist."""
    if date_format is not None:
        return _parse(text, date_format) is not None
    return any(_PATTERNS[name].fullmatch(text) for name in (_NUMBERS if numbers else _DATES))


def read_dates(
    texts: Sequence[str], places: Sequence[str], date_format: str | None = None
) -> tuple[NDArray[np.datetime64], str]:
    """Read dates that are all written in the same way.

    Args:
        texts: the cells.
        places: where each is, for messages.
        date_format: how they are written; None sniffs it from all of them.

    Returns:
        ``datetime64[D]`` if no two are on one day, else of minutes or seconds; and how they are written.

    Raises:
        ValueError: if one is not a date, or days and months are ambiguous.

    Example:
        >>> read_dates(["03.01.24", "14.01.24"], ["line 2", "line 3"])
        (array(['2024-01-03', '2024-01-14'], dtype='datetime64[D]'), 'DD.MM.YYYY')
        >>> read_dates(["2024-01-03 09:30", "2024-01-03 09:31"], ["", ""])[0].dtype
        dtype('<M8[m]')
    """
    name = date_format or _sniff_dates(texts, places)
    stamps = []
    for text, place in zip(texts, places, strict=True):
        stamp = _parse(text, name)
        if stamp is None:
            raise ValueError(f"{place}: expected a date {name}, got {text!r}")
        stamps.append(stamp)
    local = np.array([stamp.local for stamp in stamps], dtype="datetime64[s]")
    days = local.astype("datetime64[D]")
    if len(np.unique(days)) == len(np.unique(local)):
        return days, name
    offsets = {stamp.offset for stamp in stamps}
    if len(offsets) > 1:  # the clocks change
        local -= np.array([stamp.offset for stamp in stamps], dtype="timedelta64[m]")
        name += " UTC"
    minutes = local.astype("datetime64[m]")
    return (minutes if bool((minutes == local).all()) else local), name


def _sniff_dates(texts: Sequence[str], places: Sequence[str]) -> str:
    """The pattern of the first cell; of days and months by numbers, the order that all of them allow."""
    first = next((n for n in _PATTERNS if texts and _PATTERNS[n].fullmatch(texts[0])), "YYYY-MM-DD")
    if first != "numbers":
        return first
    found = [match for match in map(_PATTERNS[first].fullmatch, texts) if match]
    a, b = ([int(match[part]) for match in found] for part in "ab")
    mark = found[0][0][len(found[0]["a"])]
    names = [mark.join(parts) for parts in (("DD", "MM", "YYYY"), ("MM", "DD", "YYYY"))]
    possible = [name for name, months in zip(names, (b, a), strict=True) if max(months) <= 12]
    if len(possible) == 2 and mark == ".":
        return names[0]  # no country writes the month first with points
    if len(possible) == 2:
        read = {name: [_parse(text, name) for text in texts] for name in possible}
        possible = [name for name in possible if _sorted([s.local for s in read[name] if s is not None])]
    if len(possible) == 2:
        raise ValueError(
            f"{places[0]}: expected a date that reads in one way only, got {texts[0]!r}, {names[0]} or "
            f'{names[1]}; give date_format = "{names[0]}" or "{names[1]}"'
        )
    return possible[0] if possible else names[0]


def _sorted(values: list[datetime]) -> bool:
    pairs = [*pairwise(values)]
    return all(a <= b for a, b in pairs) or all(a >= b for a, b in pairs)


def _parse(text: str, name: str) -> Stamp | None:
    """A cell in a named or given format, None if it is not in it or there is no such day."""
    ordered = re.fullmatch(r"(DD|MM)([-/.])(DD|MM)\2YYYY", name)
    pattern = _PATTERNS.get("numbers" if ordered else name)
    try:
        if pattern is None:
            return Stamp(datetime.strptime(text, _as_strptime(name)).replace(tzinfo=None), 0)
        match = pattern.fullmatch(text)
        return None if match is None else _stamp(match.groupdict(), name.startswith("DD"))
    except (ValueError, OverflowError, KeyError):  # a word that is not a month
        return None


def _as_strptime(date_format: str) -> str:
    for letters, code in (("YYYY", "%Y"), ("YY", "%y"), ("MM", "%m"), ("DD", "%d"), ("Mon", "%b")):
        date_format = date_format.replace(letters, code)
    return date_format


def _stamp(part: dict[str, str | None], day_first: bool) -> Stamp:
    """The parts of a match as a point in time."""
    if epoch := part.get("epoch"):
        seconds = int(epoch[:-3] if len(epoch) > 10 else epoch)
        return Stamp(datetime(1970, 1, 1) + timedelta(seconds=seconds), 0)
    if serial := part.get("serial"):
        return Stamp(datetime(1899, 12, 30) + timedelta(days=int(serial)), 0)
    if part.get("a"):
        part["d"], part["m"] = (part["a"], part["b"]) if day_first else (part["b"], part["a"])
    year, day = int(part["y"] or 0), int(part.get("d") or 1)
    year += 0 if year > 99 else 2000 if year < 69 else 1900  # as POSIX reads two digits
    if week := part.get("week"):
        return Stamp(datetime.fromisocalendar(year, int(week), day), 0)
    month = _MONTHS[name[:3].lower()] if (name := part.get("name")) else int(part["m"] or 0)
    clock = re.findall(r"\d\d?", (part["time"] or "").split(".")[0])
    hour, minute, second = (int(piece) for piece in (*clock[:3], 0, 0, 0)[:3])
    if half := part["half"]:
        hour = hour % 12 + 12 * (half.lower() == "pm")
    offset = 0
    if (zone := part["zone"]) and zone[0] in "+-":
        offset = (int(zone[1:3]) * 60 + int(zone[-2:])) * (1 if zone[0] == "+" else -1)
    return Stamp(datetime(year, month, day, hour, minute, second), offset)


# --- numbers ---------------------------------------------------------------------------------------


def sniff_marks(where: str, cells: Sequence[str], dialect: Dialect, separator: str) -> Marks:
    """The marks of numbers, from all cells of prices.

    Raises:
        ValueError: if a mark may be decimal or between thousands, as in a file with only ``1,234``.

    Example:
        >>> sniff_marks("mine.csv", ["1.234,56", "17,3"], Dialect(), ";")
        Marks(decimal=',', thousands='.')
    """
    decimals, thousands, unsure = set[str](), set[str](), set[str]()
    for cell in () if separator != ";" and _are_plain(cells) else cells:
        marks = _MARKS.findall(text := cell.strip(_CURRENCIES))
        if not marks or not text[0].isdigit():
            continue
        kinds, last = set(marks), marks[-1]
        before, _, after = text.rpartition(last)
        if last not in ".," or marks.count(last) > 1:
            thousands |= kinds
        elif len(kinds) > 1 or len(after) != 3 or len(before) > 3 or before == "0":
            decimals.add(last)
            thousands |= kinds - {last}
        else:
            unsure.add(last)
    decimal = dialect.decimal
    if decimal is None:
        decimals -= thousands if len(decimals) > 1 else set()
        if decimals:
            decimal = "." if "." in decimals else ","
        elif unsure - thousands == {","} and dialect.thousands is None:
            decimal = "," if separator == ";" else None
        elif unsure - thousands == {"."} and separator == ";" and dialect.thousands is None:
            decimal = None
        elif len(unsure - thousands) < 2:
            decimal = "," if "." in thousands or dialect.thousands == "." else "."
        if decimal is None:
            mark = min(unsure)
            raise ValueError(
                f"{where}: the {'comma' if mark == ',' else 'point'} of all prices may be decimal marks "
                f'or between thousands; give decimal = "{mark}" or thousands = "{mark}"'
            )
    if dialect.thousands is not None:
        return Marks(decimal, dialect.thousands)
    return Marks(decimal, "".join(sorted((thousands | unsure) - {decimal})))


def _are_plain(cells: Sequence[str]) -> bool:
    """Whether no number has another mark than one decimal point."""
    text = "\n".join(cells)
    return not any(mark in text for mark in _OTHER_MARKS) and all(cell.count(".") < 2 for cell in cells)


def read_price(text: str, marks: Marks) -> float:
    """A price; NaN for a gap.

    Raises:
        ValueError: if it is not a number, or not above zero; the caller adds the place.

    Example:
        >>> read_price("1.234,50", Marks(",", ".")), read_price("n/a", Marks())
        (1234.5, nan)
    """
    if text.lower() in GAPS:
        return math.nan
    try:
        number = text.strip(_CURRENCIES)
        whole, mark, rest = number.partition(marks.decimal)
        if marks.thousands:
            mark_of = f"[{re.escape(marks.thousands)}]"
            if not re.fullmatch(rf"\d+|\d{{1,3}}({mark_of}\d{{2,3}})*{mark_of}\d{{3}}", whole):
                raise ValueError
            whole = re.sub(mark_of, "", whole)
        if "_" in text or "." in whole + rest:  # float() accepts 1_000
            raise ValueError
        price = float(f"{whole}.{rest}" if mark else whole)
    except ValueError:
        kind = "comma" if marks.decimal == "," else "point"
        raise ValueError(f"expected a number with a decimal {kind}, got {text!r}") from None
    if not math.isfinite(price) or price <= 0:
        raise ValueError(f"expected a finite price above zero, got {text!r}")
    return price
