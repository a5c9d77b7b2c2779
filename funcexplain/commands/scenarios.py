"""The scenarios of ``whatif``: shocks, replays, and files of shocks, read from the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from funcexplain.commands.entries import parse_amounts, parse_share, read_date
from funcexplain.solutions.reading import read_rows

EXAMPLE = '"EUR=-5% over 5 days"'
_EXPECTED = f"NAME=CHANGE such as {EXAMPLE}"
_UNITS = "day|week|month|quarter|year|hour|minute|second|period"
_OVER = re.compile(rf"(.*\S)\s+over\s+(\d{{1,6}})\s+({_UNITS})s?\s*", re.DOTALL)
_MAX_SCENARIOS = 10_000


class Scenario(NamedTuple):
    """A move of the market: of prices over some days, or that between two dates.

    Attributes:
        where: option or line that defines it, for errors.
        name: for tables.
        days: trading days, or other periods, that it takes, None for all days ahead.
        moves: change of price by asset.
        dates: first and last date of a replay.
        unit: by which ``days`` are counted.
    """

    where: str
    name: str
    days: int | None
    moves: Mapping[str, float]
    dates: tuple[str, str] | None = None
    unit: str = "day"


def parse_shock(text: str) -> Scenario:
    """Read a scenario such as ``EUR=-5%,JPY=2% over 5 days``; the days are optional.

    Example:
        >>> parse_shock("EUR=-5% over 5 days")[2:4]
        (5, {'EUR': -0.05})
    """
    body, days, unit = text, None, "day"
    if over := _OVER.fullmatch(text):
        body, days, unit = over[1], int(over[2]), over[3]
    moves = parse_amounts("--shock", body, _EXPECTED, limit=1.0)
    return Scenario(f"--shock {text!r}", text.strip(), days, moves, unit=unit)


def parse_replay(text: str) -> Scenario:
    """Read a replay such as ``2020-03-02:2020-03-20``."""
    # Times of day have colons, too.
    ends = re.split(r":(?=\s*\d{4}-)", text) if text.count(":") > 1 else text.split(":")
    if len(ends) != 2:
        raise ValueError(
            f"--replay: expected two dates such as 2020-03-02:2020-03-20, got {text!r}; put a colon "
            "between them"
        )
    dates = (str(read_date("--replay", ends[0].strip())), str(read_date("--replay", ends[1].strip())))
    return Scenario(f"--replay {text!r}", f"replay {dates[0]}:{dates[1]}", None, {}, dates)


def read_scenarios(path: Path) -> list[Scenario]:
    r"""Read a csv file with a scenario in each line.

    The columns are assets with changes of price, empty where none is given, and optionally ``scenario``
    (a name) and ``days``.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "moves.csv")
        >>> _ = path.write_text("scenario,days,EUR,JPY\ncrisis,5,-5%,\n")
        >>> read_scenarios(path)[0][1:4]
        ('crisis', 5, {'EUR': -0.05})
    """
    where = f"--scenarios {str(path)!r}"
    rows = [row for _, row in read_rows("--scenarios", path)]
    if not rows:
        raise ValueError(f"{where}: expected a csv file with a header, got an empty one")
    head, *lines = rows
    if len(set(head)) < len(head) or not all(head):
        raise ValueError(f"{where}: expected a name for each column, none twice, got {', '.join(head)}")
    if not 0 < len(lines) <= _MAX_SCENARIOS:
        raise ValueError(f"{where}: expected 1 ... {_MAX_SCENARIOS} scenarios, got {len(lines)}")
    return [_read_line(f"{where}, scenario {n}", n, head, line) for n, line in enumerate(lines, 1)]


def _read_line(where: str, number: int, head: list[str], line: list[str]) -> Scenario:
    """Read one scenario of a csv file."""
    if len(line) != len(head):
        raise ValueError(f"{where}: expected {len(head)} cells, as in the header, got {len(line)}")
    cells = {name: cell for name, cell in zip(head, line, strict=True) if cell}
    name, days = cells.pop("scenario", f"scenario {number}"), cells.pop("days", None)
    if days is not None and not (days.isdecimal() and len(days) <= 6):
        raise ValueError(f"{where}: days must be an integer, got {days!r}")
    moves = {}
    for asset, cell in cells.items():
        try:
            moves[asset] = parse_share(cell)
            if moves[asset] >= 1.0 and "%" not in cell:
                raise ValueError("a percentage without its sign")
        except ValueError:
            raise ValueError(
                f"{where}: expected a change of price such as -5% or -0.05 for {asset}, got {cell!r}"
            ) from None
    if not moves:
        raise ValueError(f"{where}: expected a change of price, got none")
    return Scenario(where, name, None if days is None else int(days), moves)
