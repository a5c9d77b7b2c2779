"""Files and frames of prices as rows of text: csv in any encoding, parquet, Excel, pandas, polars."""

from __future__ import annotations

import csv
import lzma
import re
import zipfile
import zlib
from bz2 import BZ2File
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from gzip import GzipFile
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from funcexplain.markets.dialects import Dialect
from funcexplain.solutions.reading import MIB, opened, too_large

_MAX_TEXT = 256 * MIB  # 20 years of daily prices of 5000 assets
_MAX_CELL = 100  # characters
_REMEDY = "keep fewer days or assets"
_SAMPLE = 200  # lines that choose the separator
_SEPARATORS = {
    ";": "semicolons",
    "\t": "tabs",
    "|": "bars",
    ",": "commas",
    " ": "blanks",
}  # preferred first
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_PACKED: dict[bytes, Any] = {
    b"\x1f\x8b": lambda file: GzipFile(fileobj=file),
    b"BZh": BZ2File,
    b"\xfd7z": lzma.LZMAFile,
}
_SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".xlsx": "excel", ".xlsm": "excel"}
_OTHERS = {
    ".xls",
    ".xlsb",
    ".ods",
    ".feather",
    ".h5",
    ".hdf5",
    ".json",
    ".pkl",
    ".pickle",
    ".zip",
    ".7z",
}


class Grid(NamedTuple):
    """Rows of text that are not blank, each with its line, and how they were read.

    Attributes:
        where: the file, for messages.
        rows: line and cells, without blanks around them.
        separator: between the cells; a comma if there is none.
        notes: what was sniffed, in words.
        name: of the only asset, where the header has none.
    """

    where: str
    rows: list[tuple[int, list[str]]]
    separator: str = ","
    notes: tuple[str, ...] = ()
    name: str = "price"


def read_grid(path: Path, dialect: Dialect, kind: str | None = None) -> Grid:
    """Read a file; its suffix, or its first bytes, give its kind.

    Raises:
        ValueError: if it is too large, or not readable as its kind.
        OSError, ImportError: if it cannot be read, or a package is missing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "mine.csv")
        >>> _ = path.write_text("date;GOLD;OIL")
        >>> read_grid(path, Dialect()).rows, read_grid(path, Dialect()).notes
        ([(1, ['date', 'GOLD', 'OIL'])], ('separated by semicolons',))
    """
    with opened("prices", path) as file:
        start = file.read(4)
    kind = kind or _SUFFIXES.get(path.suffix.lower())
    if kind is None and start == b"PAR1":
        kind = "parquet"
    unknown = path.suffix.lower() in _OTHERS or start in (b"PK\3\4", b"\xd0\xcf\x11\xe0")
    if kind is None and unknown:
        raise ValueError(
            f"{path}: cannot read prices from this kind of file; save it as csv, xlsx or parquet"
        )
    if kind is None:
        kind = "text"
    if kind == "text":
        grid = _read_text(path, dialect, start)
    else:
        grid = _read_parquet(path) if kind == "parquet" else _read_excel(path, dialect.sheet)
    return grid._replace(name=path.name.split(".")[0])


def frame_grid(where: str, frame: Any) -> Grid:
    """Rows of a pandas or polars frame, its names first; neither is imported."""
    if hasattr(frame, "to_frame") and not hasattr(frame, "columns"):  # a series
        frame = frame.to_frame()
    if hasattr(frame, "iter_rows"):
        levels, rows = [tuple(frame.columns)], frame.iter_rows()
    elif hasattr(frame, "itertuples"):
        if type(frame.index).__name__ != "RangeIndex":
            frame = frame.reset_index()
        names = [name if isinstance(name, tuple) else (name,) for name in frame.columns]
        levels, rows = [*zip(*names, strict=True)], frame.itertuples(index=False, name=None)
    else:
        raise TypeError(f"{where}: df must be a pandas or polars DataFrame, got {type(frame).__name__}")
    return Grid(where, _numbered([*levels, *rows]))


