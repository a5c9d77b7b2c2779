"""The law: one path. `solve`, `run`, a mapped run and the step in plain numbers take the same steps."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.solvers.state import Keep, State, Stopping
from funcexplain.solvers.step import make_plain_step, make_step
from tests.helpers import (
    NETWORKS,
    OPTIMIZERS,
    SHAPE,
    TRANSFORMS,
    assert_close,
    assert_same,
    make_problem,
    make_target,
    make_x0,
    pairs,
    params,
)

every_pair = pytest.mark.parametrize(("transform", "optimizer"), pairs(TRANSFORMS, OPTIMIZERS))
every_keep = pytest.mark.parametrize("keep", ["last", "best"])


@every_pair
def test_solve_walks_the_path_of_run(transform: str, optimizer: str) -> None:
    problem = TRANSFORMS[transform](make_problem())
    init, step = fe.make_step(problem, OPTIMIZERS[optimizer]())
    state, info = fe.run(init, step, problem.args, num_steps=12)
    solution = fe.solve(problem, OPTIMIZERS[optimizer](), max_steps=12)
    assert_close(solution.history, info.loss, rtol=1e-9)
    assert_close(solution.x, problem.decode(state.z, problem.args), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", params(NETWORKS))
def test_mapped_run_equals_a_loop_of_run_for_every_network(name: str) -> None:
    problem = make_problem(name)
    init, step = fe.make_step(fe.freeze(problem), fe.adam(lr=0.05))

    def search(x0: Tensor, target: Tensor) -> tuple[fe.State, fe.Info]:
        args = {**problem.args, "x0": x0, "target": target}
        return fe.run(init, step, args, num_steps=4)

    x0s = torch.stack([make_x0(seed=seed) for seed in range(3)])
    targets = torch.stack([make_target(seed=seed) for seed in range(3)])
    mapped = torch.func.vmap(search)(x0s, targets)
    alone = [search(x0, target) for x0, target in zip(x0s, targets, strict=True)]
    looped = optree.tree_map(lambda *leaves: torch.stack(leaves), *alone)  # type: ignore[arg-type]
    assert_close(mapped, looped, rtol=1e-9, atol=1e-11)


@every_pair
def test_mapped_run_equals_a_loop_of_run_for_every_transform(transform: str, optimizer: str) -> None:
    """Every entry of args is mapped at once, a transform's own data included."""
    problem = TRANSFORMS[transform](make_problem())
    init, step = fe.make_step(problem, OPTIMIZERS[optimizer](), atol=1e-3, keep="best")
    given = {name: value for name, value in problem.args.items() if name != "params"}

    def row(place: int) -> dict[str, Tensor]:
        dtype = given["x0"].dtype
        mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(place)) < 0.5
        own = {
            "x0": make_x0(dtype, seed=place).clamp(-3.9, 3.9),
            "target": make_target(dtype, seed=place),
        }
        own |= {"reference": make_x0(dtype, seed=9 - place), "mask": mask, "seed": torch.tensor(place)}
        return {**{name: value * (1 + 0.01 * place) for name, value in given.items()}, **own}

    def search(row: dict[str, Tensor]) -> tuple[fe.State, fe.Info]:
        return fe.run(init, step, {**problem.args, **row}, num_steps=6)

    rows: Any = [row(place) for place in range(3)]
    alone: Any = [search(row) for row in rows]
    looped: Any = optree.tree_map(lambda *leaves: torch.stack(leaves), *alone)
    stacked: Any = optree.tree_map(lambda *leaves: torch.stack(leaves), *rows)
    assert_close(torch.func.vmap(search)(stacked), looped, rtol=1e-9, atol=1e-11)


def assert_same_path(
    problem: fe.Problem, method: Any, stopping: Stopping, max_steps: int, within: float = 1e-12
) -> State:
    """The law: all of the states are equal, until the search ends; returns the last one."""
    _, plain = make_plain_step(problem, method, stopping)
    atol, keep, patience, rtol, _ = stopping
    settings: Any = {} if patience is None else {"patience": patience, "rtol": rtol}
    init, step = make_step(problem, method, atol=atol, keep=keep, **settings)
    state = expected = init(problem.args)
    with torch.no_grad():
        for _ in range(max_steps):
            state, info = plain(state, problem.args)
            expected, expected_info = step(expected, problem.args)
            assert_same(
                (info.error.isnan(), state.status), (expected_info.error.isnan(), expected.status)
            )
            assert_close(known(info), known(expected_info), rtol=within, atol=within)
            if expected.done:
                # Nobody asks an optimizer again that has made its last update.
                expected = expected._replace(optimizer=state.optimizer)
            assert_close(known(state), known(expected), rtol=within, atol=within)
            if expected.done:
                break
    return state


