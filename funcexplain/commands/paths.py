"""The paths in a config: relative to its own folder when read, to the current one when used."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from funcexplain.commands.config import Config

_SHIPPED = ("ecb", "sp500")  # price histories by name


def rebase(config: Config, before: str | Path, after: str | Path) -> Config:
    """Make the paths of a config, which are relative to one folder, relative to another one.

    Absolute paths remain.

    Example:
        >>> from funcexplain.commands.config import parse_config
        >>> table = {"network": {"factory": "mine:make"}, "prices": {"file": "market.csv"}}
        >>> config = rebase(parse_config({**table, "question": {"top": "EUR"}}), ".", "answers/run")
        >>> config.prices.file, config.network.folder
        ('../../market.csv', '../..')
    """

    def moved(path: str) -> str:
        return path if os.path.isabs(path) else os.path.relpath(os.path.join(before, path), after)

    network, prices, output = config.network, config.prices, config.output
    weights = network.weights
    if weights is not None:
        weights = moved(weights) if isinstance(weights, str) else tuple(map(moved, weights))
    file = prices.file if prices.file in _SHIPPED else moved(prices.file)
    return replace(
        config,
        network=replace(network, folder=moved(network.folder), weights=weights),
        prices=replace(prices, file=file),
        output=replace(output, folder=moved(output.folder)),
    )
