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
    named, _, gross, total = _split(wanted, today, assets)
    return named + (1.0 - sum(wanted.values())) * gross / total


def fill_active(wanted: Mapping[str, float], today: Tensor, assets: Sequence[str]) -> Tensor:
    """Complete the weights of a long-short portfolio: the others fund the change by gross weight.

    The portfolio's total remains, as in `fe.targets.shift`. Others without weights share it equally.

    Example:
        >>> fill_active({"EUR": 0.5}, torch.tensor([0.2, 0.4, -0.4]), ["EUR", "JPY", "GBP"])
        tensor([ 0.5000,  0.2500, -0.5500])
    """
    named, others, gross, total = _split(wanted, today, assets)
    change = (named - today)[~others].sum()
    return named + today * others - change * gross / total


def _split(
    wanted: Mapping[str, float], today: Tensor, assets: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of the named assets, which are the others, their gross weights and the sum of these."""
    others = torch.tensor([name not in wanted for name in assets])
    named = torch.tensor([wanted.get(name, 0.0) for name in assets], dtype=today.dtype)
    gross = today.abs() * others
    gross = gross if gross.sum() > 0 else others.to(today)
    return named, others, gross, gross.sum().clamp_min(torch.finfo(today.dtype).tiny)


def check_wanted(
    wanted: Mapping[str, float], assets: Sequence[str], *, long_short: bool = False
) -> None:
    """Raise unless `fill_target`, or `fill_active` if ``long_short``, can complete weights by asset."""
    lowest = -1.0 if long_short else 0.0
    for name, weight in wanted.items():
        if name not in assets:
            raise ValueError(f"target: no asset {name!r}; choose from {', '.join(assets)}")
        if not lowest <= weight <= 1.0:
            hint = f'; {weight:g} percent is "{weight:g}%"' if 1.0 < weight <= 100.0 else ""
            raise ValueError(
                f"target: expected the weight of {name} in {lowest:g} ... 1, got {weight:g}{hint}"
            )
    if long_short:
        return
    total = sum(wanted.values())
    if total > 1.0 + _ROUNDING:
        raise ValueError(f"target: expected weights that sum to at most 1, got {total:g}")
    if len(wanted) == len(assets) and total < 1.0 - _ROUNDING:
        raise ValueError(
            f"target: all assets are named, so the weights have to sum to 1, got {total:g}; "
            "leave one asset out and it gets the rest"
        )
