"""Laws of a grid's rows: each is solved as if it were alone, whatever else is in its batch."""

from __future__ import annotations

import math
import warnings
from typing import Any

import optree
import pytest
import torch
from torch import Tensor

import funcexplain as fe
from tests.grids import (
    F64,
    assert_rows_equal_alone,
    gentle,
    mixed,
    models,
    targets,
    without_nan,
    x0s,
)
from tests.helpers import (
    NETWORKS,
    assert_close,
    assert_same,
    make_network,
    make_problem,
    params,
)

# --- a batch is a loop ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", params(NETWORKS))
def test_a_row_that_is_not_finite_touches_no_other(name: str) -> None:
    # Nine rows carry one that has ended along, so that the batches keep their shapes.
    starts, broken = x0s(9), x0s(9)
    broken[4] = math.nan
    sound, hurt = (
        fe.solve(fe.vmap(make_problem(name), x0=x0), fe.adam(), max_steps=5) for x0 in (starts, broken)
    )
    others = torch.arange(9) != 4
    assert_same(hurt[others], sound[others])
    assert hurt[4].status is fe.Status.NONFINITE
    assert hurt[4].num_steps == 0
    grid = fe.vmap(make_problem(name), x0=broken)
    whole, *parts = (fe.solve(grid, gentle(), max_steps=2, chunk_size=size) for size in (None, 1, 4))
    for part in parts:
        assert_close(without_nan(part), without_nan(whole))


@pytest.mark.parametrize("entry", ["target", "params", "reference", "lower"])
def test_whatever_is_not_finite_ends_its_row_alone(entry: str) -> None:
    problem = fe.pipe(make_problem(), fe.freeze, fe.clip(-9.0, 9.0))
    stacks: dict[str, Any] = {
        "target": targets(3),
        "params": models(3),
        "reference": x0s(3),
        "lower": torch.tensor([-9.0, -8.0, -7.0], dtype=F64),
    }
    stack = stacks[entry]
    leaf = next(iter(stack.values())) if entry == "params" else stack
    leaf[1] = math.nan
    solution = assert_rows_equal_alone(fe.vmap(problem, **{entry: stack}), gentle, max_steps=4)
    kinds = [fe.Status.MAX_STEPS, fe.Status.NONFINITE, fe.Status.MAX_STEPS]
    assert solution.status.tolist() == kinds  # type: ignore[union-attr]


# --- chunks, order and company --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_tanh", "conv_batch_norm", "lstm_instance_norm", "multi_head"])
def test_answers_do_not_depend_on_chunks_order_or_company(name: str) -> None:
    grid = fe.vmap(mixed(make_problem(name)), params=models(2, name=name))

    def solve(grid: fe.Problem, chunk_size: int | None) -> fe.Solution:
        return fe.solve(grid, gentle(), max_steps=6, atol=0.02, chunk_size=chunk_size)

    whole = solve(grid, None)
    for chunk_size in (1, 2, 3, 7, 10, 1000):
        assert_close(without_nan(solve(grid, chunk_size)), without_nan(whole))
    backwards = solve(grid[::-1, ::-1], 3)
    flipped = whole[torch.tensor([1, 0]), torch.arange(4, -1, -1)]
    assert_close(without_nan(backwards), without_nan(flipped))
    assert_close(without_nan(solve(grid[1:, 1::2], None)), without_nan(whole[1:, 1::2]))


@pytest.mark.parametrize("name", params(NETWORKS))
def test_single_precision_agrees_over_many_steps(name: str) -> None:
    grid = mixed(make_problem(name, dtype=torch.float32), size=4)
    whole, part = (fe.solve(grid, fe.sgd(lr=0.1), max_steps=25, chunk_size=size) for size in (None, 3))
    assert whole.x.dtype is whole.history.dtype is torch.float32
    for name_of in ("x", "weights", "loss", "history"):
        assert_close(getattr(part, name_of), getattr(whole, name_of), rtol=1e-5, atol=1e-5)


