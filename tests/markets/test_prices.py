"""Prices: the shipped sample is verbatim, every source arrives checked, every fault is named."""

import gzip
import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from funcexplain.markets import prices as module
from funcexplain.markets.prices import Prices, ecb, load, read_csv, sp500

DATA = Path(module.__file__).with_name("data")
GOOD = "date,GOLD,OIL\n2024-01-02,2063.7,70.4\n2024-01-03,2042.5,72.7\n2024-01-04,2045.0,72.2\n"


def write(folder: Path, text: str, name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def assert_same(got: Prices, expected: Prices) -> None:
    np.testing.assert_array_equal(got.values, expected.values)
    np.testing.assert_array_equal(got.dates, expected.dates)
    assert got.assets == expected.assets


def test_sample_is_the_text_that_its_readme_names() -> None:
    text = gzip.decompress((DATA / "ecb.csv.gz").read_bytes())
    assert hashlib.sha256(text).hexdigest() in (DATA / "README.md").read_text(encoding="utf-8")


def test_sample_holds_pinned_rows_of_the_source() -> None:
    """Rows as the European Central Bank published them, digit by digit."""
    text = gzip.decompress((DATA / "ecb.csv.gz").read_bytes()).decode()
    rows = {line.split(",", 1)[0]: line for line in text.splitlines()}
    assert rows["2010-01-04"] == (
        "2010-01-04,1.4389,133.62,0.8914,1.4873,10.193,8.229,4.103,269.85,26.285,"
        "1.5885,1.9764,1.4953,2.0126,1662.37,18.6664,10.5618"
    )
    assert rows["2026-10-30"] == (
        "2026-10-30,1.1172,175.68,0.8338,0.9194,10.978,10.312,4.4038,366.33,24.353,"
        "1.5904,1.9823,1.5606,1.4282,1491.76,21.1237,18.6455"
    )


def test_ecb_prices_are_quotients_of_the_sample() -> None:
    prices = ecb()
    lines = gzip.decompress((DATA / "ecb.csv.gz").read_bytes()).decode().splitlines()
    header = lines[0].split(",")
    assert prices.assets == ("EUR", *header[2:])
    assert prices.values.shape == (len(lines) - 1, 16)
    assert prices.values.dtype == np.float64
    for row in (0, 1234, len(lines) - 2):
        date, *cells = lines[1 + row].split(",")
        rates = dict(zip(header[1:], map(float, cells), strict=True))
        expected = [rates["USD"], *(rates["USD"] / rates[name] for name in prices.assets[1:])]
        assert str(prices.dates[row]) == date
        np.testing.assert_array_equal(prices.values[row], expected)
    assert "European Central Bank" in prices.source


def cutter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cut_ecb", DATA / "cut_ecb.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_cut_keeps_the_text_of_chosen_cells_and_sorts_days() -> None:
    cut_ecb = cutter()
    names = ["XXX", *cut_ecb.CURRENCIES, "YYY"]
    newest_first = ["2011-02-02", "2011-02-01", "2009-12-31"]
    cells = {day: {name: f"{number}.{place:03}0" for place, name in enumerate(names)}
             for number, day in enumerate(newest_first)}  # fmt: skip
    source = "\n".join(
        [",".join(["Date", *names, ""])]
        + [",".join([day, *cells[day].values(), ""]) for day in newest_first]
    )
    header, *rows = cut_ecb.cut(source).splitlines()
    assert header == ",".join(["Date", *cut_ecb.CURRENCIES])
    expected = [
        ",".join([day, *(cells[day][name] for name in cut_ecb.CURRENCIES)])
        for day in ("2011-02-01", "2011-02-02")
    ]
    assert rows == expected


@pytest.mark.parametrize("name", ["mine.csv", "mine.csv.gz"])
def test_read_csv_plain_and_gzipped(tmp_path: Path, name: str) -> None:
    prices = read_csv(write(tmp_path, GOOD, name))
    assert prices.assets == ("GOLD", "OIL")
    np.testing.assert_array_equal(prices.values, [[2063.7, 70.4], [2042.5, 72.7], [2045.0, 72.2]])
    expected = np.array(["2024-01-02", "2024-01-03", "2024-01-04"], dtype="datetime64[D]")
    np.testing.assert_array_equal(prices.dates, expected)
    assert prices.source == str(tmp_path / name)


@pytest.mark.parametrize(
    "same",
    ["\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD.replace("\n", "\n\n"), GOOD.replace(",", " , ")],
    ids=["byte order mark", "carriage returns", "blank lines", "blanks"],
)
def test_read_csv_reads_what_spreadsheets_write(tmp_path: Path, same: str) -> None:
    assert_same(read_csv(write(tmp_path, same)), read_csv(write(tmp_path, GOOD, "plain.csv")))


FAULTS = {
    "empty": ("", "expected a header row such as 'date,EUR,JPY', got an empty file"),
    "no header": (GOOD.split("\n", 1)[1], "expected a header row .* got the data row '2024-01-02,2063"),
    "no asset": ("date\n2024-01-02\n", "at least 1 asset, separated by commas, got the header 'date'"),
    "nameless": (GOOD.replace("OIL", ""), "column 3 of the header has no name"),
    "twins": (GOOD.replace("OIL", "GOLD"), "the asset 'GOLD' has two columns"),
    "one day": (GOOD[:36], "at least 2 days of prices, got 1"),
    "gap": (
        GOOD.replace("72.7", ""),
        r"line 3 \(2024-01-03\), column 'OIL': expected a price, got a gap",
    ),
    "N/A": (GOOD.replace("72.7", "N/A"), r"line 3 .*column 'OIL': .* a gap \('N/A'\)"),
    "text": (GOOD.replace("2042.5", "cheap"), r"line 3 .*column 'GOLD': .* decimal point, got 'cheap'"),
    "underscore": (GOOD.replace("2042.5", "2_042"), "decimal point, got '2_042'"),
    "zero": (GOOD.replace("72.7", "0"), "line 3 .*column 'OIL': expected a finite price above zero"),
    "negative": (GOOD.replace("72.2", "-37.6"), "line 4 .*above zero, got '-37.6'"),
    "nan": (GOOD.replace("72.7", "nan"), r"expected a price, got a gap \('nan'\)"),
    "inf": (GOOD.replace("72.7", "inf"), "finite price above zero, got 'inf'"),
    "same day": (GOOD.replace("01-04", "01-03"), "line 4: date 2024-01-03 appears twice"),
    "backwards": (GOOD.replace("01-04", "01-01"), "line 4: date 2024-01-01 comes after 2024-01-03"),
    "no date": (
        GOOD.replace("2024-01-03", "yesterday"),
        "line 3: expected a date YYYY-MM-DD, got 'yest",
    ),
    "other date": (GOOD.replace("2024-01-03", "03.01.2024"), "line 3: expected a date YYYY-MM-DD"),
    "no such day": (GOOD.replace("2024-01-03", "2024-02-30"), "line 3: expected a date YYYY-MM-DD"),
    "short row": (GOOD.replace(",72.7", ""), "line 3: expected 3 cells as in the header, got 2"),
    "long row": (GOOD.replace("72.7", "72,7"), "line 3: expected 3 cells as in the header, got 4"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_read_csv_names_file_place_and_fault(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        read_csv(path)


def test_other_encodings_raise(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_bytes(b"date,\x81L\n")
    (tmp_path / "broken.csv.gz").write_bytes(b"no gzip at all")
    for name in ("none.csv", "broken.csv.gz"):
        with pytest.raises(ValueError, match=rf"{name}, after line 0: not readable as comma separated"):
            read_csv(tmp_path / name)


def test_load_knows_names_and_paths(tmp_path: Path) -> None:
    assert_same(load("ecb"), ecb())
    assert_same(load(write(tmp_path, GOOD)), read_csv(tmp_path / "mine.csv"))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"'ebc'; expected 'ecb', 'sp500' or the path of a csv"):
        load("ebc")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.csv"):
        read_csv(tmp_path / "none.csv")


@pytest.fixture
def no_skfolio(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which skfolio is not installed, wherever the tests run."""
    monkeypatch.delitem(sys.modules, "skfolio", raising=False)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "skfolio").exists()])
    importlib.invalidate_caches()


@pytest.mark.usefixtures("no_skfolio")
def test_sp500_reads_the_file_without_running_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "skfolio" / "datasets" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "skfolio" / "__init__.py").write_text("raise RuntimeError('imported')")
    write(folder, GOOD, "sp500_dataset.csv.gz")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    prices = load("sp500")
    assert prices.assets == ("GOLD", "OIL")
    assert "skfolio" in prices.source
    assert "skfolio" not in sys.modules


@pytest.mark.usefixtures("no_skfolio")
def test_sp500_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps skfolio"):
        sp500()
    (tmp_path / "skfolio").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    with pytest.raises(FileNotFoundError, match=r"sp500_dataset.csv.gz; .*pip install"):
        sp500()
