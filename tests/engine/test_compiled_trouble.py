"""Compiled steps meet callbacks, interruptions, failures and refusals; and code that is kept."""

from __future__ import annotations

import itertools
import logging
import re
import warnings
from typing import Any

import pytest
import torch
import torch._inductor
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.engine import compiled, pool, rows
from funcexplain.engine.memory import ChunkSizes
from tests.engine.compilation import (
    CANNOT,
    Trace,
    assert_answers_are_those_of_plain_steps,
    steady,
    wild,
)
from tests.engine.test_progress import Listener
from tests.engine.test_trouble import factored, factored_starts
from tests.grids import F64, targets, without_nan, x0s
from tests.helpers import (
    assert_close,
    make_network,
    make_problem,
)


@pytest.mark.parametrize("size", [None, 1, 3, 7])
def test_a_callback_is_shown_what_plain_steps_show(traced: list[Trace], size: int | None) -> None:
    # Infos of compiled steps are stacked, one question is a grid of one: no callback sees it.
    problem = make_problem() if size is None else fe.vmap(make_problem(), x0=x0s(size))
    shown: list[list[Any]] = []
    for wanted in (True, False):
        seen: list[Any] = []
        fe.solve(
            problem,
            steady(),
            max_steps=6,
            compile=wanted,
            callback=lambda state, info, seen=seen: seen.append((state, info)),  # type: ignore[misc]
        )
        shown.append(seen)
    # Of one question or row, the last point is evaluated without a call.
    assert len(shown[0]) - len(shown[1]) == (size in (None, 1))
    for found, expected in zip(*shown, strict=False):
        assert_close(without_nan(found), without_nan(expected), rtol=1e-9, atol=1e-12)


def test_a_listener_follows_rows_from_none_to_all(traced: list[Trace]) -> None:
    listener = Listener()
    grid = fe.vmap(make_problem(), x0=x0s(9), target=targets(9))
    found = fe.solve(grid, wild(), max_steps=30, atol=0.1, chunk_size=4, compile=True, callback=listener)
    assert [listener.told[0].done, listener.told[-1].done] == [0, 9]
    assert listener.told[-1].hits == int(found.hit.sum())
    assert [told.done for told in listener.told] == sorted({told.done for told in listener.told})


