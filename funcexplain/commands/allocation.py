"""Whole allocations from the weights of some assets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_ROUNDING = 1e-9


def fill_target(wanted: Mapping[str, float], today: Tensor, assets: Sequence[str]) -> Tensor:
    """Complete an allocation ``(A,)``: named assets as wanted, the others in today's proportions.

    Where the others have no weight today, they share the rest equally.

    Example:
        >>> fill_target({"EUR": 0.5}, torch.tensor([0.2, 0.2, 0.6]), ["EUR", "JPY", "GBP"])
        tensor([0.5000, 0.1250, 0.3750])
    """
    others = torch.tensor([name not in wanted for name in assets])
    named = torch.tensor([wanted.get(name, 0.0) for name in assets], dtype=today.dtype)
    shares = today * others
    shares = shares if shares.sum() > 0 else others.to(today)
    rest = 1.0 - sum(wanted.values())
    return named + rest * shares / shares.sum().clamp_min(torch.finfo(today.dtype).tiny)


def check_wanted(wanted: Mapping[str, float], assets: Sequence[str]) -> None:
    """Raise unless `fill_target` can complete weights by asset to an allocation."""
    for name, weight in wanted.items():
        if name not in assets:
            raise ValueError(f"target: no asset {name!r}; choose from {', '.join(assets)}")
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"target: expected the weight of {name} in 0 ... 1, got {weight:g}")
    total = sum(wanted.values())
    if total > 1.0 + _ROUNDING:
        raise ValueError(f"target: expected weights that sum to at most 1, got {total:g}")
    if len(wanted) == len(assets) and total < 1.0 - _ROUNDING:
        raise ValueError(
            f"target: all assets are named, so the weights have to sum to 1, got {total:g}; "
            "leave one asset out and it gets the rest"
        )
