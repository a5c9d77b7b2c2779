"""The price column of each asset, in files with several fields per asset.

Open, high, low, close and volume of one asset are not assets: the adjusted close is used if there is
one, else the close.
"""

from __future__ import annotations

import re
from collections.abc import Container

DATE_NAMES = {
    "date",
    "day",
    "time",
    "datetime",
    "timestamp",
    "datum",
    "index",
    "period",
    "week",
    "month",
}
# Prices, the best first, then what else a provider writes about an asset.
_PRICES = (
    *("adj close", "adjusted close", "adjclose", "close adj", "adjusted", "adjusted closing price"),
    *(
        "close",
        "close last",
        "closing price",
        "schluss",
        "schlusskurs",
        "zuletzt",
        "px last",
        "last",
        "last price",
    ),
    *("price", "px", "prc", "settle", "value", "rate"),
)
_RANGE = {"open", "high", "low", "px open", "px high", "px low", "eröffnung", "eröffn", "hoch", "tief"}
_REST = {
    *"volume vol tickvol spread change chg dividends dividend vwap trades turnover count".split(),
    *("volumen", "stock splits", "capital gains", "px volume", "split factor"),
    *("adj open", "adj high", "adj low", "adj volume"),
}
FIELDS = {*_PRICES, *_RANGE, *_REST}
_WORDS = "|".join(name.replace(" ", r"[\W_]*") for name in sorted(FIELDS, key=len, reverse=True))
_JOINT = r"[\s_.,:;|/'\"()-]+"
_EDGE = r"[\s_'\"()]*"
_FLAT = (
    re.compile(rf"{_EDGE}(?P<field>{_WORDS}){_JOINT}(?P<asset>\S.*?){_EDGE}", re.IGNORECASE),
    re.compile(rf"{_EDGE}(?P<asset>\S.*?){_JOINT}(?P<field>{_WORDS}){_EDGE}", re.IGNORECASE),
)


def plain(label: str) -> str:
    """A label in lower case, its words separated by one blank."""
    return re.sub(r"[\W_]+", " ", label.lower()).strip()


def best_price(fields: Container[str]) -> str | None:
    """The best price among fields."""
    return next((name for name in _PRICES if name in fields), None)


def label_columns(header: list[list[str]], columns: list[int], place: int) -> dict[int, tuple[str, str]]:
    """Field and asset of each column; one of them is empty if the header does not have it.

    Args:
        header: rows of names.
        columns: those that may hold prices.
        place: column of the dates.

    Example:
        >>> label_columns([["", "Close", "Close"], ["Date", "GOLD", "OIL"]], [1, 2], 0)
        {1: ('close', 'GOLD'), 2: ('close', 'OIL')}
    """
    levels = [row for row in header if any(row[k] for k in columns)] or header[-1:]
    words_of = [{plain(row[k]) for k in columns if row[k]} for row in levels]
    fields = [n for n, words in enumerate(words_of) if words and words <= FIELDS and best_price(words)]
    rest = [n for n in range(len(levels)) if n not in fields]
    if fields and rest:
        upper = [
            _filled(levels[n], columns) for n in (fields[0], max(rest, key=lambda n: len(words_of[n])))
        ]
        return {k: (plain(upper[0][k]), upper[1][k]) for k in columns}

    def score(number: int) -> tuple[int, bool, int]:
        return len(words_of[number]), plain(levels[number][place]) in DATE_NAMES, number

    row = levels[max(range(len(levels)), key=score)]
    words = {plain(row[k]) for k in columns}
    alone = words <= FIELDS and best_price(words) and (len(columns) == 1 or not words <= {*_PRICES})
    if alone or (best_price(words) and len(words & _RANGE) >= 3):
        return {k: (plain(row[k]), "") for k in columns}
    flat = {k: next(filter(None, (form.fullmatch(row[k]) for form in _FLAT)), None) for k in columns}
    pairs = {k: (plain(match["field"]), match["asset"]) for k, match in flat.items() if match}
    kinds = {field for field, _ in pairs.values()}
    tuples = all(row[k].startswith("('") for k in columns)
    if len(pairs) == len(columns) and best_price(kinds) and (len(kinds) > 1 or tuples):
        return pairs
    return {k: ("", row[k]) for k in columns}


def _filled(row: list[str], columns: list[int]) -> dict[int, str]:
    """Labels by column; a blank repeats the one before it, as in merged cells."""
    filled, last = {}, ""
    for column in columns:
        filled[column] = last = row[column] or last
    return filled


def choose_prices(
    labels: dict[int, tuple[str, str]], columns: list[int], name: str
) -> tuple[list[str], list[int], list[str]]:
    """Names and columns of the best price of each asset, and notes; ``name`` is that of the only one."""
    if not any(field for field, _ in labels.values()):
        return [labels[k][1] for k in columns], columns, []
    by_asset: dict[str, dict[str, int]] = {}
    for column in columns:
        field, asset = labels[column]
        by_asset.setdefault(asset or name, {}).setdefault(field, column)
    best = {asset: price for asset, fields in by_asset.items() if (price := best_price(fields))}
    kinds = sorted(set(best.values()), key=_PRICES.index)
    kept = [by_asset[asset][price] for asset, price in best.items()]
    return [*best], kept, [f"{' or '.join(kinds)} of each asset"]
