"""A grid of rows, from the question to the answer: how rows share a batch, how many, then the pool."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.batching import Batched, Rows, batch
from funcexplain.engine.compiled import Compile, Compiler
from funcexplain.engine.memory import ChunkSizes, choose_chunk_size, reuse_blocks
from funcexplain.engine.outputs import Outputs
from funcexplain.engine.pool import PoolDriver
from funcexplain.engine.progress import Callback, Meter, Reporter
from funcexplain.problems.grid import by_model, take_rows
from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.state import Method, State, Stopping

ROWS_PER_MODEL = 64
"""Rows from which on a model of an ensemble gets batches of its own (docs/benchmarks.md)."""
# Where rows are few, several compiled steps in one call save the overhead of the call.
_FEW_ROWS, _UNROLLED = 4, 5

_logger = logging.getLogger("funcexplain")


class Execution(NamedTuple):
    """How a search runs; see `solve`."""

    max_steps: int
    history_every: int = 0
    chunk_size: int | None = None
    rows: Rows = "auto"
    compile: Compile = False
    callback: Callback | None = None


def solve_rows(problem: Problem, method: Method, stopping: Stopping, execution: Execution) -> Solution:
    """Answer a grid of rows; all settings are checked already (`solve`)."""
    callback, chunk_size = execution.callback, execution.chunk_size
    outputs = Outputs(problem, execution.max_steps, execution.history_every)
    few = math.prod(problem.shape) <= _FEW_ROWS and callback is None
    compiler = Compiler(execution.compile, unroll=_UNROLLED if few else 1)
    if problem.args["x0"].device.type == "cpu":
        reuse_blocks()
    sizes = None if chunk_size is None else ChunkSizes(chunk_size, chunk_size)
    total = len(outputs.status)
    meter = Meter(callback, total) if isinstance(callback, Reporter) else None
    try:
        numbers = torch.arange(total, device=problem.args["x0"].device)
        for dims, args, rows in by_model(problem.dims, problem.args, numbers, ROWS_PER_MODEL):
            if not len(rows):
                break
            grid = replace(problem, dims=dims, args=args)
            batched = batch(grid, method, stopping, rows, execution.rows)
            if sizes is None:
                sizes = choose_chunk_size(
                    batched.step, _batches(grid, batched, rows), len(rows), rows.device
                )
            driver = PoolDriver(grid, batched, outputs, meter, compiler, rows, sizes, callback)
            driver.run()
            sizes = driver.sizes
    except KeyboardInterrupt:
        ended = int((outputs.status != Status.INTERRUPTED).sum())
        _logger.warning(f"interrupted: {ended} of {total} rows have ended")
    except Exception as error:
        _explain_vmap(error)
        raise
    finally:
        if meter:
            meter.end()
    return outputs.solution()


def _batches(grid: Problem, batched: Batched, rows: Tensor) -> Callable[[int], tuple[State, Args]]:
    """Batches of any number of rows, to measure a step with."""

    def make(count: int) -> tuple[State, Args]:
        some = rows[torch.arange(count, device=rows.device) % len(rows)]
        args = take_rows(grid.dims, grid.args, some)
        return batched.init(args), args

    return make


def _explain_vmap(error: Exception) -> None:
    """Say what to do about a network that cannot be mapped; torch's own message does not."""
    if "vmap" in str(error):
        error.add_note(
            "solve: the network, or the method's init or advance, does not support torch.func.vmap as "
            "it is written; fe.problem(fe.opaque(network), ...) maps a network through its own sample "
            "dimension, and problem[i] picks single rows, which are solved without mapping; a method "
            "must return tensors alone and not branch on values"
        )
