"""From the question in a config to a `Problem` with one row per date and start."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands.adapting import any_problem, describe_layouts, output_names
from funcexplain.commands.allocation import check_wanted, fill_active, fill_target
from funcexplain.commands.config import (
    MAX_SEARCHES,
    Config,
    DateRange,
    QuestionConfig,
)
from funcexplain.commands.groups import Groups, expand_groups
from funcexplain.commands.history import History, positions, window_ending_on
from funcexplain.commands.space import make_space
from funcexplain.commands.starts import map_starts, with_precedents
from funcexplain.commands.weights import one_line
from funcexplain.engine.forward import weights_of
from funcexplain.markets.periods import DAY, unit_of
from funcexplain.markets.selection import days_between
from funcexplain.problems.criterion import Target
from funcexplain.reports.numbers import join
from funcexplain.reports.questions import ask

DISTRIBUTIONS = ("kl", "js", "cross_entropy")
"""Losses of weights that are a distribution."""
_SHORT = 1e-6


@dataclass(frozen=True, eq=False)
class Query:
    """A question as a problem that can be solved.

    Attributes:
        problem: rows ``(date, start)``; a dimension of one date or one start is left out.
        positions: positions of the dates' windows in the history.
        dates: last day of each of these windows.
        seeds: seed of each start.
        today: the network's weights on each date, ``(dates, A)``; the mean of several.
        held: its weights at the reference windows: today's, or those ahead without shocks.
        sentence: the question in words.
        names: of the weights.
        market: model of returns, None for a search over features.
        ahead: number of coming days that are shocked; 0 for shocks to past days.
        first: with several networks, the question to the first one, one row for each date.
        groups: members of each group of assets by its name.
    """

    problem: fe.Problem
    positions: list[int]
    dates: list[str]
    seeds: list[int]
    today: Tensor
    held: Tensor
    sentence: str
    names: tuple[str, ...]
    market: str | None
    ahead: int = 0
    first: fe.Problem | None = None
    groups: Groups = field(default_factory=dict)

    @property
    def from_reference(self) -> fe.Problem:
        """The questions without their starts: one row for each date, or one question."""
        problem = self.problem
        if problem.dims and problem.dims[-1].name == "start":
            return problem[(*[slice(None)] * (len(problem.dims) - 1), 0)]
        return problem

    @property
    def references(self) -> Tensor:
        """The reference window of each date, ``(dates, C, L, A)``."""
        reference = self.problem.args["reference"]
        return reference if reference.ndim == 4 else reference[None]


def build_query(
    config: Config,
    network: nn.Module | None,
    history: History,
    recorded: tuple[Tensor, Tensor] | None = None,
    others: Sequence[nn.Module] = (),
    groups: Groups | None = None,
) -> Query:
    """Turn the question of a config into a problem.

    Args:
        config: the config.
        network: the network, or None if only its weights at the dates are known.
        history: the windows.
        recorded: these weights, of today and without shocks, ``(dates, A)`` each; the problem's are NaN
            at any other window.
        others: further networks, which must also hold the target.
        groups: members of each group of assets by its name.
    """
    groups, starts = groups or {}, config.method.starts
    question = expand_groups(config.question, groups)
    assets, names = history.prices.assets, output_names(config.network, history.prices.assets)
    chosen = find_dates(question, history)
    if len(chosen) * starts.number > MAX_SEARCHES:
        raise ValueError(
            f"question.date: expected at most {MAX_SEARCHES} searches, got {len(chosen)} dates x "
            f"{starts.number} starts; use every = n, or fewer starts"
        )
    _check_names(question, names, groups)
    windows, seeds = history.windows[chosen], torch.arange(starts.number) + starts.seed * starts.number
    space = make_space(question, history, chosen)
    known: list[Any] = [network, *others]
    if network is not None:
        today = held = _mean_weights(known, windows, history, names)
        if question.ahead:
            held = _mean_weights(known, space.x0, history, names)
    else:
        assert recorded is not None
        today, held = recorded
        if today.shape != (len(windows), len(names)):
            raise ValueError(
                f"question.date: expected recorded weights of {len(windows)} dates, got "
                f"{len(today)}; run again"
            )
        known = [(_recorded_weights, {"window": space.x0[0], "weights": held[0]})]
    if question.target is not None:
        try:
            check_wanted(question.target, names, long_short=_is_long_short(question, today))
        except ValueError as error:
            raise ValueError(f"question.{error}") from None
    parts = (question.target, question.shift, question.move, question.turnover)
    depends_on_today = any(part is not None for part in parts)  # and so on the date
    varying = today if depends_on_today else today[:1]
    targets = [make_target(question, names, weights) for weights in varying]
    if len(known) > 1 and len(targets) > 1:
        raise ValueError(
            "question: several networks share one target, and target, shift, move and turnover "
            "depend on each date's weights; name one date, or use other goals"
        )
    stacks = space.stacks
    if len(chosen) > 1:
        if len(targets) > 1:
            stacks["target"] = targets
        if network is None:
            stacks["params"] = {"window": space.x0, "weights": held}

    def complete(problem: fe.Problem, number: int) -> fe.Problem:
        problem, own = fe.pipe(problem, *space.transforms), dict(stacks)
        if number > 1:
            problem = map_starts(problem, seeds, starts.jitter)
            if len(chosen) > 1:
                precedents = problem.args["precedents"]
                own["precedents"] = precedents.expand(len(chosen), *precedents.shape)
        return fe.vmap(problem, name="date", **own) if len(chosen) > 1 else problem

    try:
        single = [
            fe.problem(
                one,
                targets[0],
                space.x0[0],
                loss=_loss(question, targets[0], today),
                mask=space.mask,
                seed=int(seeds[0]),
                assets=assets,
                outputs=None if names == assets else names,
                leverage=question.leverage,
            )
            for one in known
        ]
        problem = complete(fe.consensus(single) if len(single) > 1 else single[0], starts.number)
        first = complete(single[0], 1) if len(single) > 1 else None
    except ValueError as error:
        text = re.sub(r"pass leverage=, (.*),\s+to fe.problem", r"set question.leverage, \1", str(error))
        raise ValueError(f"question: {text}") from None
    if network is not None and starts.number > 1:
        problem = with_precedents(problem, history, chosen, config.method.atol, space.search_points)
    dates = [history.ends[position] for position in chosen]
    sentence = describe_question(config.question, dates, history.period)
    if others:
        sentence = sentence.replace("for the network", f"for all {len(known)} networks")
    return Query(
        problem=problem,
        positions=chosen,
        dates=dates,
        seeds=seeds.tolist(),
        today=today,
        held=held,
        sentence=sentence,
        names=names,
        market=space.market,
        ahead=question.ahead or 0,
        first=first,
        groups=groups,
    )


def _recorded_weights(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """The weights recorded at one window, NaN at any other."""
    return torch.where((x == params["window"]).all(), params["weights"], torch.nan)


def pin_dates(config: Config, history: History) -> Config:
    """Replace the dates of a config by explicit ones, so that new prices do not change its question."""
    dates, chosen = history.prices.dates, find_dates(config.question, history)
    first, last = (dates[history.last_days[position]].item() for position in (chosen[0], chosen[-1]))
    date = config.question.date
    if isinstance(date, DateRange):
        date = DateRange(first, last, date.every)
    return replace(
        config,
        prices=replace(config.prices, start=dates[0].item(), end=dates[-1].item()),
        question=replace(config.question, date=(last,) if date == "last" else date),
    )


def _mean_weights(
    networks: Sequence[nn.Module], windows: Tensor, history: History, names: tuple[str, ...]
) -> Tensor:
    """The mean of several networks' weights at windows."""
    found = [evaluate_weights(network, windows, history, names) for network in networks]
    return torch.stack(found).mean(0)


