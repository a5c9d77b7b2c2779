"""Shapley values of groups of entries: the average change of weights as a group moves from start to end.

``phi[g]`` is the mean, over all orders of groups, of the change that ``g`` adds to those before it. Only
windows are evaluated, never gradients, so kinks and jumps of a network do not matter.

References:
    L. S. Shapley (1953), A Value for n-Person Games, https://doi.org/10.1515/9781400881970-018;
    J. Castro, D. Gómez, J. Tejada (2009), Polynomial Calculation of the Shapley Value Based on Sampling,
    https://doi.org/10.1016/j.cor.2008.04.004
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from funcexplain.networks.noise import uniform

EXACT_GROUPS = 12
"""The largest number of groups whose coalitions are all evaluated."""

Worth = Callable[[Tensor], Tensor]
"""From coalitions, bool ``(M, G)``, to weights ``(M, K)``, float64."""


def exact(worth: Worth, count: int, device: torch.device) -> Tensor:
    """Shapley values ``(K, G)`` from all ``2**G`` coalitions.

    Example:
        >>> double = lambda coalitions: coalitions.double() @ torch.tensor([[2.0], [3.0]]).double()
        >>> exact(double, 2, torch.device("cpu"))
        tensor([[2., 3.]], dtype=torch.float64)
    """
    numbers = torch.arange(2**count, device=device)
    members = (numbers[:, None] >> torch.arange(count, device=device)) & 1 == 1
    values, sizes = worth(members), members.sum(1)
    shares = [1.0 / (count * math.comb(count - 1, size)) for size in range(count)]
    share = torch.tensor(shares, dtype=values.dtype, device=device)
    found = []
    for group in range(count):
        without = numbers[~members[:, group]]
        gains = values[without + (1 << group)] - values[without]
        found.append(share[sizes[without]] @ gains)
    return torch.stack(found, -1)


def sampled(
    worth: Worth, count: int, draws: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Estimates ``(K, G)`` from random orders, each also reversed, and their standard errors.

    The gains of each order add up to the change, and so do the estimates.

    Example:
        >>> double = lambda coalitions: coalitions.double() @ torch.tensor([[2.0], [3.0]]).double()
        >>> sampled(double, 2, 4, 0, torch.device("cpu"))[0]
        tensor([[2., 3.]], dtype=torch.float64)
    """
    places = uniform(torch.tensor(seed, device=device), (draws, count)).argsort(1)
    places = torch.stack([places, count - 1 - places])  # of each group in an order, and in its reverse
    steps = torch.arange(count + 1, device=device)
    coalitions = places[..., None, :] < steps[:, None]
    values = worth(coalitions.flatten(0, 2)).unflatten(0, coalitions.shape[:3])
    gains = values.diff(dim=2).gather(2, places[..., None].expand(-1, -1, -1, values.shape[-1]))
    pairs = gains.mean(0)
    return pairs.mean(0).T, pairs.std(0).T / math.sqrt(draws)
