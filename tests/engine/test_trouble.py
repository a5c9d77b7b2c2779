"""What a batch of rows cannot do: networks that cannot be mapped, factorizations that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.grids import F64, assert_rows_equal_alone, gentle, x0s
from tests.helpers import assert_close, make_network, make_problem


class Awkward(nn.Module):
    """Reads a value or draws noise, which cannot be mapped."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "item":
            x = x * x.abs().max().item()
        elif self.kind == "random":
            x = x + torch.rand_like(x)
        elif x.sum() > 0:
            x = 2 * x
        return torch.softmax(x.mean((1, 2)), -1)


@pytest.mark.parametrize("size", [3, 20])
@pytest.mark.parametrize("kind", ["item", "branch"])
@pytest.mark.parametrize("opaque", [False, True])
def test_rows_of_a_network_that_cannot_be_mapped_are_solved_one_at_a_time(
    kind: str, size: int, opaque: bool
) -> None:
    network: Any = fe.opaque(Awkward(kind)) if opaque else Awkward(kind)
    grid = fe.vmap(make_problem(network), x0=x0s(size))
    with pytest.warns(UserWarning, match="one at a time"):
        found = fe.solve(grid, gentle(), max_steps=3)
    for row in range(size):
        alone = fe.solve(make_problem(Awkward(kind), x0=x0s(size)[row]), gentle(), max_steps=3)
        assert_close((found[row].x, found[row].weights), (alone.x, alone.weights))
    with pytest.raises(ValueError, match="rows='vmap' needs what"):
        fe.solve(fe.vmap(make_problem(Awkward(kind)), x0=x0s(size)), max_steps=1, rows="vmap")


@pytest.mark.filterwarnings("ignore:solve. 3 of 3 rows are solved one at a time")
def test_noise_is_named_alone_and_in_rows() -> None:
    problem = make_problem(Awkward("random"))
    generator = torch.get_rng_state()
    with pytest.warns(UserWarning, match="draws random numbers"):
        fe.solve(problem, max_steps=0)
    assert not torch.equal(torch.get_rng_state(), generator)
    with pytest.warns(UserWarning, match="draws random numbers"):
        fe.solve(fe.vmap(problem, x0=x0s(3)), max_steps=1)


@pytest.mark.filterwarnings("ignore:solve. 3 of 3 rows are solved one at a time")
@pytest.mark.parametrize("grid", [False, True])
def test_an_error_at_the_start_is_the_callers(grid: bool) -> None:
    def apply(p: Any, x: Tensor) -> Tensor:
        if x[0, 0, 0] > 100.0:
            raise ZeroDivisionError("none of your business")
        return torch.softmax(x.mean((0, 1)), -1)

    starts = x0s(3)
    starts[1, 0, 0, 0] = 200.0
    problem = make_problem((apply, {}), x0=starts[1])
    if grid:
        problem = fe.vmap(make_problem((apply, {})), x0=starts)
    with pytest.raises(ZeroDivisionError, match="none of your business") as caught:
        fe.solve(problem, max_steps=1)
    if grid:
        assert caught.value.__notes__ == ["solve: at the start window of row (1,)"]
    assert_chain_ends(caught.value)


def assert_chain_ends(error: BaseException | None) -> None:
    """An error is not among its own causes, or whoever follows them never ends."""
    seen: list[BaseException] = []
    while error is not None:
        assert error not in seen
        seen.append(error)
        error = error.__cause__ or error.__context__


def test_an_error_of_a_callback_is_not_its_own_cause() -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("of the callback")

    for problem in (make_problem(), fe.vmap(make_problem(), x0=x0s(2))):
        with pytest.raises(ZeroDivisionError, match="of the callback") as caught:
            fe.solve(problem, max_steps=1, callback=fails)
        assert_chain_ends(caught.value)


class Refuses(nn.Module):
    """Fails where a window went too far, for one row or for a batch that holds it."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x[:, 0, 0, 0] > 1.0).any()):
            raise ArithmeticError("no solution")
        return torch.softmax(x.mean((1, 2)), -1)


@pytest.mark.parametrize("rows", ["auto", "samples"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_an_error_on_the_way_is_the_status_of_its_row(rows: Any, chunk_size: int | None) -> None:
    starts = x0s(5).clamp(-1.0, 0.9)
    starts[3, 0, 0, 0] = 0.99
    target = torch.eye(5, dtype=F64)[0]
    grid = fe.vmap(make_problem(Refuses(), target=target), x0=starts)
    found = fe.solve(grid, fe.sgd(lr=2.0), max_steps=4, rows=rows, chunk_size=chunk_size)
    alone = [fe.solve(grid[row], fe.sgd(lr=2.0), max_steps=4) for row in range(5)]
    assert found.status.tolist() == [int(one.status) for one in alone]  # type: ignore[union-attr]
    assert fe.Status.FAILED in (one.status for one in alone)
    assert found.x.isfinite().all()
    for row, one in enumerate(alone):
        assert_close((found[row].x, found[row].weights), (one.x, one.weights), rtol=1e-9)
        assert found[row].exceptions == one.exceptions
        assert one.exceptions == ({0: "ArithmeticError: no solution"} if one.status == 5 else {})
        assert ("no solution" in one.message) == (one.status == 5)
    assert "no solution" in found.message


def test_failures_are_saved(tmp_path: Path) -> None:
    target = torch.eye(5, dtype=F64)[0]
    problem = make_problem(Refuses(), target=target, x0=x0s(1)[0].clamp(-1.0, 0.99))
    found = fe.solve(problem, fe.sgd(lr=50.0), max_steps=50)
    assert found.exceptions
    found.save(tmp_path / "a.safetensors")
    assert fe.load(tmp_path / "a.safetensors").exceptions == found.exceptions


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
