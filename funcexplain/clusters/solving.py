"""`solve`: a grid of rows in chunks on any executor; resumes a directory of an earlier run."""

from __future__ import annotations

import inspect
import itertools
import logging
import math
import os
import pickle
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funcexplain.clusters.answers import ChunkedSolution
from funcexplain.clusters.behavior import measure_behavior
from funcexplain.clusters.chunk import (
    REFINEMENT,
    WHERE,
    Task,
    make_method,
    solve_chunk,
    solve_rows_alone,
)
from funcexplain.clusters.fingerprint import fingerprint
from funcexplain.clusters.folder import Failures, Folder, check_accept, open_or_create
from funcexplain.clusters.manifest import Manifest
from funcexplain.clusters.pools import ManagedExecutor, check_executor
from funcexplain.clusters.recipes import as_recipe, build_problem, pickle_for_workers
from funcexplain.clusters.scheduling import Scheduler
from funcexplain.engine.progress import Callback, Meter
from funcexplain.engine.solve import solve as solve_here
from funcexplain.engine.trial import try_rows, why_not_samples
from funcexplain.networks.network import deferred_interrupts, raise_pending
from funcexplain.problems.checks import check_callable, check_count, check_number, check_positive
from funcexplain.problems.problem import Problem, identity
from funcexplain.solutions.status import HITS, Status
from funcexplain.solvers.optimizers import adam
from funcexplain.solvers.state import Stopping

