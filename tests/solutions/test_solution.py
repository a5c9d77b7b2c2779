"""The answer as a value: an optree node, a status, a readable line."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import optree
import pytest
import torch

import funcexplain as fe
from tests.grids import targets, x0s
from tests.helpers import assert_close, assert_same, make_problem


def test_a_solution_is_an_optree_node_of_tensors() -> None:
    solution = fe.solve(make_problem(), max_steps=3)
    node: Any = solution
    leaves, spec = optree.tree_flatten(node)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = optree.tree_unflatten(spec, leaves)
    assert isinstance(again, fe.Solution)
    assert again.status is solution.status is fe.Status.MAX_STEPS
    assert_same(again, solution)


def test_a_solution_can_be_mapped() -> None:
    solution: Any = fe.solve(make_problem(), max_steps=3)
    doubled: Any = optree.tree_map(lambda leaf: 2 * leaf.double(), solution)
    assert_same(doubled.x, 2 * solution.x)
    assert doubled.status == 2.0 * fe.Status.MAX_STEPS
    paths = [path[0] for path in optree.tree_paths(solution)]
    assert paths == list(FIELDS)


def test_a_solution_is_frozen_and_says_what_it_is() -> None:
    solution = fe.solve(make_problem(), max_steps=3)
    with pytest.raises(AttributeError):
        solution.x = solution.x + 1  # type: ignore[misc]
    assert repr(solution).startswith("Solution(status=MAX_STEPS, loss=0.")
    assert "x=(2, 6, 5) torch.float64" in repr(solution)


def test_every_status_is_a_sentence() -> None:
    sentences = {status.sentence for status in fe.Status}
    assert len(sentences) == len(fe.Status) == 7
    assert all(sentence.endswith(".") for sentence in sentences)


def test_trees_of_solutions_hold_what_they_are_given() -> None:
    solution: Any = fe.solve(make_problem(), max_steps=3)
    doubled: Any = optree.tree_map(lambda leaf: 2 * leaf, solution)
    assert int(doubled.status) == 2 * fe.Status.MAX_STEPS  # no status any more, and none is made up
    finite: Any = optree.tree_map(torch.isfinite, solution)
    assert finite.status.dtype is torch.bool
    stacked: Any = optree.tree_map(lambda *leaves: torch.stack(leaves), solution, solution)
    assert stacked.x.shape == (2, *solution.x.shape)
    assert stacked.status.tolist() == [fe.Status.MAX_STEPS] * 2
    arrays: Any = optree.tree_map(lambda leaf: leaf.numpy(), solution)
    for tree in (doubled, finite, stacked, arrays):
        assert repr(tree).startswith("Solution(status=")


def test_a_status_reads_as_its_name() -> None:
    assert f"{fe.Status.HIT}" == str(fe.Status.HIT) == "HIT"
    assert int(fe.Status.HIT) == 0


# --- of a grid ------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {"max_steps": 12, "atol": 0.05}


def method() -> fe.Optimizer:
    return fe.sgd(lr=20.0, momentum=0.9)


@cache
def question() -> fe.Problem:
    grid = fe.vmap(make_problem(), x0=x0s(4), name="start")
    return fe.vmap(fe.vmap(grid, target=targets(3)), name="again", seed=torch.arange(2))


@cache
def answer() -> fe.Solution:
    """Rows (again 2, target 3, start 4), of which some hit and one is not finite."""
    starts = x0s(4)
    starts[3] = math.nan
    grid = fe.vmap(make_problem(), x0=starts, name="start")
    grid = fe.vmap(fe.vmap(grid, target=targets(3)), name="again", seed=torch.arange(2))
    return fe.solve(grid, method(), **SETTINGS)


FIELDS = ("x", "z", "weights", "loss", "history", "num_steps", "status", "error")


def test_the_answer_has_hits_and_others() -> None:
    assert answer().shape == (2, 3, 4)
    assert answer().dims == ("again", "target", "start")
    assert 0 < int(answer().hit.sum()) < answer().hit.numel()
    assert answer().loss[..., 3].isnan().all()


@pytest.mark.parametrize(
    ("item", "like", "dims"),
    [
        (1, np.s_[1], ("target", "start")),
        (-1, np.s_[-1], ("target", "start")),
        (np.s_[:, -2], np.s_[:, -2], ("again", "start")),
        (np.s_[..., 0], np.s_[:, :, 0], ("again", "target")),
        (np.s_[0, ..., 1:3], np.s_[0, :, 1:3], ("target", "start")),
        (np.s_[0, 1, ..., 2:], np.s_[0, 1, 2:], ("start",)),
        (np.s_[...], np.s_[:], ("again", "target", "start")),
        ((), np.s_[:], ("again", "target", "start")),
        (np.s_[:0], np.s_[:0], ("again", "target", "start")),
        (np.int64(1), np.s_[1], ("target", "start")),
        (torch.tensor(1), np.s_[1], ("target", "start")),
        (torch.tensor([1, 1, 0]), np.s_[[1, 1, 0]], ("again", "target", "start")),
        (torch.tensor([True, False]), np.s_[[True, False]], ("again", "target", "start")),
        (np.s_[1, :, torch.tensor([2, 0])], np.s_[1, :, [2, 0]], ("target", "start")),
    ],
    ids=repr,
)
def test_rows_are_picked_as_of_a_tensor(item: Any, like: Any, dims: tuple[str, ...]) -> None:
    picked = answer()[item]
    assert picked.dims == dims
    for name in FIELDS:
        field = getattr(answer(), name)
        assert_same(getattr(picked, name), field[like])
    assert picked.shape == picked.hit.shape


def test_tensors_pick_their_outer_product() -> None:
    some = torch.tensor([True, False, True])
    picked = answer()[:, some, torch.tensor([3, 1, 1])]
    assert picked.shape == (2, 2, 3)
    assert_same(picked.x, answer().x[:, [0, 2]][:, :, [3, 1, 1]])
    assert_same(picked, answer().isel(target=some, start=torch.tensor([3, 1, 1])))


def test_one_row_is_the_solution_of_one_question() -> None:
    for index in [(0, 0, 0), (-1, 2, 1), (1, 1, 2)]:
        row = answer()[index]
        alone = fe.solve(question()[index], method(), **SETTINGS)
        assert_close(row, alone)
        assert (row.dims, row.shape) == ((), ())
        assert isinstance(row.status, fe.Status)
        assert len(row.history) == row.num_steps
        assert repr(row) == repr(alone)
    assert_same(answer().isel(start=0, again=1).isel(target=2), answer()[1, 2, 0])
    assert_same(answer().isel(), answer())


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ((0, 0, 0, 0), IndexError, "for 3 row dimensions"),
        ((Ellipsis, Ellipsis), IndexError, "for 3 row dimensions"),
        (2, IndexError, "out of"),
        *[
            (wrong, TypeError, "solution: rows are picked by int, slice, ... or one-dimensional tensor")
            for wrong in (True, None, "start", 1.0, [0, 1])
        ],
        # Every tensor and array has an `__index__`, of any shape and dtype.
        *[
            (wrong, TypeError, "solution: rows are picked by int, slice, ... or one-dimensional tensor")
            for wrong in (torch.zeros(2, 2, dtype=torch.int64), torch.tensor(True), np.array([0, 1]))
        ],
    ],
    ids=repr,
)
def test_what_is_no_index_is_refused(item: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        answer()[item]


@pytest.mark.parametrize("history", [True, False])
def test_rows_are_picked_by_their_numbers(history: bool) -> None:
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(3), name="start"), target=targets(2))
    solution = fe.solve(grid, max_steps=3, history=history)
    picked = solution.flat(torch.tensor([5, 0, 4]))
    assert picked.dims == ("row",)
    for row, index in zip(picked, [(1, 2), (0, 0), (1, 1)], strict=True):
        assert_same(row, solution[index])
    assert_same(solution[1, 2].flat(torch.tensor([0]))[0], solution[1, 2])
    assert solution.sample.shape == (1,)


def test_iterating_goes_along_the_first_dimension() -> None:
    rows = list(answer())
    assert [row.dims for row in rows] == [("target", "start")] * 2
    assert_same(rows[1], answer()[1])
    assert [row.status for row in answer()[0, 1]] == [answer()[0, 1, k].status for k in range(4)]
    with pytest.raises(TypeError, match="expected a grid of rows to iterate over"):
        iter(answer()[0, 0, 0])


def best_by_brute_force(rank: np.ndarray, hit: np.ndarray, places: list[int]) -> np.ndarray:
    """Flat numbers of the best rows: hits first, then the lowest rank, NaN last, ties to the first."""
    kept = [place for place in range(rank.ndim) if place not in places]
    winners = []
    for where in np.ndindex(*(rank.shape[place] for place in kept)):
        rows = [row for row in np.ndindex(*rank.shape) if tuple(row[place] for place in kept) == where]
        # Rows of equal rank stay in the order of the dimensions.
        best = min(rows, key=lambda row: (not hit[row], np.isnan(rank[row]), rank[row]))
        winners.append(np.ravel_multi_index(best, rank.shape))
    return np.array(winners, dtype=np.int64)


@pytest.mark.parametrize(
    "dims",
    [(), (0,), ("target",), (-1,), ("start", "again"), (2, "target"), (0, 1, 2), ("start", "start")],
)
@pytest.mark.parametrize("by", ["loss", "distance", "holes", "ties"])
def test_the_best_row_is_that_of_a_search_by_hand(dims: tuple[Any, ...], by: str) -> None:
    solution, generator = answer(), torch.Generator().manual_seed(1)
    ranks = {
        "loss": solution.loss,
        "distance": solution.x.square().mean((-1, -2, -3)),
        "ties": torch.randint(0, 2, solution.shape, generator=generator),
        # A hit whose `by` is NaN must still come before all that are no hits.
        "holes": torch.where(solution.hit, math.nan, solution.loss),
    }
    names = solution.dims
    chosen = sorted({names.index(d) if isinstance(d, str) else d % 3 for d in dims}) or [0, 1, 2]
    found = solution.best(*dims, by=None if by == "loss" else ranks[by])
    flat = best_by_brute_force(ranks[by].numpy(), solution.hit.numpy(), chosen)
    shape = [size for place, size in enumerate(solution.shape) if place not in chosen]
    assert found.dims == tuple(name for place, name in enumerate(names) if place not in chosen)
    assert found.shape == tuple(shape)
    one = not shape
    for name in FIELDS[:3] if one else FIELDS:
        field = getattr(solution, name)
        expected = field.flatten(0, 2)[torch.from_numpy(flat)].unflatten(0, shape or (1,))
        assert_same(torch.as_tensor(getattr(found, name)), expected[0] if one else expected)
    if one:
        assert isinstance(found.status, fe.Status)
        assert len(found.history) == found.num_steps


def test_the_best_of_one_question_is_itself() -> None:
    one = answer()[0, 0, 0]
    assert_same(one.best(), one)  # no dimension to go along


def test_ranks_that_are_no_tensor_are_refused() -> None:
    wrong: list[Any] = [answer().loss.numpy(), answer().loss.tolist()]
    for by in wrong:
        with pytest.raises(TypeError, match=r"best: by must be a torch\.Tensor"):
            answer().best(by=by)


def test_wrong_dimensions_are_refused() -> None:
    one = answer()[0, 0, 0]
    for call, message in [
        (lambda: answer().best("model"), r"best: expected a dimension among \('again',.*got 'model'"),
        (lambda: answer().best(3), "got 3"),
        (lambda: answer().best(True), "got True"),
        (lambda: one.best("start"), "got 'start'"),
        (lambda: answer().best(by=answer().loss[0]), r"shape \(2, 3, 4\), got \(3, 4\)"),
        (lambda: answer()[:, :0].best("target"), "expected rows along every dimension"),
        (lambda: answer().isel(model=0), r"isel: expected names among .*got \['model'\]"),
        (lambda: one.isel(start=0), r"isel: expected names among \(\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert answer()[:0].best("target").shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fields_become_arrays(dtype: torch.dtype) -> None:
    grid = fe.vmap(make_problem(dtype=dtype), x0=x0s(2, dtype))
    for solution in (fe.solve(grid, max_steps=2), fe.solve(grid[0], max_steps=2)):
        arrays = solution.to_numpy()
        assert tuple(arrays) == FIELDS
        wide = {torch.float64: np.float64}.get(dtype, np.float32)
        counts = {"num_steps", "status"}
        assert {arrays[name].dtype for name in FIELDS if name not in counts} == {np.dtype(wide)}
        assert {arrays[name].dtype for name in counts} == {np.dtype(np.int64)}
        assert arrays["x"].shape == tuple(solution.x.shape)
        np.testing.assert_array_equal(arrays["weights"], solution.weights.to(torch.float64).numpy())
        np.testing.assert_array_equal(arrays["status"], np.asarray(solution.status))


def test_a_grid_says_how_many_rows_ended_how() -> None:
    codes = torch.as_tensor(answer().status)
    counts = {status: int((codes == status).sum()) for status in fe.Status}
    texts = ", ".join(f"{status} {count}" for status, count in counts.items() if count)
    assert repr(answer()) == (
        f"Solution(rows=(again=2, target=3, start=4), status=({texts}), x=(2, 6, 5) torch.float64)"
    )
    assert repr(answer()[:, :0]).startswith("Solution(rows=(again=2, target=0, start=4), status=()")


def test_a_grid_is_an_optree_node_with_its_dimensions() -> None:
    node: Any = answer()
    leaves, spec = optree.tree_flatten(node)
    again: Any = optree.tree_unflatten(spec, leaves)
    assert len(leaves) == 8
    assert again.dims == answer().dims
    assert_same(again, node)
    assert spec != optree.tree_structure(answer()[0])  # type: ignore[arg-type]
    halved: Any = optree.tree_map(lambda leaf: leaf[0], node)
    assert halved.x.shape == answer().x.shape[1:]
    one: Any = optree.tree_map(lambda leaf: leaf, node[0, 0, 0])
    assert isinstance(one.status, fe.Status)


def test_a_solution_needs_no_other_wing() -> None:
    program = (
        "import sys, torch; from funcexplain.solutions.solution import Solution, Status;"
        "one = torch.ones(());"
        "solution = Solution(one, one, one, one[None], one, Status.HIT, one, z=one);"
        "assert '<table>' in solution._repr_html_();"
        "loaded = [m for m in sys.modules if m.startswith('funcexplain.')];"
        "wings = {m.split('.')[1] for m in loaded} - {'solutions'};"
        "assert wings == {'problems'} and len(loaded) <= 12, loaded"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
