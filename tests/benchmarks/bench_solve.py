"""Whole solves under pytest-benchmark, in one process: ``pytest tests/benchmarks/bench_solve.py``.

For tracking one framework from commit to commit, with pytest-benchmark's own storage and comparison.
Frameworks are compared with each other by ``python -m tests.benchmarks``, where each has a process of
its own. Not collected unless named.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.benchmarks.catalogue import OWN, Case
from tests.benchmarks.frameworks import FRAMEWORKS

STEPS = 50


@pytest.mark.parametrize("problems", [1, 64])
@pytest.mark.parametrize("network", OWN)
@pytest.mark.parametrize("framework", ["eager", "compiled", "batched"])
def test_solve(benchmark: Any, framework: str, network: str, problems: int) -> None:
    (way,) = FRAMEWORKS[framework](Case(network, "float32", problems, STEPS))
    out = benchmark.pedantic(way.run, rounds=5, warmup_rounds=1)
    answer = way.read(out)
    # A fast wrong answer must be visible.
    benchmark.extra_info["median loss"] = float(np.median(answer.losses))
    benchmark.extra_info["steps"] = answer.num_steps
    assert np.isfinite(answer.losses).all()
