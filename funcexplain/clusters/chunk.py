"""What a worker does: build the problem once, then solve ranges of its rows and publish them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from funcexplain.clusters.fingerprint import differences, fingerprint, key_of
from funcexplain.clusters.folder import Folder, Manifest
from funcexplain.clusters.recipes import Recipe, build_problem
from funcexplain.problems.grid import RowDim, numbers, places, take
from funcexplain.problems.problem import Problem
from funcexplain.solutions.answer import Status
from funcexplain.solutions.solution import Solution
from funcexplain.solvers.solve import solve

WHERE = "clusters.solve"
# Rows of one model from which on they share its matrices, as in a grid that is solved as a whole.
_ROWS_PER_MODEL = 64
_PROCESS = os.getpid()  # that imported this


class Task(NamedTuple):
    """What all chunks of a run have in common, and what travels to the workers."""

    build: Recipe
    method: Any
    settings: dict[str, Any]
    directory: str
    key: str


class Job(NamedTuple):
    """A task in a worker."""

    problem: Problem
    method: Any
    settings: dict[str, Any]
    folder: Folder
    manifest: Manifest


def solve_chunk(task: bytes, number: int, attempt: str) -> dict[int, int]:
    """Solve the rows of a chunk and publish them.

    Args:
        task: a pickled `Task`.
        number: the chunk's.
        attempt: text that is unlike that of any other attempt: engines that remember results by their
            arguments, as Dask can, then do not answer for this one.

    Returns:
        How many rows ended how.
    """
    del attempt
    if os.getpid() != _PROCESS:
        # A fork has the caller's settings but none of its threads, and more than one would hang.
        torch.set_num_threads(1)
    job = _job(task)
    span = job.manifest.span(number)
    rows = torch.arange(span.start, span.stop, device=job.problem.args["x0"].device)
    solution = solve_rows_alone(job.problem, rows, job.method, job.settings)
    if bool((torch.as_tensor(solution.status) == Status.INTERRUPTED).any()):
        raise InterruptedError(f"{WHERE}: Ctrl-C reached the worker of chunk {number}")
    return dict(job.folder.publish(job.manifest, number, solution))


@lru_cache(maxsize=1)  # a worker serves one run at a time; building may take seconds
def _job(task: bytes) -> Job:
    build, recipe, settings, directory, key = pickle.loads(task)
    folder, problem = Folder(WHERE, directory), build_problem(WHERE, build)
    manifest, method = folder.manifest(), made_method(recipe)
    parts = fingerprint(problem, method, settings)
    if key_of(parts) != key:
        raise ValueError(
            f"{WHERE}: build must make the same problem in every process, got another one in a worker: "
            f"{differences(manifest.parts, parts)}; seed what it draws, and load what it trains from a "
            "file"
        )
    return Job(problem, method, settings, folder, manifest)


def made_method(method: Any) -> Any:
    """Call the recipe of a method; one that is given as such is returned."""
    return method.function(**method.kwargs) if isinstance(method, Recipe) else method


def solve_rows_alone(problem: Problem, rows: Tensor, method: Any, settings: dict[str, Any]) -> Solution:
    """Solve some rows of a grid, in one dimension, as if they were all there are."""
    parts = [(places_, _solved(part, method, settings)) for part, places_ in _by_model(problem, rows)]
    if len(parts) == 1:
        return parts[0][1]
    # In the order of the rows again.
    order = torch.cat([places_ for places_, _ in parts]).argsort()
    leaves: Any = [part for _, part in parts]
    together: Any = optree.tree_map(lambda *tensors: torch.cat(tensors)[order], *leaves)
    return together


def _solved(problem: Problem, method: Any, settings: dict[str, Any]) -> Solution:
    # Chosen for all rows; a chunk whose rows are odd, as with a start that is NaN, is mapped.
    rows = "auto" if settings["rows"] == "samples" else settings["rows"]
    return solve(problem, method, **settings | {"rows": rows})


def _by_model(problem: Problem, rows: Tensor) -> Iterator[tuple[Problem, Tensor]]:
    """Problems of one dimension, and the places of their rows among ``rows``.

    Taking rows out of a grid gives each of them parameters of its own. Where rows share a model, they
    are solved together with the one set that they have.
    """
    dims, args = problem.dims, problem.args
    along = places(dims, "params")
    models = numbers(dims, along, rows) if along else rows
    if not along or len(rows) < _ROWS_PER_MODEL * max(1, len(models.unique())):
        yield _taken(problem, rows), torch.arange(len(rows), device=rows.device)
        return
    shared, last = tuple(d._replace(varying=d.varying - {"params"}) for d in dims), len(along) - 1
    for model in models.unique():
        params = optree.tree_map(lambda leaf: leaf.flatten(0, last)[model], args["params"])  # noqa: B023
        of_model = (models == model).nonzero()[:, 0]
        one = replace(problem, dims=shared, args={**args, "params": params})
        yield _taken(one, rows[of_model]), of_model


def _taken(problem: Problem, rows: Tensor) -> Problem:
    varying = frozenset[str]().union(*(dim.varying for dim in problem.dims))
    args = take(problem.dims, problem.args, rows)
    return replace(problem, args=args, dims=(RowDim("row", len(rows), varying),))
