"""The tables of a run: the result of every search, and the market of the best answer of each date."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.folder import MARKET, METRICS, SHOCKS, TABLES, WEIGHTS
from funcexplain.commands.history import History
from funcexplain.commands.outputs import Outcome, price_paths
from funcexplain.commands.question import Query
from funcexplain.problems.criterion import LINEAR, ORDER
from funcexplain.reports.trades import turnover_of
from funcexplain.solutions.tables import columns_of, require, write_csv
from funcexplain.solutions.writing import replaced

_BLOCK = 4096  # rows read at a time from a solution that may be in files
_TEXT = {"date", "day", "asset", "channel", "status"}
_MAX_LINES = 2**20  # of a sheet

Columns = dict[str, np.ndarray]


def write_tables(folder: Path, outcome: Outcome, query: Query, history: History) -> list[str]:
    """Write the tables as csv, and return the names of the files.

    One line per search: weights (reached, today's, target's, turnover) and metrics. One line per date,
    day and asset of the best answers: returns and prices of the market, and its shocks in sigmas.
    """
    starts, total = len(query.seeds), len(outcome.hit)
    days, is_best = np.array(query.dates, dtype=object), np.zeros(total, dtype=int)
    is_best[outcome.best] = 1
    assets, targets = query.names, _wanted(query)

    def keys(numbers: np.ndarray) -> Columns:
        return {"date": days[numbers // starts], "start": numbers % starts}

    def block(rows: Tensor) -> Columns:
        arrays, numbers = outcome.solution.flat(rows).to_numpy(), rows.numpy()
        today = query.today.double().numpy()[numbers // starts]
        reached = arrays["weights"].reshape(len(rows), -1, len(assets)).mean(1)  # of several networks
        wanted = targets[numbers // starts if len(targets) > 1 else 0 * numbers]
        return {
            **keys(numbers),
            "best": is_best[numbers],
            **columns_of(arrays, assets),
            **{f"weight_{name}": reached[:, place] for place, name in enumerate(assets)},
            "turnover": turnover_of(today, reached),
            **{f"today_{name}": today[:, place] for place, name in enumerate(assets)},
            **{f"target_{name}": wanted[:, place] for place, name in enumerate(assets)},
        }

    write_csv("output", folder / WEIGHTS, map(block, torch.arange(total).split(_BLOCK)))
    metrics = {name: values.cpu().numpy() for name, values in outcome.metrics.items()}
    write_csv("output", folder / METRICS, [{**keys(np.arange(total)), **metrics}])
    names = [WEIGHTS, METRICS]
    if query.problem.law is not None or history.has_returns:
        write_csv("output", folder / MARKET, _markets(outcome, query, history))
        names.append(MARKET)
    write_csv("output", folder / SHOCKS, _shocks(outcome, query, history))
    return [*names, SHOCKS]


def write_workbook(folder: Path, names: Sequence[str]) -> str:
    """Write csv tables of a folder as the sheets of one Excel file, and return its name."""
    book = require("--xlsx", "openpyxl", "excel").Workbook(write_only=True)
    for name in names:
        sheet = book.create_sheet(Path(name).stem)
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            sheet.append(header)
            for line, row in enumerate(rows, start=2):
                if line > _MAX_LINES:
                    raise ValueError(
                        f"--xlsx: a sheet must have at most {_MAX_LINES} lines, got more in {name}; "
                        "leave --xlsx out, or ask for fewer dates"
                    )
                sheet.append([_cell(column, text) for column, text in zip(header, row, strict=True)])
    with replaced("output", folder / TABLES) as target:
        book.save(target)
    return TABLES


def _cell(column: str, text: str) -> float | str:
    """A number where the column has them; Excel has none that is not finite."""
    try:
        number = float(text)
    except ValueError:
        return text
    return text if column in _TEXT or not np.isfinite(number) else number


def _wanted(query: Query) -> np.ndarray:
    """Target of each asset on each date, ``(dates or 1, A)``: its weight, or bounds in words.

    Goals of several assets together have no column: they leave theirs empty.
    """
    target, ndim = query.problem.args["target"].double(), query.problem.criterion.ndim
    several = query.first is not None  # networks, which share one target
    dates = target if target.ndim > ndim and not several else target.view(-1, *target.shape[-ndim:])[:1]
    return np.array([_wanted_weights(one) for one in dates], dtype=object)


def _wanted_weights(target: Tensor) -> list[Any]:
    if target.ndim == 1:
        return target.tolist()
    words: list[list[str]] = [[] for _ in range(target.shape[-1] - 3)]
    for *coefficients, kind, lower, upper in target.tolist():
        assets = [place for place, value in enumerate(coefficients) if value]
        if kind == ORDER:
            words[coefficients.index(1.0)] = ["largest"]
        elif kind == LINEAR and len(assets) == 1 and coefficients[assets[0]] == 1.0:
            if lower == upper:
                words[assets[0]] = [f"{lower:.7g}"]
                continue
            signs = ((">=", lower), ("<=", upper))
            words[assets[0]] += [f"{sign} {bound:.7g}" for sign, bound in signs if np.isfinite(bound)]
    return [" and ".join(found) for found in words]


def _best(outcome: Outcome, query: Query) -> Iterator[tuple[int, fe.Solution, fe.Problem]]:
    """Number of the date, best answer and its question; answers that are not finite are left out."""
    problem = query.problem
    rows = outcome.solution.flat(torch.tensor(outcome.best))
    for number, (row, answer) in enumerate(zip(outcome.best, cast(Any, rows), strict=True)):
        if bool(answer.x.isfinite().all()):
            index = tuple(int(place) for place in np.unravel_index(row, problem.shape))
            yield number, answer, problem[index]


def _lines(date: str, days: Sequence[str], assets: Sequence[str]) -> Columns:
    """Date, day and asset of the lines of one answer, day by day."""
    return {
        "date": np.full(len(days) * len(assets), date, dtype=object),
        "day": np.repeat(np.array(days, dtype=object), len(assets)),
        "asset": np.tile(np.array(assets, dtype=object), len(days)),
    }


def _days(history: History, position: int, count: int, ahead: int) -> list[str]:
    """The last days of a market, known ones and those to come."""
    last = int(history.last_days[position])
    known = [str(day) for day in history.prices.dates[last + 1 - (count - ahead) : last + 1]]
    return [*known, *(f"ahead {day}" for day in range(1, ahead + 1))]


def _markets(outcome: Outcome, query: Query, history: History) -> Iterator[Columns]:
    """Log returns and prices of each day and asset, actual (without shocks) and in the scenario."""
    for number, answer, question in _best(outcome, query):
        paths = [path.double() for path in price_paths(history, query, number, answer, question)]
        actual, scenario = (path.log().diff(dim=0).flatten().numpy() for path in paths)
        position = query.positions[number]
        days = _days(history, position, len(paths[0]) - 1, query.ahead if question.law else 0)
        yield {
            **_lines(query.dates[number], days, history.prices.assets),
            "actual_return": actual,
            "scenario_return": scenario,
            "actual_price": paths[0][1:].flatten().numpy(),
            "scenario_price": paths[1][1:].flatten().numpy(),
        }


def _shocks(outcome: Outcome, query: Query, history: History) -> Iterator[Columns]:
    """Shocks of each day and asset in sigmas: of a scenario, or of each channel of the window."""
    for number, answer, question in _best(outcome, query):
        position, date = query.positions[number], query.dates[number]
        if question.law is not None:
            shocks = fe.scenarios.shocks(answer, question)
            days = _days(history, position, len(shocks), query.ahead)
            lines = _lines(date, days, history.prices.assets)
            yield {**lines, "sigmas": shocks.double().flatten().numpy()}
            continue
        sigmas = (answer.x - query.references[number]) / history.scale(position)[1]
        for channel, moved in zip(history.channels, sigmas.double(), strict=True):
            lines = _lines(date, _days(history, position, len(moved), 0), history.prices.assets)
            names = np.full(moved.numel(), channel, dtype=object)
            yield {**lines, "channel": names, "sigmas": moved.flatten().numpy()}
