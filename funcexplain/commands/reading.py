"""Configs as commands read them, with paths relative to the current folder and extras checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from funcexplain.commands.config import Config, read_config, read_configs
from funcexplain.commands.paths import rebase
from funcexplain.reports.drawing import require_matplotlib


def read_plain(path: str | Path) -> Config:
    """Read a config, with paths relative to the current folder."""
    return rebase(read_config(path), os.path.dirname(path), os.curdir)


def read_all(path: str | Path, settings: Iterable[str]) -> dict[str | None, Config]:
    """Read the configs of a file by the labels of their questions, as `read_plain` does."""
    folder = os.path.dirname(path)
    return {
        label: rebase(config, folder, os.curdir)
        for label, config in read_configs(path, settings).items()
    }


def read_checked(path: str | Path, settings: Iterable[str] = ()) -> Config:
    """Read the config of one question, and check that matplotlib is installed if it is needed."""
    configs = read_all(path, settings)
    if len(configs) > 1:
        raise ValueError(
            f"question: this command asks one question, got {len(configs)}; leave one [[question]], or "
            "one row of question.targets"
        )
    (config,) = configs.values()
    require_plots(config)
    return config


def require_plots(config: Config) -> None:
    """Check that matplotlib is installed if it is needed."""
    if config.output.picture or config.output.report:
        require_matplotlib()
