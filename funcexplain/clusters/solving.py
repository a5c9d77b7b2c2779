"""`solve`: a grid of rows in chunks on any executor, from the first one or from where a run was left."""

from __future__ import annotations

import inspect
import itertools
import logging
import math
import os
import pickle
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch

from funcexplain.clusters.answers import ChunkedSolution
from funcexplain.clusters.chunk import WHERE, Task, made_method, solve_chunk, solve_rows_alone
from funcexplain.clusters.fingerprint import fingerprint
from funcexplain.clusters.folder import Failures, Folder, begin
from funcexplain.clusters.manifest import Manifest
from funcexplain.clusters.pools import Held, checked_source
from funcexplain.clusters.recipes import as_recipe, build_problem, pickled
from funcexplain.clusters.scheduling import Scheduler
from funcexplain.engine.batching import why_not_samples
from funcexplain.engine.progress import Callback, Meter
from funcexplain.engine.solve import solve as solve_here
from funcexplain.problems.checks import check_count, check_positive
from funcexplain.problems.problem import Problem
from funcexplain.solutions.solution import Solution
from funcexplain.solutions.status import Status
from funcexplain.solvers.optimizers import adam

# Rows per chunk: so many chunks that workers end at about the same time, within bounds. The least is
# long enough that a chunk's own cost, up to 25 ms, is small beside its search; the most so short that
# large tensors are not taken anew from the system in every step (docs/clusters.md).
_CHUNKS, _LEAST_ROWS, _MOST_ROWS = 64, 64, 512
# What decides the answers, or how fast they come; the rest of solve's settings is the coordinator's.
_SETTINGS = ("max_steps", "atol", "keep", "patience", "rtol", "history", "rows", "compile")

_logger = logging.getLogger("funcexplain")


def solve(
    build: Callable[..., Problem] | tuple[Callable[..., Problem], Mapping[str, Any]],
    method: Any = None,
    *,
    executor: Executor | Callable[[], Executor],
    directory: str | os.PathLike[str],
    chunk_size: int | None = None,
    retries: int = 2,
    in_flight: int | None = None,
    callback: Callback | None = None,
    **settings: Any,
) -> ChunkedSolution:
    """Answer a grid of rows by the workers of an executor, and keep every answer in a directory.

    The rows are cut into chunks. A chunk is solved by one worker, which writes one file, as a whole or
    not at all. Called again with the same directory, only chunks without a sound file are solved: after
    Ctrl-C, a lost machine or a full disk, call again. The workers must see the directory under the same
    path.

    A chunk that raises is tried again, and so are the chunks that a killed worker held. One that fails
    every time leaves rows that are NaN and FAILED, its error in ``solution.failures``, and all others
    are answered.

    Answers are those of ``fe.solve(build(), method, ...)``, to rounding, whatever the chunks, their
    order and the number of workers. For that, what `fe.solve` decides by the number of rows or by time
    is decided here once: ``rows="auto"`` for the whole grid, and ``compile="auto"`` means False. A run
    of many minutes wants ``compile=True``.

    Args:
        build: function that workers can import, or ``(function, kwargs)``; it returns the grid, and the
            same one in every process. No network is sent: it loads or makes its own.
        method: as in `fe.solve`: ``fe.adam(lr=0.1)``, ``fe.levenberg_marquardt()``; of what cannot be
            pickled, ``(function, kwargs)`` that make it.
        executor: any ``concurrent.futures`` executor, or a function that makes one, which is called
            again where a killed worker broke it: a process pool cannot be used any more then. See
            `processes`; Dask's is ``client.get_executor()``. One that is made here is ended here.
        directory: folder of the run; made if missing.
        chunk_size: rows per file, which a worker holds at once. Default: what the directory has; of a
            new one such that there are 64 chunks, but at least 64 and at most 512 rows.
        retries: times that a chunk is tried again.
        in_flight: most chunks that wait in the executor or run. Default: two per process, else 1024.
        callback: as in `fe.solve`; only its ``report`` is called, when chunks have ended.
        settings: of `fe.solve`: ``max_steps``, ``atol``, ``keep``, ``patience``, ``rtol``, ``history``,
            ``rows``, ``compile``. Losses take a place for every step: ``history=False`` saves it.

    Returns:
        The solution, which reads its chunks when it is asked for rows. After Ctrl-C, or when an executor
        broke that cannot be made anew, rows that are missing are INTERRUPTED.

    Raises:
        TypeError: for an argument of another type, or what cannot be pickled.
        ValueError: if the directory holds answers to something else (what differs is named), or for a
            setting out of range.
        OSError: if the directory cannot be written.

    Example:
        >>> import tempfile, funcexplain as fe
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from funcexplain.clusters.example import build
        >>> folder = tempfile.mkdtemp()
        >>> with ThreadPoolExecutor(1) as pool:
        ...     fe.clusters.solve((build, {"rows": 10}), fe.adam(lr=0.1), executor=pool,
        ...                       directory=folder, chunk_size=4, atol=0.1)
        ChunkedSolution(rows=(target=10), chunks=3, status=(HIT 10), x=(1, 1, 2) torch.float32)
        >>> fe.clusters.open(folder)[3].status
        <Status.HIT: 0>
    """
    recipe = as_recipe(WHERE, "build", build)
    if isinstance(method, tuple) and len(method) == 2 and isinstance(method[1], Mapping):
        method = as_recipe(WHERE, "method", method)
    method = adam() if method is None else method
    source = checked_source(WHERE, executor)
    check_count(WHERE, "retries", retries)
    for name, size in {"chunk_size": chunk_size, "in_flight": in_flight}.items():
        if size is not None:
            check_positive(WHERE, name, size)
    if callback is not None and not callable(callback):
        raise TypeError(f"{WHERE}: callback must be callable, got {type(callback).__name__}")
    problem, settings = build_problem(WHERE, recipe), _all_settings(settings)
    settings = _decided(problem, settings)
    made = made_method(method)
    # The answer to no rows checks the settings, and shows what fields there will be.
    empty = solve_rows_alone(problem, torch.arange(0, device=problem.args["x0"].device), made, settings)
    wanted = Manifest(
        parts=fingerprint(problem, made, settings),
        dims=tuple(dim.name for dim in problem.dims),
        shape=problem.shape,
        chunk_size=chunk_size or _chunk_size(math.prod(problem.shape)),
        fields=_kinds(empty),
    )
    pickled(WHERE, "method", method)
    del problem, empty
    folder = begin(WHERE, directory, wanted, chunk_size)
    task = Task(recipe, method, settings, folder.path, folder.manifest)
    failures = _run(folder, pickle.dumps(task), Held(source), retries, in_flight, callback)
    return ChunkedSolution(folder, failures)