def evaluate_weights(
    network: nn.Module, windows: Tensor, history: History, names: tuple[str, ...]
) -> Tensor:
    """Weights ``(N, A)`` at windows ``(N, C, L, A)``; raises if the network does not accept them."""
    count = windows.shape[-1]
    shape = (
        f"windows of {len(history.channels)} channels ({', '.join(history.channels)}), "
        f"{history.lookback} {unit_of(history.period)}s and {count} assets"
    )
    try:
        probe = any_problem(network, windows[0], history, names)
        with torch.no_grad():
            probe.objective(windows[0], probe.args)
    except Exception as error:  # any type: this runs the user's network
        raise ValueError(
            f"features: the network does not map {shape} to {len(names)} weights: "
            f"{one_line(error)}; use the lookback, channels and assets that it was trained with; "
            f"{describe_layouts(windows[0])}"
        ) from error
    weights = weights_of(probe, windows, probe.args)
    if not bool(weights.isfinite().all()):
        raise ValueError(
            f"network: its weights are not finite at real {shape}; check that these are the features "
            "that it was trained with, and that network.weights is the right file"
        )
    return weights


def describe_question(question: QuestionConfig, dates: list[str], period: str = DAY) -> str:
    """Put a question about windows with these last days in one sentence.

    Example:
        >>> describe_question(QuestionConfig(at_least={"EUR": 0.3}, exit=("JPY",)), ["2024-01-31"])
        'What would the market of 2024-01-31 have to look like for the network to hold at least 30% ...'
    """
    day = dates[0]
    if len(dates) > 1:
        comma = "" if question.ahead else ","
        day = f"each of {len(dates)} {unit_of(period)}s, {dates[0]} to {dates[-1]}{comma}"
    phrase = join(list(_phrases(question)))
    phrase += " relative to the benchmark" if question.benchmark is not None else ""
    return ask(phrase, day, question.ahead or 0, period)