def test_the_noise_of_dropout_belongs_to_the_row() -> None:
    pair = fe.functionalize(make_network("mlp_tanh"), train=True)
    seeds = torch.tensor([3, 0, 9, 3, 1])
    grid = fe.vmap(make_problem(pair), seed=seeds)
    before = torch.get_rng_state()
    solution = assert_rows_equal_alone(grid, gentle, max_steps=6, chunk_size=2)
    assert_close(solution[0], solution[3])
    assert len({tuple(x.flatten().tolist()) for x in solution.x[:3]}) == 3
    for row, seed in enumerate(seeds.tolist()):
        asked = fe.solve(make_problem(pair, seed=seed), gentle(), max_steps=6)
        assert_close(solution[row], asked)
    assert_close(
        fe.solve(fe.vmap(make_problem(pair), seed=seeds.flip(0)), gentle(), max_steps=6).x,
        solution.x.flip(0),
    )
    assert torch.equal(before, torch.get_rng_state())
    twins = {name: torch.stack([tensor, tensor]) for name, tensor in pair[1].items()}
    assert_rows_equal_alone(fe.vmap(grid[:2], params=twins), gentle, max_steps=3)


def test_mapping_run_is_solving_a_grid() -> None:
    problem = fe.penalize(fe.penalties.l2, strength=0.1)(fe.freeze(make_problem()))
    init, step = fe.make_step(problem, gentle())

    def search(x0: Tensor, target: Tensor) -> tuple[fe.State, fe.Info]:
        return fe.run(init, step, {**problem.args, "x0": x0, "target": target}, num_steps=9)

    state, info = torch.func.vmap(search)(x0s(4), targets(4))
    solution = fe.solve(fe.vmap(problem, x0=x0s(4), target=targets(4)), gentle(), max_steps=8)
    assert_close(info.loss[:, :8], solution.history)
    assert_close((state.kept.weights, state.kept.loss), (solution.weights, solution.loss))
    decoded = torch.func.vmap(lambda z: problem.decode(z, problem.args))(state.kept.z)
    assert_close(decoded, solution.x)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_batch_takes_one_forward_pass_a_step(keep: Any) -> None:
    calls = []
    inner, p = fe.functionalize(make_network("mlp_tanh"))

    def counted(p: dict[str, Tensor], x: Tensor) -> Tensor:
        calls.append(x.shape)
        return inner(p, x)

    grid = fe.vmap(make_problem((counted, p)), x0=x0s(10))

    def count(max_steps: int, **settings: Any) -> int:
        calls.clear()
        fe.solve(grid, max_steps=max_steps, **settings)
        return len(calls)

    # Trial and check of the rows take as many passes in a short search as in a long one.
    assert count(17, keep=keep) - count(7, keep=keep) == 10
    assert count(17, chunk_size=5) - count(7, chunk_size=5) == 2 * 10


@pytest.mark.parametrize("rows", [None, 5])
def test_a_callback_may_keep_the_states_that_it_sees(rows: int | None) -> None:
    problem = make_problem()
    kept: list[Any] = []

    def keep(state: fe.State, info: fe.Info) -> None:
        copies: Any = optree.tree_map(torch.clone, state)  # type: ignore[arg-type]
        kept.append((state, copies))

    fe.solve(problem if rows is None else fe.vmap(problem, x0=x0s(rows)), max_steps=4, callback=keep)
    assert len(kept) >= 4
    for state, copy in kept:
        assert_same(state, copy)


def test_rows_that_begin_at_todays_weights_share_a_batch() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 5), torch.nn.Softmax(-1))
    starts = torch.randn(6, 2, 6, 5, generator=torch.Generator().manual_seed(1))
    grid = fe.vmap(fe.problem(network, fe.targets.turnover(0.1), starts[0]), x0=starts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fe.solve(grid, fe.levenberg_marquardt(), max_steps=20, atol=1e-3)
    assert found.hit.all()
    assert not found.num_steps[0]
