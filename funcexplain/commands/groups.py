"""Groups of assets by name, such as sectors: read from a file, and expanded in a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from funcexplain.commands.config import QuestionConfig, WindowPart
from funcexplain.commands.sections import GroupConfig, GroupsConfig
from funcexplain.solutions.reading import read_rows
from funcexplain.solutions.writing import check_regular

Groups = Mapping[str, tuple[str, ...]]


def load_groups(config: GroupsConfig | None, assets: Sequence[str]) -> Groups:
    """Read the members of each group from a csv with a column of assets and one of their groups.

    Assets that are not in the question are ignored, and not every asset needs a group.
    """
    if config is None:
        return {}
    where, path = "groups.file", Path(config.file)
    check_regular(where, path, name="a csv file, such as sectors.csv")
    groups: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for number, row in read_rows(where, path):
        asset, group = (*row, "", "")[:2]
        if asset not in assets:  # the header, or another asset
            continue
        if not group or seen.get(asset, group) != group:
            got = f"{seen[asset]} and {group}" if group else "none"
            raise ValueError(f"{where}: line {number}: expected one group of {asset}, got {got}")
        if asset not in seen:
            seen[asset] = group
            groups.setdefault(group, []).append(asset)
    if not groups:
        raise ValueError(
            f"{where}: expected rows such as '{assets[0]},Name of its group' in {config.file!r}, got "
            "none with an asset of the prices"
        )
    if clash := sorted(groups.keys() & {*assets}):
        raise ValueError(f"{where}: a group must not have an asset's name, got {clash[0]!r}; rename it")
    return {name: tuple(members) for name, members in groups.items()}


def expand_groups(question: QuestionConfig, groups: Groups) -> QuestionConfig:
    """The question with the names of groups replaced by their members.

    Example:
        >>> question = QuestionConfig(at_least={"Energy": 0.3}, exit=("Banks",))
        >>> found = expand_groups(question, {"Energy": ("OIL", "GAS"), "Banks": ("UBS",)})
        >>> found.group, found.at_least, found.exit
        ((GroupConfig(assets=('OIL', 'GAS'), weight=None, at_least=0.3, at_most=None),), None, ('UBS',))
    """
    if not groups:
        return question

    def members(names: tuple[str, ...] | None) -> Any:
        if names is None:
            return None
        return tuple(dict.fromkeys(asset for name in names for asset in groups.get(name, (name,))))

    def part(window: WindowPart) -> WindowPart:
        return replace(window, assets=members(window.assets))

    goals = [replace(goal, assets=members(goal.assets)) for goal in question.group or ()]
    bounds: dict[str, Any] = {}
    for name in ("at_least", "at_most"):
        given = getattr(question, name) or {}
        goals += [GroupConfig(groups[key], **{name: w}) for key, w in given.items() if key in groups]
        bounds[name] = {key: w for key, w in given.items() if key not in groups} or None
    return replace(
        question,
        **bounds,
        exit=members(question.exit),
        group=tuple(goals) or None,
        free=part(question.free),
        frozen=part(question.frozen),
    )