# Rows per chunk: enough chunks that workers finish at about the same time, within bounds. With the
# minimum, the overhead of a chunk, up to 25 ms, is small compared with its search; with the maximum,
# large tensors are not allocated again in every step (docs/clusters.md).
_CHUNKS, _MIN_ROWS, _MAX_ROWS = 64, 64, 512
# The settings that affect the answers or their speed; the others belong to the coordinator.
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
    timeout: float | None = None,
    accept: str | Collection[str] = (),
    callback: Callback | None = None,
    **settings: Any,
) -> ChunkedSolution:
    """Solve a grid of rows with the workers of an executor, and store every answer in a directory.

    The rows are split into chunks. One worker solves a chunk and writes one file, atomically. A further
    call with the same directory solves only chunks without a valid file: after Ctrl-C, a lost machine or
    a full disk, call again. The workers must see the directory under the same path.

    A chunk that raises is retried, and so are the chunks in flight when a worker is killed. The rows of
    a chunk that fails every time are NaN and FAILED, with the error in ``solution.failures``; all others
    are answered.

    The answers equal those of ``fe.solve(build(), method, ...)``, to rounding, for any chunks, order and
    number of workers. Therefore ``rows="auto"`` is decided once, for the whole grid, and
    ``compile="auto"`` means False; use ``compile=True`` for runs of many minutes.

    Args:
        build: function that workers can import, or ``(function, kwargs)``; it returns the same grid in
            every process. Networks are not sent to workers; it loads or builds them.
        method: as in `fe.solve`: ``fe.adam(lr=0.1)``, ``fe.levenberg_marquardt()``; if it cannot be
            pickled, ``(function, kwargs)`` that make it.
        executor: any ``concurrent.futures`` executor, or a function that makes one. The function is
            called again if a killed worker breaks the executor, such as a process pool; executors made
            here are shut down here. See `processes`; for Dask, use ``client.get_executor()``.
        directory: folder of the run; made if missing.
        chunk_size: rows per file, which a worker solves at a time. Default: that of an existing
            directory; in a new one, a 64th of the rows, but at least 64 and at most 512.
        retries: maximum number of retries per chunk.
        in_flight: maximum number of submitted chunks. Default: two per process, or 1024 if the number of
            processes is unknown.
        timeout: maximum number of seconds for one attempt at a chunk, and for building the problem, once
            in each worker. An attempt that takes longer counts as one that raises, and its worker is
            killed if the executor was made here. Default: no limit; a chunk that takes 30 times the
            median is logged.
        accept: names of parts of the code that may differ from those of an existing directory, such as
            ``"loss"`` or ``"versions.funcexplain"``, after a change that leaves its answers valid. The
            manifest records them; see ``solution.accepted``.
        callback: as in `fe.solve`; only its ``report`` is called, when chunks finish.
        settings: of `fe.solve`: ``max_steps``, ``atol``, ``keep``, ``patience``, ``rtol``, ``history``,
            ``rows``, ``compile``. Every recorded loss needs disk space; ``history=False`` saves it.
            With ``refinements``, hits then approach the reference as in `closest`, whose ``norm``
            and ``groups`` are also accepted.

    Returns:
        The solution, which reads its chunks on demand. After Ctrl-C, or if an executor breaks and cannot
        be remade, missing rows are INTERRUPTED.

    Raises:
        KeyboardInterrupt: after Ctrl-C where no row is missing, and if it is pressed twice.
        TypeError: for an argument of another type, or one that cannot be pickled.
        ValueError: if the directory holds answers to something else (the message names the difference),
            or a setting is out of range.
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
    pickle_for_workers(WHERE, "method", method)
    source = check_executor(WHERE, executor)
    check_count(WHERE, "retries", retries)
    for name, size in {"chunk_size": chunk_size, "in_flight": in_flight}.items():
        if size is not None:
            check_positive(WHERE, name, size)
    if timeout is not None:
        check_number(WHERE, "timeout", timeout, minimum=0.0)
    accept = check_accept(WHERE, accept)
    if callback is not None:
        check_callable(WHERE, "callback", callback)
    problem = build_problem(WHERE, recipe)
    settings, built = _complete_settings(settings), make_method(method)
    # Before anything is evaluated, as in a worker: a loss may hold a generator.
    parts = fingerprint(problem, built, settings)
    behavior = measure_behavior(problem, built)
    _check_samples(problem, settings)
    # Solving zero rows checks the settings, and determines the fields of the answers; the start of a row
    # determines their dtypes.
    none = torch.arange(0, device=problem.args["x0"].device)
    fields = solve_rows_alone(problem, none, built, settings)._tensors()
    dtypes = {name: tensor.dtype for name, tensor in fields.items()}
    if 0 not in problem.shape:
        row = problem[(0,) * len(problem.dims)]
        with deferred_interrupts():
            solution = solve_here(row, built, max_steps=0)
            raise_pending()
        start = solution._tensors()
        for name in ("weights", "loss", "error"):
            dtypes[name] = start[name].dtype
        fields["z"] = start["z"][None]
    if problem.decode is identity:
        del fields["z"]  # it is x
    share = -(-math.prod(problem.shape) // _CHUNKS)
    wanted = Manifest(
        parts=parts,
        dims=tuple(dim.name for dim in problem.dims),
        shape=problem.shape,
        chunk_size=chunk_size or min(_MAX_ROWS, max(_MIN_ROWS, share)),
        fields={
            name: (str(dtypes[name]).removeprefix("torch."), tuple(tensor.shape[1:]))
            for name, tensor in fields.items()
        },
        behavior=behavior,
    )
    del problem, fields
    folder = open_or_create(WHERE, directory, wanted, chunk_size, accept)
    task = pickle.dumps(Task(recipe, method, settings, folder.path, folder.manifest))
    with deferred_interrupts() as hold:  # a press amid them could leave the locks of futures locked
        failures, hold.answered = _run(
            folder, task, ManagedExecutor(source), retries, in_flight, timeout, callback
        )
    return ChunkedSolution(folder, failures)


def _run(
    folder: Folder,
    task: bytes,
    executor: ManagedExecutor,
    retries: int,
    in_flight: int | None,
    timeout: float | None,
    callback: Callback | None,
) -> tuple[Failures, bool]:
    """Solve missing chunks; returns the errors of all that failed, and whether Ctrl-C was pressed."""
    manifest, found = folder.manifest, Counter[int]()
    run, attempts, interrupted = secrets.token_hex(4), itertools.count(), False
    markers: dict[int, Path] = {}

    def submit(pool: Executor, number: int) -> Future[Any]:
        end(number)
        markers[number] = folder.marker(number, f"{run}-{next(attempts)}")
        return pool.submit(solve_chunk, task, number, str(markers[number]))

    def end(number: int) -> None:
        if number in markers:
            with suppress(OSError):
                markers.pop(number).unlink()

    meter = Meter(callback, manifest.rows, lambda: executor.workers)
    failures = folder.failures()
    scheduler = Scheduler(
        executor,
        submit,
        lambda number: _check_file(folder, number),
        retries,
        in_flight,
        timeout,
        begun=lambda number: _time_of(markers[number]),
        answered=lambda number: _published(folder, number),
    )
    try:
        try:
            folder.clean()
            todo = list(folder.missing(found))
            meter.begin(manifest.chunk_size, found.total(), sum(found[code] for code in HITS))
            for number, counts, error in scheduler.run(todo):
                failures.pop(number, None)
                end(number)
                if error is not None:
                    failures[number] = error
                    counts = {int(Status.FAILED): len(manifest.span(number))}
                    _note(folder, number, error)
                meter.add(sum(counts.values()), sum(counts.get(int(code), 0) for code in HITS))
        except KeyboardInterrupt:
            interrupted = True
            _logger.warning(
                "interrupted: running chunks are finished, unless Ctrl-C is pressed again; call again "
                "for the rest"
            )
        except Exception:  # raised by the caller's callback
            scheduler.cancel()
            executor.close()
            raise
        scheduler.cancel()
        executor.close()
    except KeyboardInterrupt:  # pressed again: stop without waiting
        executor.kill()
        raise
    finally:
        meter.end()
        for number in [*markers]:
            end(number)
    if interrupted and next(folder.missing(found), None) is None:
        raise KeyboardInterrupt  # which no row can say: all of them were answered
    if scheduler.given_up is not None:
        _logger.warning(f"given up: {scheduler.given_up}; call again for the rest")
    return failures, interrupted


def _time_of(marker: Path) -> float | None:
    """When the present phase of an attempt began; None before it is in a worker."""
    try:
        return marker.stat().st_mtime
    except OSError:
        return None


def _check_file(folder: Folder, number: int) -> None:
    """Raise unless the coordinator sees a valid file of a chunk."""
    try:
        folder.counts(number)
    except (OSError, ValueError) as error:
        raise type(error)(
            f"{error}; it was written by a worker: workers must share the directory under the same path"
        ) from None


def _published(folder: Folder, number: int) -> Counter[int] | None:
    """Rows per status of a chunk with a valid file, whose worker died after it wrote it; else None."""
    try:
        folder.read(number, tuple(folder.manifest.fields))  # verifies it: if damaged, it is solved again
        return folder.counts(number)
    except (OSError, ValueError):
        return None


def _note(folder: Folder, number: int, error: str) -> None:
    """Log an error and store it; a full disk must not end the run."""
    _logger.warning(f"chunk {number} failed: {error.splitlines()[0]}")
    try:
        folder.note(number, error)
    except OSError as failure:
        _logger.warning(str(failure))


def _complete_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Complete the settings with the defaults of `fe.solve`; raises for others."""
    names = (*_SETTINGS, *REFINEMENT)
    unknown = sorted(given.keys() - {*names})
    if unknown:
        raise TypeError(f"{WHERE}: settings must be among {', '.join(names)}, got {', '.join(unknown)}")
    known = inspect.signature(solve_here).parameters
    every = {name: given.get(name, known[name].default) for name in _SETTINGS}
    if given.get("refinements"):
        every |= {name: given[name] for name in REFINEMENT if name in given}
    if every["compile"] == "auto":  # which `fe.solve` decides by time
        every["compile"] = False
    # Equal settings must have equal fingerprints, also if their types differ.
    every = {n: value.item() if isinstance(value, np.generic) else value for n, value in every.items()}
    return {
        name: float(value) if name in ("atol", "rtol") and type(value) is int else value
        for name, value in every.items()
    }


def _check_samples(problem: Problem, settings: dict[str, Any]) -> None:
    """Raise for ``rows="samples"`` where the network mixes its samples."""
    if settings["rows"] == "samples" and 0 not in problem.shape:
        few = torch.arange(min(3, torch.Size(problem.shape).numel()), device=problem.args["x0"].device)
        reason = why_not_samples(problem, try_rows(problem, adam(), Stopping(), few))
        if reason:
            raise ValueError(f"{WHERE}: rows='samples' needs independent samples, but {reason}")
