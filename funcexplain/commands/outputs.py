"""What a run leaves in its folder: the solution, tables of weights and metrics, a picture, a summary."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.history import History
from funcexplain.commands.question import Asked
from funcexplain.solutions.plots import plot_overview

CONFIG, SOLUTION, SUMMARY = "config.toml", "solution.safetensors", "summary.json"
WEIGHTS, METRICS, PICTURE, REPORT = "weights.csv", "metrics.csv", "overview.png", "report.html"

_SHOWN = 12  # assets in the table for people


@dataclass(frozen=True, eq=False)
class Answer:
    """A solution in rows ``(dates, starts)``, and the best start of each date.

    Attributes:
        solution: rows in order, dates outermost, ``(dates * starts,)`` leading.
        metrics: measures by name, one number for each row.
        best: the row of each date with the smallest change among hits, else with the least loss.
    """

    solution: fe.Solution
    metrics: dict[str, Tensor]
    best: list[int]


def has_returns(history: History) -> bool:
    """Whether measures against history are known, which read returns off the first channel."""
    return history.channels[0] == "return"


def save(
    folder: Path, solution: fe.Solution, asked: Asked, history: History, settings: Mapping[str, Any]
) -> None:
    """Save the solution with its labels; the days of the window where there is one date."""
    days = history.window_days(asked.places[0]) if len(asked.places) == 1 else None
    solution.save(
        folder / SOLUTION,
        assets=history.prices.assets,
        channels=history.channels,
        dates=days,
        settings=settings,
    )


def answer_of(solution: fe.Solution, metrics: Mapping[str, Tensor], asked: Asked) -> Answer:
    """Bring rows in order and choose the best start of each date."""
    rows, starts = _in_rows(solution), len(asked.seeds)
    flat = {name: values.flatten().double() for name, values in metrics.items()}
    size = flat["rms_sigmas"].nan_to_num(nan=torch.inf)
    largest = size[size.isfinite()].max() if bool(size.isfinite().any()) else size.new_zeros(())
    rank = torch.where(rows.hit, size, largest + 1.0 + rows.loss.double())
    best = rank.nan_to_num(nan=torch.inf).view(-1, starts).argmin(dim=1)
    return Answer(rows, flat, (best + torch.arange(len(best)) * starts).tolist())


def write_tables(folder: Path, answer: Answer, asked: Asked, assets: Sequence[str]) -> list[str]:
    """Write weights and metrics as csv, one line for each search, and return the names of the files."""
    rows, best = answer.solution, set(answer.best)
    keys = [(day, start) for day in asked.dates for start in range(len(asked.seeds))]
    words = [str(fe.Status(code)) for code in torch.as_tensor(rows.status).tolist()]
    scalars = [t.tolist() for t in (rows.error.double(), rows.loss.double(), rows.num_steps)]
    head = ["date", "start", "best", "status", "error", "loss", "num_steps"]
    with (folder / WEIGHTS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *(f"weight_{name}" for name in assets)])
        for row, (key, weights) in enumerate(zip(keys, rows.weights.double().tolist(), strict=True)):
            told = [int(row in best), words[row], *(column[row] for column in scalars)]
            writer.writerow([*key, *told, *weights])
    with (folder / METRICS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "start", *answer.metrics])
        columns = [values.tolist() for values in answer.metrics.values()]
        writer.writerows([*key, *values] for key, *values in zip(keys, *columns, strict=True))
    return [WEIGHTS, METRICS]


def write_picture(folder: Path, answer: Answer, asked: Asked, history: History) -> str:
    """Draw the best answer of the last date, and return the name of the file."""
    starts, row, problem = len(asked.seeds), answer.best[-1], asked.problem
    first, best = row - row % starts, answer.solution[row]
    question = problem[(-1,) * len(problem.dims)] if problem.dims else problem
    plot_overview(
        asked.today[-1],
        question.args["target"],
        best.weights,
        best.x,
        history.windows[asked.places[-1]],
        answer.solution.history[first : first + starts],
        scale=history.std,
        assets=history.prices.assets,
        channels=history.channels,
        dates=history.window_days(asked.places[-1]),
        best=row - first,
        hit=answer.solution.hit[first : first + starts],
        title=asked.sentence,
    ).savefig(folder / PICTURE)
    return PICTURE


def summary(answer: Answer, asked: Asked, assets: Sequence[str]) -> dict[str, Any]:
    """What was found, as JSON has it: counts, and the best answer of each date."""
    rows = answer.solution
    hits = rows.hit[answer.best].tolist()
    answers = []
    for place, row in enumerate(answer.best):
        one = rows[row]
        answers.append(
            {
                "date": asked.dates[place],
                "start": row % len(asked.seeds),
                "seed": asked.seeds[row % len(asked.seeds)],
                "status": str(one.status),
                "error": float(one.error),
                "num_steps": int(one.num_steps),
                "rms_sigmas": float(answer.metrics["rms_sigmas"][row]),
                "weights": dict(zip(assets, one.weights.tolist(), strict=True)),
                "today": dict(zip(assets, asked.today[place].tolist(), strict=True)),
            }
        )
    found = {
        "question": asked.sentence,
        "searches": len(rows.num_steps),
        "hits": int(rows.hit.sum()),
        "dates": len(asked.dates),
        "dates_hit": sum(hits),
        "answers": answers,
    }
    return as_json(found)


def told(answer: Answer, asked: Asked, assets: Sequence[str]) -> Iterator[str]:
    """What was found, in lines for people: a table for one date, counts for many."""
    rows, hits = answer.solution, int(answer.solution.hit[answer.best].sum())
    if len(asked.dates) > 1:
        yield (
            f"Reached on {hits} of {len(asked.dates)} dates; {int(rows.hit.sum())} of "
            f"{len(rows.num_steps)} searches hit."
        )
        return
    best = rows[answer.best[0]]
    width = max(6, *map(len, assets))
    yield f"\n{'Weights':{width}}  {'today':>8}  {'reached':>8}"
    moved = (best.weights - asked.today[0]).abs().nan_to_num().argsort(descending=True, stable=True)
    for index in moved[:_SHOWN].tolist():
        cells = (f"{100 * float(weights[index]):7.2f}%" for weights in (asked.today[0], best.weights))
        yield f"{assets[index]:{width}}  " + "  ".join(cells)
    if len(assets) > _SHOWN:
        yield f"... and {len(assets) - _SHOWN} that move less, in {WEIGHTS}"
    size = float(answer.metrics["rms_sigmas"][answer.best[0]])
    verdict = "Reached" if hits else "Not reached"
    yield (
        f"\n{verdict}: missed by {100 * float(best.error):.2f} percentage points at most, after "
        f"{int(best.num_steps)} steps; root mean square change {size:.2f} sigmas; "
        f"{int(rows.hit.sum())} of {len(rows.num_steps)} starts hit."
    )


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Write a dict as JSON text."""
    path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def as_json(value: Any) -> Any:
    """A value as JSON has it: dates as text, and None for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, date) else value


def _in_rows(solution: fe.Solution) -> fe.Solution:
    """All row dimensions as one; one question as one row."""
    num = len(solution.dims)
    values = {
        place.name: torch.as_tensor(getattr(solution, place.name))
        for place in fields(solution)
        if place.name != "dims"
    }
    rows = {name: t.flatten(0, num - 1) if num else t[None] for name, t in values.items()}
    return fe.Solution(**rows, dims=("row",))
