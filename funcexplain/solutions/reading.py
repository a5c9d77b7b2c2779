"""Reading of untrusted files: only regular files, up to a given size.

A pipe or a device may block or never end, and a small file may claim to be huge. Every reader of this
package opens its files here, and checks claimed sizes before it allocates memory.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from funcexplain.solutions.writing import check_regular, os_error, quote

MIB = 1 << 20


@contextmanager
def opened(where: str, path: Path) -> Iterator[BufferedReader]:
    """Open a regular file; errors name the function and the file."""
    check_regular(where, path)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise os_error(where, "read", path, error) from None


def read_bytes(where: str, path: Path, limit: int, remedy: str) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        ValueError: if it is larger.
        OSError: if it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "notes")
        >>> _ = path.write_bytes(b"text")
        >>> read_bytes("load", path, MIB, "split it")
        b'text'
    """
    with opened(where, path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise too_large(where, path, limit, remedy)
        return file.read()


def read_rows(where: str, path: Path) -> list[tuple[int, list[str]]]:
    r"""Read the rows of a small csv file that are not blank, with their numbers; cells are stripped.

    Cells are separated by commas, semicolons or tabs, of which the header has the most.

    Raises:
        ValueError: if it is not text, not a csv file or too large.
        OSError: if it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "targets.csv")
        >>> _ = path.write_text("name;EUR;CHF\n\nhigh; 40% ;\n")
        >>> read_rows("load", path)
        [(1, ['name', 'EUR', 'CHF']), (3, ['high', '40%', ''])]
    """
    try:
        text = read_bytes(where, path, 16 * MIB, "split it").decode("utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        rows = [[*map(str.strip, row)] for row in csv.reader(text.splitlines(), delimiter=separator)]
    except UnicodeDecodeError:
        raise ValueError(f"{where}: {quote(path)} is not text; save it as a csv file in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{where}: {quote(path)} is not a csv file: {error}") from None
    return [(number, row) for number, row in enumerate(rows, start=1) if any(row)]


def too_large(where: str, path: Path, limit: int, remedy: str, *, what: str = "hold") -> ValueError:
    """The error for a file, or a part of it, above a limit of bytes."""
    return ValueError(
        f"{where}: {quote(path)} must {what} at most {limit / MIB:g} MiB, got more; {remedy}"
    )
