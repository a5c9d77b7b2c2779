"""Tables of a config before they are parsed: entries set on the command line, and several questions."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

from funcexplain.commands.entries import bad_entry, read_text


def set_entries(table: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """A table with entries replaced, as in ``question.at_least.CHF=0.3``; of all questions if several.

    A value is TOML, or else text.

    Raises:
        ValueError: if a setting has another form, or leads through an entry that is not a table.

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


def split_questions(table: dict[str, Any]) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Each question of a table with its label: several have a folder each, in the output's folder.

    Raises:
        ValueError: if labels are not different.

    Example:
        >>> table = {"question": [{"top": "EUR"}, {"top": "CHF", "name": "Swiss"}]}
        >>> for label, one in split_questions(table):
        ...     print(label, one)
        1 {'question': {'top': 'EUR'}, 'output': {'folder': 'run/1'}}
        Swiss {'question': {'top': 'CHF', 'name': 'Swiss'}, 'output': {'folder': 'run/Swiss'}}
    """
    questions, output = table.get("question"), table.get("output", {})
    if not isinstance(questions, list):
        yield None, table
        return
    if not questions:
        raise ValueError("question: expected at least one table [[question]], got none")
    folder = output.get("folder", "run") if isinstance(output, dict) else None
    seen = set()
    for number, question in enumerate(questions, start=1):
        if not isinstance(question, dict):
            raise bad_entry(f"question[{number - 1}]", "a table", question)
        label = re.sub(r"[^\w-]+", "_", read_text("question.name", question.get("name", str(number))))
        if label.lower() in seen:
            raise ValueError(f"question.name: expected different names, got {label!r} twice")
        seen.add(label.lower())
        own = {**output, "folder": f"{folder}/{label}"} if isinstance(folder, str) else output
        yield label, {**table, "question": question, "output": own}
