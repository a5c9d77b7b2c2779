"""Laws of the protocol: any method runs alone, in rows, compiled and mapped, with one verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor
from torch import Tensor

import funcexplain as fe
from funcexplain.solvers.gradient import backward_value_and_grad, make_objective, with_gradient
from funcexplain.solvers.state import (
    Advance,
    BoundMethod,
    Evaluate,
    Evaluation,
    Method,
    Objective,
    State,
    Stopping,
    ValueAndGrad,
)
from tests.grids import assert_rows_equal_alone, targets, x0s
from tests.helpers import assert_close, make_problem, params


class Halving:
    """Gradient descent that halves its rate and returns to the best point where the value grows."""

    def bind(
        self, problem: fe.Problem, stopping: Stopping, gradient: Callable[[Objective], ValueAndGrad]
    ) -> BoundMethod:
        def init(z: Tensor, args: Any) -> tuple[Tensor, Tensor, Tensor]:
            return z, torch.zeros_like(z), torch.ones((), dtype=z.dtype)

        def advance(state: State, args: Any, at: Evaluation) -> Advance:
            best_z, best_grads, rate = state.optimizer
            better = ~(at.value >= state.kept.value)
            rate = torch.where(better, rate, 0.5 * rate)
            z, grads = torch.where(better, state.z, best_z), torch.where(better, at.slopes, best_grads)
            return Advance(
                z=problem.project(z - rate * grads, args),
                carried=(z, grads, rate),
                value=at.value,
                best=state.kept.value,
                loss=at.loss,
                grads=grads,
            )

        def backward(objective: Objective) -> Evaluate:
            return with_gradient(objective, backward_value_and_grad)

        evaluate = with_gradient(make_objective(problem), gradient)
        stopping = stopping._replace(keep="best")
        return BoundMethod(problem, init, evaluate, backward, advance, stopping)


METHODS: dict[str, Callable[[], Any]] = {
    "adam": fe.adam,
    "sgd": lambda: fe.sgd(lr=0.5, momentum=0.9),
    "pair": lambda: (lambda z: (), lambda grads, state, z: (-0.01 * grads.sign(), state)),
    "levenberg_marquardt": fe.levenberg_marquardt,
    "own": Halving,
}
every_method = pytest.mark.parametrize("name", params(METHODS))


@every_method
def test_a_row_is_as_alone(name: str) -> None:
    grid = fe.vmap(fe.vmap(fe.freeze(make_problem()), x0=x0s(3)), target=targets(2))
    solution = assert_rows_equal_alone(
        grid, METHODS[name], within=(1e-7, 1e-9), max_steps=25, atol=0.02, chunk_size=4
    )
    assert (solution.num_steps > 0).all()


@every_method
def test_solve_takes_the_path_of_run(name: str) -> None:
    problem = fe.box(-4.0, 4.0)(make_problem())
    init, step = fe.make_step(problem, METHODS[name](), atol=1e-3)
    state, _ = fe.run(init, step, problem.args, num_steps=9)
    solution = fe.solve(problem, METHODS[name](), max_steps=8, atol=1e-3)
    assert_close(solution.x, problem.decode(state.kept.z, problem.args), rtol=1e-8, atol=1e-10)
    assert int(state.status) == solution.status


@every_method
def test_run_maps(name: str) -> None:
    problem = make_problem()
    init, step = fe.make_step(problem, METHODS[name](), atol=1e-3)

    def last(x0: Tensor) -> Tensor:
        return fe.run(init, step, {**problem.args, "x0": x0}, num_steps=6)[0].kept.z

    mapped = torch.func.vmap(last)(x0s(3))
    assert_close(mapped, torch.stack([last(x0) for x0 in x0s(3)]), rtol=1e-8, atol=1e-10)


def test_own_methods_are_compiled() -> None:
    grid = fe.vmap(make_problem(), x0=x0s(5))
    settings: dict[str, Any] = {"max_steps": 10, "atol": 1e-3}
    compiled = fe.solve(grid, Halving(), compile=True, **settings)
    assert_close(compiled.x, fe.solve(grid, Halving(), compile=False, **settings).x, rtol=1e-8)


def test_a_method_that_cannot_be_hashed_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch._inductor, "compile", lambda graph, tensors, options=None: graph, raising=False
    )

    class Listed(Halving):
        __hash__ = None  # type: ignore[assignment]

    grid = fe.vmap(make_problem(), x0=x0s(2))
    found = fe.solve(grid, Listed(), max_steps=3, compile=True)
    assert_close(found.x, fe.solve(grid, Listed(), max_steps=3).x, rtol=1e-8)


def test_the_library_has_no_private_door() -> None:
    for name, make in METHODS.items():
        assert isinstance(make(), Method) == (name != "pair")
    with pytest.raises(TypeError, match="make_step: method must be an optimizer, a pair"):
        fe.make_step(make_problem(), Halving)


def test_rtol_without_patience_is_refused() -> None:
    for call in (fe.solve, fe.make_step):
        with pytest.raises(ValueError, match="rtol has no effect without patience"):
            call(make_problem(), rtol=1e-2)
