"""A target as constraints on values: bounds with its tolerance; of shares, on their logits.

Shares of a portfolio, in (0, 1), are constrained by their logits, in which a softmax is nearly linear.
All functions take K values of one row, or of rows that lead.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.problems.criterion import Criterion
from funcexplain.solvers.damped_step import WIDE

# The part of the tolerance that is used, so that rounding does not lose a hit.
_TOLERANCE = 0.95
_LOGIT_MARGIN = 1e-9


class Constraints(NamedTuple):
    """Values that are constrained ``(K,)``, the factors of their rows of the Jacobian, and bounds."""

    values: Tensor
    factors: Tensor
    lower: Tensor
    upper: Tensor

    def violation(self) -> Tensor:
        """Sum of the distances of the values from their bounds."""
        values = self.values
        return ((self.lower - values).clamp_min(0.0) + (values - self.upper).clamp_min(0.0)).sum(-1)

    def price(self, values: Tensor, multipliers: Tensor, penalty: Tensor) -> Tensor:
        """What an augmented Lagrangian adds to the objective for some values."""
        known = torch.cat([multipliers, -multipliers], -1).clamp_min(0.0)
        beyond = torch.cat([values - self.upper, self.lower - values], -1)
        grown = (known + penalty.unsqueeze(-1) * beyond).clamp_min(0.0)
        return (grown.square() - known.square()).sum(-1) / (2.0 * penalty)


def bound_values(
    criterion: Criterion, weights: Tensor, target: Tensor, atol: float, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The bounds of what a target measures, ``(lower, upper, strict)``, with its tolerance.

    Args:
        criterion: how weights are compared with the target.
        weights: at any point.
        target: as in ``args``.
        atol: tolerance of a hit.
        rows: number of leading row dimensions, 0 or 1.

    Returns:
        The bounds, infinite for none, and where no tolerance applies, ``(K,)`` each.
    """
    shape = criterion.compare(weights, target)[0].shape
    lower, upper, strict = (t.expand(shape).flatten(rows) for t in criterion.bounds(target))
    slack, lower = _TOLERANCE * atol, lower.to(WIDE)
    # An order must hold without tolerance.
    least = torch.where(strict, torch.maximum(lower - slack, 0.1 * lower), lower - slack)
    return least, upper.to(WIDE) + slack, strict


def are_shares(measured: Tensor, weights: Tensor, strict: Tensor, rows: int) -> Tensor:
    """Which values are shares of a portfolio: numbers in (0, 1), of weights that sum to one."""
    sums_to_one = ((weights.sum(-1, keepdim=True) - 1.0).abs() < 1e-3).flatten(rows).all(-1)
    is_portfolio = sums_to_one & (weights >= 0.0).flatten(rows).all(-1)
    return is_portfolio.unsqueeze(-1) & (measured > 0.0) & (measured < 1.0) & ~strict


def to_logits(bounds: Tensor, in_logits: Tensor) -> Tensor:
    """Bounds of values, some of which are constrained by their logits."""
    # A logit of a number outside (0, 1) is infinite: no bound.
    return torch.where(in_logits, torch.logit(bounds.clamp(0.0, 1.0)), bounds)


def constrain(measured: Tensor, lower: Tensor, upper: Tensor, in_logits: Tensor) -> Constraints:
    """The constraints on measured values, some of them by their logits, as their bounds are."""
    measured = measured.to(WIDE)
    inside = measured.clamp(_LOGIT_MARGIN, 1.0 - _LOGIT_MARGIN)
    values = torch.where(in_logits, torch.logit(inside), measured)
    factors = torch.where(in_logits, 1.0 / (inside * (1.0 - inside)), 1.0)
    return Constraints(values, factors, lower, upper)
