"""The catalogue of price files: each is read as the same prices, or refused with its remedy."""

import datetime as dt
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from funcexplain.markets.prices import Prices, load
from tests.markets.dialects import (
    CASES,
    DAYS,
    NAMES,
    REFUSED,
    VALUES,
    WIDE,
    Case,
    excel_cases,
    parquet_cases,
    text,
)


def saved(folder: Path, case: Case) -> Path:
    path = folder / case.name
    path.write_bytes(case.content)
    return path


def assert_prices(prices: Prices, case: Case) -> None:
    assert prices.assets == case.assets
    assert prices.dates.dtype == "datetime64[D]"
    assert prices.dates.tolist() == DAYS
    np.testing.assert_allclose(prices.values, VALUES[:, case.columns], rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_text_file_is_read(tmp_path: Path, name: str) -> None:
    assert_prices(load(saved(tmp_path, CASES[name])), CASES[name])


@pytest.mark.parametrize("kind", [parquet_cases, excel_cases])
def test_a_binary_file_is_read(tmp_path: Path, kind: Callable[[], dict[str, Case]]) -> None:
    for case in kind().values():
        assert_prices(load(saved(tmp_path, case)), case)


def test_few_files_are_refused_and_the_message_has_the_remedy(tmp_path: Path) -> None:
    assert len(REFUSED) <= 4
    for case, message, remedy in REFUSED.values():
        path = saved(tmp_path, case)
        with pytest.raises(ValueError, match=r"mine\.csv") as raised:
            load(path)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
        if remedy:
            assert load(path, **remedy).assets == NAMES


def test_what_was_sniffed_is_in_the_notes(tmp_path: Path) -> None:
    assert load(saved(tmp_path, Case("a.csv", text(WIDE)))).notes == ()
    found = load(saved(tmp_path, CASES["German Excel"])).notes
    assert found == ("separated by semicolons", "dates DD.MM.YYYY", "decimal comma")
    assert "adj close of each asset" in load(saved(tmp_path, CASES["yfinance, adjusted"])).notes


@pytest.mark.parametrize(
    ("settings_", "case"),
    [
        ({"separator": ";", "decimal": ","}, "numbers: decimal commas"),
        ({"decimal": ",", "thousands": "."}, "numbers: German thousands"),
        ({"date_format": "DD.MM.YYYY"}, "dates: German"),
        ({"date_format": "%d.%m.%y"}, "dates: German, two digits"),
        ({"encoding": "cp1252"}, "Windows"),
        ({"header": 4}, "preamble"),
    ],
    ids=str,
)
def test_settings_replace_sniffing(tmp_path: Path, settings_: dict[str, Any], case: str) -> None:
    assert_prices(load(saved(tmp_path, CASES[case]), **settings_), CASES[case])


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"separator": ";;"}, "separator: expected one character"),
        ({"decimal": "'"}, 'decimal: expected "." or ","'),
        ({"decimal": ",", "thousands": ","}, "other than the decimal mark"),
        ({"header": 0}, "header: expected a line number from 1"),
        ({"encoding": "klingon"}, "unknown encoding 'klingon'; give one such as utf-8"),
        ({"encoding": "utf-16"}, "not readable as comma separated"),
        ({"header": 90}, "got an empty file"),
        ({"date_format": "DD.MM.YYYY"}, "expected a column of dates"),
        ({"gaps": "fill"}, "gaps must be one of refuse, drop_days"),
        ({"assets": ["GULD"]}, "assets: there is no 'GULD' in the data; did you mean 'GOLD'?"),
        ({"assets": ["gold"]}, "did you mean 'GOLD'?"),
        (
            {"start": dt.date(2030, 1, 1)},
            "expected days between start and end, got none; there are 2024",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_raise(tmp_path: Path, given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as raised:
        load(saved(tmp_path, Case("mine.csv", text(WIDE))), **given_)
    assert message in str(raised.value)


def test_an_unknown_setting_raises(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unknown setting 'sep'; choose from separator"):
        load("ecb", sep=";")
    with pytest.raises(ValueError, match="separator: only a file has one"):
        load("ecb", separator=";")


# --- cut first, check then -------------------------------------------------------------------------


def test_only_what_is_asked_for_is_checked(tmp_path: Path) -> None:
    lines = [*WIDE, "2024-03-01,closed,0,", "2024-03-02,,,"]
    lines[3] = lines[3].replace(lines[3].split(",")[2], "n/a")
    path = saved(tmp_path, Case("mine.csv", text(lines)))
    with pytest.raises(
        ValueError, match=r"line 22 .*expected a number with a decimal point, got 'closed'"
    ):
        load(path)
    end = DAYS[-1]
    with pytest.raises(
        ValueError, match=r"line 4 \(2024-01-17\), column 'OIL': expected a price, got a gap"
    ):
        load(path, end=end)
    assert load(path, end=end, assets=["RICE", "GOLD"]).assets == ("RICE", "GOLD")
    assert load(path, start=DAYS[3], end=end).values.shape == (len(DAYS) - 3, 3)


def test_gaps_are_dropped_or_filled(tmp_path: Path) -> None:
    lines = [line.split(",") for line in WIDE]
    lines[3][2] = lines[4][2] = "NaN"
    path = saved(tmp_path, Case("mine.csv", text(map(",".join, lines))))
    filled = load(path, gaps="forward_fill")
    np.testing.assert_array_equal(filled.values[2:4, 1], VALUES[[1, 1], 1])
    assert filled.notes == ("2 gaps filled",)
    assert load(path, gaps="drop_days").dates.tolist() == [*DAYS[:2], *DAYS[4:]]
    assert load(path, gaps="drop_assets").assets == ("GOLD", "RICE")
    lines[1][2] = ""
    path.write_bytes(text(map(",".join, lines)))
    with pytest.raises(
        ValueError, match="the first of 'OIL' is 2024-01-16: start there, or leave it out"
    ):
        load(path, gaps="forward_fill")
    assert load(path, gaps="forward_fill", start=DAYS[1]).values.shape == (len(DAYS) - 1, 3)


# --- periods ---------------------------------------------------------------------------------------


def test_minutes_and_seconds_are_periods(tmp_path: Path) -> None:
    def read(stamps: list[str]) -> Prices:
        rows = [f"{stamp},{1.0 + place}" for place, stamp in enumerate(stamps)]
        return load(saved(tmp_path, Case("mine.csv", text(["time,GOLD", *rows]))))

    minutes = read([f"2024-01-15 09:{minute}" for minute in range(30, 40)])
    assert minutes.dates.dtype == "datetime64[m]"
    assert str(minutes.dates[1]) == "2024-01-15T09:31"
    assert read(["20240115 093000", "20240115 093001"]).dates.dtype == "datetime64[s]"
    # The hour in which clocks are put back comes twice.
    back = read(["2024-11-03 01:30-04:00", "2024-11-03 01:30-05:00", "2024-11-03 02:30-05:00"])
    assert np.diff(back.dates).astype(int).tolist() == [60, 60]
    weeks = read(["2024-01-01/2024-01-07", "2024-01-08/2024-01-14"])
    assert [str(day) for day in weeks.dates] == ["2024-01-07", "2024-01-14"]
    months = read(["2024-01", "2024-02", "2024-03"])
    assert str(months.dates[-1]) == "2024-03-01"


# --- frames ----------------------------------------------------------------------------------------


def test_frames_are_read_as_files_are() -> None:
    pandas = pytest.importorskip("pandas")
    wide = pandas.DataFrame(VALUES, pandas.to_datetime(DAYS), NAMES)
    several = pandas.concat({"Close": 2 * wide, "Adj Close": wide, "Volume": 9 * wide}, axis=1)
    stacked = wide.rename_axis("day").reset_index().melt("day", var_name="ticker", value_name="close")
    frames = [
        *(wide, wide[::-1], wide.rename_axis("Date").reset_index(), several, several.swaplevel(axis=1)),
        *(stacked, stacked.set_index(["day", "ticker"]), wide.tz_localize("UTC"), wide.astype(object)),
    ]
    for frame in frames:
        assert_prices(Prices.from_frame(frame), Case("", b""))
    assert Prices.from_frame(wide["OIL"]).assets == ("OIL",)
    wide.iloc[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"from_frame, line 5 .*got a gap"):
        Prices.from_frame(wide)
    assert Prices.from_frame(wide, gaps="drop_days", assets=["OIL"]).values.shape == (len(DAYS) - 1, 1)


def test_polars_frames_are_read() -> None:
    columns = {"date": DAYS, **{name: VALUES[:, place] for place, name in enumerate(NAMES)}}
    polars = sys.modules.get("polars")
    frame: Any = types.SimpleNamespace(
        columns=[*columns], iter_rows=lambda: zip(*columns.values(), strict=True)
    )
    if polars is not None:
        frame = polars.DataFrame(columns)
    assert_prices(Prices.from_frame(frame), Case("", b""))
    with pytest.raises(TypeError, match="df must be a pandas or polars DataFrame, got dict"):
        Prices.from_frame(columns)


# --- kinds of files --------------------------------------------------------------------------------


def test_excel_without_openpyxl_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "mine.xlsx").write_bytes(b"")
    with pytest.raises(
        ModuleNotFoundError, match="needs openpyxl; install it with: pip install openpyxl"
    ):
        load(tmp_path / "mine.xlsx")


def test_other_kinds_of_files_name_those_that_are_read(tmp_path: Path) -> None:
    for name in ("mine.xls", "mine.feather", "mine.JSON", "mine.zip"):
        (tmp_path / name).write_bytes(b"PK\3\4")
        with pytest.raises(ValueError, match="save it as csv, xlsx or parquet"):
            load(tmp_path / name)


# --- anything --------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *("date", "GOLD", "OIL", "Close", "Volume", "ticker", "AAPL", "2024-01-02", "2024-01-03"),
        *("03.01.2024", "01/02/2024", "1.5", "1,5", "1.234,5", "", "n/a", "-3", "0", "1e400", "sep=;"),
        *(
            ",",
            ",",
            ",",
            ";",
            "\t",
            " ",
            "\n",
            "\n",
            "\n",
            '"',
            "\0",
            "\ufeff",
            "é",
            "20240102",
            "1704153600",
        ),
        *("2024-01-02 10:00", "12:00", "99999999999999", "2024-W60", "0000-00-00", "('Close', 'A')"),
    ]
)


@given(
    content=st.one_of(st.binary(max_size=80), st.lists(PIECES, max_size=30).map("".join).map(str.encode))
)
@settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_content_is_read_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = saved(tmp_path, Case("any.csv", content))
    try:
        prices = load(path)
    except ValueError as error:
        if "any.csv" not in str(error) or "\n" in str(error):
            raise
    else:
        assert (prices.values > 0).all()
        assert (np.diff(prices.dates).astype(int) > 0).all()
