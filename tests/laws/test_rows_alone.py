"""The law: a row of a grid is solved as if alone. For all catalogues and axes, and at random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import funcexplain as fe
from tests.grids import (
    AXES,
    F64,
    assert_rows_equal_alone,
    gentle,
    mixed,
)
from tests.helpers import (
    LOSSES,
    NETWORKS,
    OPTIMIZERS,
    PENALTIES,
    TRANSFORMS,
    make_problem,
    pairs,
    params,
)


@pytest.mark.parametrize("name", params(NETWORKS))
def test_a_batch_is_a_loop_for_every_network(name: str) -> None:
    assert_rows_equal_alone(mixed(fe.freeze(make_problem(name))), gentle, max_steps=4, chunk_size=3)


@pytest.mark.parametrize(("transform", "optimizer"), pairs(TRANSFORMS, OPTIMIZERS))
def test_a_batch_is_a_loop_for_every_transform_and_optimizer(transform: str, optimizer: str) -> None:
    grid = mixed(TRANSFORMS[transform](make_problem()))
    # Adam divides by the gradient's own size, and so magnifies rounding at every step.
    within = (1e-12, 1e-12 if "adam" in optimizer else 1e-14)
    assert_rows_equal_alone(grid, OPTIMIZERS[optimizer], max_steps=6, keep="best", within=within)


@pytest.mark.parametrize(("loss", "penalty"), pairs(LOSSES, PENALTIES))
def test_a_batch_is_a_loop_for_every_loss_and_penalty(loss: str, penalty: str) -> None:
    penalize = fe.penalize(PENALTIES[penalty], strength=0.05)
    grid = mixed(penalize(make_problem(loss=LOSSES[loss])))
    assert_rows_equal_alone(grid, lambda: fe.sgd(lr=0.1), max_steps=4)


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_a_batch_is_a_loop_for_random_grids(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=generator)

    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.softmax(p["w"] @ x.flatten(), -1)

    problem = fe.problem(
        (apply, {"w": random(3, 6)}), torch.full((3,), 1 / 3, dtype=F64), random(1, 2, 3)
    )
    grid = fe.jitter(0.1)(fe.freeze(problem))
    names = ["x0", "target", "reference", "mask", "seed", "params"]
    for _ in range(data.draw(st.integers(1, 3))):
        size, stacks = data.draw(st.integers(1, 3)), dict[str, Any]()
        for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
            entry = grid.args[name]["w"] if name == "params" else grid.args[name]
            stack = random(size, *entry.shape)
            other = {"mask": stack > 0, "seed": (9 * stack).long(), "params": {"w": stack}}
            stacks[name] = other.get(name, stack)
        grid = fe.vmap(grid, **stacks)
    patience: Any = data.draw(st.sampled_from([{}, {"patience": 1, "rtol": 0.2}]))
    found = assert_rows_equal_alone(
        grid,
        gentle,
        atol=data.draw(st.sampled_from([0.0, 0.1, 0.3])),
        **patience,
        max_steps=data.draw(st.integers(0, 4)),
        history=data.draw(st.sampled_from([True, 2, False])),
        chunk_size=data.draw(st.sampled_from([None, 1, 2, 3, 5])),
    )
    assert not (found.status == fe.Status.INTERRUPTED).any()  # type: ignore[union-attr]


@pytest.mark.parametrize("axis", params(AXES))
def test_a_batch_is_a_loop_along_every_axis(axis: str) -> None:
    transform, stacks = AXES[axis]
    grid = fe.vmap(transform(make_problem()), **stacks(4, F64))
    assert_rows_equal_alone(grid, gentle, max_steps=6)
    # Adam divides by the gradient's own size, and magnifies rounding at every step: a short run.
    settings: Any = {"max_steps": 10, "keep": "best", "within": (1e-12, 1e-13)}
    solution = assert_rows_equal_alone(grid, lambda: fe.adam(lr=0.05), **settings)
    assert len({tuple(x.flatten().tolist()) for x in solution.x}) == 4  # the axis matters
