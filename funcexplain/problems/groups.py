"""Groups of entries, of a window or of a search point: assets, days, channels, or any others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_AXES = {"assets": -1, "days": -2, "periods": -2, "channels": -3}


def number_groups(where: str, groups: Any, like: Tensor, meaning: str) -> Tensor | None:
    """The number of each entry's group, of the shape of ``like``; None if each entry is its own.

    Args:
        where: name of the public function, for messages.
        groups: ``"entries"``, ``"assets"``, ``"days"`` (or ``"periods"``), ``"channels"``, or integers
            >= 0 in the shape of ``like``.
        like: tensor of the entries to group.
        meaning: a name of ``like``, for messages.

    Example:
        >>> number_groups("closest", "assets", torch.zeros(2, 3), "the window")
        tensor([[0, 1, 2],
                [0, 1, 2]])
    """
    if isinstance(groups, Tensor):
        if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
            raise TypeError(f"{where}: groups must hold integers, got {groups.dtype}")
        if groups.shape != like.shape or bool((groups < 0).any()):
            raise ValueError(
                f"{where}: groups must hold numbers >= 0 in the shape of {meaning} "
                f"{tuple(like.shape)}, got {tuple(groups.shape)}"
            )
        return groups.to(like.device, torch.int64)
    if not isinstance(groups, str) or groups not in ("entries", *_AXES):
        raise ValueError(
            f"{where}: groups must be one of {['entries', *_AXES]} or a tensor of group numbers, "
            f"got {groups!r}"
        )
    if groups == "entries":
        return None
    axis = _AXES[groups]
    if like.ndim < -axis:
        raise ValueError(
            f"{where}: groups must be an axis of {meaning} {tuple(like.shape)}, got {groups!r}"
        )
    numbers = torch.arange(like.shape[axis], device=like.device)
    return numbers.view(-1, *[1] * (-axis - 1)).expand(like.shape)
