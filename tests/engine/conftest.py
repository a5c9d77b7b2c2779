"""Fixtures of compiled steps: compilations are counted, or the traced graph stands for the code."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch._inductor

import funcexplain as fe
from funcexplain.engine import compiled, rows
from tests.engine.compilation import Trace


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[Trace]:
    """All compilations from here on, of two steps at most; nothing is compiled yet."""
    monkeypatch.setattr(rows, "_UNROLLED", 2)  # five take three times as long
    found: list[Trace] = []
    inner = compiled._compiled

    def counted(step: Any, state: fe.State, args: Any, unroll: int) -> Any:
        found.append(Trace(len(state.status), unroll))
        return inner(step, state, args, unroll)

    monkeypatch.setattr(compiled, "_compiled", counted)
    monkeypatch.setattr(compiled, "_CODE", OrderedDict())
    return found


@pytest.fixture
def traced(traces: list[Trace], monkeypatch: pytest.MonkeyPatch) -> list[Trace]:
    """The same, with the traced graph in the place of machine code."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, tensors, options=None: graph)
    return traces


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "funcexplain")
    return caplog
