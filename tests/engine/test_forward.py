"""Weights of many windows, and all that needs them: any network that accepts one window is supported.

Every network here cannot be mapped by ``torch.func.vmap``, and has a twin that can and that computes the
same; everything that is measured, pruned and reported is that of the twin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.engine.forward import weights_of
from funcexplain.problems.grid import mapped_dims, take_rows
from funcexplain.reports.details import select_row
from funcexplain.reports.precedents import precedents
from tests.grids import F64
from tests.helpers import assert_close, assert_same

SHAPE = (2, 3, 4)
LOG_TWO_PI = math.log(2.0 * math.pi)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def branch(h: Tensor, memory: Tensor) -> Tensor:
    return h if h.sum() > 0 else -2.0 * h


def item(h: Tensor, memory: Tensor) -> Tensor:
    return h / h.abs().max().item()


def indexing(h: Tensor, memory: Tensor) -> Tensor:
    return h - h[h > 0].sum()


def assertion(h: Tensor, memory: Tensor) -> Tensor:
    assert h.isfinite().all()
    return h


def in_place(h: Tensor, memory: Tensor) -> Tensor:
    memory.copy_(h[0])
    return 2.0 * memory[None]


def slope(h: Tensor, memory: Tensor) -> Tensor:
    with torch.enable_grad():
        h = h.detach().requires_grad_()
        return torch.autograd.grad(h.sin().sum(), h)[0]


def packed(h: Tensor, memory: Tensor) -> Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(h[..., None], [4] * len(h), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(rows, batch_first=True)[0][..., 0]


def density(h: Tensor, memory: Tensor) -> Tensor:
    law = torch.distributions.MultivariateNormal(h, torch.eye(4, dtype=h.dtype))
    return h + law.log_prob(torch.zeros(4, dtype=h.dtype))[:, None] * h


def silent(h: Tensor, memory: Tensor) -> Tensor:
    return 2.0 * h if torch._C._functorch.is_batchedtensor(h) else h


Head = Callable[[Tensor, Tensor], Tensor]
TWINS: dict[Head, Head] = {
    branch: lambda h, m: torch.where(h.sum(-1, keepdim=True) > 0, h, -2.0 * h),
    item: lambda h, m: h / h.abs().amax(-1, keepdim=True),
    indexing: lambda h, m: h - h.relu().sum(-1, keepdim=True),
    assertion: lambda h, m: h,
    in_place: lambda h, m: 2.0 * h,
    slope: lambda h, m: h.cos(),
    packed: lambda h, m: h,
    density: lambda h, m: h - 0.5 * (h.square().sum(-1, keepdim=True) + 4 * LOG_TWO_PI) * h,
    silent: lambda h, m: h,
}


class Network(nn.Module):
    """A linear layer, a head and a softmax."""

    memory: Tensor

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(24, 4).to(F64), head
        self.register_buffer("memory", torch.zeros(4, dtype=F64))
        with torch.no_grad():
            self.linear.weight.copy_(0.3 * noise(4, 24, seed=2))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.head(self.linear(x.flatten(1)), self.memory), -1)


def question(head: Head) -> fe.Problem:
    target = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)
    return fe.problem(Network(head), target, noise(*SHAPE, seed=3))


def pair(head: Head) -> tuple[fe.Problem, fe.Problem]:
    """A grid of starts and dates, and the same grid of the twin."""
    return tuple(
        fe.vmap(fe.vmap(question(h), x0=noise(2, *SHAPE, seed=4)), reference=noise(2, *SHAPE, seed=5))
        for h in (head, TWINS[head])
    )  # type: ignore[return-value]


heads = pytest.mark.parametrize("head", TWINS, ids=lambda head: head.__name__)


@heads
def test_weights_are_those_of_each_window_alone(head: Head) -> None:
    problem, windows = question(head), noise(7, *SHAPE)
    alone = torch.stack([problem.objective(x, problem.args)[1] for x in windows])
    twin, before = question(TWINS[head]), torch.get_rng_state()
    assert_close(weights_of(problem, windows, problem.args), alone, rtol=1e-12)
    assert_close(weights_of(twin, windows, problem.args), alone, rtol=1e-12)
    assert_same(weights_of(problem, windows[:1], problem.args), alone[:1])
    assert torch.equal(before, torch.get_rng_state())


@heads
def test_the_network_never_sees_a_window_that_is_not_finite(head: Head) -> None:
    seen: list[Tensor] = []

    def noted(h: Tensor, memory: Tensor) -> Tensor:
        if not torch._C._functorch.is_batchedtensor(h):
            seen.append(h)
        return head(h, memory)

    problem, windows = question(noted), noise(5, *SHAPE)
    windows[1, 0, 0, 0], windows[4] = torch.nan, torch.inf
    found = weights_of(problem, windows, problem.args)
    assert found.isnan().all(1).tolist() == [False, True, False, False, True]
    assert_close(found[[0, 2, 3]], weights_of(problem, windows[[0, 2, 3]], problem.args), rtol=1e-12)
    assert all(h.isfinite().all() for h in seen)
    seen.clear()
    assert weights_of(problem, windows[[1, 4]], problem.args).isnan().all()
    assert weights_of(problem, windows[:0], problem.args).shape == (0, 4)
    assert not seen


@heads
def test_rows_have_data_of_their_own(head: Head) -> None:
    grid, twin = pair(head)
    models = fe.stack([Network(head) for _ in range(2)])[1]
    models["linear.weight"] += 0.1 * noise(2, 4, 24, seed=6)
    grid, twin = fe.vmap(grid, params=models), fe.vmap(twin, params=models)
    args = take_rows(grid.dims, grid.args, torch.arange(8))
    found, expected = (
        weights_of(p, args["x0"], args, mapped_dims(grid.dims, args)) for p in (grid, twin)
    )
    assert_close(found, expected, rtol=1e-12)
    assert not torch.allclose(found[:4], found[4:])


@pytest.mark.parametrize("grid", [False, True], ids=["question", "grid"])
@heads
def test_measures_are_those_of_the_twin(head: Head, grid: bool) -> None:
    problem, twin = pair(head) if grid else (question(head), question(TWINS[head]))
    solution = fe.solve(twin, fe.adam(lr=0.1), max_steps=3)
    models = fe.stack([Network(head) for _ in range(2)])[1]
    found, expected = (
        fe.evaluate(solution, p, noise(2, 12, 4), models=models, draws=2) for p in (problem, twin)
    )
    assert found.names == expected.names
    for name in found:  # too short a history leaves some NaN
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-14, equal_nan=True)


@heads
def test_answers_are_pruned_as_those_of_the_twin(head: Head) -> None:
    problem, twin = question(head), question(TWINS[head])
    solution = fe.solve(twin, fe.adam(lr=0.1), max_steps=3)
    atol = float(solution.error.max()) + 0.02
    found = fe.prune(solution, problem, atol=atol)
    assert found.error <= atol
    assert not torch.equal(found.x, solution.x)
    assert_close(found.weights, twin.objective(found.x, twin.args)[1], rtol=1e-9)


@heads
def test_history_is_searched_as_by_the_twin(head: Head) -> None:
    problem, twin = question(head), question(TWINS[head])
    days, windows = noise(2, 20, 4), noise(9, *SHAPE)
    for found, expected in zip(precedents(problem, days, 1.0), precedents(twin, days, 1.0), strict=True):
        assert_close(torch.as_tensor(found), torch.as_tensor(expected), rtol=1e-9)
    nearest = [
        fe.scenarios.nearest_dates(Network(h), windows, problem.args["target"], 3)
        for h in (head, TWINS[head])
    ]
    for one, other in zip(*nearest, strict=True):
        assert_close(one, other, rtol=1e-9)


@heads
def test_a_report_shows_the_weights_of_the_twin(head: Head) -> None:
    problem, twin = pair(head)
    solution = fe.solve(twin, fe.adam(lr=0.1), max_steps=1)
    one, other = (select_row(solution[1, 0], p[1, 0], None, "") for p in (problem, twin))
    assert_close(torch.as_tensor(one.today), torch.as_tensor(other.today), rtol=1e-12)


def test_a_failure_alone_is_raised_as_it_is() -> None:
    def refuse(h: Tensor, memory: Tensor) -> Tensor:
        if h.sum() > 0:
            raise ValueError("expected a falling market")
        return h

    problem = fe.problem(
        (lambda params, x: refuse(x[0, 0], x), {}), torch.zeros(4, dtype=F64), -torch.ones(SHAPE).to(F64)
    )
    windows = torch.stack([-torch.ones(SHAPE), torch.ones(SHAPE), -torch.ones(SHAPE)]).to(F64)
    with pytest.raises(ValueError, match="expected a falling market"):
        weights_of(problem, windows, problem.args)
    for some in (windows, windows[1:], windows[1:2]):
        weights = weights_of(problem, some, problem.args, skip_errors=True)
        assert_same(weights.isnan(), (some > 0).any(1).any(1))


class Timid(nn.Module):
    """Refuses a window that is far from zero."""

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 1.0:
            raise ValueError("too far")
        return torch.softmax(x.mean((1, 2)), -1)


def test_answers_beside_windows_that_the_network_refuses_are_measured(tmp_path: Path) -> None:
    """By noise, in history, without a change, and where the search itself ended at such a window."""
    x0 = torch.zeros(SHAPE, dtype=F64)
    x0[0, 0, 0] = 0.99
    problem = fe.problem(Timid(), torch.tensor([0.4, 0.2, 0.2, 0.2], dtype=F64), x0)
    rows = fe.vmap(problem, x0=torch.stack([x0, 0.5 * x0]))
    solution = fe.solve(rows, fe.adam(lr=0.2), max_steps=50, atol=1e-6)
    assert solution[0].status is fe.Status.FAILED
    history = 2.0 * noise(1, SHAPE[0], 30, SHAPE[2])[0]
    metrics = fe.evaluate(solution, rows, history, draws=4)
    assert metrics["invalidation"][0] == 1.0
    page = fe.report(solution[0], problem, tmp_path / "page.html", history=history).read_text()
    assert "ValueError: too far" in page
    loose = fe.solve(problem, fe.adam(lr=0.01), max_steps=50, atol=0.15)
    assert fe.prune(loose, problem, atol=0.15).error <= 0.15


def test_memory_that_runs_out_is_not_a_reason_to_go_on() -> None:
    calls = 0

    def apply(params: object, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if torch._C._functorch.is_batchedtensor(x):
            raise MemoryError
        return x[0, 0]

    problem = replace(question(silent), apply=apply)
    with pytest.raises(MemoryError):
        weights_of(problem, noise(9, *SHAPE), problem.args)
    assert calls == 4


def test_a_network_that_can_be_mapped_runs_once_for_all() -> None:
    calls: list[int] = []
    problem = question(TWINS[branch])
    inner = problem.apply

    def apply(params: object, x: Tensor) -> Tensor:
        calls.append(torch._C._functorch.is_batchedtensor(x))
        return inner(params, x)

    weights_of(replace(problem, apply=apply), noise(100, *SHAPE), problem.args)
    assert sorted(calls) == [0, 0, 0, 1]
    calls.clear()
    weights_of(replace(problem, apply=apply), noise(1, *SHAPE), problem.args)
    assert calls == [0]
