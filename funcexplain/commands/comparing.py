"""Several questions of a config: asked one after another, with one table and page of their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from funcexplain.commands.config import Config
from funcexplain.commands.folder import COMPARISON, PAGE, REPORT, SUMMARY, fresh_folder, replace_files
from funcexplain.commands.printing import PrintLine, aligned
from funcexplain.reports.dates import describe_result
from funcexplain.reports.numbers import format_chance, format_percent
from funcexplain.reports.page import page
from funcexplain.reports.trades import turnover_of
from funcexplain.solutions.html import Html, element, table
from funcexplain.solutions.status import Status
from funcexplain.solutions.tables import write_csv

REFUSED = 2
"""The exit code of a question that is not valid."""
_UNKNOWN = ("date", "error", "size", "main_asset")
_UNANSWERED = dict.fromkeys(_UNKNOWN) | {"status": "REFUSED", "today": {}, "weights": {}}

Row = dict[str, Any]


def ask_each(
    configs: Mapping[str | None, Config],
    ask: Callable[[Config], dict[str, Any]],
    print_line: PrintLine,
) -> dict[str | None, dict[str, Any]]:
    """The results of each question by its label; raises only if all are refused."""
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
        folder: where ``compare.csv`` and, if the runs have reports, ``compare.html`` are written, which
            holds the folders of the runs.
        print_line: called with each line.
    """
    rows = [
        _row(label, answer)
        for label, summary in summaries.items()
        for answer in summary["answers"] or [_UNANSWERED]
    ]
    columns = {name: np.array([row[name] for row in rows], dtype=object) for name in rows[0]}
    heads = ("Question", "date", "status", "miss", "size", "turnover")
    lines = [
        (
            str(row["question"]),
            row["date"] or "",
            row["status"],
            _percent(row["error"]),
            _number(row["size"]),
            _percent(row["turnover"]),
        )
        for row in rows
    ]
    print_line("")
    for line in aligned([heads, *lines], "<8", "<10", "<12", ">7", ">7", ">8"):
        print_line(line)
    answered = {label: summary for label, summary in summaries.items() if summary["answers"]}
    files = [COMPARISON]
    with fresh_folder(folder) as fresh:
        write_csv("output", fresh / COMPARISON, [columns])
        if all(REPORT in summary["files"] for summary in answered.values()):
            html = _page(summaries, answered, rows, folder)
            (fresh / PAGE).write_text(html, encoding="utf-8")
            files.append(PAGE)
        record = {"questions": [*answered], "files": [*files, SUMMARY]}
        earlier = replace_files(folder, fresh, record)
    files = [str(folder / name) for name in files]
    for line in (*files, *map(describe_earlier, earlier)):
        print_line(line)
    exit_code = max(summary["exit_code"] for summary in summaries.values())
    return {"exit_code": exit_code, "questions": dict(summaries), "files": files}


def describe_earlier(folder: Path) -> str:
    """A line about a question that an earlier run answered, and this one did not."""
    return f"{folder} has the answer of an earlier run; remove what is old"


def _row(label: Any, answer: Mapping[str, Any]) -> Row:
    """The answer to a question on a date."""
    chance = answer.get("probability") or {}
    weights = [[answer[held][name] for name in answer["today"]] for held in ("today", "weights")]
    known = bool(weights[0]) and None not in weights[0] + weights[1]
    return {
        "question": label,
        "date": answer["date"],
        "status": answer["status"],
        "error": answer["error"],
        "probability": chance.get("estimate"),
        "size": answer["size"],
        "main_asset": answer["main_asset"],
        "turnover": float(turnover_of(*np.array(weights))) if known else None,
    }


def _page(
    summaries: Mapping[Any, Mapping[str, Any]],
    answered: Mapping[Any, Mapping[str, Any]],
    rows: Sequence[Row],
    folder: Path,
) -> str:
    """The questions side by side, on the last date of each: what it takes, and the weights."""
    title = f"{len(summaries)} questions side by side"
    asked = [
        element("li", _link(label, summary, folder), f": {summary['question']}")
        if label in answered
        else element("li", f"{label} was refused: {summary['error']}")
        for label, summary in summaries.items()
    ]
    latest = {row["question"]: row for row in rows if row["question"] in answered}
    lines = [_cells(row, summaries[label]) for label, row in latest.items()]
    heads = ("question", "date", "result", "how likely", "size, standard deviations")
    last = {label: summary["answers"][-1] for label, summary in answered.items()}
    shared = len({tuple(answer["today"].values()) for answer in last.values()}) == 1
    columns = {"today" if shared else f"today, {label}": each["today"] for label, each in last.items()}
    columns |= {f"reached, {label}": answer["weights"] for label, answer in last.items()}
    weights = [
        (name, *(_percent(column[name]) for column in columns.values()))
        for name in next(iter(columns.values()))
    ]
    return page(
        title,
        element("h1", title),
        element("ul", *asked),
        element("h2", "What each would take"),
        table((*heads, "largest change in", "turnover"), lines, (3, 4, 6)),
        element("h2", "Weights"),
        table(("asset", *columns), weights, range(1, 1 + len(columns))),
    )


def _cells(row: Row, summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The line of a question's last date."""
    result = describe_result(Status[row["status"]].is_hit, row["main_asset"] is None, row["error"])
    if summary["dates"] > 1:
        result += f" (on {summary['dates_hit']} of {summary['dates']} dates)"
    chance = "" if row["probability"] is None else format_chance(row["probability"])
    main, moved = row["main_asset"] or "", _percent(row["turnover"])
    return str(row["question"]), row["date"], result, chance, _number(row["size"]), main, moved


def _link(label: Any, summary: Mapping[str, Any], folder: Path) -> Html:
    """A link to the report of a question, which is in a folder beside the page."""
    report = Path(summary["folder"]).relative_to(folder) / REPORT
    return element("a", str(label), href=report.as_posix())


def _percent(value: float | None) -> str:
    return "" if value is None else format_percent(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