def _numbered(rows: Iterable[Iterable[Any]]) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, as text."""
    texts = (["" if cell is None else str(cell).strip() for cell in row] for row in rows)
    return [(line, row) for line, row in enumerate(texts, start=1) if any(row)]


# --- text ------------------------------------------------------------------------------------------


def _read_text(path: Path, dialect: Dialect, start: bytes) -> Grid:
    text, notes = _decode(path, _read_bytes(path, start), dialect.encoding)
    separator = dialect.separator
    if separator is None and (line := re.match(r"sep=([^\w\s\"]|\t)\s*\n", text)):  # as Excel writes it
        separator, text = line[1], "\n" + text[line.end() :]
    if separator is None:
        separator = _sniff_separator(text)
        if separator != ",":
            notes += (f"separated by {_SEPARATORS[separator]}",)
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    rows = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise _unreadable(path, reader.line_num, error) from error
    return Grid(str(path), rows, separator, notes)


def _read_bytes(path: Path, start: bytes) -> bytes:
    """The bytes of a file, unpacked, up to a limit."""
    kinds = (packed for magic, packed in _PACKED.items() if start.startswith(magic))
    unpacked = next(kinds, _PACKED[b"\x1f\x8b"] if path.suffix.lower() == ".gz" else nullcontext)
    with opened("read_csv", path) as file, unpacked(file) as content:
        try:
            content = content.read(_MAX_TEXT + 1)
        except (OSError, zlib.error, lzma.LZMAError, EOFError) as error:
            raise _unreadable(path, 0, error) from error
    if len(content) > _MAX_TEXT:
        raise too_large("read_csv", path, _MAX_TEXT, _REMEDY)
    return content


def _unreadable(path: Path, line: int, error: Exception) -> ValueError:
    return ValueError(
        f"{path}, after line {line}: not readable as comma separated UTF-8 text ({error}); save it as "
        "plain csv or as csv.gz, or give its separator and encoding"
    )


def _decode(path: Path, content: bytes, encoding: str | None) -> tuple[str, tuple[str, ...]]:
    """The text of bytes, and how they were read if that is not UTF-8."""
    found = encoding or next(
        (n for mark, n in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None
    )
    if found is None:
        zeros = [content[place:_SAMPLE:2].count(0) for place in range(2)]
        if max(zeros) > len(content[:_SAMPLE]) / 4:
            found = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    try:
        return content.decode(found or "utf-8"), () if found in (None, "utf-8-sig") else (found,)
    except LookupError:
        raise ValueError(
            f"{path}: unknown encoding {found!r}; give one such as utf-8 or cp1252"
        ) from None
    except UnicodeError as error:
        if found is None and b"\0" not in content:
            return _decode(path, content, "cp1252")  # Western Windows
        raise _unreadable(path, 0, error) from error


def _sniff_separator(text: str) -> str:
    """The separator that gives most lines the same number of cells."""
    lines = [line for line in islice(StringIO(text, newline=""), _SAMPLE) if line.strip()]

    def regular(separator: str) -> int:
        try:
            rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
            counts = Counter(len(row) for row in rows if len(row) > 1)
        except csv.Error:
            return 0
        return max(counts.values(), default=0)

    scores = {separator: regular(separator) for separator in _SEPARATORS}
    best = max(scores, key=lambda separator: scores[separator])
    return best if scores[best] else ","


# --- parquet and Excel -----------------------------------------------------------------------------


def _read_parquet(path: Path) -> Grid:
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
    columns = (column.to_pylist() for column in table.columns)
    return Grid(str(path), _numbered([table.column_names, *zip(*columns, strict=True)]))


def _check_parquet(path: Path, about: Any) -> None:
    """Raise if a file claims too many cells or bytes: repeated values take next to no room in it."""
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    cells = sum(g.column(place).num_values for g in groups for place in range(g.num_columns))
    if max(8 * cells, sum(group.total_byte_size for group in groups)) > _MAX_TEXT:
        raise too_large("read_parquet", path, _MAX_TEXT, _REMEDY)


def _read_excel(path: Path, sheet: str | None) -> Grid:
    """The named sheet, or the first that is not empty."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise ModuleNotFoundError(
            f"load: {path} needs openpyxl; install it with: pip install openpyxl, or save csv"
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > _MAX_TEXT:
            raise too_large("load", path, _MAX_TEXT, _REMEDY)
        book = load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ValueError(f"{path}: not readable as Excel ({error}); save it again, or as csv") from None
    try:
        names = book.sheetnames if sheet is None else [sheet]
        if names[0] not in book.sheetnames:
            raise ValueError(
                f"{path}: there is no sheet {sheet!r}; choose from {', '.join(book.sheetnames)}"
            )
        filled = ((name, _numbered(book[name].iter_rows(values_only=True))) for name in names)
        name, rows = next(((name, rows) for name, rows in filled if rows), (names[0], []))
    finally:
        book.close()
    return Grid(str(path), rows, notes=() if len(names) == 1 else (f"sheet {name!r}",))
