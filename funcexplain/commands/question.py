"""From a question in the language of a config to a `Problem`: one row for each date and start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.commands.config import MOST_ROWS, Config, Parts, Question, Range, Starts
from funcexplain.commands.demo import check_wanted, fill_target
from funcexplain.commands.history import History, place_of_day, places
from funcexplain.commands.network import in_short
from funcexplain.markets import covariances
from funcexplain.markets.features import CHANNELS, features, log_returns
from funcexplain.problems.criterion import Target

_CHUNK = 256  # windows that go through the network at once


@dataclass(frozen=True, eq=False)
class Asked:
    """A question, ready to be solved.

    Attributes:
        problem: rows ``(date, start)``; a dimension of one date or one start is left out.
        places: of the dates' windows in the history.
        dates: the days on which they end.
        seeds: of the starts.
        today: what the network holds on each date, ``(dates, A)``.
        sentence: the question in words.
    """

    problem: fe.Problem
    places: list[int]
    dates: list[str]
    seeds: list[int]
    today: Tensor
    sentence: str


def ask(config: Config, network: nn.Module, history: History) -> Asked:
    """State the question of a config.

    Args:
        config: the config.
        network: the network.
        history: the windows.

    Returns:
        The problem, and what its rows are.

    Raises:
        ValueError: names, dates or parts that do not exist, a target out of reach, or a network that
            does not take these windows.
    """
    question, starts = config.question, config.method.starts
    at = _dates(question, history)
    if len(at) * starts.number > MOST_ROWS:
        raise ValueError(
            f"question.date: expected at most {MOST_ROWS} searches, got {len(at)} dates x "
            f"{starts.number} starts; take every = n, or fewer starts"
        )
    _check_names(question, history.prices.assets)
    windows = history.windows[at]
    today = held(network, windows, history)
    targets = [_target(question, history, now) for now in (today if _of_today(question) else today[:1])]
    mask, transforms, stacks = _search(question, starts, history, at)
    try:
        problem = fe.problem(
            network,
            targets[0],
            windows[0],
            loss=_loss(question, targets[0]),
            mask=mask,
            seed=_seeds(starts)[0],
            assets=history.prices.assets,
        )
        problem = fe.pipe(problem, *transforms)
        if starts.number > 1:
            problem = fe.vmap(problem, seed=torch.tensor(_seeds(starts)), name="start")
        if len(at) > 1:
            stacks |= {"x0": windows, "reference": windows}
            if len(targets) > 1:
                stacks["target"] = targets
            problem = fe.vmap(problem, name="date", **stacks)
    except ValueError as error:
        raise ValueError(f"question: {error}") from None
    dates = [history.ends[place] for place in at]
    return Asked(problem, at, dates, _seeds(starts), today, sentence(question, dates))


def pinned(config: Config, history: History) -> Config:
    """The config with days written out, so that it asks the same when prices are added.

    Args:
        config: the config.
        history: its windows.

    Returns:
        A config that asks the same.
    """
    dates, at = history.prices.dates, _dates(config.question, history)
    ends = [history.prices.dates[history.last_days[place]].item() for place in (at[0], at[-1])]
    asked = config.question.date
    when = Range(ends[0], ends[1], asked.every) if isinstance(asked, Range) else asked
    return replace(
        config,
        prices=replace(config.prices, start=dates[0].item(), end=dates[-1].item()),
        question=replace(config.question, date=(ends[1],) if when == "last" else when),
    )


def held(network: nn.Module, windows: Tensor, history: History) -> Tensor:
    """What the network holds at windows ``(N, C, L, A)``, ``(N, A)``; refuses one that takes others."""
    count = windows.shape[-1]
    uniform = windows.new_full((count,), 1.0 / count)
    shape = (
        f"windows of {len(history.channels)} channels ({', '.join(history.channels)}), "
        f"{history.lookback} days and {count} assets"
    )
    try:
        probe = fe.problem(network, uniform, windows[0])
        with torch.no_grad():
            probe.objective(windows[0], probe.args)
    except Exception as error:  # of any kind: it is the user's network that runs
        raise ValueError(
            f"features: the network does not take {shape} and return {count} weights: "
            f"{in_short(error)}; make lookback, channels and assets those that it was trained with"
        ) from error
    weights_at: Callable[[Tensor], Tensor] = lambda x: probe.objective(x, probe.args)[1]  # noqa: E731
    with torch.no_grad():
        weights = torch.func.vmap(weights_at, chunk_size=_CHUNK)(windows)
    if not bool(weights.isfinite().all()):
        raise ValueError(
            f"network: holds weights that are not finite at real {shape}; are these the features that "
            "it was trained with, and its weights the right ones?"
        )
    return weights


def sentence(question: Question, dates: list[str]) -> str:
    """A question in words.

    Args:
        question: the table ``[question]``.
        dates: days on which the windows end.

    Returns:
        One sentence.

    Example:
        >>> sentence(Question(at_least={"EUR": 0.3}, exit=("JPY",)), ["2024-01-31"])
        'What would the market of 2024-01-31 have to look like for the network to hold at least 30% ...'
    """
    day = dates[0] if len(dates) == 1 else f"each of {len(dates)} days, {dates[0]} to {dates[-1]},"
    wanted = list(_wanted(question))
    told = wanted[0] if len(wanted) == 1 else f"{', '.join(wanted[:-1])} and {wanted[-1]}"
    return f"What would the market of {day} have to look like for the network to hold {told}?"


def _wanted(question: Question) -> Iterator[str]:
    named = list((question.target or {}).items())
    yield from (f"{_percent(weight)} {name}" for name, weight in named[:3])
    if len(named) > 3:
        yield f"{len(named) - 3} more as given"
    for bound, weights in (("at least", question.at_least), ("at most", question.at_most)):
        yield from (f"{bound} {_percent(weight)} {name}" for name, weight in (weights or {}).items())
    if question.top is not None:
        yield f"{question.top} as the largest position"
    yield from (f"no {name}" for name in question.exit or ())
    for group in question.group or ():
        bounds = {"": group.weight, "at least ": group.at_least, "at most ": group.at_most}
        told = " and ".join(f"{word}{_percent(w)}" for word, w in bounds.items() if w is not None)
        yield f"{told} in {' + '.join(group.assets)}"
    for name, delta in (question.shift or {}).items():
        yield f"{_percent(abs(delta))} {'more' if delta >= 0 else 'less'} {name} than today"
    if question.turnover is not None:
        yield f"what takes a turnover of at most {_percent(question.turnover)}"
    if question.concentration is not None:
        yield f"weights of a Herfindahl index of at most {question.concentration:g}"


def _percent(weight: float) -> str:
    return f"{100 * weight:g}%"


def _dates(question: Question, history: History) -> list[int]:
    asked = question.date
    if asked == "last":
        return [len(history.windows) - 1]
    if isinstance(asked, tuple):
        return [place_of_day(history, day) for day in asked]
    assert isinstance(asked, Range), asked
    ends = history.prices.dates[history.last_days.numpy()]
    inside = np.ones(len(ends), dtype=bool)
    if asked.start is not None:
        inside &= ends >= np.datetime64(asked.start)
    if asked.end is not None:
        inside &= ends <= np.datetime64(asked.end)
    at = np.flatnonzero(inside)[:: asked.every].tolist()
    if not at:
        raise ValueError(
            f"question.date: no window ends between start and end; there are {ends[0]} to {ends[-1]}"
        )
    return at


def _check_names(question: Question, assets: tuple[str, ...]) -> None:
    """Refuse names that are no assets, before anything is computed from them."""
    for word in ("target", "at_least", "at_most", "shift"):
        places(f"question.{word}", list(getattr(question, word) or ()), assets)
    places("question.top", [question.top] if question.top is not None else [], assets)
    places("question.exit", question.exit or (), assets)
    for index, group in enumerate(question.group or ()):
        places(f"question.group[{index}]", group.assets, assets)
    if question.target is not None:
        try:
            check_wanted(question.target, assets)
        except ValueError as error:
            raise ValueError(f"question.{error}") from None


def _of_today(question: Question) -> bool:
    """Whether the target depends on what is held, and so differs from date to date."""
    return any(part is not None for part in (question.target, question.shift, question.turnover))


def _target(question: Question, history: History, today: Tensor) -> Target:
    assets, wanted = history.prices.assets, list[Target]()
    if question.target is not None:
        wanted.append(fe.targets.exact(fill_target(question.target, today, assets)))
    for name, weight in (question.at_least or {}).items():
        wanted.append(fe.targets.at_least(name, weight))
    for name, weight in (question.at_most or {}).items():
        wanted.append(fe.targets.at_most(name, weight))
    if question.top is not None:
        wanted.append(fe.targets.top(question.top))
    wanted.extend(fe.targets.exit(name) for name in question.exit or ())
    for group in question.group or ():
        wanted.append(
            fe.targets.group(group.assets, group.weight, at_least=group.at_least, at_most=group.at_most)
        )
    for name, delta in (question.shift or {}).items():
        wanted.append(fe.targets.shift(name, delta, today=today))
    if question.turnover is not None:
        wanted.append(fe.targets.turnover(question.turnover, today=today))
    if question.concentration is not None:
        wanted.append(fe.targets.concentration(question.concentration))
    return wanted[0] if len(wanted) == 1 else fe.targets.all_of(*wanted)


def _loss(question: Question, target: Target) -> Any:
    """What is minimized: of one allocation the divergence, which does not stall near one-hot weights."""
    name = question.loss
    if name == "auto":
        name = "mse" if target.weights is None else "kl"
    return getattr(fe.losses, name)


def _seeds(starts: Starts) -> list[int]:
    return [starts.seed * starts.number + start for start in range(starts.number)]


def _search(
    question: Question, starts: Starts, history: History, at: list[int]
) -> tuple[Tensor, list[Any], dict[str, Any]]:
    """What may move, the transforms that make the search space, and what they map over dates."""
    x0 = history.windows[at[0]]
    if question.search == "scenario":
        mask, space, stacks = _scenario(question, history, at)
    else:
        mask = _free_part(question, history, x0.shape)
        space, stacks = [fe.standardize(history.mean, history.std)], {}
    transforms = [*([] if bool(mask.all()) else [fe.freeze]), *space]
    if starts.jitter > 0:
        transforms.append(fe.jitter(starts.jitter))
    if question.search == "features" and "volatility" in history.channels:
        # Only volatility is bounded: a negative one would be no market at all.
        lowest = torch.full_like(history.mean, -torch.inf)
        lowest[history.channels.index("volatility")] = 0.0
        transforms.append(fe.clip(lowest, torch.inf))
    return mask, transforms, stacks


def _scenario(
    question: Question, history: History, at: list[int]
) -> tuple[Tensor, list[Any], dict[str, Any]]:
    prices, dtype = history.prices, history.windows.dtype
    returns = fe.scenarios.base_returns(prices, history.last_days[at], history.lookback, history.span)
    returns = returns.to(dtype)
    try:
        cov = getattr(covariances, question.covariance)(log_returns(prices)).to(dtype)
        free = _free_part(question, history, returns.shape[1:])
        channels = [CHANNELS.index(name) for name in history.channels]
        own: dict[str, Any] = {}
        if history.channels != CHANNELS:
            # A window of fewer channels does not tell its returns: searches begin at those that were.
            own["features"] = lambda r: features(r, history.span)[channels]
            own["inverse"] = lambda window, r: r
        space = fe.scenarios.scenario(returns[0], cov, free=free, **own)
    except ValueError as error:
        raise ValueError(f"question.search: {error}") from None
    mask = fe.scenarios.reached(free, history.lookback)[channels]
    return mask, [space], {"returns": returns} if len(at) > 1 else {}


def _free_part(question: Question, history: History, shape: torch.Size) -> Tensor:
    """Which entries ``([C,] days, A)`` moves: where all of ``free`` agree and none of ``frozen``."""
    mask = torch.ones(shape, dtype=torch.bool)
    for part in _flags("question.free", question.free, history, mask):
        mask &= part
    for part in _flags("question.frozen", question.frozen, history, mask):
        mask &= ~part
    if not bool(mask.any()):
        raise ValueError("question.frozen: nothing is left that may move; free an asset, day or channel")
    return mask


def _flags(where: str, parts: Parts, history: History, like: Tensor) -> Iterator[Tensor]:
    if parts.assets is not None:
        at = places(f"{where}.assets", parts.assets, history.prices.assets)
        yield _at(like, -1, at)
    if parts.channels is not None:
        yield _at(like, 0, places(f"{where}.channels", parts.channels, history.channels))
    if parts.last_days is not None:
        days = like.shape[-2]
        if parts.last_days > days:
            raise ValueError(f"{where}.last_days: expected at most {days}, got {parts.last_days}")
        yield _at(like, -2, list(range(days - parts.last_days, days)))


def _at(like: Tensor, dim: int, at: list[int]) -> Tensor:
    """True at places along a dimension."""
    return torch.zeros_like(like).index_fill_(dim, torch.tensor(at), True)