def _run(
    folder: Folder,
    task: bytes,
    held: Held,
    retries: int,
    in_flight: int | None,
    callback: Callback | None,
) -> Failures:
    """Solve what is missing; returns the errors of chunks that failed, in this run or before."""
    manifest, found = folder.manifest, Counter[int]()
    run, attempts = secrets.token_hex(4), itertools.count()
    meter = Meter(callback, manifest.rows, lambda: held.workers)
    failures = folder.failures()
    scheduler = Scheduler(
        held,
        lambda engine, number: engine.submit(solve_chunk, task, number, f"{run}-{next(attempts)}"),
        lambda number: _check_file(folder, number),
        retries,
        in_flight,
    )
    try:
        try:
            folder.clean()
            todo = list(folder.unsound(found))
            meter.begin(manifest.chunk_size, found.total(), found[Status.HIT])
            for number, counts, error in scheduler.run(todo):
                failures.pop(number, None)
                if error is not None:
                    failures[number] = error
                    counts = {int(Status.FAILED): len(manifest.span(number))}
                    _note(folder, number, error)
                meter.add(sum(counts.values()), counts.get(int(Status.HIT), 0))
        except KeyboardInterrupt:
            _logger.warning(
                "interrupted: running chunks are finished, unless Ctrl-C comes again; call again for "
                "the rest"
            )
        except Exception:  # of the caller's callback
            scheduler.cancel()
            held.close()
            raise
        scheduler.cancel()
        held.close()
    except KeyboardInterrupt:  # again, wherever that finds us: nobody is waited for any more
        held.kill()
        raise
    finally:
        meter.end()
    if scheduler.given_up is not None:
        _logger.warning(f"given up: {scheduler.given_up}; call again for what is left")
    return failures


def _check_file(folder: Folder, number: int) -> None:
    """Refuse a chunk whose file the coordinator does not see whole."""
    try:
        folder.counts(number)
    except (OSError, ValueError) as error:
        raise type(error)(
            f"{error}; a worker wrote it: workers must share the directory under the same path"
        ) from None


def _note(folder: Folder, number: int, error: str) -> None:
    """Tell an error and keep it, also where there is no room for it on the disk."""
    _logger.warning(f"chunk {number} failed: {error.splitlines()[0]}")
    try:
        folder.note(number, error)
    except OSError as trouble:
        _logger.warning(str(trouble))


def _chunk_size(rows: int) -> int:
    return min(_MOST_ROWS, max(_LEAST_ROWS, -(-rows // _CHUNKS)))


def _all_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Settings of `fe.solve` with its defaults; refuses others."""
    unknown = sorted(given.keys() - {*_SETTINGS})
    if unknown:
        raise TypeError(
            f"{WHERE}: settings must be among {', '.join(_SETTINGS)}, got {', '.join(unknown)}"
        )
    known = inspect.signature(solve_here).parameters
    every = {name: given.get(name, known[name].default) for name in _SETTINGS}
    # Equal settings are told alike, whatever they were given as.
    every = {n: value.item() if isinstance(value, np.generic) else value for n, value in every.items()}
    return {
        name: float(value) if name in ("atol", "rtol") and type(value) is int else value
        for name, value in every.items()
    }


def _decided(problem: Problem, settings: dict[str, Any]) -> dict[str, Any]:
    """Decide once what otherwise depends on how many rows are solved together, or on time."""
    rows = settings["rows"]
    if rows in ("auto", "samples") and 0 not in problem.shape:
        few = torch.arange(min(3, torch.Size(problem.shape).numel()), device=problem.args["x0"].device)
        reason = why_not_samples(problem, few)
        if reason and rows == "samples":
            raise ValueError(f"{WHERE}: rows='samples' needs independent samples, but {reason}")
        rows = "vmap" if reason else "samples"
    compiled = False if settings["compile"] == "auto" else settings["compile"]
    return settings | {"rows": rows, "compile": compiled}


def _kinds(empty: Solution) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and trailing shape of each field."""
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape[1:]))
        for name, tensor in empty._tensors().items()
    }
