"""Several questions of a config: asked one after another, and one table of their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from funcexplain.commands.config import Config
from funcexplain.commands.printing import PrintLine
from funcexplain.solutions.tables import write_csv

COMPARISON = "compare.csv"
_UNANSWERED = dict.fromkeys(("date", "error", "size"), None) | {"status": "REFUSED", "today": {}}
REFUSED = 2
"""The exit code of a question that is not valid."""


def ask_each(
    configs: Mapping[str | None, Config],
    ask: Callable[[Config], dict[str, Any]],
    print_line: PrintLine,
) -> dict[str | None, dict[str, Any]]:
    """The results of each question by its label; one that is refused does not stop the others.

    Raises:
        ValueError: if all are refused, or the only question of a config, whose label is None.
    """
    found: dict[str | None, dict[str, Any]] = {}
    errors = []
    for label, config in configs.items():
        if label is not None:
            print_line("")
            print_line(f"Question {label}:")
        try:
            found[label] = ask(config)
        except ValueError as error:
            errors.append(error)
            found[label] = {"exit_code": REFUSED, "error": " ".join(str(error).split()), "answers": []}
    if len(errors) == len(found):
        raise errors[0]
    return found


def compare(
    summaries: Mapping[Any, Mapping[str, Any]], folder: Path, print_line: PrintLine
) -> dict[str, Any]:
    """Print and write one line for each question and date, and return the summaries by label.

    Args:
        summaries: of the runs, by the labels of their questions.
        folder: where ``compare.csv`` is written, which holds the folders of the runs.
        print_line: called with each line.
    """
    rows = [
        {
            "question": label,
            "date": answer["date"],
            "status": answer["status"],
            "error": answer["error"],
            "size": answer["size"],
            "turnover": _turnover(answer),
        }
        for label, summary in summaries.items()
        for answer in summary["answers"] or [_UNANSWERED]
    ]
    write_csv(
        "output",
        folder / COMPARISON,
        [{name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}],
    )
    width = max(8, *(len(str(label)) for label in summaries))
    print_line("")
    print_line(
        f"{'Question':{width}}  {'date':10}  {'status':12}  {'miss':>7}  {'size':>7}  {'turnover':>8}"
    )
    for row in rows:
        cells = f"{_percent(row['error']):>7}  {_number(row['size']):>7}  {_percent(row['turnover']):>8}"
        print_line(f"{row['question']!s:{width}}  {row['date'] or '':10}  {row['status']:12}  {cells}")
    print_line(f"{folder / COMPARISON}")
    exit_code = max(summary["exit_code"] for summary in summaries.values())
    return {"exit_code": exit_code, "questions": dict(summaries), "files": [str(folder / COMPARISON)]}


def _turnover(answer: Mapping[str, Any]) -> float | None:
    """One-sided turnover from today to the answer, None where a weight is unknown."""
    if not answer["today"]:
        return None
    pairs = [(answer["weights"][name], weight) for name, weight in answer["today"].items()]
    if any(None in pair for pair in pairs):
        return None
    return 0.5 * sum(abs(reached - today) for reached, today in pairs)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
