"""The command ``whatif``: the weights that the network would hold after moves of the market."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands.adapting import any_problem, output_names
from funcexplain.commands.config import Config, WindowPart
from funcexplain.commands.entries import read_date
from funcexplain.commands.environment import torch_threads
from funcexplain.commands.folder import make_folder
from funcexplain.commands.history import History, positions
from funcexplain.commands.inputs import load_single
from funcexplain.commands.outputs import as_json, by_name, write_files
from funcexplain.commands.printing import PrintLine, aligned, prices_line, print_plain
from funcexplain.commands.question import evaluate_weights, find_dates
from funcexplain.commands.reading import read_one, require_plots
from funcexplain.commands.scenarios import (
    EXAMPLE,
    Scenario,
    parse_replay,
    parse_shock,
    read_scenarios,
)
from funcexplain.commands.space import make_space
from funcexplain.markets.periods import count_of, next_of, unit_of
from funcexplain.markets.selection import days_between
from funcexplain.markets.whatif import Others
from funcexplain.reports.drawing import MAX_ROWS, new_figure
from funcexplain.reports.plots import plot_trades

TABLE, PICTURE = "whatif.csv", "whatif.png"

# Days ahead where neither the config nor a scenario names any.
_DAYS = 5
_MAX_SHOWN, _MAX_ASSETS, _MAX_DRAWN = 3, 12, 7


class Answers(NamedTuple):
    """The results of ``S`` scenarios; the first has no shocks.

    Attributes:
        names: of the scenarios.
        moves: changes of price over all days ahead, ``(S, A)``, by weights: NaN of one without price.
        size: ``|z|`` in sigmas, ``(S,)``.
        today: weights today, ``(A,)``.
        weights: weights after each scenario, ``(S, A)``.
    """

    names: list[str]
    moves: Tensor
    size: Tensor
    today: Tensor
    weights: Tensor

    @property
    def trades(self) -> Tensor:
        """Weights after each scenario minus today's."""
        return self.weights - self.today


def ask_what_if(
    path: str | Path,
    *,
    shock: Sequence[str] = (),
    replay: Sequence[str] = (),
    scenarios: str | None = None,
    others: str = "conditional",
    unscaled: bool = False,
    question: str | None = None,
    settings: Iterable[str] = (),
    trust_model: bool = False,
    print_line: PrintLine = print_plain,
) -> dict:
    """Evaluate the network after moves of the market over the coming days.

    All scenarios end on the same day, after ``question.ahead`` days or the days of the longest scenario;
    shorter ones take the last of these days.

    Args:
        path: the config file; its last date is today.
        shock: scenarios such as ``"EUR=-5%,JPY=2% over 5 days"``.
        replay: scenarios such as ``"2020-03-02:2020-03-20"``.
        scenarios: csv file of further ones.
        others: of shocks: ``"conditional"``, as the model of returns expects, or ``"still"``.
        unscaled: replay returns without scaling by volatility.
        question: name or number of the question, if the config asks several.
        settings: entries to set in the config, as in `run_config`.
        trust_model: whether a ``.pt2`` file may run its code.
        print_line: called with each line of output.

    Returns:
        The weights, trades and moves of prices of every scenario, as JSON values: shares.
    """
    config = read_one(path, settings, question)
    require_plots(config)
    asked = [*map(parse_shock, shock), *map(parse_replay, replay)]
    if scenarios is not None:
        asked += read_scenarios(Path(scenarios))
    if not asked:
        raise ValueError(f"--shock: expected a scenario, got none; give --shock {EXAMPLE}")
    with torch_threads(config.method.threads):
        network, history = load_single(config, trust_model=trust_model)
        asked = [_check(scenario, history) for scenario in asked]
        folder = make_folder(Path(config.output.folder))
        problem, today, ahead, position, market = _make_problem(config, network, history, asked)
        prices = history.prices_until(position)
        kind: Others = "conditional" if others == "conditional" else "unchanged"
        points = [_point(problem, each, prices, kind, scaled=not unscaled) for each in asked]
        zero = torch.zeros_like(points[0])
        z = torch.stack([zero, *points])
        found = fe.scenarios.outcome(problem, z)
    moves = found.returns[:, -ahead:].double().sum(1).expm1()
    names = ["no shock", *(scenario.name for scenario in asked)]
    assets, date = history.prices.assets, history.ends[position]
    held = problem.outputs or assets
    of_price = dict(zip(assets, moves.unbind(1), strict=True))
    none = torch.full_like(moves[:, 0], math.nan)
    by_weight = torch.stack([of_price.get(name, none) for name in held], 1)
    answers = Answers(names, by_weight, z.double().flatten(1).norm(dim=1), today, found.weights)
    print_line(prices_line(history.prices))
    rest = "follow the model" if kind == "conditional" else "stand still"
    print_line(
        f"What would the network hold after {next_of(ahead, history.period)}, from {date}? ({market}; "
        f"assets without a shock {rest})"
    )
    for line in _lines(answers, held):
        print_line(line)
    draw = partial(_draw, answers, held) if config.output.picture else None
    files = write_files(folder, TABLE, _blocks(answers, held), PICTURE, draw)
    print_line(f"{folder}: {', '.join(files)}")
    results = {
        "exit_code": 0,
        "date": date,
        "ahead": ahead,
        "market": market,
        "others": others,
        "unit": "share of the portfolio; of the price for moves",
        "today": by_name(held, today),
        "scenarios": [
            {
                "name": name,
                "sigmas": float(answers.size[row]),
                "turnover": float(answers.trades[row].abs().sum() / 2),
                "moves": by_name(assets, moves[row]),
                "weights": by_name(held, answers.weights[row]),
                "trades": by_name(held, answers.trades[row]),
            }
            for row, name in enumerate(names)
        ],
        "folder": str(folder),
        "files": files,
    }
    return as_json(results)


