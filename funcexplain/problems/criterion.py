"""What is compared with what: the weights with an allocation, or what goals measure with their bounds.

A target in ``args`` is a tensor, so that rows may vary in it. For one allocation it is that, ``(A,)``.
Goals are rows of numbers, ``(K, A + 3)``: coefficients, what they measure (a kind), and two bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# What a row of goals measures of weights w, with coefficients v.
LINEAR = 0  # sum(v * w)
TURNOVER = 1  # sum(|w - v|) / 2
CONCENTRATION = 2  # sum(w**2)


class Criterion(NamedTuple):
    """How weights are compared with a target; both may lead with rows.

    Attributes:
        compare: ``(weights, target) -> (measured, nearest)``: what is measured of the weights, and the
            nearest values with which the target is met. The target is hit where both are equal.
        weights_like: from a target to a tensor of the shape of the weights.
        ndim: dimensions of one target.
        from_today: whether the target was made from today's weights, those at the reference.
    """

    compare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    weights_like: Callable[[Tensor], Tensor]
    ndim: int
    from_today: bool = False

    def error(self, weights: Tensor, target: Tensor, rows: int = 0) -> Tensor:
        """Largest distance of what is measured from where the target is met, of each row.

        Args:
            weights: allocation ``(A,)``, of all models of a consensus ``(M, A)``.
            target: as in ``args``.
            rows: number of leading dimensions, 0 or 1.
        """
        measured, nearest = self.compare(weights, target)
        return (measured - nearest).flatten(rows).abs().amax(-1)


def _allocations(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return weights, target


def _goals(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    coefficients, kind, lower, upper = rows[..., :-3], rows[..., -3], rows[..., -2], rows[..., -1]
    own = weights.unsqueeze(-2)
    measured = torch.where(
        kind == LINEAR,
        (coefficients * own).sum(-1),
        torch.where(
            kind == TURNOVER,
            0.5 * (own - coefficients).abs().sum(-1),
            own.square().sum(-1),
        ),
    )
    return measured, torch.minimum(torch.maximum(measured, lower), upper)


EXACT = Criterion(_allocations, lambda target: target, ndim=1)
GOALS = Criterion(_goals, lambda rows: rows[..., 0, :-3], ndim=2)
