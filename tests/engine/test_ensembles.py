"""Grids of models: large ones are batched model by model, and that changes no answer."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.engine import rows as rows_module
from tests.engine.test_progress import Listener
from tests.grids import F64, assert_padded, models, numbers, targets, without_nan, x0s
from tests.helpers import assert_close, make_problem

SETTINGS: dict[str, Any] = {"max_steps": 12, "atol": 0.05}


def method() -> fe.Optimizer:
    return fe.sgd(lr=20.0, momentum=0.9)


def inside() -> fe.Problem:
    return fe.vmap(fe.vmap(make_problem(), params=models(3)), x0=x0s(5))


def outside() -> fe.Problem:
    return fe.vmap(fe.vmap(make_problem(), x0=x0s(5)), params=models(3))


def between() -> fe.Problem:
    inner = fe.vmap(fe.vmap(make_problem(), x0=x0s(2)), params=models(3), target=targets(3))
    return fe.vmap(inner, seed=torch.arange(2))


def twice() -> fe.Problem:
    inner = fe.vmap(fe.vmap(make_problem(), params=models(3)), x0=x0s(2))
    stacked = {name: torch.stack([p, 0.5 * p]) for name, p in models(3).items()}
    return fe.vmap(inner, params=stacked)


def with_strengths() -> fe.Problem:
    problem = fe.penalize(fe.penalties.l2, strength=0.0, name="proximity")(make_problem())
    grid = fe.vmap(fe.vmap(problem, params=models(2)), x0=x0s(3))
    return fe.vmap(grid, proximity=numbers(2, F64, 0.0, 0.3))


GRIDS = {f.__name__: f for f in (inside, outside, between, twice, with_strengths)}


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("grid", GRIDS)
def test_models_one_by_one_and_together_agree(
    grid: str, chunk_size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = GRIDS[grid]()
    together = fe.solve(problem, method(), **SETTINGS)
    listener = Listener()
    monkeypatch.setattr(rows_module, "ROWS_PER_MODEL", 1)
    apart = fe.solve(problem, method(), **SETTINGS, chunk_size=chunk_size, callback=listener)
    assert apart.dims == together.dims
    assert_close(without_nan(apart), without_nan(together), rtol=1e-9)
    assert_padded(apart)
    done = [told.done for told in listener.told]
    assert done[0] == 0
    assert done == sorted(set(done))
    assert done[-1] == listener.told[0].rows == apart.loss.numel()
    assert listener.told[-1].hits == int(apart.hit.sum())


def test_a_large_ensemble_is_solved_as_its_rows_are() -> None:
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(70)), params=models(2))
    found = fe.solve(grid, fe.sgd(lr=0.5), max_steps=4)
    for model, row in [(0, 0), (0, 69), (1, 0), (1, 35)]:
        assert_close(found[model, row], fe.solve(grid[model, row], fe.sgd(lr=0.5), max_steps=4))
    assert fe.solve(grid[:0], max_steps=2).shape == (0, 70)
    assert fe.solve(grid[:, :0], max_steps=2).shape == (2, 0)


def test_an_interruption_ends_all_models(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rows_module, "ROWS_PER_MODEL", 1)
    whole = fe.solve(outside(), method(), **SETTINGS)

    class Interrupts(Listener):
        def __call__(self, state: fe.State, info: fe.Info) -> None:
            super().__call__(state, info)
            if self.told[-1].done >= 7:
                raise KeyboardInterrupt

    found = fe.solve(outside(), method(), **SETTINGS, chunk_size=2, callback=Interrupts())
    status = torch.as_tensor(found.status)
    ended = status != fe.Status.INTERRUPTED
    assert ended[0].all()
    assert not ended[2].any()
    assert found.loss[2].isnan().all()
    assert_padded(found)
    assert_close(found.x[ended], whole.x[ended], rtol=1e-9)
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert messages == [f"interrupted: {int(ended.sum())} of 15 rows have ended"]
