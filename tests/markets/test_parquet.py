"""Prices in parquet, where pyarrow is installed: the same prices and errors as from csv."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from funcexplain.markets.prices import load, read_parquet

DAYS = [datetime.date(2024, 1, day) for day in (1, 2, 3)]


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: none\.parquet"):
        read_parquet("none.parquet")


@pytest.fixture
def save(tmp_path: Path) -> Any:
    """Write columns by name and return the file."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def saved(**columns: Any) -> Path:
        path = tmp_path / "prices.parquet"
        parquet.write_table(arrow.table(columns), path)
        return path

    return saved


@pytest.mark.parametrize("dates", [DAYS, [str(day) for day in DAYS]], ids=["dates", "text"])
def test_prices_are_read(save: Any, dates: list[Any]) -> None:
    prices = load(save(date=dates, GOLD=[1.0, 2.0, 3.0], OIL=[4, 5, 6]))
    assert prices.assets == ("GOLD", "OIL")
    assert prices.values.tolist() == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    assert [str(day) for day in prices.dates] == [str(day) for day in DAYS]


def test_an_index_of_timestamps_comes_last(save: Any) -> None:
    stamps = [datetime.datetime(day.year, day.month, day.day) for day in DAYS]
    prices = load(save(GOLD=[1.0, 2.0, 3.0], __index_level_0__=stamps))
    assert prices.assets == ("GOLD",)
    assert str(prices.dates[-1]) == "2024-01-03"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"date": DAYS, "GOLD": [1.0, None, 3.0]}, r"line 3 \(2024-01-02\), column 'GOLD': .* a gap"),
        ({"date": DAYS, "GOLD": [1.0, 0.0, 3.0]}, "a finite price above zero"),
        ({"date": [*DAYS[1:], DAYS[0]], "GOLD": [1.0, 2.0, 3.0]}, "sort the days, oldest first"),
        ({"date": ["2024-01-01", "15:00"], "GOLD": [1.0, 2.0]}, "at least 2 days of prices, got 1"),
        ({"date": DAYS}, "at least 1 asset"),
    ],
)
def test_bad_input_raises_as_in_csv(save: Any, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(save(**columns))


def test_another_file_is_no_parquet(save: Any) -> None:
    path = save(date=DAYS, GOLD=[1.0, 2.0, 3.0])
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not readable as parquet"):
        load(path)