def _check(scenario: Scenario, history: History) -> Scenario:
    """Raise unless assets and dates are in the data; counts the days of a replay."""
    positions(scenario.where, [*scenario.moves], history.prices.assets)
    for name, move in scenario.moves.items():
        if not -1.0 < move < math.inf:
            raise ValueError(
                f"{scenario.where}: expected a change of price above -100% for {name}, got "
                f"{100 * move:g}%; a fall of 5 percent is -5% or -0.05"
            )
    unit = unit_of(history.period)
    if scenario.unit not in ("day", unit):
        raise ValueError(
            f"{scenario.where}: expected a number of {unit}s, the period of the prices, got "
            f"{scenario.unit}s; convert it"
        )
    if scenario.dates is None and scenario.unit != unit and " over " in scenario.name:
        moves, _, _ = scenario.name.rpartition(" over ")
        return scenario._replace(name=f"{moves} over {count_of(scenario.days or 0, unit)}")
    if scenario.dates is None:
        return scenario
    first, last = (read_date(scenario.where, date) for date in scenario.dates)
    days = history.prices.dates[1:]  # of the returns
    count = int(days_between(days, first, last).sum())
    begin, end = np.datetime64(first), np.datetime64(last)
    if not (days[0].astype(begin.dtype) <= begin and end <= days[-1] and count):
        raise ValueError(
            f"{scenario.where}: expected two dates in order, within {days[0]} ... {days[-1]}, with a "
            f"{history.period} between them; these are the dates of the prices"
        )
    return scenario._replace(days=count)


def _make_problem(
    config: Config, network: nn.Module, history: History, asked: Sequence[Scenario]
) -> tuple[fe.Problem, Tensor, int, int, str]:
    """A scenario of the days ahead with all of them free; today's weights, and the days."""
    position = find_dates(config.question, history)[-1]
    longest = max((scenario.days for scenario in asked if scenario.days is not None), default=0)
    ahead, most = config.question.ahead or longest or _DAYS, history.lookback + history.span - 1
    for scenario in asked:
        limit = min(ahead, most)
        if scenario.days is not None and not 1 <= scenario.days <= limit:
            remedy = f"add --set question.ahead={scenario.days}"
            if scenario.days < 1:
                remedy = "leave the number out for all of them"
            elif scenario.days > most:
                what = "a shorter scenario" if scenario.dates is None else "dates closer together"
                remedy = f"a window shows only as many; choose {what}"
            raise ValueError(
                f"{scenario.where}: expected 1 ... {count_of(limit, history.period)}, as many as are "
                f"ahead, got {scenario.days}; {remedy}"
            )
    question = replace(
        config.question, ahead=ahead, search="scenario", free=WindowPart(), frozen=WindowPart()
    )
    space = make_space(question, history, [position])
    names = output_names(config.network, history.prices.assets)
    today = evaluate_weights(network, history.windows[[position]], history, names)[0]
    problem = any_problem(network, space.x0[0], history, names, mask=space.mask)
    assert space.market is not None
    return fe.pipe(problem, *space.transforms), today, ahead, position, space.market


