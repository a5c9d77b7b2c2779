"""Laws of compiled steps: the answers of plain ones, one trace for each size, or a reason why not.

A C++ compiler takes seconds for each step. Where not the machine code but what is around it is tested,
the traced graph itself is run in its place (`traced`).
"""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch._inductor
from torch import Tensor

import funcexplain as fe
from tests.engine.compilation import (
    CANNOT,
    SETTINGS,
    Trace,
    assert_answers_are_those_of_plain_steps,
    mixed,
    steady,
    wild,
)
from tests.grids import AXES, F64, assert_padded, masks, models, targets, without_nan, x0s
from tests.helpers import (
    LOOKBACK,
    LOSSES,
    NETWORKS,
    OPTIMIZERS,
    RECURRENT,
    TRANSFORMS,
    assert_close,
    assert_same,
    assert_untouched,
    make_mask,
    make_network,
    make_problem,
    make_target,
    make_x0,
    params,
    snapshot,
)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("mlp_tanh", "adam"),
        ("conv_instance_norm", "sgd"),
        ("with_buffers", "sgd_momentum"),
    ],
)
def test_machine_code_gives_the_answers_of_plain_steps(
    traces: list[Trace], said: pytest.LogCaptureFixture, name: str, optimizer: str
) -> None:
    network = make_network(name)
    before = snapshot(network)
    starts = x0s(7)
    starts[2] = math.nan
    grid = fe.vmap(fe.freeze(make_problem(network)), x0=starts, target=targets(7))
    found = assert_answers_are_those_of_plain_steps(
        grid, OPTIMIZERS[optimizer], max_steps=20, atol=0.02, keep="best", chunk_size=5
    )
    assert_untouched(before, network)
    assert traces == [Trace(5, 1)]
    (record,) = said.records
    assert re.fullmatch(r"compiled a step of 5 rows in \d+\.\d s", record.getMessage())
    assert record.levelno == logging.INFO
    assert found[2].status is fe.Status.NONFINITE
    assert found.loss.isfinite().sum() == 6


def test_machine_code_of_several_steps_gives_the_answers_of_plain_ones(traces: list[Trace]) -> None:
    def apply(p: Any, x: Tensor) -> Tensor:
        return torch.softmax(torch.tanh(x[0, 0]) + p["shift"], -1)

    problem = make_problem((apply, {"shift": make_target(seed=9)}), target=make_target(seed=3))
    found = assert_answers_are_those_of_plain_steps(problem, wild, 1e-9, max_steps=88, atol=0.02)
    assert found.status is fe.Status.HIT
    assert int(found.num_steps) % 2
    assert traces == [Trace(1, 2)]


# --- every network, transform, optimizer, loss and axis can be traced -----------------------------


def turns(catalogue: Iterable[str], count: int = len(NETWORKS)) -> list[str]:
    """Names that take turns."""
    return list(itertools.islice(itertools.cycle(catalogue), count))


@pytest.mark.parametrize(
    ("name", "transform", "loss", "optimizer"),
    list(zip(NETWORKS, turns(TRANSFORMS), turns(LOSSES), turns(OPTIMIZERS), strict=True)),
)
def test_every_network_transform_loss_and_optimizer_can_be_traced(
    traced: list[Trace],
    said: pytest.LogCaptureFixture,
    name: str,
    transform: str,
    loss: str,
    optimizer: str,
) -> None:
    days = 2 if name in RECURRENT else LOOKBACK  # every day is code of its own
    x0, mask = make_x0()[:, :days], make_mask()[:, :days]
    problem = TRANSFORMS[transform](make_problem(name, x0=x0, mask=mask, loss=LOSSES[loss]))
    stacks: Any = {"x0": x0s(6)[:, :, :days], "mask": masks(6)[:, :, :days]}
    grid = fe.vmap(problem, target=targets(6), seed=torch.arange(6), **stacks)
    assert_answers_are_those_of_plain_steps(grid, OPTIMIZERS[optimizer], keep="best", **SETTINGS)
    assert len(traced) == 1
    assert CANNOT not in said.text


