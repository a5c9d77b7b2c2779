"""The route of a call: how many files of the package a reader enters, and what an import loads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import funcexplain as fe

ROOT = Path(fe.__file__).parent


def files_entered(call: Callable[[], object]) -> list[str]:
    """Files of the package that a call enters, in order; a first call does the imports."""
    call()
    files: dict[str, None] = {}

    def note(frame: FrameType, event: str, arg: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            files[path.relative_to(ROOT).as_posix()] = None

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(files)


def make_problem() -> fe.Problem:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(160, 4), torch.nn.Softmax(-1))
    target = torch.tensor([0.7, 0.1, 0.1, 0.1])
    return fe.problem(network, target, torch.randn(2, 20, 4), loss=fe.losses.kl)


def written_loop(problem: fe.Problem) -> None:
    init, step = fe.make_step(problem, fe.adam())
    fe.run(init, step, problem.args, num_steps=3)


def make_grid() -> fe.Problem:
    return fe.vmap(make_problem(), x0=torch.randn(20, 2, 20, 4))


@pytest.mark.parametrize(
    ("make", "call", "maximum"),
    [
        pytest.param(make_problem, written_loop, 9, id="make_step and run"),
        pytest.param(make_problem, lambda p: fe.solve(p, fe.adam(), max_steps=3), 11, id="one question"),
        pytest.param(make_grid, lambda p: fe.solve(p, fe.adam(), max_steps=3), 18, id="grid"),
        pytest.param(
            make_problem, lambda p: fe.solve(p, fe.levenberg_marquardt(), max_steps=3), 18, id="LM"
        ),
    ],
)
def test_a_reader_enters_few_files(
    make: Callable[[], fe.Problem], call: Callable[[fe.Problem], object], maximum: int
) -> None:
    problem = make()
    files = files_entered(lambda: call(problem))
    assert len(files) <= maximum, files


def test_importing_the_loop_loads_the_core_alone() -> None:
    program = (
        "import sys, funcexplain.solvers.loop;"
        "loaded = [m for m in sys.modules if m.startswith('funcexplain')];"
        "wings = ('engine', 'markets', 'measures', 'reports', 'clusters', 'commands', 'cli');"
        "assert not [m for m in loaded if m.count('.') and m.split('.')[1] in wings], loaded;"
        "assert len(loaded) <= 45, (len(loaded), loaded)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
