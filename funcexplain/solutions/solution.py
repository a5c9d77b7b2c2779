"""The answer: a frozen `Solution`, and the `Status` that says how the search ended."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, cast

import optree
import torch
from torch import Tensor


class Status(IntEnum):
    """How a search ended; `sentence` says it in words.

    Example:
        >>> Status.HIT.sentence
        'The target is hit: every weight is within atol of it.'
    """

    HIT = 0
    STALLED = 1
    MAX_STEPS = 2
    NONFINITE = 3

    def __str__(self) -> str:
        return self.name

    @property
    def sentence(self) -> str:
        """What the status means, for a reader of the answer."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.HIT: "The target is hit: every weight is within atol of it.",
    Status.STALLED: "The search stalled: the gradient is zero, and nothing moves the input.",
    Status.MAX_STEPS: "The budget of max_steps was used up before the target was hit.",
    Status.NONFINITE: "A value or gradient was not finite; this is the last finite input.",
}


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """What `solve` found. ``weights`` and ``loss`` belong to ``x``.

    An optree node: its leaves are the six fields, as tensors.

    Attributes:
        x: window that the search ended with, shape ``(C, L, A)``, in the problem's dtype.
        weights: what the network holds there, shape ``(A,)``.
        loss: misfit of ``weights`` to the target, scalar.
        history: loss before each update, shape ``(num_steps,)``.
        num_steps: updates that were taken, scalar int64.
        status: how the search ended.
    """

    x: Tensor
    weights: Tensor
    loss: Tensor
    history: Tensor
    num_steps: Tensor
    status: Status

    def __repr__(self) -> str:
        told = ("status", "loss", "num_steps", "x")
        return f"Solution({', '.join(f'{name}={_short(getattr(self, name))}' for name in told)})"


def _short(value: Any) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    if value.ndim == 0:
        return f"{value.item():.3g}" if value.is_floating_point() else str(value.item())
    return f"{tuple(value.shape)} {value.dtype}"


def _flatten(solution: Any) -> tuple[list[Tensor], None, tuple[str, ...]]:
    names = tuple(field.name for field in fields(Solution))
    *tensors, status = (getattr(solution, name) for name in names)
    return (
        [*tensors, torch.as_tensor(status, dtype=torch.int64) if isinstance(status, Status) else status],
        None,
        names,
    )


def _unflatten(metadata: object, leaves: Any) -> Any:
    del metadata
    x, weights, loss, history, num_steps, status = leaves
    # A mapped tree may hold anything at its leaves; only a code is a status again.
    coded = isinstance(status, Tensor) and status.ndim == 0 and status.dtype is torch.int64
    if coded and int(status) in list(Status):
        status = Status(int(status))
    return Solution(x, weights, loss, history, num_steps, status)


optree.register_pytree_node(
    cast(Any, Solution), _flatten, _unflatten, namespace=optree.registry.__GLOBAL_NAMESPACE
)