@pytest.mark.parametrize("how", ["vmap", "samples"])
def test_rows_lie_where_they_were_told_to(traced: list[Trace], how: Any) -> None:
    assert_answers_are_those_of_plain_steps(mixed(make_problem()), steady, max_steps=8, rows=how)
    assert len(traced) == 1


@pytest.mark.parametrize("axis", params(AXES))
def test_a_grid_along_every_axis_can_be_traced(
    traced: list[Trace], said: pytest.LogCaptureFixture, axis: str
) -> None:
    transform, stacks = AXES[axis]
    grid = fe.vmap(transform(make_problem()), **stacks(7, F64))
    assert_answers_are_those_of_plain_steps(grid, steady, chunk_size=5, **SETTINGS)
    assert len(traced) == 1
    assert CANNOT not in said.text


def test_single_precision_and_casts_keep_their_dtype(traced: list[Trace]) -> None:
    for problem in (
        make_problem(dtype=torch.float32),
        fe.cast(dtype=torch.float32)(make_problem()),
        fe.cast(dtype=torch.bfloat16)(make_problem()),
    ):
        grid = fe.vmap(problem, target=targets(5, problem.args["x0"].dtype))
        rough = 1e-4 if problem.args["x0"].dtype is torch.float32 else 0.05
        assert_answers_are_those_of_plain_steps(grid, steady, within=rough, max_steps=6)
    assert len(traced) == 3


def test_the_noise_of_dropout_belongs_to_the_row(traced: list[Trace]) -> None:
    pair = fe.functionalize(make_network("attention"), train=True)
    assert_answers_are_those_of_plain_steps(mixed(make_problem(pair)), steady, max_steps=8)
    assert len(traced) == 1


def test_a_consensus_can_be_traced(traced: list[Trace]) -> None:
    folded = fe.consensus(fe.vmap(make_problem(), params=models(3)))
    assert_answers_are_those_of_plain_steps(fe.vmap(folded, x0=x0s(5)), steady, max_steps=8)
    assert len(traced) == 1


# --- the pool keeps its size ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "chunk_size", "keep", "patience"),
    [
        (13, 4, "last", None),
        (13, 5, "best", 4),
        (12, 6, "last", 4),
        (9, 100, "best", None),
    ],
)
def test_rows_that_end_at_different_steps_take_one_trace(
    traced: list[Trace], size: int, chunk_size: int, keep: Any, patience: Any
) -> None:
    starts = x0s(size)
    starts[3] = math.nan
    grid = fe.vmap(make_problem(), x0=starts, target=targets(size))
    found = assert_answers_are_those_of_plain_steps(
        grid,
        wild,
        1e-9,
        max_steps=40,
        atol=0.05,
        keep=keep,
        **({} if patience is None else {"patience": patience, "rtol": 0.05}),
        chunk_size=chunk_size,
    )
    assert traced == [Trace(min(size, chunk_size), 1)]
    assert_padded(found)
    assert len(found.num_steps.unique()) > 4
    assert len(torch.as_tensor(found.status).unique()) >= 2


def test_few_rows_that_are_left_go_on_in_plain_steps_of_their_own_size(traced: list[Trace]) -> None:
    sizes: list[int] = []
    grid = fe.vmap(make_problem(), x0=x0s(20), target=targets(20))
    settings: dict[str, Any] = {"max_steps": 60, "atol": 0.05, "chunk_size": 12}
    found = fe.solve(
        grid, wild(), compile=True, **settings, callback=lambda state, info: sizes.append(len(state.z))
    )
    assert_close(
        without_nan(found), without_nan(fe.solve(grid, wild(), compile=False, **settings)), rtol=1e-9
    )
    assert traced == [Trace(12, 1)]
    tail = sizes[sizes.count(12) :]
    assert 12 not in tail
    assert tail
    assert all(size < 3 for size in tail)  # less than a quarter


