"""The search space of a question: shocks to past or coming returns, or the features themselves.

Every date has its own market: covariance, volatility and scale are estimated from the prices up to that
date, so later prices do not change its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.config import QuestionConfig, WindowPart
from funcexplain.commands.features import Compute
from funcexplain.commands.history import History, positions
from funcexplain.markets import covariances
from funcexplain.markets.features import log_returns
from funcexplain.markets.models import MIN_DAYS
from funcexplain.markets.periods import unit_of
from funcexplain.markets.starts import replayed

# Dates for which a filtered history is estimated, each in about a second.
_MANY_DATES = 50
_DRIFT = 0.0


class Space(NamedTuple):
    """Where a question is searched.

    Attributes:
        x0: reference window of each date, ``(dates, C, L, A)``.
        mask: entries of the window that may change.
        transforms: of the first date's problem.
        stacks: what is mapped over dates, by name.
        market: the name of the model of returns, None for a search over features.
        search_points: from a date's number and positions of real windows ``(k,)`` to the search points
            ``(k, ...)`` at which its market repeats what they show, where it is free.
    """

    x0: Tensor
    mask: Tensor
    transforms: list[Any]
    stacks: dict[str, Any]
    market: str | None
    search_points: Callable[[int, Tensor], Tensor]


def make_space(question: QuestionConfig, history: History, chosen: list[int]) -> Space:
    """The search space of the windows at these positions."""
    if question.search == "features":
        return _features(question, history, chosen)
    try:
        return _scenario(question, history, chosen)
    except ValueError as error:
        if str(error).startswith("question."):
            raise
        raise ValueError(f"question.market: {error}") from None


def _features(question: QuestionConfig, history: History, chosen: list[int]) -> Space:
    """Each channel separately, in sigmas; only volatility is bounded, since it cannot be negative."""
    x0 = history.windows[chosen]
    mask = free_mask(question, history, x0.shape[1:])
    mean, std = (torch.stack(values) for values in zip(*map(history.scale, chosen), strict=True))
    transforms = [*([] if bool(mask.all()) else [fe.freeze]), fe.standardize(mean[0], std[0])]
    if "volatility" in history.channels:
        lowest = torch.full_like(mean[0], -torch.inf)
        lowest[history.channels.index("volatility")] = 0.0
        transforms.append(fe.clip(lowest, torch.inf))

    def search_points(date: int, places: Tensor) -> Tensor:
        return torch.where(mask, (history.windows[places] - mean[date]) / std[date], 0.0)

    stacks = {"x0": x0, "reference": x0, "mean": mean, "std": std}
    return Space(x0, mask, transforms, stacks, None, search_points)


def _scenario(question: QuestionConfig, history: History, chosen: list[int]) -> Space:
    """Shocks to the returns behind the windows, or to those of the coming days."""
    dtype, last_days, compute = history.windows.dtype, history.last_days[chosen], history.compute
    assert compute is not None, "a config with features.file searches over features"
    num_days, ahead = history.lookback + history.span - 1, question.ahead or 0
    if ahead > num_days:
        raise ValueError(
            f"question.ahead: expected at most lookback + span - 1 = {num_days} "
            f"{unit_of(history.period)}s, got {ahead}; a window shows only as many"
        )
    base = fe.scenarios.base_returns(history.prices, last_days, num_days, 1).to(dtype)
    if ahead:
        coming = base.new_full((len(chosen), ahead, base.shape[-1]), _DRIFT)
        base = torch.cat([base[:, ahead:], coming], dim=1)
    free = torch.zeros(base.shape[1:], dtype=torch.bool)
    first = num_days - ahead if ahead else 0
    free[first:] = free_mask(question, history, free[first:].shape)
    x0 = torch.stack([compute(returns) for returns in base]) if ahead else history.windows[chosen]
    name = _market(question, history, chosen)
    past = log_returns(history.prices).to(dtype)
    still = (past[: int(last_days.min())] == 0.0).all(0)
    if still.any():
        raise ValueError(
            f"question.market: every price must move, got a constant one of "
            f"{history.prices.assets[int(still.int().argmax())]!r}; leave it out of prices.assets"
        )
    models = [_model(name, question.covariance, past[:last]) for last in last_days.tolist()]
    own: Any = {}
    if not history.is_standard:
        # Returns cannot be recovered from other channels: searches start at the actual ones.
        own = {"features": compute, "inverse": lambda window, returns: returns}
    if ahead:
        prices = history.prices_until(chosen[0])
        transform = fe.scenarios.ahead(
            prices, ahead, drift=_DRIFT, model=models[0], free=free[first:], span=history.span, **own
        )
    else:
        transform = fe.scenarios.scenario(base[0], models[0], free=free, **own)
    mask = _reached(compute, base[0], free) if own else fe.scenarios.reached(free, history.lookback)
    data = [model.data(num_days, free=free, ahead=ahead) for model in models]

    def search_points(date: int, places: Tensor) -> Tensor:
        paths = replayed(base[date], past, history.last_days[places], free)
        return torch.func.vmap(lambda path: models[date].encode(path, base[date], data[date]))(paths)

    transforms = [*([] if bool(mask.all()) else [fe.freeze]), transform]
    stacks = {"x0": x0, "reference": x0, "returns": base, **fe.models.stack(data)}
    return Space(x0, mask, transforms, stacks, name, search_points)


def _reached(compute: Compute, base: Tensor, free: Tensor) -> Tensor:
    """Mask of the window's entries that change with the free returns."""
    noise = torch.arange(base.numel(), dtype=base.dtype).cos().view(base.shape)
    moved = [compute(base + torch.where(free, size * noise, 0.0)) for size in (0.01, -0.02)]
    return torch.stack([window != compute(base) for window in moved]).any(0)


