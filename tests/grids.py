"""Grids of rows that the laws run over: one axis for every entry of ``args``, and the law itself.

``AXES`` lists what a grid can be mapped over: a transform that makes the entry matter, and stacks of a
given size. A newcomer joins the list, and thereby the laws of `vmap` and of the rows' solver.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

import funcexplain as fe
from tests.helpers import SHAPE, assert_close, make_network, make_target, make_x0

F64 = torch.float64


class Axis(NamedTuple):
    """What a grid is mapped over: ``stacks(size, dtype)``, after a transform that makes them matter."""

    transform: Callable[[fe.Problem], fe.Problem]
    stacks: Callable[[int, torch.dtype], dict[str, Any]]


def x0s(size: int, dtype: torch.dtype = F64, seed: int = 10) -> Tensor:
    """Starts within [-3.9, 3.9], so that they lie in the catalogue's bounds."""
    return torch.stack([make_x0(dtype, seed + row) for row in range(size)]).clamp(-3.9, 3.9)


def targets(size: int, dtype: torch.dtype = F64, seed: int = 20) -> Tensor:
    """Allocations with every weight well above zero."""
    return torch.stack([make_target(dtype, seed + row) for row in range(size)])


def masks(size: int) -> Tensor:
    """Masks that free about half of the entries."""
    return torch.rand((size, *SHAPE), generator=torch.Generator().manual_seed(4)) < 0.5


def models(size: int, dtype: torch.dtype = F64, name: str = "mlp_tanh") -> dict[str, Tensor]:
    """Parameters of networks of one kind, stacked."""
    networks = [make_network(name, dtype) for _ in range(size)]
    with torch.random.fork_rng(devices=[]):
        for row, network in enumerate(networks):
            torch.manual_seed(row)
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
    return fe.stack(networks)[1]


def numbers(size: int, dtype: torch.dtype, least: float, most: float) -> Tensor:
    """Evenly spaced scalars."""
    return torch.linspace(least, most, size, dtype=F64).to(dtype)


def gentle() -> fe.Optimizer:
    """An optimizer whose steps are in proportion to the gradient, so that rounding does not grow."""
    return fe.sgd(lr=0.5)


def mixed(problem: fe.Problem, size: int = 5) -> fe.Problem:
    """A grid in which every row has a start, target, mask and seed of its own."""
    dtype = problem.args["x0"].dtype
    stacks: dict[str, Any] = {"x0": x0s(size, dtype), "target": targets(size, dtype)}
    return fe.vmap(problem, **stacks, mask=masks(size), seed=torch.arange(size))


def as_is(problem: fe.Problem) -> fe.Problem:
    """The transform that changes nothing."""
    return problem


AXES: dict[str, Axis] = {
    "x0": Axis(as_is, lambda n, d: {"x0": x0s(n, d)}),
    "target": Axis(as_is, lambda n, d: {"target": targets(n, d)}),
    "frozen_mask": Axis(fe.freeze, lambda n, d: {"mask": masks(n)}),
    "zeroed_mask": Axis(fe.zero_masked, lambda n, d: {"mask": masks(n)}),
    "frozen_reference": Axis(fe.freeze, lambda n, d: {"reference": x0s(n, d)}),
    "penalized_reference": Axis(
        fe.penalize(fe.penalties.l2, strength=0.1), lambda n, d: {"reference": x0s(n, d)}
    ),
    "seed": Axis(fe.jitter(0.3), lambda n, d: {"seed": torch.arange(n)}),
    "jitter": Axis(fe.jitter(0.3), lambda n, d: {"jitter": numbers(n, d, 0.0, 1.0)}),
    "params": Axis(as_is, lambda n, d: {"params": models(n, d)}),
    "strength": Axis(
        fe.penalize(fe.penalties.l2, strength=0.1, name="proximity"),
        lambda n, d: {"proximity": numbers(n, d, 0.0, 2.0)},
    ),
    "box_bounds": Axis(
        fe.box(-4.0, 4.0),
        lambda n, d: {"lower": numbers(n, d, -5.0, -0.2), "upper": numbers(n, d, 0.1, 6.0)},
    ),
    "clip_bounds": Axis(
        fe.clip(-4.0, 4.0),
        lambda n, d: {"lower": numbers(n, d, -5.0, -0.2), "upper": numbers(n, d, 0.1, 6.0)},
    ),
    "units": Axis(
        fe.standardize(0.1, 0.7),
        lambda n, d: {"mean": numbers(n, d, -1.0, 1.0), "std": numbers(n, d, 0.3, 2.0)},
    ),
    "window_by_window": Axis(
        lambda p: fe.jitter(0.1)(fe.freeze(p)),
        lambda n, d: {
            "x0": x0s(n, d),
            "reference": x0s(n, d, seed=30),
            "target": targets(n, d),
            "mask": masks(n),
            "seed": 5 + torch.arange(n),
        },
    ),
}


def row_indices(grid: fe.Problem | fe.Solution) -> list[tuple[int, ...]]:
    """The indices of all rows."""
    return list(itertools.product(*map(range, grid.shape)))


def without_nan(solution: fe.Solution) -> Any:
    """A solution whose NaN are numbers, so that it can be compared."""
    tree: Any = solution
    return optree.tree_map(lambda leaf: leaf.nan_to_num(nan=-7.0), tree)


def assert_rows_equal_alone(
    grid: fe.Problem,
    method: Callable[[], Any],
    *,
    within: tuple[float, float] = (1e-12, 1e-14),
    **settings: Any,
) -> fe.Solution:
    """THE law: every row of a grid's solution is the solution of that row's problem.

    ``within`` are rtol and atol of the comparison; ``settings`` go to `solve`.
    """
    solution = fe.solve(grid, method(), **settings)
    assert solution.shape == grid.shape
    assert solution.dims == tuple(dim.name for dim in grid.dims)
    rtol, atol = within
    for index in row_indices(grid):
        alone = fe.solve(grid[index], method(), **settings)
        assert_close(without_nan(solution[index]), without_nan(alone), rtol=rtol, atol=atol)
    return solution


def assert_padded(solution: fe.Solution, every: int = 1) -> None:
    """A row's history is known up to its end, and NaN from there on."""
    steps = every * torch.arange(solution.history.shape[-1])
    after = steps >= solution.num_steps[..., None]
    assert torch.equal(solution.history.isnan(), after)
