"""Searches that are shared: by processes of this machine, or by the workers of a Dask scheduler."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import chdir, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import torch

import funcexplain as fe
from funcexplain.commands.config import checked
from funcexplain.commands.ready import Ready, load, search_settings
from funcexplain.commands.toml import to_toml
from funcexplain.solutions.tables import require

Engine = Executor | Callable[[], Executor]

_PATIENCE = "10 s"  # with a scheduler that does not answer
_turn = Lock()  # the current folder is that of a process; threads of a worker take turns


@contextmanager
def engine(workers: int | None, dask: str | None) -> Iterator[Engine | None]:
    """What shares the searches, or None where this process has them all.

    Args:
        workers: processes of this machine.
        dask: address of a Dask scheduler.

    Raises:
        ImportError: distributed is not installed.
        ValueError: the address is none.
        OSError: no scheduler answers.
    """
    if dask is None:
        yield None if workers is None else fe.clusters.processes(workers)
        return
    if not re.fullmatch(r"[a-z]+://.+:\d+", dask):
        raise ValueError(f"--dask: expected an address such as tcp://127.0.0.1:8786, got {dask!r}")
    distributed = require("--dask", "distributed", "dask")
    try:
        client = distributed.Client(dask, timeout=_PATIENCE, set_as_default=False, name="funcexplain")
    except OSError:
        raise OSError(
            f"--dask: no scheduler answers at {dask!r}; is it running, and its port open?"
        ) from None
    with client:
        yield client.get_executor()


def build(config: str, folder: str, trust_model: bool) -> fe.Problem:
    """Load what a config names and state its question: in a worker, and in the process that asks.

    Args:
        config: the config as TOML.
        folder: from which its paths lead.
        trust_model: whether a ``.pt2`` file may run its code.

    Returns:
        The problem.
    """
    with _turn, chdir(folder):
        return load(checked(tomllib.loads(config)), trust_model=trust_model).asked.problem


def solve(
    ready: Ready, executor: Engine, directory: Path, *, trust_model: bool, callback: Any
) -> fe.clusters.ChunkedSolution:
    """Solve the searches of a config by the workers of an executor.

    Args:
        ready: what the config names.
        executor: from `engine`.
        directory: where answers lie; those that lie there already are taken.
        trust_model: whether a ``.pt2`` file may run its code.
        callback: told of the progress.

    Returns:
        The solution, which lies in the directory.

    Raises:
        KeyboardInterrupt: after Ctrl-C, or where the workers are lost.
        ValueError: the directory holds answers to another question.
        OSError: it cannot be written.
    """
    method = ready.config.method
    asked = {"config": to_toml(ready.config), "folder": str(Path.cwd()), "trust_model": trust_model}
    try:
        solution = fe.clusters.solve(
            (build, asked),
            (getattr(fe, method.name), method.settings),
            executor=executor,
            directory=directory,
            callback=callback,
            **search_settings(method),
        )
    except ValueError as error:
        raise ValueError(
            str(error).replace("name another directory", "name another output.folder")
        ) from None
    left = int((torch.as_tensor(solution.status) == fe.Status.INTERRUPTED).sum())
    if left:
        rows = solution.num_steps.numel()
        raise KeyboardInterrupt(
            f"{rows - left} of {rows} searches are answered; the same command goes on from there"
        )
    return solution