def known(tree: Any) -> Any:
    """The same with numbers for NaN, so that it can be compared."""
    return torch.utils._pytree.tree_map(lambda leaf: leaf.nan_to_num(nan=-7.0), tree)


@every_pair
@every_keep
def test_the_path_is_the_same_for_every_transform_and_optimizer(
    transform: str, optimizer: str, keep: Keep
) -> None:
    # Patience takes turns, so that each optimizer and each transform meets it with both kinds of keep.
    turn = list(OPTIMIZERS).index(optimizer) + list(TRANSFORMS).index(transform)
    patience = 3 if turn % 2 == (keep == "best") else None
    problem = TRANSFORMS[transform](make_problem())
    within = 1e-10 if "adam" in optimizer else 1e-12
    assert_same_path(problem, OPTIMIZERS[optimizer](), Stopping(0.02, keep, patience, 0.05), 14, within)


@pytest.mark.parametrize("name", params(NETWORKS))
def test_the_path_is_the_same_for_every_network(name: str) -> None:
    assert_same_path(fe.freeze(make_problem(name)), fe.sgd(lr=0.5), Stopping(1e-3, "best", 5, 1e-3), 8)


def rising(p: Any, x: Tensor) -> Tensor:
    return torch.log(x.flatten()[:5])  # not finite once an entry crosses zero


def rooted(p: Any, x: Tensor) -> Tensor:
    return x.flatten()[:5].clamp_min(0).sqrt()  # infinite slope at zero


def flat(p: Any, x: Tensor) -> Tensor:
    return torch.full_like(x[0, 0], 0.2)


def straight(p: Any, x: Tensor) -> Tensor:
    return 1.0 * x[0, 0]


def still(p: Any, x: Tensor) -> Tensor:
    return 0 * x[0, 0] + 0.2


ENDS: dict[str, tuple[dict[str, Any], fe.Optimizer, fe.Status, bool]] = {
    # What changes the question, the method, how it ends, and whether it takes a step before.
    "hit": ({}, fe.sgd(lr=20.0, momentum=0.9), fe.Status.HIT, True),
    "hit_at_once": (
        {"network": (flat, {}), "target": torch.full_like(make_target(), 0.2)},
        fe.sgd(),
        fe.Status.HIT,
        False,
    ),
    "no_graph": ({"network": (flat, {})}, fe.adam(), fe.Status.STALLED, False),
    "no_slope": ({"network": (still, {})}, fe.sgd(momentum=0.9), fe.Status.STALLED, False),
    "impatient": ({}, fe.adam(lr=5.0), fe.Status.STALLED, True),
    "point": (
        {"network": (rising, {}), "x0": make_x0().abs() + 1.0, "target": -20 * make_target()},
        fe.sgd(lr=0.3),
        fe.Status.NONFINITE,
        True,
    ),
    "start": ({"network": (rising, {}), "x0": -make_x0().abs()}, fe.sgd(), fe.Status.NONFINITE, False),
    "slope": (
        {"network": (rooted, {}), "x0": torch.zeros_like(make_x0())},
        fe.adam(),
        fe.Status.NONFINITE,
        False,
    ),
    "overflow": ({"network": (straight, {})}, fe.sgd(lr=1e308), fe.Status.NONFINITE, True),
}


@pytest.mark.parametrize("name", params(ENDS))
@every_keep
def test_the_path_ends_in_the_same_way(name: str, keep: Keep) -> None:
    changes, method, status, moves = ENDS[name]
    stopping = Stopping(0.05, keep, 6 if name == "impatient" else None, 0.1)
    last = assert_same_path(make_problem(**changes), method, stopping, 200, within=1e-8)
    assert int(last.status) == status
    assert bool(last.num_steps > 0) == moves


@every_keep
def test_a_schedule_that_rests_does_not_end_the_search(keep: Keep) -> None:
    """An update of zero alone is no standstill, nor is a slope of zero while momentum moves on."""

    def init(z: Tensor) -> Tensor:
        return torch.zeros((), dtype=torch.int64)

    def update(grads: Tensor, count: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(count % 3 == 0, 0.0, -0.5) * grads, count + 1

    last = assert_same_path(make_problem(), fe.Optimizer(init, update), Stopping(0.0, keep), 10)
    assert last.num_steps == 10

    def fades(p: Any, x: Tensor) -> Tensor:
        return x[0, 0].clamp_max(0.0)

    problem = make_problem((fades, {}), x0=-0.1 * torch.ones_like(make_x0()), target=1 + make_target())
    last = assert_same_path(problem, fe.sgd(lr=0.5, momentum=0.5), Stopping(0.0, keep), 9)
    assert last.num_steps == 9
    assert (last.z[0, 0] > 0).all()