@pytest.mark.parametrize("step", [1, 6, 25])
def test_an_interrupted_search_keeps_what_it_found(traced: list[Trace], step: int) -> None:
    grid = fe.vmap(make_problem(), x0=x0s(9), target=targets(9))
    found = []
    for wanted in (True, False):
        left = [step]

        def interrupts(state: fe.State, info: fe.Info, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        found.append(
            fe.solve(
                grid, wild(), max_steps=30, atol=0.1, chunk_size=4, compile=wanted, callback=interrupts
            )
        )
    assert_close(without_nan(found[0]), without_nan(found[1]), rtol=1e-9)
    assert (found[0].status == fe.Status.INTERRUPTED).any()  # type: ignore[union-attr]


# --- trouble on the way ---------------------------------------------------------------------------


def sinking(size: int) -> fe.Problem:
    """Rows of which every other one loses its Cholesky factor after nine steps."""

    def sink(x: Tensor, reference: Tensor) -> Tensor:
        return x[0, 0, 0]

    problem = fe.penalize(sink, strength=0.0, name="sink")(
        make_problem((factored, {}), x0=factored_starts(1)[0])
    )
    return fe.vmap(problem, sink=torch.tensor([0.0, 1.2] * size, dtype=F64)[:size])


@pytest.mark.parametrize(("size", "chunk_size"), [(2, 100), (3, 2), (7, 100)])
def test_a_factorization_that_fails_on_the_way_ends_its_row_alone(
    traced: list[Trace], size: int, chunk_size: int
) -> None:
    # A row that has ended must not fail again while the batch keeps its size; and of several steps in
    # one call, the one that fails is not the one that is tried row by row.
    found = assert_answers_are_those_of_plain_steps(
        sinking(size), lambda: fe.sgd(lr=0.1), max_steps=20, chunk_size=chunk_size
    )
    assert found.status.tolist() == [2, 3, 2, 3, 2, 3, 2][:size]  # type: ignore[union-attr]
    assert found.num_steps.tolist() == [20, 9, 20, 9, 20, 9, 20][:size]
    assert traced


def test_a_factorization_that_fails_at_once_is_no_trouble(traced: list[Trace]) -> None:
    for size in (3, 6):
        grid = fe.vmap(make_problem((factored, {})), x0=factored_starts(size, 1))
        found = assert_answers_are_those_of_plain_steps(grid, steady, max_steps=5)
        assert found[1].status is fe.Status.NONFINITE


def test_a_factorization_of_one_question_may_fail_on_the_way(traced: list[Trace]) -> None:
    # As above.
    found = assert_answers_are_those_of_plain_steps(sinking(2)[1], lambda: fe.sgd(lr=0.1), max_steps=20)
    assert (found.status, int(found.num_steps)) == (fe.Status.NONFINITE, 9)


def test_memory_may_run_out(
    traces: list[Trace], monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def short_of_memory(graph: Any, tensors: list[Tensor], options: Any = None) -> Any:
        def code(*tensors: Tensor) -> Any:
            calls.append(len(tensors[0]))
            if len(tensors[0]) > 3 and len(calls) > 4:
                raise MemoryError
            return graph(*tensors)

        return code

    monkeypatch.setattr(torch._inductor, "compile", short_of_memory)
    grid = fe.vmap(make_problem(), x0=x0s(13), target=targets(13))
    assert_answers_are_those_of_plain_steps(grid, wild, 1e-9, max_steps=30, atol=0.05, chunk_size=10)
    assert [trace.rows for trace in traces] == [10, 5, 3]
    assert "out of memory: chunk_size is halved to 3" in said.text


# --- what cannot be compiled ----------------------------------------------------------------------


class Looks(nn.Module):
    """Decides by its values."""

    def forward(self, x: Tensor) -> Tensor:
        scale = 1.0 + (x.abs().amax((1, 2, 3)) > 2.0).to(x.dtype)
        if x.sum().item() > 1e9:
            return x[:, 0, 0]
        return torch.softmax(scale[:, None] * x.mean((1, 2)), -1)


@pytest.mark.parametrize("size", [None, 3, 7])
def test_a_network_that_decides_by_its_values_goes_on_as_it_is(
    traces: list[Trace], said: pytest.LogCaptureFixture, size: int | None
) -> None:
    problem = make_problem(fe.opaque(Looks()))
    if size:
        problem = fe.vmap(problem, x0=x0s(size))
    assert_answers_are_those_of_plain_steps(problem, steady, max_steps=8, chunk_size=4)
    (record,) = said.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(CANNOT)
    assert "branches on values" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert len(traces) == 1  # it is not tried again


@pytest.mark.parametrize("error", [RuntimeError("No working C++ compiler found\nand more"), OSError()])
def test_without_a_compiler_the_search_goes_on_as_it_is(
    traces: list[Trace],
    said: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fails(graph: Any, tensors: Any, options: Any = None) -> Any:
        raise error

    monkeypatch.setattr(torch._inductor, "compile", fails)
    grid = fe.vmap(make_problem(), x0=x0s(9), target=targets(9))
    assert_answers_are_those_of_plain_steps(grid, wild, 1e-9, max_steps=30, atol=0.05, chunk_size=4)
    reason = "No working C++ compiler found" if str(error) else "OSError"
    assert [record.getMessage() for record in said.records] == [CANNOT + reason]
    assert len(traces) == 1


def test_what_torch_warns_of_meanwhile_is_no_refusal(
    traces: list[Trace], said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where warnings are errors, as in these tests, torch's own must not count as a refusal.
    def warns(graph: Any, tensors: Any, options: Any = None) -> Any:
        warnings.warn("an option of the compiler is deprecated", DeprecationWarning, stacklevel=1)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", warns)
    fe.solve(fe.vmap(make_problem(), x0=x0s(6)), max_steps=2, compile=True)
    assert CANNOT not in said.text


def test_an_interruption_of_the_compiler_is_one(
    traces: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupts(graph: Any, tensors: Any, options: Any = None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch._inductor, "compile", interrupts)
    found = fe.solve(fe.vmap(make_problem(), x0=x0s(6)), max_steps=5, compile=True)
    assert (found.status == fe.Status.INTERRUPTED).all()  # type: ignore[union-attr]
    assert fe.solve(make_problem(), max_steps=5, compile=True).status is fe.Status.INTERRUPTED


def test_code_from_the_disk_has_the_constants_of_its_own_network(traces: list[Trace]) -> None:
    """Two networks that capture tensors of their own make one graph: what they capture must differ."""
    from torch._dynamo.utils import counters

    for seed in (1, 2):
        hits = counters["aot_autograd"]["autograd_cache_hit"]
        matrix = torch.randn(60, 5, dtype=F64, generator=torch.Generator().manual_seed(seed))
        problem = make_problem((lambda p, x, m=matrix: torch.softmax(x.flatten() @ m, -1), {}))
        grid = fe.vmap(problem, x0=x0s(5), target=targets(5))
        assert_answers_are_those_of_plain_steps(grid, steady, max_steps=6)
    assert counters["aot_autograd"]["autograd_cache_hit"] == hits + 1
    assert len(traces) == 2


# --- by itself ------------------------------------------------------------------------------------


def test_by_itself_it_does_not_compile_short_searches(traced: list[Trace]) -> None:
    fe.solve(fe.vmap(make_problem(), x0=x0s(9)), max_steps=30, chunk_size=4)
    fe.solve(make_problem(), max_steps=30)
    assert not traced


@pytest.mark.parametrize(("size", "chunk_size"), [(9, 4), (9, None), (3, None)])
def test_by_itself_it_compiles_long_searches(
    traced: list[Trace], monkeypatch: pytest.MonkeyPatch, size: int, chunk_size: int | None
) -> None:
    monkeypatch.setattr(compiled, "_COMPILATION", 1e-9)
    grid = fe.vmap(make_problem(), x0=x0s(size), target=targets(size))
    settings: dict[str, Any] = {"max_steps": 40, "atol": 0.05, "chunk_size": chunk_size}
    found = fe.solve(grid, wild(), **settings)
    assert len(traced) == 1
    expected = fe.solve(grid, wild(), compile=False, **settings)
    assert_close(without_nan(found), without_nan(expected), rtol=1e-9)
    fe.solve(make_problem(), max_steps=40)  # one question is never compiled unasked
    assert len(traced) == 1


@pytest.mark.parametrize("compiles", [True, False])
def test_by_itself_it_goes_on_in_smaller_chunks_if_it_compiles(
    traced: list[Trace], monkeypatch: pytest.MonkeyPatch, compiles: bool
) -> None:
    monkeypatch.setattr(compiled, "_COMPILATION", 1e-9)
    monkeypatch.setattr(rows, "choose_chunk_size", lambda *_, **__: ChunkSizes(plain=12, compiled=5))
    problem = make_problem() if compiles else make_problem(fe.opaque(Looks()))
    grid = fe.vmap(problem, x0=x0s(20), target=targets(20))
    at_once: list[int] = []
    settings: dict[str, Any] = {"max_steps": 40, "atol": 0.05}
    found = fe.solve(grid, wild(), **settings, callback=lambda state, _: at_once.append(len(state.z)))
    expected = fe.solve(grid, wild(), compile=False, **settings)
    assert_close(without_nan(found), without_nan(expected), rtol=1e-9)
    assert at_once[0] == 12
    after = at_once[at_once.index(5) :]
    assert (max(after) == 5) == compiles, at_once


def test_a_machine_that_halts_does_not_make_a_search_long(
    traced: list[Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that takes an hour, by the clock, among others that take none."""
    calls = itertools.count()
    monkeypatch.setattr(pool.time, "monotonic", lambda: 3600.0 * (next(calls) > 6))
    fe.solve(fe.vmap(make_problem(), x0=x0s(20)), max_steps=40, chunk_size=4)
    assert not traced


def test_what_cannot_be_compiled_is_tried_once(
    traces: list[Trace], said: pytest.LogCaptureFixture
) -> None:
    grid = fe.vmap(make_problem(fe.opaque(Looks())), x0=x0s(7))
    for _ in range(2):
        fe.solve(grid, steady(), max_steps=4, chunk_size=4, compile=True)
    assert len(traces) == 1
    reason = "the network branches on values (.item(), an if, a solver outside of torch)"
    assert [record.getMessage() for record in said.records] == [CANNOT + reason] * 2


def test_by_itself_it_says_in_passing_what_cannot_be_compiled(
    traces: list[Trace], said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_COMPILATION", 1e-9)
    fe.solve(fe.vmap(make_problem(fe.opaque(Looks())), x0=x0s(7)), max_steps=40, chunk_size=4)
    (record,) = said.records
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith(CANNOT)


@pytest.mark.parametrize("wrong", [None, 1, 0, "yes", "AUTO", 1.0, ["auto"]], ids=repr)
def test_other_words_are_refused(wrong: Any) -> None:
    message = f"solve: compile must be True, False or 'auto', got {wrong!r}"
    for problem in (make_problem(), fe.vmap(make_problem(), x0=x0s(2))):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            fe.solve(problem, compile=wrong)


# --- code that is kept ----------------------------------------------------------------------------


def test_a_second_search_of_the_kind_needs_no_trace(traced: list[Trace]) -> None:
    problem, method = make_problem(), steady()
    for seed in (1, 2):
        grid = fe.vmap(problem, x0=x0s(6, seed=seed), target=targets(6, seed=seed + 5))
        found = fe.solve(grid, method, max_steps=8, compile=True)
        assert_close(found, fe.solve(grid, method, max_steps=8, compile=False), rtol=1e-10)
    assert len(traced) == 1


def test_code_is_kept_for_equal_questions_alone(traced: list[Trace]) -> None:
    network, method = fe.functionalize(make_network("mlp_tanh")), steady()
    questions: list[tuple[fe.Problem, Any, dict[str, Any]]] = [
        (make_problem(network), method, {}),
        (make_problem(network), fe.sgd(lr=0.1), {}),
        (make_problem(network), method, {"atol": 0.1}),
        (make_problem(network), method, {"atol": 0.1, "keep": "best"}),
        (make_problem(network), method, {"atol": 0.1, "patience": 2, "rtol": 0.5}),
        (make_problem(network), method, {"rows": "samples"}),
        (make_problem(network, loss=fe.losses.kl), method, {}),
        (fe.freeze(make_problem(network)), method, {}),
        (fe.zero_masked(make_problem(network)), method, {}),
        (fe.box(-4.0, 4.0)(make_problem(network)), method, {}),
        (fe.clip(-4.0, 4.0)(make_problem(network)), method, {}),
        (fe.penalize(fe.penalties.l2, strength=1.0)(make_problem(network)), method, {}),
        (fe.penalize(fe.penalties.l1, strength=1.0)(make_problem(network)), method, {}),
        (make_problem("mlp_gelu"), method, {}),
    ]
    for problem, method, settings in questions:
        grid = fe.vmap(problem, x0=x0s(6), target=targets(6))
        found = fe.solve(grid, method, max_steps=8, compile=True, **settings)
        expected = fe.solve(grid, method, max_steps=8, compile=False, **settings)
        assert_close(without_nan(found), without_nan(expected), rtol=1e-9, atol=1e-12)


def test_code_is_kept_for_equal_settings_of_a_network_alone(traced: list[Trace]) -> None:
    # What of `params` is no tensor is part of the code, and so of its key.
    def apply(p: Any, x: Tensor) -> Tensor:
        return torch.softmax(p["scale"] * x[0, 0].abs() ** p["power"], -1)

    method, scale = steady(), torch.tensor(0.5, dtype=F64)
    for power in (2, 3):
        grid = fe.vmap(make_problem((apply, {"scale": scale, "power": power})), x0=x0s(6))
        found = fe.solve(grid, method, max_steps=8, compile=True)
        assert_close(found, fe.solve(grid, method, max_steps=8, compile=False), rtol=1e-10)


def test_little_code_is_kept(traced: list[Trace], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_MAXIMUM_KEPT", 2)
    problem, method = make_problem(), steady()
    for size, count in [(5, 1), (6, 2), (5, 2), (7, 3), (5, 3), (6, 4)]:
        fe.solve(fe.vmap(problem, x0=x0s(size)), method, max_steps=2, compile=True)
        assert len(traced) == count
        assert len(compiled._CODE) <= 2
