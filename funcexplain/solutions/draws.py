"""Draws: a `Solution` of equally weighted markets, with diagnostics of their chains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import optree

from funcexplain.solutions import solution
from funcexplain.solutions.solution import Solution


class Mixing(NamedTuple):
    """How well Markov chains mixed.

    Measured on summaries: the size of the shocks, their direction, the error, each asset's mean shock.

    Attributes:
        acceptance: share of accepted moves.
        effective_sample_size: independent draws with the same error of the mean, for the quantity that
            mixes worst.
        rhat: split R-hat of the quantity that mixes worst; 1 where chains agree.
        moves: number of moves of a chain between two draws.
        num_forwards: number of windows at which the network was called.
        num_chains: number of chains.
    """

    acceptance: float
    effective_sample_size: float
    rhat: float
    moves: int
    num_forwards: int
    num_chains: int


@dataclass(frozen=True, eq=False, repr=False)
class Draws(Solution):
    """The solution that `sample` returns.

    Attributes:
        mixing: diagnostics of the chains; None for a selection of draws.
    """

    mixing: Mixing | None = None


optree.register_pytree_node(
    cast(type, Draws),
    solution._flatten,
    solution.unflatten,
    namespace=optree.registry.__GLOBAL_NAMESPACE,
)
