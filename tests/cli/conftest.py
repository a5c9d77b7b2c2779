"""Fewer draws of noise: the measures have tests of their own, and are half of a run."""

import pytest

from funcexplain.measures.evaluate import evaluate


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate.__kwdefaults__ is not None
    monkeypatch.setitem(evaluate.__kwdefaults__, "draws", 2)
