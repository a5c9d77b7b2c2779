"""What a worker does: build the problem once, then solve ranges of its rows and publish them."""

from __future__ import annotations

import os
import pickle
import traceback
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from funcexplain.clusters.fingerprint import differences, fingerprint
from funcexplain.clusters.folder import Folder
from funcexplain.clusters.manifest import Manifest
from funcexplain.clusters.recipes import Recipe, build_problem
from funcexplain.clusters.scheduling import WorkerError
from funcexplain.engine.memory import reuse_blocks_of_dask
from funcexplain.engine.rows import ROWS_PER_MODEL
from funcexplain.engine.solve import solve
from funcexplain.problems.grid import RowDim, by_model, take
from funcexplain.problems.problem import Problem
from funcexplain.solutions.solution import Solution
from funcexplain.solutions.status import Status

WHERE = "clusters.solve"
_PROCESS = os.getpid()  # that imported this


class Task(NamedTuple):
    """What all chunks of a run have in common, and what travels to the workers."""

    build: Recipe
    method: Any
    settings: dict[str, Any]
    directory: Path
    manifest: Manifest


class Job(NamedTuple):
    """A task in a worker."""

    problem: Problem
    method: Any
    settings: dict[str, Any]
    folder: Folder


def solve_chunk(task: bytes, number: int, attempt: str) -> dict[int, int]:
    """Solve the rows of a chunk and publish them.

    Args:
        task: a pickled `Task`.
        number: the chunk's.
        attempt: text that is unlike that of any other attempt: engines that remember results by their
            arguments, as Dask can, then do not answer for this one.

    Returns:
        How many rows ended how.

    Raises:
        WorkerError: whatever went wrong, as text.
    """
    del attempt
    if os.getpid() != _PROCESS:
        # A fork has the caller's settings but none of its threads, and more than one would hang.
        torch.set_num_threads(1)
    try:
        job = _job(task)
        span = job.folder.manifest.span(number)
        rows = torch.arange(span.start, span.stop, device=job.problem.args["x0"].device)
        solution = solve_rows_alone(job.problem, rows, job.method, job.settings)
        if bool((torch.as_tensor(solution.status) == Status.INTERRUPTED).any()):
            raise InterruptedError(f"{WHERE}: Ctrl-C reached the worker of chunk {number}")
        return dict(job.folder.publish(number, solution))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of the caller's code: not each of them can travel
        told, place = traceback.format_exception_only(error), traceback.format_tb(error.__traceback__)
        raise WorkerError("".join([*told, *place])) from None


@lru_cache(maxsize=1)  # a worker serves one run at a time; building may take seconds
def _job(task: bytes) -> Job:
    try:
        build, recipe, settings, directory, manifest = pickle.loads(task)
    except (AttributeError, ImportError) as error:
        raise ImportError(
            f"{WHERE}: build and method must be what workers can import, got {error} in a worker; "
            "define them at the top of a module that is installed there, not in a notebook or shell"
        ) from None
    reuse_blocks_of_dask()
    problem, method = build_problem(WHERE, build), made_method(recipe)
    parts = fingerprint(problem, method, settings)
    if parts != manifest.parts:
        raise ValueError(
            f"{WHERE}: build must make the same problem in every process, got another one in a worker: "
            f"{differences(manifest.parts, parts)}; seed what it draws, and load what it trains from a "
            "file"
        )
    return Job(problem, method, settings, Folder(WHERE, directory, manifest))


def made_method(method: Any) -> Any:
    """Call the recipe of a method; one that is given as such is returned."""
    return method.function(**method.kwargs) if isinstance(method, Recipe) else method


def solve_rows_alone(problem: Problem, rows: Tensor, method: Any, settings: dict[str, Any]) -> Solution:
    """Solve some rows of a grid, ascending, in one dimension, as if they were all there are."""
    parts = [
        (_solved(_taken(replace(problem, dims=dims, args=args), some), method, settings), some)
        for dims, args, some in by_model(problem.dims, problem.args, rows, ROWS_PER_MODEL)
    ]
    if len(parts) == 1:
        return parts[0][0]
    # In the order of the rows again.
    order = torch.cat([some for _, some in parts]).argsort()
    leaves: Any = [part for part, _ in parts]
    together: Any = optree.tree_map(lambda *tensors: torch.cat(tensors)[order], *leaves)
    return together


def _solved(problem: Problem, method: Any, settings: dict[str, Any]) -> Solution:
    # Chosen for all rows; a chunk whose rows are odd, as with a start that is NaN, is mapped.
    rows = "auto" if settings["rows"] == "samples" else settings["rows"]
    return solve(problem, method, **settings | {"rows": rows})


def _taken(problem: Problem, rows: Tensor) -> Problem:
    varying = frozenset[str]().union(*(dim.varying for dim in problem.dims))
    args = take(problem.dims, problem.args, rows)
    return replace(problem, args=args, dims=(RowDim("row", len(rows), varying),))
