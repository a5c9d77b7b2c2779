"""What is wrong in prices is found once, with asset, date and size; clean prices have no findings."""

from dataclasses import replace

import numpy as np
import pytest

from funcexplain.markets.prices import Prices, ecb
from funcexplain.markets.sanity import find_faults


def made(days: int = 250) -> Prices:
    returns = np.random.default_rng(1).normal(0.0, 0.02, size=(days, 3))
    dates = np.busday_offset("2023-01-02", np.arange(days), roll="forward")
    return Prices(100.0 * np.exp(returns.cumsum(axis=0)), dates, ("GOLD", "OIL", "RICE"), "made")


def test_clean_prices_have_no_findings() -> None:
    assert find_faults(made()) == ()
    assert find_faults(ecb()) == ()


@pytest.mark.parametrize(
    ("factor", "kind", "words"),
    [
        (1 / 4, "split", "4:1 split"),
        (1 / 20, "split", "20:1 split"),
        (2 / 3, "split", "3:2 split"),
        (10, "split", "1:10 split"),
        (12.4, "jump", "check the price"),
        (1 / 100, "split", "100:1"),
    ],
)
def test_a_jump_is_found_once(factor: float, kind: str, words: str) -> None:
    prices = made()
    prices.values[120:, 1] *= factor
    (found,) = find_faults(prices)
    assert (found.kind, found.asset, found.date) == (kind, "OIL", str(prices.dates[120]))
    assert found.size == pytest.approx(factor, rel=0.1)
    assert words in found.text
    assert str(prices.dates[120]) in found.text


def test_stale_constant_and_duplicate_prices_are_found() -> None:
    prices = made()
    prices.values[50:70, 0] = prices.values[50, 0]
    (stale,) = find_faults(prices)
    assert (stale.kind, stale.asset, stale.date, stale.size) == (
        "stale",
        "GOLD",
        str(prices.dates[50]),
        20.0,
    )
    prices.values[:, 0] = 7.0
    assert [f.kind for f in find_faults(prices)] == ["constant"]
    prices.values[:, 0] = prices.values[:, 2]
    (twin,) = find_faults(prices)
    assert (twin.kind, twin.asset) == ("duplicate", "RICE")
    assert "the same prices as GOLD" in twin.text


def test_missing_weeks_are_found() -> None:
    prices = made()
    kept = np.r_[:100, 120:250]
    (gap,) = find_faults(replace(prices, values=prices.values[kept], dates=prices.dates[kept]))
    assert (gap.kind, gap.date, gap.asset) == ("gap", str(prices.dates[99]), "")
    weekly = replace(prices, values=prices.values[::5], dates=prices.dates[::5])
    assert find_faults(weekly) == ()
    minutes = np.datetime64("2024-01-05T09:30") + np.arange(250)
    assert find_faults(replace(prices, dates=minutes)) == ()
