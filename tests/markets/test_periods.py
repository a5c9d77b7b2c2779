"""The period of prices follows from their dates, whatever gaps they have."""

import numpy as np
import pytest

from funcexplain.markets.periods import count_of, next_of, period_of

DAYS = np.arange("2023-01-01", "2026-01-01", dtype="datetime64[D]")
MINUTES = np.datetime64("2024-01-02T09:30") + np.arange(390).astype("timedelta64[m]")
MONTHS = np.arange("2020-01", "2024-01", dtype="datetime64[M]").astype("datetime64[D]")


@pytest.mark.parametrize(
    ("dates", "period"),
    [
        (DAYS, "trading day"),
        (DAYS[np.is_busday(DAYS)], "trading day"),
        (DAYS[np.is_busday(DAYS)][np.random.default_rng(0).random(783) > 0.1], "trading day"),
        (DAYS.astype("datetime64[m]") + np.timedelta64(16, "h"), "trading day"),
        (DAYS[4::7], "week"),
        (MONTHS, "month"),
        (MONTHS - 1, "month"),
        (MONTHS[::3], "quarter"),
        (MONTHS[::12], "year"),
        (MINUTES, "minute"),
        (np.concatenate([MINUTES + np.timedelta64(24 * d, "h") for d in range(3)]), "minute"),
        (MINUTES[::60], "hour"),
        (MINUTES[::5], "period"),
        (DAYS[::14], "period"),
        (np.concatenate([DAYS[:30:7], DAYS[30:36]]), "period"),
        (DAYS[:1], "trading day"),
    ],
    ids=range(16),
)
def test_the_period_is_that_of_most_neighbors(dates: np.ndarray, period: str) -> None:
    assert period_of(dates) == period


@pytest.mark.parametrize("period", ["trading day", "week", "minute"])
def test_one_is_singular(period: str) -> None:
    assert [count_of(n, period) for n in (1, 2)] == [f"1 {period}", f"2 {period}s"]
    assert [next_of(n, period) for n in (1, 2)] == [f"the next {period}", f"the next 2 {period}s"]
