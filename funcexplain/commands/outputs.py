"""The files of a run other than tables: the solution, a picture, a report, a summary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.folder import PICTURE, REPORT, SOLUTION
from funcexplain.commands.history import History
from funcexplain.commands.question import Query
from funcexplain.reports.details import single_target
from funcexplain.reports.drawing import as_array
from funcexplain.reports.draws import Common, shocked_prices
from funcexplain.reports.numbers import ROUNDING
from funcexplain.reports.overview import change_size, main_assets, rank_rows
from funcexplain.reports.plots import plot_overview
from funcexplain.solutions.tables import write_csv
from funcexplain.solutions.writing import replaced

NO_PATH = (
    "Each channel was searched by itself: these changes come from no path of prices, and the nearest "
    'windows of such a path may not hold the target; search = "scenario" finds those that do.'
)
# A start found the same answer if its change points as much the same way and is as little larger.
_SAME_COSINE, _SAME_SIZE = 0.95, 1.05


@dataclass(frozen=True, eq=False)
class Outcome:
    """A solution and the best start of each date.

    Attributes:
        solution: rows are dates times starts, with dates outermost.
        metrics: measures by name, one number per row.
        hit: whether each row is a hit.
        best: for each date, the row of the hit with the smallest change, or else of least error.
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


def mean_weights(solution: fe.Solution) -> Tensor:
    """Weights of one row, ``(A,)``; the mean of several networks'."""
    return solution.weights.reshape(-1, solution.weights.shape[-1]).mean(0)


def make_outcome(solution: fe.Solution, metrics: Mapping[str, Tensor], query: Query) -> Outcome:
    """Choose the best start of each date."""
    hit = torch.as_tensor(solution.hit).flatten()
    starts = len(query.seeds)
    flat = {name: values.flatten().double() for name, values in metrics.items()}
    problem = query.problem
    z = (fe.scenarios.shocks(solution, problem) if problem.law else solution.z).double()
    z = z.reshape(len(hit), -1)
    size = change_size(solution, problem, metrics)[0].flatten().nan_to_num(nan=torch.inf)
    best = rank_rows(hit, size, solution.error.flatten()).view(-1, starts).argmin(dim=1)
    rows = best + torch.arange(len(best)) * starts
    moves = z if problem.law else solution.x.reshape(len(hit), -1).double() - _references(query, starts)
    found = moves[rows].repeat_interleave(starts, 0)
    cosine = torch.nn.functional.cosine_similarity(moves, found, dim=1)
    near = hit & (cosine >= _SAME_COSINE) & (size <= _SAME_SIZE * size[rows].repeat_interleave(starts))
    met = hit[rows] & (moves[rows].abs() <= ROUNDING).all(1)
    agree = torch.where(met, 1, near.view(-1, starts).sum(1))
    return Outcome(solution, flat, hit, rows.tolist(), size, agree.tolist(), met.tolist())


def _references(query: Query, starts: int) -> Tensor:
    """The reference window of every row, ``(rows, N)``."""
    return query.references.flatten(1).double().repeat_interleave(starts, 0)


def write_picture(
    folder: Path, outcome: Outcome, query: Query, history: History, found: Common | None = None
) -> str:
    """Draw the best answer of the last date with what draws have in common; the name of the file."""
    starts, row, problem = len(query.seeds), outcome.best[-1], query.problem
    first = row - row % starts
    rows = outcome.solution.flat(torch.arange(first, first + starts))
    best = rows[row - first]
    question = problem[(-1,) * len(problem.dims)]
    paths, fan = None, None
    if bool(best.x.isfinite().all()) and (question.law is not None or history.has_returns):
        pair = price_paths(history, query, -1, best, question)
        moved, fan = shocked_prices((pair[0].numpy(), pair[1].numpy()), found)
        paths = moved if len(moved[0]) > 1 else None
    figure = plot_overview(
        query.today[-1],
        single_target(question.args["target"], len(query.names)),
        mean_weights(best),
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
        prices=paths,
        fan=fan,
        ahead=query.ahead,
        period=history.period,
        title=query.sentence,
    )
    return save_picture(figure, folder / PICTURE)


def write_files(
    folder: Path, table: str, blocks: Iterable[Mapping[str, Any]], picture: str, draw: Any
) -> list[str]:
    """Write a table and, unless ``draw`` is None, the picture that it draws; the names of the files."""
    write_csv("output", folder / table, blocks)
    if draw is None:
        (folder / picture).unlink(missing_ok=True)  # of an earlier call
        return [table]
    return [table, save_picture(draw(), folder / picture)]


def save_picture(figure: Any, path: Path) -> str:
    """Save a figure, and return the name of its file."""
    with replaced("output", path) as file:
        figure.savefig(file, format="png")
    return path.name


def write_report(
    folder: Path,
    solution: fe.Solution,
    query: Query,
    history: History,
    *,
    title: str | None,
    settings: Mapping[str, Any],
    **more: Any,
) -> str:
    """Write the report of a solution, with more arguments of `fe.report`, and return its file's name."""

    def prices(index: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
        date = index[solution.dims.index("date")] if "date" in solution.dims else 0
        row = solution[index]
        known = bool(row.x.isfinite().all())
        return price_paths(history, query, date, row, query.problem[index]) if known else None

    today = query.today[0]
    if "date" in solution.dims:
        today = query.today[:, None] if len(solution.dims) > 1 else query.today
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
        coords={"date": query.dates} if "date" in solution.dims else None,
        scale=history.scale(query.positions[-1])[1],
        ahead=query.ahead,
        period=history.period,
        groups=query.groups,
        today=today,
        note="" if query.market or len(history.channels) == 1 else NO_PATH,
        title=title or query.sentence,
        settings=settings,
        prices=prices if query.problem.law is not None or history.has_returns else None,
        **more,
    )
    return REPORT


def price_paths(
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


def summarize(outcome: Outcome, query: Query, history: History) -> dict[str, Any]:
    """Summarize an outcome as JSON values: counts, and the best answer of each date."""
    rows, assets = outcome.solution.flat(torch.tensor(outcome.best)), query.names
    scale = history.scale(query.positions[-1])[1]
    change = (rows.x - query.references) / scale
    known = change.isfinite().flatten(1).all(1) & ~rows.hit.new_tensor(outcome.met)
    main = main_assets(as_array(change))
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
            "main_asset": history.prices.assets[main[number]] if known[number] else None,
            "starts_agree": outcome.agree[number],
            "met_already": outcome.met[number],
            "weights": by_name(assets, mean_weights(best)),
            "today": by_name(assets, query.today[number]),
            "unshocked": by_name(assets, query.held[number]),
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


def by_name(names: Sequence[str], values: Tensor) -> dict[str, Any]:
    """Numbers by their names, as JSON values."""
    return as_json(dict(zip(names, values.tolist(), strict=True)))


def as_json(value: Any) -> Any:
    """Convert a value to JSON types: dates become text, numbers that are not finite None."""
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, date | time) else value
