"""What the laws of compiled steps share: settings, grids, and the comparison with plain steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import funcexplain as fe
from tests.grids import masks, targets, without_nan, x0s
from tests.helpers import assert_close

CANNOT = "cannot be compiled, goes on uncompiled: "
SETTINGS: dict[str, Any] = {"max_steps": 12, "atol": 0.03}


class Trace(NamedTuple):
    """What was compiled: rows and steps in one call."""

    rows: int
    unroll: int


def steady() -> fe.Optimizer:
    return fe.sgd(lr=0.5)


def wild() -> fe.Optimizer:
    """Rows hit, or do not, each at a step of its own."""
    return fe.sgd(lr=20.0, momentum=0.9)


def mixed(problem: fe.Problem, size: int = 6) -> fe.Problem:
    """A grid in which every row has a start, target, mask and seed of its own."""
    dtype = problem.args["x0"].dtype
    stacks: dict[str, Any] = {"x0": x0s(size, dtype), "target": targets(size, dtype)}
    return fe.vmap(problem, **stacks, mask=masks(size), seed=torch.arange(size))


def assert_answers_are_those_of_plain_steps(
    problem: fe.Problem, method: Any, within: float = 1e-10, **settings: Any
) -> fe.Solution:
    """THE law: x, weights, loss, history, number of steps and status do not tell the two apart."""
    found = fe.solve(problem, method(), compile=True, **settings)
    expected = fe.solve(problem, method(), compile=False, **settings)
    assert_close(without_nan(found), without_nan(expected), rtol=within, atol=within)
    assert found.dims == expected.dims
    return found


# --- machine code ---------------------------------------------------------------------------------

# What torch says of its own code when Inductor is imported.
