"""Configs as commands read them: with paths relative to the current folder, and extras checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from funcexplain.commands.config import Config, read_configs
from funcexplain.commands.entries import suggest
from funcexplain.reports.drawing import require_matplotlib


def rebase(table: Any, before: str | Path, after: str | Path) -> Any:
    """Make the paths of a config, which are relative to one folder, relative to another one.

    Absolute paths remain.

    Example:
        >>> from funcexplain.commands.config import parse_config
        >>> table = {"network": {"factory": "mine:make"}, "prices": {"file": "market.csv"}}
        >>> config = rebase(parse_config({**table, "question": {"top": "EUR"}}), ".", "answers/run")
        >>> config.prices.file, config.network.folder
        ('../../market.csv', '../..')
    """

    def moved(value: Any, names: tuple[str, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(moved(item, names) for item in value)
        if isinstance(value, dict):
            return {key: moved(item, names) for key, item in value.items()}
        if not isinstance(value, str) or value in names or os.path.isabs(value):
            return value
        return os.path.relpath(os.path.join(before, value), after)

    changes = {}
    for spec in fields(table):
        value, names = getattr(table, spec.name), spec.metadata["path"]
        if is_dataclass(value):
            changes[spec.name] = rebase(value, before, after)
        elif names is not None:
            changes[spec.name] = moved(value, names)
    return replace(table, **changes)


def read_all(path: str | Path, settings: Iterable[str] = ()) -> dict[str | None, Config]:
    """Read the configs of a file by the labels of their questions; the only one has the label None."""
    configs = read_configs(path, settings).items()
    return {label: rebase(config, os.path.dirname(path), os.curdir) for label, config in configs}


def read_one(path: str | Path, settings: Iterable[str] = (), question: str | None = None) -> Config:
    """Read the config of the only question, or of the one with this name or number."""
    configs = read_all(path, settings)
    if question is None:
        if len(configs) > 1:
            raise ValueError(
                f"question: this command asks one question, got {len(configs)}; leave one [[question]], "
                f"or name one, as in --question {next(iter(configs))}"
            )
        return next(iter(configs.values()))
    found: dict[Any, Config] = {str(n): one for n, one in enumerate(configs.values(), start=1)}
    found |= {one.question.name: one for one in configs.values()} | configs
    if question not in found:
        known = tuple(label or "1" for label in configs)
        raise ValueError(f"--question: there is no {question!r}; {suggest(question, known)}")
    return found[question]


def require_plots(config: Config) -> None:
    """Check that matplotlib is installed if it is needed."""
    if config.output.picture or config.output.report:
        require_matplotlib()
