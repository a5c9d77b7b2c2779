"""What a run leaves in its folder: the solution, tables of weights and metrics, a picture, a summary."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.history import History
from funcexplain.commands.question import Asked
from funcexplain.reports.plots import plot_overview
from funcexplain.solutions.tables import columns_of, write_csv

CONFIG, SOLUTION, SUMMARY = "config.toml", "solution.safetensors", "summary.json"
ANSWERS = "answers"
"""Folder of the answers of a run whose searches were shared by workers."""
WEIGHTS, METRICS, PICTURE, REPORT = "weights.csv", "metrics.csv", "overview.png", "report.html"

_SHOWN = 12  # assets in the table for people
_BLOCK = 4096  # rows that are read at once from a solution that may lie in files


@dataclass(frozen=True, eq=False)
class Answer:
    """A solution, and the best start of each date.

    Attributes:
        solution: rows in row-major order are dates, outermost, times starts.
        metrics: measures by name, one number for each row.
        hit: whether a row hit, for each.
        best: the row of each date with the smallest change among hits, else with the least loss.
    """

    solution: fe.Solution
    metrics: dict[str, Tensor]
    hit: Tensor
    best: list[int]


def has_returns(history: History) -> bool:
    """Whether measures against history are known, which read returns off the first channel."""
    return history.channels[0] == "return"


def save(
    folder: Path, solution: fe.Solution, asked: Asked, history: History, settings: Mapping[str, Any]
) -> None:
    """Save a solution in memory with its labels; the days of the window where there is one date."""
    days = history.window_days(asked.places[0]) if len(asked.places) == 1 else None
    solution.save(
        folder / SOLUTION,
        assets=history.prices.assets,
        channels=history.channels,
        dates=days,
        settings=settings,
    )


def answer_of(solution: fe.Solution, metrics: Mapping[str, Tensor], asked: Asked) -> Answer:
    """Choose the best start of each date."""
    hit, loss = (torch.as_tensor(t).flatten() for t in (solution.hit, solution.loss))
    starts = len(asked.seeds)
    flat = {name: values.flatten().double() for name, values in metrics.items()}
    size = flat["rms_sigmas"].nan_to_num(nan=torch.inf)
    largest = size[size.isfinite()].max() if bool(size.isfinite().any()) else size.new_zeros(())
    rank = torch.where(hit, size, largest + 1.0 + loss.double())
    best = rank.nan_to_num(nan=torch.inf).view(-1, starts).argmin(dim=1)
    return Answer(solution, flat, hit, (best + torch.arange(len(best)) * starts).tolist())


def write_tables(folder: Path, answer: Answer, asked: Asked, assets: Sequence[str]) -> list[str]:
    """Write weights and metrics as csv, one line for each search, and return the names of the files."""
    starts, total = len(asked.seeds), len(answer.hit)
    days, is_best = np.array(asked.dates, dtype=object), np.zeros(total, dtype=int)
    is_best[answer.best] = 1

    def keys(numbers: np.ndarray) -> dict[str, np.ndarray]:
        return {"date": days[numbers // starts], "start": numbers % starts}

    def block(rows: Tensor) -> dict[str, np.ndarray]:
        arrays, numbers = answer.solution.flat(rows).to_numpy(), rows.numpy()
        return {**keys(numbers), "best": is_best[numbers], **columns_of(arrays, assets)}

    write_csv(folder / WEIGHTS, map(block, torch.arange(total).split(_BLOCK)))
    metrics = {name: values.cpu().numpy() for name, values in answer.metrics.items()}
    write_csv(folder / METRICS, [{**keys(np.arange(total)), **metrics}])
    return [WEIGHTS, METRICS]


def write_picture(folder: Path, answer: Answer, asked: Asked, history: History) -> str:
    """Draw the best answer of the last date, and return the name of the file."""
    starts, row, problem = len(asked.seeds), answer.best[-1], asked.problem
    first = row - row % starts
    rows = answer.solution.flat(torch.arange(first, first + starts))
    best = rows[row - first]
    question = problem[(-1,) * len(problem.dims)] if problem.dims else problem
    plot_overview(
        asked.today[-1],
        question.args["target"],
        best.weights,
        best.x,
        history.windows[asked.places[-1]],
        rows.history,
        scale=history.std,
        assets=history.prices.assets,
        channels=history.channels,
        dates=history.window_days(asked.places[-1]),
        best=row - first,
        hit=rows.hit,
        title=asked.sentence,
    ).savefig(folder / PICTURE)
    return PICTURE


def summary(answer: Answer, asked: Asked, assets: Sequence[str]) -> dict[str, Any]:
    """What was found, as JSON has it: counts, and the best answer of each date."""
    rows = answer.solution.flat(torch.tensor(answer.best))
    answers = []
    for place, row in enumerate(answer.best):
        one = rows[place]
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
        "searches": len(answer.hit),
        "hits": int(answer.hit.sum()),
        "dates": len(asked.dates),
        "dates_hit": int(rows.hit.sum()),
        "answers": answers,
    }
    return as_json(found)


def told(answer: Answer, asked: Asked, assets: Sequence[str]) -> Iterator[str]:
    """What was found, in lines for people: a table for one date, counts for many."""
    searches, all_hits, hits = len(answer.hit), int(answer.hit.sum()), int(answer.hit[answer.best].sum())
    if len(asked.dates) > 1:
        yield (f"Reached on {hits} of {len(asked.dates)} dates; {all_hits} of {searches} searches hit.")
        return
    best = answer.solution.flat(torch.tensor(answer.best))[0]
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
        f"{all_hits} of {searches} starts hit."
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
