"""Tables of a config before they are parsed: entries set on the command line, and several questions.

Several questions are tables ``[[question]]``, or the rows of a csv file of targets.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from funcexplain.commands.entries import bad_entry, read_share, read_text
from funcexplain.solutions.reading import read_rows
from funcexplain.solutions.writing import check_regular


def set_entries(table: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """A table with entries replaced, as in ``question.at_least.CHF=0.3``; of all questions if several.

    A value is TOML, or else text.

    Example:
        >>> set_entries({"question": {"top": "EUR"}}, ["question.at_least.CHF=30%", "method.atol=1e-2"])
        {'question': {'top': 'EUR', 'at_least': {'CHF': '30%'}}, 'method': {'atol': 0.01}}
    """
    table = deepcopy(table)
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys) or len(keys) < 2:
            raise ValueError(
                f"--set: expected an entry such as question.at_least.CHF=0.3, got {setting!r}"
            )
        places: list[Any] = [table]
        for number, key in enumerate(keys[:-1], start=1):
            places = [place.setdefault(key, {}) for place in places]
            places = [
                item for place in places for item in (place if isinstance(place, list) else [place])
            ]
            if not all(isinstance(place, dict) for place in places):
                raise ValueError(f"--set {setting}: {'.'.join(keys[:number])} is not a table")
        for place in places:
            place[keys[-1]] = _value(text.strip())
    return table


def _value(text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return found["value"] if found.keys() == {"value"} else text


def split_questions(
    table: dict[str, Any], folder: str | Path = "."
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Each question of a table with its label: several have a folder each, in the output's folder.

    Args:
        table: a table whose question may be several, or have the csv file ``targets``.
        folder: to which the names of such files are relative.

    Example:
        >>> table = {"question": [{"top": "EUR"}, {"top": "CHF", "name": "Swiss"}]}
        >>> for label, one in split_questions(table):
        ...     print(label, one)
        1 {'question': {'top': 'EUR'}, 'output': {'folder': 'run/1'}}
        Swiss {'question': {'top': 'CHF', 'name': 'Swiss'}, 'output': {'folder': 'run/Swiss'}}
    """
    questions, output = table.get("question"), table.get("output", {})
    if isinstance(questions, dict) and "targets" in questions:
        questions = [questions]
    if not isinstance(questions, list):
        yield None, table
        return
    questions = [one for question in questions for one in _read_targets(question, Path(folder))]
    if not questions:
        raise ValueError("question: expected at least one table [[question]], got none")
    out = output.get("folder", "run") if isinstance(output, dict) else None
    seen = set()
    for number, question in enumerate(questions, start=1):
        if not isinstance(question, dict):
            raise bad_entry(f"question[{number - 1}]", "a table", question)
        label = re.sub(r"[^\w-]+", "_", read_text("question.name", question.get("name", str(number))))
        if label.lower() in seen:
            raise ValueError(f"question.name: expected different names, got {label!r} twice")
        seen.add(label.lower())
        own = {**output, "folder": f"{out}/{label}"} if isinstance(out, str) else output
        yield label, {**table, "question": question, "output": own}


def _read_targets(question: Any, folder: Path) -> list[Any]:
    """A question for each row of its csv file of targets, or the question alone if it has none.

    A row has a name, then a weight for each asset of the header; assets without one are not named.
    """
    if not isinstance(question, dict) or "targets" not in question:
        return [question]
    where = "question.targets"
    path = folder / read_text(where, question["targets"])
    for entry in ("target", "name"):
        if entry in question:
            raise ValueError(
                f"{where}: each row of {str(path)!r} has its own {entry}; leave {entry} out"
            )
    check_regular(where, path, name="a csv file, such as targets.csv")
    rows = read_rows(where, path)
    assets = rows[0][1][1:] if rows else []
    if len(rows) < 2 or not all(assets) or len({*assets}) < len(assets):
        raise ValueError(
            f"{where}: expected a header such as name,EUR,CHF with an asset once for each column, and a "
            f"row for each question in {str(path)!r}, got {len(rows)} rows of {', '.join(assets)!r}"
        )
    shared = {name: value for name, value in question.items() if name != "targets"}
    return [{**shared, **_read_target(f"{where}: line {n}", assets, row)} for n, row in rows[1:]]


def _read_target(where: str, assets: list[str], row: list[str]) -> dict[str, Any]:
    """Name and target of one row."""
    name, cells = row[0], row[1:]
    if len(cells) > len(assets):
        raise ValueError(f"{where}: expected {len(assets) + 1} cells, as in the header, got {len(row)}")
    target = {}
    for asset, cell in zip(assets, cells, strict=False):
        if cell:
            number: Any = cell.replace(",", ".")
            with suppress(ValueError):
                number = float(number)
            target[asset] = read_share(f"{where}, {asset}", number)
    if not target:
        raise ValueError(f"{where}: expected a weight such as 0.4 or 40%, got none")
    return {"target": target} | ({"name": name} if name else {})
