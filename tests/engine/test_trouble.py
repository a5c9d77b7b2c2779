"""What a batch of rows cannot do: networks that cannot be mapped, factorizations that fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.grids import F64, assert_rows_equal_alone, gentle, x0s
from tests.helpers import make_network, make_problem


# Of 20 rows, it is the trial steps that choose a chunk size which meet the error first.
@pytest.mark.parametrize("size", [3, 20])
@pytest.mark.parametrize("kind", ["item", "branch", "random"])
def test_a_network_that_cannot_be_mapped_says_what_to_do(kind: str, size: int) -> None:
    class Awkward(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if kind == "item":
                x = x * x.abs().max().item()
            elif kind == "random":
                x = x + torch.rand_like(x)
            elif x.sum() > 0:
                x = 2 * x
            return torch.softmax(x.mean((1, 2)), -1)

    grid = fe.vmap(make_problem(Awkward()), x0=x0s(size))
    with pytest.raises(RuntimeError, match="vmap") as caught:
        fe.solve(grid, max_steps=1)
    assert "fe.opaque" in "".join(caught.value.__notes__)
    fe.solve(grid[0], max_steps=1)
    if kind == "item":
        opaque = fe.vmap(make_problem(fe.opaque(Awkward())), x0=x0s(size))
        assert fe.solve(opaque, max_steps=1).shape == (size,)


def test_other_errors_of_a_network_pass_through_as_they_are() -> None:
    def apply(p: Any, x: Tensor) -> Tensor:
        raise ZeroDivisionError("none of your business")

    grid = fe.vmap(make_problem((apply, {})), x0=x0s(3))
    with pytest.raises(ZeroDivisionError, match="none of your business") as caught:
        fe.solve(grid, max_steps=1)
    assert not hasattr(caught.value, "__notes__")


def factored(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Weights through a Cholesky factor, which there is not for a negative x[0, 0, 0]."""
    factor = torch.linalg.cholesky(torch.eye(5, dtype=x.dtype) * x[0, 0, 0])
    return torch.softmax(factor @ x[1, 0], -1)


def factored_starts(size: int, *failing: int) -> Tensor:
    starts = x0s(size)
    starts[:, 0, 0, 0] = 1.0 + torch.arange(size)
    for row in failing:
        starts[row, 0, 0, 0] = -1.0
    return starts


@pytest.mark.parametrize("failing", [(), (2,), (0, 3, 4), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_a_factorization_that_fails_ends_its_row_alone(
    failing: tuple[int, ...], chunk_size: Any
) -> None:
    grid = fe.vmap(make_problem((factored, {})), x0=factored_starts(5, *failing))
    solution = assert_rows_equal_alone(grid, gentle, max_steps=5, chunk_size=chunk_size)
    assert solution.x.isfinite().all()
    assert (solution.status == fe.Status.NONFINITE).nonzero()[:, 0].tolist() == list(failing)  # type: ignore[union-attr]


def test_a_factorization_may_fail_on_the_way() -> None:
    # One model pulls x[0, 0, 0] below zero.
    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return factored({}, x) + p["pull"] * x[0, 0, 0]

    grid = fe.vmap(
        make_problem((apply, {"pull": torch.zeros((), dtype=F64)}), x0=factored_starts(1)[0]),
        params={"pull": torch.tensor([0.0, 5.0, 0.0], dtype=F64)},
    )
    solution = assert_rows_equal_alone(grid, lambda: fe.sgd(lr=0.02), max_steps=8)
    assert solution.status.tolist() == [2, 3, 2]  # type: ignore[union-attr]
    assert solution[1].num_steps > 0
    assert solution[1].loss.isfinite()


def test_a_factorization_may_fail_among_the_first_of_many_rows() -> None:
    # The trial steps that choose a chunk size meet the failure first, and must let it pass.
    grid = fe.vmap(make_problem((factored, {})), x0=factored_starts(20, 1))
    assert_rows_equal_alone(grid, gentle, max_steps=2)


class Branches(nn.Module):
    """Branches on a value, which cannot be mapped."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_network("mlp_tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x if float(x.detach().sum()) > 0 else -x)


@pytest.mark.parametrize("method", [fe.adam, fe.sgd, fe.levenberg_marquardt])
def test_one_question_is_not_mapped(method: Any) -> None:
    """Neither by any method, nor on the way to the closest answer, nor where it is pruned."""
    problem = make_problem(Branches())
    found = fe.solve(problem, method(), max_steps=200, atol=5e-2)
    assert found.num_steps > 0
    assert fe.closest(problem, method(), atol=5e-2, max_steps=200, refinements=5).num_steps > 0
    if found.hit:
        pruned = fe.prune(found, problem, atol=5e-2)
        assert pruned.error <= 5e-2