def _point(
    problem: fe.Problem, scenario: Scenario, prices: Any, others: Others, *, scaled: bool
) -> Tensor:
    """The search point of a scenario."""
    try:
        if scenario.dates is not None:
            return fe.scenarios.replay(problem, prices, *scenario.dates, scaled=scaled)
        moves: dict[int | str, float] = dict(scenario.moves.items())
        return fe.scenarios.shocked(problem, moves, scenario.days, others=others)
    except ValueError as error:
        text = str(error).replace("pass scaled=False", "add --unscaled")
        raise ValueError(f"{scenario.where}: {text}") from None


def _lines(answers: Answers, assets: Sequence[str]) -> Iterator[str]:
    """One line for each scenario, then tables of the first ones."""
    trades = 100.0 * answers.trades.double()
    rows: list[tuple[str, ...]] = [
        ("Scenario", "sigmas", "turnover", "largest buy, points", "largest sale, points")
    ]
    for name, size, trade in zip(answers.names, answers.size.tolist(), trades, strict=True):
        ends = [f"{assets[int(k)]} {float(trade[k]):+.2f}" for k in (trade.argmax(), trade.argmin())]
        rows.append((name, f"{size:.2f}", f"{float(trade.abs().sum() / 2):.2f}%", *ends))
    yield ""
    yield from aligned(rows, "<8", ">6", ">8", ">22", ">22")
    for row in range(1, min(len(answers.names), 1 + _MAX_SHOWN)):
        yield ""
        yield f"{answers.names[row]}: weights, and the trade in percentage points"
        cells: list[tuple[str, ...]] = [("Asset", "price", "today", "no shock", "after", "trade")]
        order = trades[row].abs().argsort(descending=True, stable=True).tolist()[:_MAX_ASSETS]
        for k in order:
            shares = (answers.today[k], answers.weights[0, k], answers.weights[row, k])
            move = float(answers.moves[row, k])
            price = "" if math.isnan(move) else f"{100 * move:+.2f}%"
            held = (f"{100 * float(share):.2f}%" for share in shares)
            cells.append((assets[k], price, *held, f"{float(trades[row, k]):+.2f}"))
        yield from aligned(cells, "<7", *[">8"] * 5)
        if len(assets) > len(order):
            yield f"... and {len(assets) - len(order)} that trade less, in {TABLE}"
    if len(answers.names) > 1 + _MAX_SHOWN:
        yield ""
        yield f"... and {len(answers.names) - 1 - _MAX_SHOWN} more scenarios, in {TABLE}"
    yield ""


def _blocks(answers: Answers, assets: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
    """Lines of the csv file: one for each scenario and asset."""
    for row, name in enumerate(answers.names):
        known = answers.moves[row].numpy()
        moves = known.astype(object)
        moves[np.isnan(known)] = None  # an empty cell
        yield {
            "scenario": np.full(len(assets), name, dtype=object),
            "asset": np.array(assets, dtype=object),
            "price_move": moves,
            "weight_today": answers.today.numpy(),
            "weight_no_shock": answers.weights[0].numpy(),
            "weight": answers.weights[row].numpy(),
            "trade": answers.trades[row].numpy(),
        }


def _draw(answers: Answers, assets: Sequence[str]) -> Any:
    """Draw the trades of the first scenarios."""
    rows = slice(1, 1 + _MAX_DRAWN)
    names = answers.names[rows]
    figure = new_figure(6.0, 1.6 + 0.24 * min(len(assets), MAX_ROWS) + 0.2 * len(names))
    plot_trades(answers.trades[rows], assets=assets, names=names, ax=figure.add_subplot())
    return figure
