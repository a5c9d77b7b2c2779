"""The table ``[method]`` of a config: how to search, with the settings of each method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from funcexplain.commands.entries import (
    bad_entry,
    entry,
    integer_between,
    key_path,
    one_of,
    read_non_negative,
    read_number,
    read_table,
    suggest,
)

# Settings of each method, with their defaults. Those of adam suit a search in sigmas: an eps as large as
# a typical gradient leaves entries alone that hardly matter.
METHODS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.2, "betas": [0.5, 0.999], "eps": 0.03},
    "sgd": {"lr": 0.1, "momentum": 0.0},
    "levenberg_marquardt": {"residual": "auto", "damping": 10.0},
}
DEFAULT = "levenberg_marquardt"


@dataclass(frozen=True)
class StartsConfig:
    """Where searches start: at the window, at precedents, and at the window plus noise, in sigmas."""

    number: int = entry(integer_between(1, 10**5), 8)
    jitter: float = entry(read_non_negative, 1.0)
    seed: int = entry(integer_between(0, 2**32 - 1), 0)


def _settings(where: str, value: Any) -> Any:
    """A setting of a method: a number, text or a list of them. The method checks its value."""
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str):
            read_number(where, item)
    return value


@dataclass(frozen=True)
class MethodConfig:
    """How to search."""

    name: str = entry(one_of(*METHODS), DEFAULT)
    answer: str = entry(one_of("closest", "first"), "closest")
    few: str | None = entry(one_of("shocks", "assets", "days"), None)
    max_steps: int = entry(integer_between(0), 100)
    atol: float = entry(read_non_negative, 1e-3)
    patience: int | None = entry(integer_between(1), None)
    starts: StartsConfig = entry(
        lambda where, value: read_table(StartsConfig, where, value), StartsConfig()
    )
    threads: int = entry(integer_between(1, 1024), 1)
    settings: dict[str, Any] = entry(lambda where, value: value, None)


def read_method(where: str, value: Any) -> MethodConfig:
    """Read ``[method]``, where the settings of the method are entries like the others."""
    if not isinstance(value, dict):
        raise bad_entry(where, "a table", value)
    # The method whose settings are given.
    default = next((name for name in ("adam", "sgd") if METHODS[name].keys() & value), DEFAULT)
    name = one_of(*METHODS)(key_path(where, "name"), value.get("name", default))
    own = METHODS[name]
    common = [key for key in MethodConfig.__dataclass_fields__ if key != "settings"]
    for key in value:
        if key not in own and key not in common:
            known = (*own, *common)
            raise ValueError(f"{key_path(where, key)}: unknown setting of {name}; {suggest(key, known)}")
    given = {key: _settings(key_path(where, key), value[key]) for key in own if key in value}
    rest = {key: value[key] for key in common if key in value}
    if name != DEFAULT:  # which takes a tenth of the steps
        rest = {"max_steps": 1000, **rest}
    method = read_table(MethodConfig, where, {**rest, "name": name, "settings": {**own, **given}})
    if method.few is not None and method.answer == "first":
        raise ValueError(f'{where}.few: needs answer = "closest", got "first"; leave one of them out')
    return method
