"""A small grid for trying a cluster; workers can import `build` if funcexplain is installed."""

from __future__ import annotations

import torch

from funcexplain.problems.mapping import vmap
from funcexplain.problems.problem import Problem, problem


def build(rows: int = 1000) -> Problem:
    """Make a grid that asks a softmax for every split between two assets.

    Args:
        rows: number of splits.

    Returns:
        A grid with one dimension, ``target``.

    Example:
        >>> build(rows=3).shape
        (3,)
    """
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
    first = torch.linspace(0.2, 0.8, rows)
    targets = torch.stack([first, 1.0 - first], dim=-1)
    return vmap(problem(network, targets[0], torch.zeros(1, 1, 2)), target=targets)
