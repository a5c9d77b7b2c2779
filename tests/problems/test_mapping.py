"""Laws of `vmap`: a grid is its rows, whatever it is mapped over."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest
import torch

import funcexplain as fe
from tests.grids import (
    AXES,
    F64,
    assert_rows_equal_alone,
    gentle,
    masks,
    models,
    row_indices,
    targets,
    x0s,
)
from tests.helpers import (
    TRANSFORMS,
    assert_close,
    assert_same,
    assert_untouched,
    clone_args,
    make_network,
    make_problem,
    make_target,
    make_x0,
    params,
    snapshot,
)

# --- a grid is its rows ---------------------------------------------------------------------------


@pytest.mark.parametrize("outer", params(AXES))
def test_nested_axes_are_an_outer_product(outer: str) -> None:
    stacks = AXES[outer].stacks(3, F64)
    # Two names go together, of which the outer axis takes none.
    inner: dict[str, Any] = {"x0": x0s(2), "target": targets(2)}
    if outer in ("x0", "target", "window_by_window"):
        inner = {"params": models(2)}
    grid = fe.vmap(fe.vmap(AXES[outer].transform(make_problem()), **inner), **stacks)
    assert grid.shape == (3, 2)
    assert_rows_equal_alone(grid, gentle, max_steps=6, chunk_size=4)


def test_three_axes_and_a_name_in_two_of_them() -> None:
    problem = fe.jitter(0.3)(make_problem())
    starts = fe.vmap(problem, x0=x0s(2), target=targets(2))
    models_too = fe.vmap(starts, params=models(2))
    pairs = targets(6).view(3, 2, 5)
    grid = fe.vmap(models_too, target=pairs, seed=torch.arange(3))
    assert (grid.shape, [d.name for d in grid.dims]) == ((3, 2, 2), ["target", "params", "x0"])
    assert_rows_equal_alone(grid, gentle, max_steps=6, chunk_size=5)
    for t, m, s in row_indices(grid):
        row = grid[t, m, s].args
        assert_same((row["target"], row["x0"], row["seed"]), (pairs[t, s], x0s(2)[s], torch.tensor(t)))
        assert_same(row["params"], {name: p[m] for name, p in models(2).items()})


@pytest.mark.parametrize("name", params(n for n in TRANSFORMS if n != "none"))
def test_a_transform_may_come_after_the_grid(name: str) -> None:
    stacks: dict[str, Any] = {"x0": x0s(3), "seed": torch.arange(3), "mask": masks(3)}
    before = fe.vmap(fe.vmap(TRANSFORMS[name](make_problem()), target=targets(2)), **stacks)
    after = TRANSFORMS[name](fe.vmap(fe.vmap(make_problem(), target=targets(2)), **stacks))
    between = fe.vmap(TRANSFORMS[name](fe.vmap(make_problem(), target=targets(2))), **stacks)
    expected = fe.solve(before, max_steps=5)
    for grid in (after, between):
        assert_same(fe.solve(grid, max_steps=5), expected)


def test_without_a_problem_it_is_a_transform() -> None:
    problem = make_problem()
    stacks: dict[str, Any] = {"x0": x0s(3), "seed": torch.arange(3)}
    direct = fe.vmap(fe.vmap(fe.freeze(problem), **stacks), name="goal", target=targets(2))
    piped = fe.pipe(
        problem, fe.freeze, fe.vmap(**stacks), fe.vmap(name="goal", target=targets(2)), fe.jitter(0.0)
    )
    assert piped.dims == direct.dims
    assert_same(fe.solve(piped, max_steps=3), fe.solve(direct, max_steps=3))
    for apply in (
        lambda: fe.pipe(problem, fe.vmap(start=x0s(3))),
        lambda: fe.vmap(problem, start=x0s(3)),
    ):
        with pytest.raises(ValueError, match=r"vmap: args hold \['mask', .*got a stack for 'start'"):
            apply()
    with pytest.raises(TypeError, match="vmap: problem must be a Problem, got int"):
        fe.vmap(x0=x0s(3))(3)  # type: ignore[arg-type]


def test_a_search_space_of_another_shape_is_mapped_too() -> None:
    flat = fe.reparametrize(lambda x: x.mean(1, keepdim=True), lambda z: z.expand(2, 6, 5))
    grid = fe.vmap(flat(make_problem()), x0=x0s(4))
    solution = assert_rows_equal_alone(grid, gentle, max_steps=5, chunk_size=3)
    assert_same(solution.x[:, :, 0], solution.x[:, :, 5])


def test_params_may_be_any_tree() -> None:
    w = 0.1 * torch.randn(5, 60, dtype=F64)
    trees: list[tuple[Any, Any]] = [
        (w, lambda p: p),
        ((w, [w]), lambda p: p[0] + p[1][0]),
        ({"a": {"b": w}}, lambda p: p["a"]["b"]),
    ]
    for tree, read in trees:

        def apply(p: Any, x: torch.Tensor, read: Any = read) -> torch.Tensor:
            return torch.softmax(read(p) @ x.flatten(), -1)

        stacks: Any = optree.tree_map(lambda leaf: torch.stack([leaf, -leaf]), tree)
        grid = fe.vmap(make_problem((apply, tree)), params=stacks)
        assert_rows_equal_alone(grid, gentle, max_steps=4)
        assert fe.solve(fe.consensus(grid), max_steps=1).weights.shape == (2, 5)


def test_casting_a_grid_casts_its_stacks() -> None:
    grid = fe.vmap(make_problem(dtype=torch.float32), x0=x0s(3, torch.float32), seed=torch.arange(3))
    double = fe.cast(dtype=F64)(grid)
    assert (double.args["x0"].dtype, double.args["seed"].dtype) == (F64, torch.int64)
    assert fe.solve(double, max_steps=2).x.dtype == F64


def test_bounds_are_checked_against_all_starts_and_rows_outside_begin_on_them() -> None:
    starts = torch.stack([make_x0().clamp(-1, 1), 9.0 * torch.ones_like(make_x0())])
    box = fe.box(-2.0, 2.0)
    for transform in (box, fe.clip(-2.0, 2.0)):
        with pytest.raises(ValueError, match="x0 must be within the bounds"):
            transform(fe.vmap(make_problem(x0=starts[0]), x0=starts))
        grid = fe.vmap(transform(make_problem(x0=starts[0], mask=None)), x0=starts)
        begun = fe.solve(grid, max_steps=0).x
        # A box has no slope on its bounds: it begins a hundredth of its half width inside.
        edge = 1.98 if transform is box else 2.0
        assert_close(begun, starts.clamp(-edge, edge), rtol=1e-9)


# --- the problem as a value -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "of_targets", "of_starts"),
    [
        ((), [0, 1, 2], [0, 1, 2, 3]),
        (0, 0, [0, 1, 2, 3]),
        (-1, 2, [0, 1, 2, 3]),
        (slice(1, None), [1, 2], [0, 1, 2, 3]),
        ((slice(None), 2), [0, 1, 2], 2),
        ((1, -1), 1, 3),
        ((slice(None, None, -2), slice(0, 0)), [2, 0], []),
    ],
)
def test_indexing_picks_rows(item: Any, of_targets: Any, of_starts: Any) -> None:
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(4)), target=targets(3))
    picked = grid[item]
    left = [rows for rows in (of_targets, of_starts) if isinstance(rows, list)]
    assert picked.shape == tuple(map(len, left))
    assert_same(picked.args["target"], targets(3)[torch.tensor(of_targets, dtype=torch.int64)])
    assert_same(picked.args["x0"], x0s(4)[torch.tensor(of_starts, dtype=torch.int64)])
    assert picked.args["params"] is grid.args["params"]


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (3, IndexError, "row must be one of 3 along target, got 3"),
        ((0, -5), IndexError, "row must be one of 4 along x0, got -5"),
        ((0, 0, 0), IndexError, "expected at most 2 indices, got 3"),
        *[
            (wrong, TypeError, "index must hold ints and slices")
            for wrong in (True, 1.0, "x0", None, Ellipsis, [0, 1])
        ],
        # Every tensor and array has an `__index__`, whatever its shape and dtype.
        (torch.tensor([0, 1]), TypeError, "index must hold ints and slices"),
        (torch.tensor(True), TypeError, "index must hold ints and slices"),
        (np.array([0, 1]), TypeError, "index must hold ints and slices"),
    ],
    ids=repr,
)
def test_what_is_no_index_is_refused(item: Any, error: type[Exception], message: str) -> None:
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(4)), target=targets(3))
    with pytest.raises(error, match=f"problem: .*{message}"):
        grid[item]


def test_a_slice_of_a_grid_is_solved_as_part_of_it() -> None:
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(4)), target=targets(3))
    part = fe.solve(grid[::-2, 1:], gentle(), max_steps=6)
    whole = fe.solve(grid, gentle(), max_steps=6)
    assert_close(part, whole[torch.tensor([2, 0]), 1:])


def test_dimensions_have_names() -> None:
    def names(problem: fe.Problem) -> list[str]:
        return [dim.name for dim in problem.dims]

    grid = fe.vmap(make_problem(), target=targets(2), x0=x0s(2))
    assert names(grid) == ["target"]  # the first that was named
    twice = fe.vmap(fe.vmap(grid, seed=torch.arange(3)), name="day", reference=x0s(3))
    assert names(twice) == ["day", "seed", "target"]
    again = fe.vmap(
        fe.vmap(twice, seed=torch.zeros(2, 3, dtype=torch.int64)), x0=x0s(4).view(2, 2, *x0s(1)[0].shape)
    )
    assert names(again) == ["x0", "seed_2", "day", "seed", "target"]
    assert repr(again).startswith("Problem(rows=(x0=2, seed_2=2, day=3, seed=3, target=2), x0=(2, 6, 5)")
    assert "rows" not in repr(make_problem())


def test_what_answers_one_question_refuses_a_grid() -> None:
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(2)), target=targets(3))
    for function in (fe.make_step, fe.check_gradient):
        message = (
            rf"{function.__name__}: problem must be one question, got a grid of rows \(3, 2\).*\[0, 0\]"
        )
        with pytest.raises(ValueError, match=message):
            function(grid)
        function(grid[0, 0])
    # `solve` checks the first row.
    fe.solve(grid, max_steps=1, check=True)


@pytest.mark.parametrize("sizes", [(0,), (0, 2), (2, 0), (0, 0)])
def test_a_grid_without_rows_has_an_empty_answer(sizes: tuple[int, ...]) -> None:
    grid = make_problem()
    for size, stack in zip(reversed(sizes), ("x0", "target"), strict=False):
        rows: Any = {stack: (x0s(2) if stack == "x0" else targets(2))[:size]}
        grid = fe.vmap(grid, **rows)
    for transform in (*TRANSFORMS.values(), fe.box(-9.0, 9.0)):
        solution = fe.solve(transform(grid), max_steps=3, check=True)
        assert solution.shape == sizes
        assert solution.x.shape == (*sizes, 2, 6, 5)
        assert solution.weights.shape == (*sizes, 5)
        assert solution.history.shape == (*sizes, 3)
        assert solution.hit.shape == solution.loss.shape == sizes
        assert [row.shape for row in solution] == [sizes[1:]] * sizes[0]
        assert repr(solution).startswith("Solution(rows=(")


def test_nothing_of_the_callers_is_changed_or_kept() -> None:
    network = make_network("mlp_batch_norm").train()
    stacks: dict[str, Any] = {"x0": x0s(3), "mask": masks(3), "params": models(3, name="mlp_batch_norm")}
    kept, before = clone_args(stacks), snapshot(network)
    problem = make_problem(network)
    own = clone_args(problem.args)
    grid = fe.freeze(fe.vmap(problem, **stacks))
    solution = fe.solve(grid, max_steps=3)
    assert_untouched(before, network)
    assert_same(stacks, kept)
    assert_same(problem.args, own)
    for leaf in (stacks["x0"], stacks["mask"], *stacks["params"].values()):
        leaf.zero_()
    assert_same(fe.solve(grid, max_steps=3), solution)
    solution.x.zero_()
    assert_same(grid.args["x0"], kept["x0"])


def test_stacks_may_carry_a_tape_be_views_and_have_other_integers() -> None:
    live = x0s(3).requires_grad_()
    seeds = torch.arange(6, dtype=torch.int32)[::2]
    problem = fe.jitter(0.1)(make_problem())
    grid = fe.vmap(problem, x0=live.flip(0), seed=seeds)
    solution = fe.solve(grid, max_steps=2)
    assert not solution.x.requires_grad
    assert grid.args["seed"].dtype == torch.int64
    same = fe.solve(fe.vmap(problem, target=make_target().expand(3, 5)), max_steps=2)
    assert_same(same.x[1:], same.x[:-1])
