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

    def optional(path: str | None, *names: str) -> str | None:
        return path if path is None or path in names else moved(path)

    network, prices, features = config.network, config.prices, config.features
    weights = network.weights
    if weights is not None:
        weights = moved(weights) if isinstance(weights, str) else tuple(map(moved, weights))
    inputs = network.inputs and {
        name: moved(value) if isinstance(value, str) else value for name, value in network.inputs.items()
    }
    return replace(
        config,
        network=replace(network, folder=moved(network.folder), weights=weights, inputs=inputs),
        prices=replace(prices, file=prices.file if prices.file in _SHIPPED else moved(prices.file)),
        features=replace(
            features, file=optional(features.file), scaling=optional(features.scaling, "weights")
        ),
        groups=config.groups and replace(config.groups, file=moved(config.groups.file)),
        output=replace(config.output, folder=moved(config.output.folder)),
    )