def _market(question: QuestionConfig, history: History, chosen: list[int]) -> str:
    """The model of returns: by default a filtered history, where prices, time and scipy allow one."""
    if question.market != "auto":
        return question.market
    enough = int(history.last_days[chosen].min()) >= MIN_DAYS
    possible = enough and len(chosen) <= _MANY_DATES and find_spec("scipy") is not None
    return "filtered_history" if possible else "normal"


def _model(name: str, covariance: str, past: Tensor) -> fe.models.Model:
    """A model of returns, estimated from the returns up to a date."""
    if name == "filtered_history":
        return fe.models.filtered_history(past)
    cov = getattr(covariances, covariance)(past)
    return fe.models.normal(cov) if name == "normal" else fe.models.student_t(cov)


def free_mask(question: QuestionConfig, history: History, shape: torch.Size) -> Tensor:
    """Mask ``([C,] days, A)``, True = free: in every part of ``free`` and in none of ``frozen``."""
    mask = torch.ones(shape, dtype=torch.bool)
    for free in _part_masks("question.free", question.free, history, mask):
        mask &= free
    for frozen in _part_masks("question.frozen", question.frozen, history, mask):
        mask &= ~frozen
    if not bool(mask.any()):
        raise ValueError("question.frozen: no entry is free; free an asset, day or channel")
    return mask


def _part_masks(where: str, part: WindowPart, history: History, like: Tensor) -> Iterator[Tensor]:
    if part.assets is not None:
        yield _mark(like, -1, positions(f"{where}.assets", part.assets, history.prices.assets))
    if part.channels is not None:
        yield _mark(like, 0, positions(f"{where}.channels", part.channels, history.channels))
    if part.last_days is not None:
        days = like.shape[-2]
        if part.last_days > days:
            raise ValueError(f"{where}.last_days: expected at most {days}, got {part.last_days}")
        yield _mark(like, -2, list(range(days - part.last_days, days)))


def _mark(like: Tensor, dim: int, index: list[int]) -> Tensor:
    """Mask that is True at positions along a dimension."""
    return torch.zeros_like(like).index_fill_(dim, torch.tensor(index), True)
