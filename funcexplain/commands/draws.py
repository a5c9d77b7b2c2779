"""The draws of a run: markets at which its target holds, saved, summarized and shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import funcexplain as fe
from funcexplain.commands.folder import DRAWS, FAN
from funcexplain.commands.outputs import as_json, by_name, save_picture
from funcexplain.commands.question import Query
from funcexplain.markets.periods import DAY
from funcexplain.reports.draws import Common, answer_path, find_common, mixing_sentence, moves_sentence
from funcexplain.reports.plots import plot_fan
from funcexplain.solutions.draws import Draws, Mixing
from funcexplain.solutions.files import describe
from funcexplain.solutions.solution import Solution

NUM_SAMPLES = 40_000
"""About as many windows at which the network is called."""

_MAX_CHAINS, _LENGTH = 32, 8  # R-hat compares halves of each chain's draws


@dataclass(frozen=True, eq=False)
class Drawn:
    """Draws of a question and their summary; both None if the target is out of reach.

    Attributes:
        draws: the draws.
        found: their summary.
        sentence: the sentence to print.
    """

    draws: Draws | None
    found: Common | None
    sentence: str


def draw_markets(
    query: Query, number: int, atol: float, assets: Sequence[str], num_samples: int | None = None
) -> Drawn:
    """Draw markets at which the target of a question holds.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    problem, chains = query.from_reference, max(1, min(_MAX_CHAINS, number // _LENGTH))
    try:
        samples = num_samples or NUM_SAMPLES
        draws = fe.sample(problem, number, atol=atol, num_chains=chains, num_samples=samples)
    except ValueError as error:
        return Drawn(None, None, f"No market could be drawn: {str(error).removeprefix('sample: ')}.")
    if bool((draws.codes == int(fe.Status.INTERRUPTED)).any()):
        raise KeyboardInterrupt("the draws are not complete")
    found = find_common(draws, problem)
    sentence = f"{moves_sentence(found, assets)} {mixing_sentence(draws.mixing, number)}"
    return Drawn(draws, found, sentence)


def save_draws(folder: Path, draws: Draws, assets: Sequence[str]) -> str:
    """Save draws, with how well they mixed, and return the name of the file."""
    assert draws.mixing is not None
    draws.save(folder / DRAWS, assets=assets, settings=as_json(draws.mixing._asdict()))
    return DRAWS


def load_draws(folder: Path) -> Draws:
    """The draws of a folder, with how well they mixed."""
    loaded, mixing = fe.load(folder / DRAWS), describe(folder / DRAWS)["settings"]
    values = {field.name: getattr(loaded, field.name) for field in fields(Solution)}
    known: Any = {name: math.nan if value is None else value for name, value in mixing.items()}
    return Draws(**values, mixing=Mixing(**known))


def write_fan(
    folder: Path,
    found: Common,
    query: Query,
    answer: Solution,
    assets: Sequence[str],
    period: str = DAY,
) -> str:
    """Draw the fan with the path of an answer, and return the name of the file."""
    path = answer_path(answer, query.from_reference, found.bands.first)
    figure = plot_fan(found.bands, assets=assets, answer=path, period=period)
    return save_picture(figure, folder / FAN)


def describe_draws(found: Common, assets: Sequence[str]) -> dict[str, Any]:
    """The summary of draws as JSON values: moves of every asset, and kinds of market."""
    moves, stories, (low, *_, high) = found.moves, found.stories, found.bands.given[:, -1].expm1()
    names = ("falls", "ordinary_falls", "sigmas", "low", "high")
    rows = zip(moves.falls, moves.ordinary_falls, moves.sigmas, low, high, strict=True)
    kinds = zip(stories.shares, stories.medoids, stories.moves.expm1(), strict=True)
    return {
        "count": found.number,
        "assets": {
            asset: dict(zip(names, map(float, row), strict=True))
            for asset, row in zip(assets, rows, strict=True)
        },
        "stories": [
            {
                "share": float(share),
                "medoid": int(medoid),
                "moves": by_name(assets, mean),
            }
            for share, medoid, mean in kinds
        ],
    }
