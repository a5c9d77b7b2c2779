"""The files of a run: the solution, tables of weights and metrics, a picture, a report, a summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.folder import METRICS, PICTURE, REPORT, SOLUTION, WEIGHTS
from funcexplain.commands.history import History
from funcexplain.commands.question import Query
from funcexplain.reports.plots import plot_overview
from funcexplain.solutions.tables import columns_of, write_csv
from funcexplain.solutions.writing import replaced

_BLOCK = 4096  # rows read at a time from a solution that may be in files
# A start found the same answer if its change points as much the same way and is as little larger.
_SAME_COSINE, _SAME_SIZE = 0.95, 1.05


@dataclass(frozen=True, eq=False)
class Outcome:
    """A solution and the best start of each date.

    Attributes:
        solution: rows are dates times starts, with dates outermost.
        metrics: measures by name, one number per row.
        hit: whether each row is a hit.
        best: for each date, the row of the hit with the smallest change, or else with the lowest loss.
        size: change of each row: ``|z|`` of a scenario, else ``rms_sigmas``.
        agree: for each date, how many starts found the answer: a hit of about its size and direction.
        met: for each date, whether the network holds the target without any change.
    """

    solution: fe.Solution
    metrics: dict[str, Tensor]
    hit: Tensor
    best: list[int]
    size: Tensor
    agree: list[int]
    met: list[bool]

    @property
    def num_hit_dates(self) -> int:
        """Number of dates with a hit."""
        return int(self.hit[self.best].sum())


def save_solution(
    folder: Path, solution: fe.Solution, query: Query, history: History, settings: Mapping[str, Any]
) -> str:
    """Save a solution in memory with its labels, and return the name of the file."""
    solution.save(
        folder / SOLUTION,
        assets=history.prices.assets,
        channels=history.channels,
        dates=_dates_of_one_window(query, history),
        settings=settings,
    )
    return SOLUTION


def make_outcome(solution: fe.Solution, metrics: Mapping[str, Tensor], query: Query) -> Outcome:
    """Choose the best start of each date."""
    hit, loss = (torch.as_tensor(t).flatten() for t in (solution.hit, solution.loss))
    starts = len(query.seeds)
    flat = {name: values.flatten().double() for name, values in metrics.items()}
    problem = query.problem
    z = (fe.scenarios.shocks(solution, problem) if problem.law else solution.z).double()
    z = z.reshape(len(hit), -1)
    size = (z.norm(dim=1) if problem.law else flat["rms_sigmas"]).nan_to_num(nan=torch.inf)
    largest = size[size.isfinite()].max() if bool(size.isfinite().any()) else size.new_zeros(())
    rank = torch.where(hit, size, largest + 1.0 + loss.double())
    best = rank.nan_to_num(nan=torch.inf).view(-1, starts).argmin(dim=1)
    rows = best + torch.arange(len(best)) * starts
    moves = z if problem.law else solution.x.reshape(len(hit), -1).double() - _references(query, starts)
    found = moves[rows].repeat_interleave(starts, 0)
    cosine = torch.nn.functional.cosine_similarity(moves, found, dim=1)
    near = hit & (cosine >= _SAME_COSINE) & (size <= _SAME_SIZE * size[rows].repeat_interleave(starts))
    met = hit[rows] & (moves[rows] == 0.0).all(1)
    agree = torch.where(met, 1, near.view(-1, starts).sum(1))
    return Outcome(solution, flat, hit, rows.tolist(), size, agree.tolist(), met.tolist())


def _references(query: Query, starts: int) -> Tensor:
    """The reference window of every row, ``(rows, N)``."""
    return query.references.flatten(1).double().repeat_interleave(starts, 0)


def write_tables(folder: Path, outcome: Outcome, query: Query, assets: Sequence[str]) -> list[str]:
    """Write weights and metrics as csv, one line per search, and return the names of the files."""
    starts, total = len(query.seeds), len(outcome.hit)
    days, is_best = np.array(query.dates, dtype=object), np.zeros(total, dtype=int)
    is_best[outcome.best] = 1

    def keys(numbers: np.ndarray) -> dict[str, np.ndarray]:
        return {"date": days[numbers // starts], "start": numbers % starts}

    def block(rows: Tensor) -> dict[str, np.ndarray]:
        arrays, numbers = outcome.solution.flat(rows).to_numpy(), rows.numpy()
        return {**keys(numbers), "best": is_best[numbers], **columns_of(arrays, assets)}

    write_csv("output", folder / WEIGHTS, map(block, torch.arange(total).split(_BLOCK)))
    metrics = {name: values.cpu().numpy() for name, values in outcome.metrics.items()}
    write_csv("output", folder / METRICS, [{**keys(np.arange(total)), **metrics}])
    return [WEIGHTS, METRICS]


def write_picture(
    folder: Path, outcome: Outcome, query: Query, history: History, *, show_prices: bool = False
) -> str:
    """Draw the best answer of the last date, and return the name of the file."""
    starts, row, problem = len(query.seeds), outcome.best[-1], query.problem
    first = row - row % starts
    rows = outcome.solution.flat(torch.arange(first, first + starts))
    best = rows[row - first]
    question = problem[(-1,) * len(problem.dims)] if problem.dims else problem
    figure = plot_overview(
        query.today[-1],
        question.args["target"],
        best.weights,
        best.x,
        query.references[-1],
        rows.history,
        scale=history.scale(query.positions[-1])[1],
        assets=history.prices.assets,
        channels=history.channels,
        outputs=query.names,
        dates=history.window_days(query.positions[-1], query.ahead),
        best=row - first,
        hit=rows.hit,
        prices=_price_paths(history, query, -1, best, question) if show_prices else None,
        title=query.sentence,
    )
    with replaced("output", folder / PICTURE) as file:
        figure.savefig(file, format="png")
    return PICTURE


def write_report(
    folder: Path,
    solution: fe.Solution,
    query: Query,
    history: History,
    *,
    title: str | None,
    settings: Mapping[str, Any],
    probe: bool = True,
) -> str:
    """Write the report of a solution, and return the name of its file; ``probe`` as in `fe.report`."""

    def prices(index: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
        date = index[solution.dims.index("date")] if "date" in solution.dims else 0
        row = solution[index] if index else solution
        question = query.problem[index] if index else query.problem
        return _price_paths(history, query, date, row, question) if row.x.isfinite().all() else None

    days = history.until(query.positions[-1]).to(history.windows.dtype)
    first = int(history.last_days[0]) - history.lookback + 1
    known = history.prices.dates[first : first + days.shape[1]]
    fe.report(
        solution,
        query.problem,
        folder / REPORT,
        history=days if history.has_returns else None,
        history_dates=known if history.has_returns else None,
        assets=history.prices.assets,
        channels=history.channels,
        dates=_dates_of_one_window(query, history),
        scale=history.scale(query.positions[-1])[1],
        title=title or query.sentence,
        settings=settings,
        probe=probe,
        prices=prices if history.has_returns else None,
    )
    return REPORT


def _price_paths(
    history: History, query: Query, date: int, answer: fe.Solution, question: fe.Problem
) -> tuple[Tensor, Tensor]:
    """Prices of an answer and without it: over all shocked days of a scenario, else over the window."""
    last = int(history.last_days[query.positions[date]])
    values = torch.as_tensor(history.prices.values)
    if question.law is None:
        actual = values[last - history.lookback : last + 1]
        return actual, fe.scenarios.prices_of(answer.x[0].double(), actual[0])
    returns, base = fe.scenarios.returns_of(answer, question).double(), question.args["returns"].double()
    first = values[last + query.ahead - len(returns)]
    return fe.scenarios.prices_of(base, first), fe.scenarios.prices_of(returns, first)


def _dates_of_one_window(query: Query, history: History) -> list[str] | None:
    """The days of the window, unless there are several dates."""
    if len(query.positions) > 1:
        return None
    return history.window_days(query.positions[0], query.ahead)


def summarize(outcome: Outcome, query: Query, assets: Sequence[str]) -> dict[str, Any]:
    """Summarize an outcome as JSON values: counts, and the best answer of each date."""
    rows = outcome.solution.flat(torch.tensor(outcome.best))
    answers = [
        {
            "date": day,
            "start": row % len(query.seeds),
            "seed": query.seeds[row % len(query.seeds)],
            "status": str(best.status),
            "error": float(best.error),
            "num_steps": int(best.num_steps),
            "rms_sigmas": float(outcome.metrics["rms_sigmas"][row]),
            "size": float(outcome.size[row]),
            "starts_agree": outcome.agree[number],
            "met_already": outcome.met[number],
            "weights": dict(zip(assets, best.weights.tolist(), strict=True)),
            "today": dict(zip(assets, query.today[number].tolist(), strict=True)),
            "unshocked": dict(zip(assets, query.held[number].tolist(), strict=True)),
        }
        for number, (day, row, best) in enumerate(zip(query.dates, outcome.best, rows, strict=True))
    ]
    found = {
        "question": query.sentence,
        "searches": len(outcome.hit),
        "hits": int(outcome.hit.sum()),
        "dates": len(query.dates),
        "dates_hit": outcome.num_hit_dates,
        "dates_met_already": sum(outcome.met),
        "market": query.market,
        "ahead": query.ahead,
        "answers": answers,
    }
    return as_json(found)


def describe_chance(chance: fe.Probability) -> dict[str, Any]:
    """The probability of one question as JSON values."""
    names = ("estimate", "standard_error", "lower", "upper")
    found = {name: float(getattr(chance, name)) for name in names}
    return as_json({**found, "status": fe.Status(int(chance.status)).name, "method": str(chance.method)})


def as_json(value: Any) -> Any:
    """Convert a value to JSON types: dates become text, numbers that are not finite None."""
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, date | time) else value
