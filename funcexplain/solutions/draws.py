"""Draws: a `Solution` of equally weighted markets, and how well the chains that drew them mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import optree

from funcexplain.solutions import solution
from funcexplain.solutions.solution import Solution


class Mixing(NamedTuple):
    """How well Markov chains mixed.

    Over summary quantities: the size of the shocks, their direction, the error, each asset's mean shock.

    Attributes:
        acceptance: share of moves that were made.
        effective_sample_size: independent draws with the same error of the mean, for the quantity that
            mixes worst.
        rhat: split R-hat of the quantity that mixes worst; 1 where chains agree.
        moves: of a chain between two draws.
        num_forwards: windows at which the network was called.
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
        mixing: how well the draws mixed; None for a part of them.
    """

    mixing: Mixing | None = None


optree.register_pytree_node(
    cast(type, Draws),
    solution._flatten,
    solution.unflatten,
    namespace=optree.registry.__GLOBAL_NAMESPACE,
)
