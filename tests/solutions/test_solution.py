"""The answer as a value: an optree node, a status, a readable line."""

from typing import Any

import optree
import pytest
import torch

import funcexplain as fe
from tests.helpers import assert_same, make_problem


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
    assert paths == ["x", "weights", "loss", "history", "num_steps", "status"]


def test_a_solution_is_frozen_and_says_what_it_is() -> None:
    solution = fe.solve(make_problem(), max_steps=3)
    with pytest.raises(AttributeError):
        solution.x = solution.x + 1  # type: ignore[misc]
    assert repr(solution).startswith("Solution(status=MAX_STEPS, loss=0.")
    assert "x=(2, 6, 5) torch.float64" in repr(solution)


def test_every_status_is_a_sentence() -> None:
    sentences = {status.sentence for status in fe.Status}
    assert len(sentences) == len(fe.Status) == 5
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
