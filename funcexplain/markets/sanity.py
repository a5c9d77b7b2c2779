"""Finds probable faults in readable prices: splits, stale prices, missing days, duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from funcexplain.markets.prices import Prices

_JUMP = np.log(1.4)  # the smallest split, 3:2, less an ordinary day
_UNUSUAL = 8.0  # times the typical move of the asset
_STALE = 10  # equal prices in a row
_MISSING = 5  # times the typical distance of two rows, and at least a week
_RATIOS = (2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 30, 50, 100, 1000, 1.5, 2.5)
_NEAR = 0.1  # log distance of a jump from the ratio of a split


class Finding(NamedTuple):
    """Something unusual in prices.

    Attributes:
        kind: ``"split"``, ``"jump"``, ``"constant"``, ``"stale"``, ``"gap"`` or ``"duplicate"``.
        asset: name of the asset, empty for a gap of all.
        date: day on which it happens or begins.
        size: price as a multiple of the one before, number of equal prices, or days without a row.
        text: the finding in a sentence.
    """

    kind: str
    asset: str
    date: str
    size: float
    text: str


def find_faults(prices: Prices) -> tuple[Finding, ...]:
    """Find probable faults in prices, each once; the prices do not change.

    Splits and other jumps are moves of at least 40 % that are also 8 times the median move of the
    asset; stale prices are equal for 10 rows or more; a gap is a distance between two rows of more than
    a week and 5 times the usual one; duplicates are two assets with the same prices.

    Args:
        prices: a price history.

    Returns:
        The findings, asset by asset, then gaps.

    Example:
        >>> days = np.arange("2024-01-01", "2024-01-09", dtype="datetime64[D]")
        >>> values = np.array([[40.0, 41.0, 40.5, 40.0, 10.1, 10.0, 10.2, 10.1]]).T
        >>> (split,) = find_faults(Prices(values, days, ("AAPL",), "made"))
        >>> print(split.text)
        AAPL falls to 0.2525 of its price on 2024-01-05, as an unadjusted 4:1 split does; ...
    """
    return (*_assets(prices), *_gaps(prices))


def _assets(prices: Prices) -> Iterator[Finding]:
    dates = [str(day) for day in prices.dates]
    first: dict[bytes, str] = {}
    for name, values in zip(prices.assets, prices.values.T, strict=True):
        same = first.setdefault(values.tobytes(), name)
        if same != name:
            text = f"{name} has the same prices as {same}; leave one of them out"
            yield Finding("duplicate", name, dates[0], float(len(values)), text)
        moves = np.diff(np.log(values))
        if not moves.any():
            text = f"{name} has one price on all days; leave it out"
            yield Finding("constant", name, dates[0], float(len(values)), text)
            continue
        limit = max(_JUMP, _UNUSUAL * float(np.median(np.abs(moves))))
        for place in np.flatnonzero(np.abs(moves) >= limit).tolist():
            yield _jump(name, dates[place + 1], float(moves[place]))
        start, count = _longest_run(moves == 0.0)
        if count + 1 >= _STALE:
            text = (
                f"{name} has one price for {count + 1} rows from {dates[start]}; check that it is traded"
            )
            yield Finding("stale", name, dates[start], count + 1.0, text)


def _jump(name: str, day: str, move: float) -> Finding:
    """A split if the ratio of the prices is near that of one."""
    size, verb = float(np.exp(move)), "falls" if move < 0 else "rises"
    ratio = min(_RATIOS, key=lambda ratio: abs(np.log(ratio) - abs(move)))
    text = f"{name} {verb} to {size:.4g} of its price on {day}"
    if abs(np.log(ratio) - abs(move)) > _NEAR:
        return Finding("jump", name, day, size, f"{text}; check the price")
    parts = f"{ratio:g}:1" if ratio == int(ratio) else f"{2 * ratio:g}:2"
    parts = parts if move < 0 else ":".join(reversed(parts.split(":")))
    return Finding(
        "split", name, day, size, f"{text}, as an unadjusted {parts} split does; use adjusted prices"
    )


def _longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    if not len(starts):
        return 0, 0
    longest = int(lengths.argmax())
    return int(starts[longest]), int(lengths[longest])


def _gaps(prices: Prices) -> Iterator[Finding]:
    days = np.unique(prices.dates.astype("datetime64[D]"))
    steps = np.diff(days).astype(int)
    if not len(steps):
        return
    for place in np.flatnonzero(steps > max(7.0, _MISSING * float(np.median(steps)))).tolist():
        before, after = str(days[place]), str(days[place + 1])
        text = (
            f"no prices between {before} and {after}, {steps[place]} days; check that none are missing"
        )
        yield Finding("gap", "", before, float(steps[place]), text)
