"""The work of a worker: build the problem once, then solve chunks of its rows and publish them."""

from __future__ import annotations

import itertools
import os
import pickle
import traceback
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from funcexplain.clusters.behavior import measure_behavior
from funcexplain.clusters.fingerprint import differences, fingerprint
from funcexplain.clusters.folder import Folder
from funcexplain.clusters.manifest import Manifest
from funcexplain.clusters.recipes import Recipe, build_problem
from funcexplain.clusters.scheduling import WorkerError
from funcexplain.engine.closest import check_refinement, refine
from funcexplain.engine.memory import reuse_blocks_of_dask
from funcexplain.engine.rows import ROWS_PER_MODEL
from funcexplain.engine.solve import solve
from funcexplain.problems.grid import RowDim, by_model, take_rows
from funcexplain.problems.problem import Problem
from funcexplain.solutions.solution import Solution
from funcexplain.solutions.status import Status

WHERE = "clusters.solve"
REFINEMENT = ("refinements", "norm", "groups")
"""Names of the settings of `closest`, which refines the hits; none of them means no refinement."""
_PROCESS = os.getpid()  # the one that imported this module


class Task(NamedTuple):
    """The data that all chunks of a run share, sent to the workers."""

    build: Recipe
    method: Any
    settings: dict[str, Any]
    directory: Path
    manifest: Manifest


def solve_chunk(task: bytes, number: int, attempt: str) -> dict[int, int]:
    """Solve the rows of a chunk and publish them; returns the number of rows per status.

    Args:
        task: a pickled `Task`.
        number: number of the chunk.
        attempt: path of a file whose time shows when the present phase has begun: building the problem,
            then the search. Unique, so that executors that cache results by arguments, as Dask can, do
            not return an earlier result.

    Raises:
        WorkerError: for any error, as text.
    """
    if os.getpid() != _PROCESS:
        # A fork inherits the number of threads but not the threads, and would hang with more than one.
        torch.set_num_threads(1)
    try:
        _mark(attempt)
        problem, method, settings, folder = _job(task)
        _mark(attempt)  # building is a phase of its own
        span = folder.manifest.span(number)
        rows = torch.arange(span.start, span.stop, device=problem.args["x0"].device)
        solution = solve_rows_alone(problem, rows, method, settings)
        if bool((solution.codes == Status.INTERRUPTED).any()):
            raise InterruptedError(f"{WHERE}: Ctrl-C reached the worker of chunk {number}")
        return dict(folder.publish(number, solution))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the caller's exceptions may not be picklable
        lines = traceback.format_exception_only(error), traceback.format_tb(error.__traceback__)
        raise WorkerError("".join(itertools.chain(*lines))) from None


def _mark(attempt: str) -> None:
    """Show that a phase of an attempt begins."""
    with suppress(OSError):  # a full disk, or a folder that is not shared: publishing reports it
        Path(attempt).parent.mkdir(parents=True, exist_ok=True)
        Path(attempt).touch()


@lru_cache(maxsize=1)  # a worker serves one run at a time; building may take seconds
def _job(task: bytes) -> tuple[Problem, Any, dict[str, Any], Folder]:
    """Load a task: its problem, method, settings and directory."""
    try:
        build, recipe, settings, directory, manifest = pickle.loads(task)
    except (AttributeError, ImportError) as error:
        raise ImportError(
            f"{WHERE}: build and method must be importable by workers, got {error} in a worker; "
            "define them at the top of a module that is installed there, not in a notebook or shell"
        ) from None
    reuse_blocks_of_dask()
    problem, method = build_problem(WHERE, build), make_method(recipe)
    here = manifest._replace(parts=fingerprint(problem, method, settings))
    here = here._replace(behavior=measure_behavior(problem, method))
    before, after = manifest.changes(here)
    if before:
        raise ValueError(
            f"{WHERE}: build must make the same problem in every process, got another one in a worker: "
            f"{differences(before, after)}; seed its random numbers, and load trained networks from a "
            "file"
        )
    return problem, method, settings, Folder(WHERE, directory, manifest)


def make_method(method: Any) -> Any:
    """Call the recipe of a method; a method itself is returned unchanged."""
    return method.function(**method.kwargs) if isinstance(method, Recipe) else method


def solve_rows_alone(problem: Problem, rows: Tensor, method: Any, settings: dict[str, Any]) -> Solution:
    """Solve some rows of a grid, in ascending order, as a grid of one dimension."""
    if settings["rows"] == "samples":
        # Tried for the whole grid; a chunk of one model or of unusual rows may need another way.
        settings = settings | {"rows": "auto"}
    steps = {name: value for name, value in settings.items() if name not in REFINEMENT}
    refinement: dict[str, Any] = {name: settings[name] for name in REFINEMENT if name in settings}
    groups = [*by_model(problem.dims, problem.args, rows, ROWS_PER_MODEL)]
    parts: list[Any] = []
    for dims, args, some in groups:
        dim = RowDim("row", len(some), frozenset[str]().union(*(dim.varying for dim in dims)))
        selected = replace(problem, args=take_rows(dims, args, some), dims=(dim,))
        part = solve(selected, method, **steps)
        if refinement:
            limits = check_refinement(WHERE, selected, settings["atol"] or 0.0, **refinement)
            part = refine(selected, part, limits)
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    # Restore the order of the rows.
    order = torch.cat([some for *_, some in groups]).argsort()
    whole: Any = optree.tree_map(lambda *tensors: torch.cat(tensors)[order], *parts)
    place = {row: index for index, row in enumerate(rows.tolist())}
    exceptions = {
        place[int(some[row])]: error
        for (*_, some), part in zip(groups, parts, strict=True)
        for row, error in part.exceptions.items()
    }
    return replace(whole, exceptions=exceptions)
