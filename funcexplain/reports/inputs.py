"""The inputs of a report, checked and completed: names, price paths, dates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from funcexplain.markets.periods import DAY, unit_of
from funcexplain.problems.problem import Problem
from funcexplain.reports.drawing import as_array
from funcexplain.solutions.solution import Solution

PricePaths = tuple[np.ndarray, np.ndarray]
"""Actual prices and those in the scenario, ``(days, A)`` each."""


class Labels(NamedTuple):
    """Names of the channels, days and assets of a window, of the weights, its ``dates`` if known."""

    channels: list[str]
    days: list[str]
    assets: list[str]
    dates: list[str] | None
    weights: list[str]
    period: str


def complete_labels(
    names: Mapping[str, list[str]], solution: Solution, problem: Problem, period: str = DAY
) -> Labels:
    """A label for everything: numbers if there are no names, days counted back from the last one."""
    channels, days, size = solution.sample.x.shape[-3:]
    count = solution.sample.weights.shape[-1]
    assets = names.get("asset", [f"asset {number}" for number in range(size)])
    others = [f"output {number}" for number in range(size, count)]
    weights = list(problem.outputs) if problem.outputs else [*assets, *others][:count]
    return Labels(
        names.get("channel", [f"channel {number}" for number in range(channels)]),
        names.get("day", [f"{unit_of(period)} {number - days + 1}" for number in range(days)]),
        assets,
        names.get("day"),
        weights,
        period,
    )


def price_paths(prices: Any, solution: Solution) -> Callable[[tuple[int, ...]], PricePaths | None]:
    """A function from the index of a row to its actual and scenario prices."""
    size = solution.sample.x.shape[-1]
    if callable(prices):

        def prices_at(index: tuple[int, ...]) -> PricePaths | None:
            pair = prices(index)
            return None if pair is None else _check_prices(pair, (), size)

        return prices_at
    actual, scenario = _check_prices(prices, solution.shape, size)
    return lambda index: (actual[index] if actual.ndim > 2 else actual, scenario[index])


def _check_prices(prices: Any, rows: tuple[int, ...], size: int) -> PricePaths:
    """Actual and scenario prices as arrays; all ``rows`` may share the actual ones."""
    if not isinstance(prices, tuple | list) or len(prices) != 2:
        raise TypeError(
            "report: prices must be a pair (actual, scenario) of prices (days, A), or a function that "
            f"returns one for a row, got {type(prices).__name__}"
        )
    tables = [np.atleast_2d(as_array(path)) for path in prices]
    allowed = {"actual": ((), rows), "scenario": (rows,)}
    for (name, leads), values in zip(allowed.items(), tables, strict=True):
        fits = values.ndim >= 2 and values.shape[-2:] == (tables[0].shape[-2], size)
        if not fits or values.shape[:-2] not in leads or not (values > 0).all():
            raise ValueError(
                f"report: the {name} prices must be positive and of shape {(*rows, 'days', size)}, one "
                f"path for each row, got {values.shape}; fe.scenarios.prices_of converts returns"
            )
    return tables[0], tables[1]


def check_history_dates(dates: Iterable[object] | None, history: Tensor | None) -> list[object] | None:
    """The days of a history as a list; raises unless there is one for each."""
    if dates is None:
        return None
    known = list(dates)
    if history is None or len(known) != history.shape[1]:
        days = "no history" if history is None else f"{history.shape[1]} days"
        raise ValueError(
            f"report: history_dates must be one for each day of history, got {len(known)} for {days}"
        )
    return known


def check_coords(coords: Any, solution: Solution) -> dict[str, list[str]]:
    """Labels of row dimensions as text; raises unless there is one for each row along them."""
    if not isinstance(coords, Mapping):
        raise TypeError(f"report: coords must be a dict, got {type(coords).__name__}")
    sizes = dict(zip(solution.dims, solution.shape, strict=True))
    labels = {str(name): [str(value) for value in values] for name, values in coords.items()}
    for name, values in labels.items():
        if sizes.get(name) != len(values):
            expected = f"{sizes[name]} labels" if name in sizes else f"dimensions among {solution.dims}"
            raise ValueError(
                f"report: coords of {name!r}: expected {expected}, got {len(values)} labels"
            )
    return labels


def name_of_row(dims: Sequence[str], index: Sequence[int], coords: Mapping[str, Sequence[str]]) -> str:
    """The name of a row: its labels, or numbers counted from 0.

    Example:
        >>> name_of_row(("date", "start"), (1, 0), {"date": ["2026-10-29", "2026-10-30"]})
        'date 2026-10-30, start 0'
    """
    parts = zip(dims, index, strict=True)
    return ", ".join(f"{name} {coords[name][at] if name in coords else at}" for name, at in parts)