def test_a_history_of_every_kth_step_is_part_of_the_whole_one(traced: list[Trace]) -> None:
    grid = fe.vmap(make_problem(), x0=x0s(9), target=targets(9))
    settings: dict[str, Any] = {"max_steps": 31, "atol": 0.05, "chunk_size": 4, "compile": True}
    whole = fe.solve(grid, wild(), **settings)
    for every in (2, 7, 1000):
        part = fe.solve(grid, wild(), history=every, **settings)
        assert_same(part.history, whole.history[:, ::every])
    assert fe.solve(grid, wild(), history=False, **settings).history.shape == (9, 0)


@pytest.mark.parametrize("max_steps", [0, 1])
@pytest.mark.parametrize("size", [1, 7])
def test_the_least_budgets(traced: list[Trace], size: int, max_steps: int) -> None:
    grid = fe.vmap(make_problem(), x0=x0s(size))
    assert_answers_are_those_of_plain_steps(grid, steady, max_steps=max_steps)


def test_no_rows_are_an_answer(traced: list[Trace]) -> None:
    found = fe.solve(fe.vmap(make_problem(), x0=x0s(2))[:0], compile=True)
    assert found.x.shape == (0, 2, 6, 5)
    assert not traced


def test_models_of_an_ensemble_share_one_trace(traced: list[Trace]) -> None:
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(64)), params=models(2))
    assert_answers_are_those_of_plain_steps(grid, steady, max_steps=6, chunk_size=32)
    assert traced == [Trace(32, 1)]


# --- one question, and few: several steps in one call ---------------------------------------------


@pytest.mark.parametrize(("keep", "budgets"), [("last", (1, 2, 4)), ("best", (3, 5, 9))])
@pytest.mark.parametrize("rows", [None, 3])
def test_any_budget_ends_where_it_should(
    traced: list[Trace],
    rows: int | None,
    keep: Any,
    budgets: tuple[int, ...],
) -> None:
    problem = make_problem() if rows is None else fe.vmap(make_problem(), x0=x0s(3), target=targets(3))
    method = wild()  # one for all budgets, which then share their code
    for max_steps in budgets:
        found = assert_answers_are_those_of_plain_steps(
            problem, lambda: method, 1e-9, max_steps=max_steps, keep=keep
        )
        assert found.num_steps.eq(max_steps).all()
    assert traced == [Trace(rows or 1, 2)]


def test_levenberg_marquardt_may_end_inside_of_a_call(traced: list[Trace]) -> None:
    grid = fe.vmap(make_problem(), x0=x0s(2), target=targets(2))
    found = assert_answers_are_those_of_plain_steps(
        grid, fe.levenberg_marquardt, 1e-7, max_steps=8, atol=0.01
    )
    assert traced == [Trace(2, 2)]
    assert found.hit.tolist() == [False, True]
    assert found.num_steps.tolist() == [8, 3]


@pytest.mark.parametrize(
    "settings",
    [
        {"atol": 0.05},
        {"atol": 0.05, "keep": "best", "history": 3},
        {"patience": 3, "rtol": 0.1},
    ],
    ids=["hit", "hit_best", "patience"],
)
def test_a_search_may_end_inside_of_a_call(traced: list[Trace], settings: dict[str, Any]) -> None:
    grid = fe.vmap(make_problem(), x0=x0s(4), target=targets(4, seed=60))
    found = assert_answers_are_those_of_plain_steps(
        grid, wild, 1e-8, max_steps=60, chunk_size=2, **settings
    )
    assert traced == [Trace(2, 2)]
    assert len({int(steps) % 2 for steps in found.num_steps if steps < 60}) > 1


def test_what_is_not_finite_ends_inside_of_a_call(traced: list[Trace]) -> None:
    def apply(p: Any, x: Tensor) -> Tensor:
        return torch.log(x.flatten()[:5])  # finite until an entry crosses zero

    problem = make_problem((apply, {}), x0=x0s(1)[0].abs() + 1.0, target=-20 * make_target())
    found = assert_answers_are_those_of_plain_steps(problem, lambda: fe.sgd(lr=0.3), max_steps=100)
    assert found.status is fe.Status.NONFINITE
    assert 0 < found.num_steps < 100
    assert found.x.isfinite().all()


# --- who looks on ---------------------------------------------------------------------------------