def _phrases(question: QuestionConfig) -> Iterator[str]:
    """One phrase per goal."""
    named = list((question.target or {}).items())
    shown = named if len(named) <= 4 else named[:3]
    yield from (f"{_percent(weight)} {name}" for name, weight in shown)
    if len(named) > len(shown):
        yield f"{len(named) - len(shown)} more"
    for bound, weights in (("at least", question.at_least), ("at most", question.at_most)):
        yield from (f"{bound} {_percent(weight)} {name}" for name, weight in (weights or {}).items())
    if question.top is not None:
        yield f"{question.top} as the largest position"
    yield from (f"no {name}" for name in question.exit or ())
    for group in question.group or ():
        bounds = {"": group.weight, "at least ": group.at_least, "at most ": group.at_most}
        amounts = " and ".join(f"{bound}{_percent(w)}" for bound, w in bounds.items() if w is not None)
        yield f"{amounts} in {' + '.join(group.assets)}"
    for moves, than in ((question.shift, " than today"), (question.move, "")):
        for name, delta in (moves or {}).items():
            yield f"{_percent(abs(delta))} {'more' if delta >= 0 else 'less'} {name}{than}"
    if question.move is not None:
        yield "all others as today"
    if question.turnover is not None:
        yield f"a portfolio within a turnover of at most {_percent(question.turnover)}"
    if question.concentration is not None:
        yield f"weights with a Herfindahl index of at most {question.concentration:g}"


def _percent(weight: float) -> str:
    return f"{100 * weight:g}%"


def find_dates(question: QuestionConfig, history: History) -> list[int]:
    """Positions of the windows that end on the dates of a question."""
    selected = question.date
    if selected == "last":
        return [len(history.windows) - 1]
    if isinstance(selected, tuple):
        return [window_ending_on(history, day) for day in selected]
    assert isinstance(selected, DateRange), selected
    ends = history.prices.dates[history.last_days.numpy()]
    inside = days_between(ends, selected.start, selected.end)
    chosen = np.flatnonzero(inside)[:: selected.every].tolist()
    if not chosen:
        raise ValueError(
            f"question.date: no window ends between start and end; there are {ends[0]} to {ends[-1]}"
        )
    return chosen


def _check_names(question: QuestionConfig, names: tuple[str, ...], groups: Groups) -> None:
    """Raise unless all names are of weights, before anything is computed from them."""
    assets = (*names, *groups)  # groups are expanded; the message may suggest one
    for goal in ("target", "at_least", "at_most", "shift", "move", "top", "exit"):
        given = getattr(question, goal) or ()
        wanted = [given] if isinstance(given, str) else [*given]
        positions(f"question.{goal}", wanted, assets)
        if named := [name for name in wanted if name in groups]:
            raise ValueError(
                f"question.{goal}: {named[0]} is a group; use at_least, at_most or group for its total"
            )
    for index, group in enumerate(question.group or ()):
        positions(f"question.group[{index}]", group.assets, assets)


def _is_long_short(question: QuestionConfig, today: Tensor) -> bool:
    """Whether the portfolio may have shorts: it has, it is relative, or the config allows any."""
    relative = question.benchmark is not None or question.leverage is not None
    return relative or bool((today < -_SHORT).any())


def make_target(question: QuestionConfig, assets: tuple[str, ...], today: Tensor) -> Target:
    """The target of a question about these assets, of which the network holds ``today``."""
    wanted = list[Target]()
    if question.target is not None:
        fill = fill_active if _is_long_short(question, today) else fill_target
        wanted.append(fe.targets.exact(fill(question.target, today, assets)))
    wanted += [fe.targets.at_least(*bound) for bound in (question.at_least or {}).items()]
    wanted += [fe.targets.at_most(*bound) for bound in (question.at_most or {}).items()]
    if question.top is not None:
        wanted.append(fe.targets.top(question.top))
    wanted += [fe.targets.exit(name) for name in question.exit or ()]
    wanted += [
        fe.targets.group(group.assets, group.weight, at_least=group.at_least, at_most=group.at_most)
        for group in question.group or ()
    ]
    wanted += [fe.targets.shift(*moved, today=today) for moved in (question.shift or {}).items()]
    if question.move is not None:
        wanted.append(fe.targets.move(question.move, today=today))
    if question.turnover is not None:
        wanted.append(fe.targets.turnover(question.turnover, today=today))
    if question.concentration is not None:
        wanted.append(fe.targets.concentration(question.concentration))
    return wanted[0] if len(wanted) == 1 else fe.targets.all_of(*wanted)


def _loss(question: QuestionConfig, target: Target, today: Tensor) -> Any:
    """The loss; by default KL for one allocation, since it does not stall near one-hot weights."""
    name, long_short = question.loss, _is_long_short(question, today)
    if name == "auto":
        name = "mse" if target.weights is None or long_short else "kl"
    if name in DISTRIBUTIONS and long_short:
        raise ValueError(
            f"question.loss: {name} compares distributions, weights >= 0 that sum to one, and this "
            'portfolio is long-short or relative to a benchmark; use "mse" or "mae"'
        )
    return getattr(fe.losses, name)
