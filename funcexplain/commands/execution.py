"""Where searches run: in this process, in worker processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import funcexplain as fe
from funcexplain.clusters.pools import ExecutorSource
from funcexplain.commands.config import parse_config
from funcexplain.commands.folder import earlier_question
from funcexplain.commands.inputs import (
    Inputs,
    load_inputs,
    make_method,
    refinement_settings,
    solve_settings,
)
from funcexplain.commands.method import MethodConfig
from funcexplain.commands.toml import to_toml
from funcexplain.engine.closest import check_refinement, refine
from funcexplain.networks.network import deferred_interrupts
from funcexplain.solutions.tables import require

_CONNECT_TIMEOUT = "10 s"
_ACCEPT = re.compile(r"accept=\[(.*?)\]")
_chdir_lock = Lock()  # threads of a worker share the current folder of its process


@contextmanager
def search_executor(workers: int | None, dask: str | None) -> Iterator[ExecutorSource | None]:
    """Make an executor of processes or of Dask's workers, or None to search in this process."""
    if dask is None:
        yield None if workers is None else fe.clusters.processes(workers)
        return
    if not re.fullmatch(r"[a-z]+://.+:\d+", dask):
        raise ValueError(f"--dask: expected an address such as tcp://127.0.0.1:8786, got {dask!r}")
    distributed = require("--dask", "distributed", "dask")
    try:
        client = distributed.Client(
            dask, timeout=_CONNECT_TIMEOUT, set_as_default=False, name="funcexplain"
        )
    except OSError:
        raise OSError(
            f"--dask: no scheduler answers at {dask!r}; check that it is running and its port is open"
        ) from None
    with client:
        yield client.get_executor()


def build_problem_of_config(config: str, folder: str, trust_model: bool) -> fe.Problem:
    """State the question of a config, given as TOML, whose paths are relative to a folder."""
    with _chdir_lock, chdir(folder):
        return load_inputs(parse_config(tomllib.loads(config)), trust_model=trust_model).query.problem


def solve_shared(
    inputs: Inputs,
    executor: ExecutorSource,
    directory: Path,
    *,
    trust_model: bool,
    timeout: float | None,
    accept: Collection[str],
    callback: Any,
) -> fe.clusters.ChunkedSolution:
    """Solve the searches of a config with an executor; answers in the directory are reused.

    Raises:
        KeyboardInterrupt: after Ctrl-C, or if the workers are lost.
    """
    method, kwargs = inputs.config.method, {"folder": str(Path.cwd()), "trust_model": trust_model}
    with deferred_interrupts():
        try:
            solution = fe.clusters.solve(
                (build_problem_of_config, {"config": to_toml(inputs.config), **kwargs}),
                (getattr(fe, method.name), method.settings),
                executor=executor,
                directory=directory,
                timeout=timeout,
                accept=accept,
                callback=callback,
                **solve_settings(method),
                **refinement_settings(method),
            )
        except ValueError as error:
            text = str(error).replace("name another directory", "name another output.folder")
            if "accept=[" not in text:  # whether they remain valid does not depend on the code alone
                asked = earlier_question(directory.parent)
                text = text.replace("to something else", f"to another question{asked}")
            raise ValueError(_ACCEPT.sub(_as_flag, text)) from None
        _check_complete(solution, "run the same command to resume")
    return solution


def _as_flag(accept: re.Match[str]) -> str:
    """The argument of `fe.clusters.solve`, as a flag of the command."""
    return "--accept " + accept[1].replace("'", "").replace(", ", ",")


def solve_here(
    problem: fe.Problem, config: MethodConfig, consequence: str, callback: Any = None
) -> fe.Solution:
    """Solve in this process; after Ctrl-C, raise a KeyboardInterrupt that names the consequence."""
    settings, refinement = solve_settings(config), refinement_settings(config)
    with deferred_interrupts():
        solution = fe.solve(problem, make_method(config), callback=callback, **settings)
        _check_complete(solution, consequence)
        if refinement:
            limits = check_refinement("method", problem, config.atol, **refinement)
            solution = refine(problem, solution, limits)
            _check_complete(solution, consequence)
    return solution


def _check_complete(solution: fe.Solution, consequence: str) -> None:
    """Raise a KeyboardInterrupt, which names the consequence, if Ctrl-C interrupted some searches."""
    missing = int((solution.codes == fe.Status.INTERRUPTED).sum())
    if missing:
        rows = solution.num_steps.numel()
        raise KeyboardInterrupt(f"{rows - missing} of {rows} searches are answered; {consequence}")
