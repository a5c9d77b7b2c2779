"""The period of a price history, by which sentences, charts and messages count: days, weeks, minutes."""

from __future__ import annotations

import numpy as np

DAY = "trading day"
"""The period of daily prices, weekends or not."""
_DAY_SECONDS = 86_400
# Shortest and longest distance of neighboring dates: those in seconds, then those in days.
_EXACT = {"second": (1, 1), "minute": (60, 60), "hour": (3600, 3600)}
_DAYS = {DAY: (1, 4), "week": (5, 9), "month": (26, 35), "quarter": (80, 100), "year": (350, 380)}
_USUAL = 0.8


def period_of(dates: np.ndarray) -> str:
    """The period between ascending dates: ``"trading day"``, ``"week"``, ``"minute"``, ...

    That of at least 80 % of the distances between neighbors; ``"period"`` if they have no common one.

    Example:
        >>> days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
        >>> period_of(days), period_of(days[::7]), period_of(days[::14])
        ('trading day', 'week', 'period')
        >>> period_of(days[:2].astype("datetime64[m]") + np.array([0, -1439]))
        'minute'
    """
    seconds = np.diff(dates.astype("datetime64[s]").astype(np.int64))
    limits = _EXACT | {
        name: (low * _DAY_SECONDS, high * _DAY_SECONDS) for name, (low, high) in _DAYS.items()
    }
    for name, (low, high) in limits.items():
        if len(seconds) and float(((seconds >= low) & (seconds <= high)).mean()) >= _USUAL:
            return name
    return "period" if len(seconds) else DAY


def unit_of(period: str) -> str:
    """The last word of a period.

    Example:
        >>> unit_of("trading day"), unit_of("week")
        ('day', 'week')
    """
    return period.split()[-1]


def count_of(number: int, period: str = DAY) -> str:
    """A number of periods.

    Example:
        >>> count_of(1), count_of(10), count_of(3, "week")
        ('1 trading day', '10 trading days', '3 weeks')
    """
    return f"{number} {period}" if number == 1 else f"{number} {period}s"


def next_of(number: int, period: str = DAY) -> str:
    """The coming periods.

    Example:
        >>> next_of(1), next_of(10, "month")
        ('the next trading day', 'the next 10 months')
    """
    return f"the next {period}" if number == 1 else f"the next {count_of(number, period)}"
