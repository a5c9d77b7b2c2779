"""A grid of rows, from the question to the answer: how rows share a batch, how many, then the pool."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.batching import Mapped, map_parts
from funcexplain.engine.chunks import Sizes, choose_chunk_size, say
from funcexplain.engine.compiled import Compile, Compiler
from funcexplain.engine.malloc import reuse_blocks
from funcexplain.engine.outputs import Outputs
from funcexplain.engine.pool import Driver
from funcexplain.engine.progress import Callback, Meter
from funcexplain.engine.samples import Rows, refusal
from funcexplain.problems.grid import by_model, take
from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.gauss_newton import DampedParts
from funcexplain.solvers.state import Rules, State
from funcexplain.solvers.step import Parts

ROWS_PER_MODEL = 64
"""Rows from which on a model of an ensemble gets batches of its own (docs/benchmarks.md)."""
# Where rows are few, several compiled steps in one call save the overhead of the call.
_FEW_ROWS, _UNROLLED = 4, 5
# Rows from which on it is worth trying whether they can lie on the sample dimension.
_LEAST_SAMPLES = 17


class Settings(NamedTuple):
    """How a grid is solved; see `solve`."""

    max_steps: int
    history_every: int
    chunk_size: int | None
    rows: Rows
    compile: Compile
    callback: Callback | None


def solve_rows(
    problem: Problem, parts: Parts | DampedParts, rules: Rules, settings: Settings
) -> Solution:
    """Answer a grid of rows; all settings are checked already (`solve`)."""
    outputs = Outputs(problem, settings.max_steps, settings.history_every)
    few = math.prod(problem.shape) <= _FEW_ROWS and settings.callback is None
    compiler = Compiler(settings.compile, unroll=_UNROLLED if few else 1)
    if problem.args["x0"].device.type == "cpu":
        reuse_blocks()
    sizes = None if settings.chunk_size is None else Sizes(settings.chunk_size, settings.chunk_size)
    meter = Meter(settings.callback, len(outputs.status))
    try:
        every = torch.arange(len(outputs.status), device=problem.args["x0"].device)
        for dims, args, rows in by_model(problem.dims, problem.args, every, ROWS_PER_MODEL):
            if not len(rows):
                break
            grid = replace(problem, dims=dims, args=args)
            mapped = _mapped(grid, parts, rules, settings.rows, rows)
            if sizes is None:
                batch = _batches(grid, mapped, rows)
                sizes = choose_chunk_size(mapped.step, batch, len(rows), rows.device)
            driver = Driver(grid, mapped, outputs, meter, compiler, rows, sizes, settings.callback)
            driver.run()
            sizes = driver.sizes
    except KeyboardInterrupt:
        ended = int((outputs.status != Status.INTERRUPTED).sum())
        say(f"interrupted: {ended} of {len(outputs.status)} rows have ended", urgent=True)
    except Exception as error:
        _explain_vmap(error)
        raise
    finally:
        meter.end()
    return outputs.solution()


def _mapped(grid: Problem, parts: Parts | DampedParts, rules: Rules, how: Rows, rows: Tensor) -> Mapped:
    """Map over rows, or lay them on the sample dimension."""
    if how == "auto" and len(rows) < _LEAST_SAMPLES:
        how = "vmap"
    reason = refusal(grid, rows) if how != "vmap" else None
    if how == "samples" and reason:
        raise ValueError(f"solve: rows='samples' needs independent samples, but {reason}")
    return map_parts(grid, parts, rules, samples=how != "vmap" and not reason)


def _batches(grid: Problem, mapped: Mapped, rows: Tensor) -> Callable[[int], tuple[State, Args]]:
    """Batches of any number of rows, to measure a step with."""

    def batch(count: int) -> tuple[State, Args]:
        some = rows[torch.arange(count, device=rows.device) % len(rows)]
        args = take(grid.dims, grid.args, some)
        return mapped.init(args), args

    return batch


def _explain_vmap(error: Exception) -> None:
    """Say what to do about a network that cannot be mapped; torch's own message does not know."""
    if "vmap" in str(error):
        error.add_note(
            "solve: the network cannot be mapped over rows as it is written; "
            "fe.problem(fe.opaque(network), ...) maps it through its own sample dimension, and "
            "problem[i] picks single rows, which are solved without mapping"
        )
