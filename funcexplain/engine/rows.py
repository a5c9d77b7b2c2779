"""A grid of rows, from the question to the answer: how rows share a batch, how many, then the pool.

What a batch computes is believed only so far: rows are tried before (`trial`), and checked when they end
(`recheck`). Rows that a batch cannot solve correctly are solved alone.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from funcexplain.engine.alone import FailsAtStartError, describe, solve_alone
from funcexplain.engine.batching import Batched, Choice, choose_way, make_batched
from funcexplain.engine.compiled import Compiler
from funcexplain.engine.execution import Execution
from funcexplain.engine.memory import ChunkSizes, choose_chunk_size, reuse_blocks
from funcexplain.engine.outputs import Outputs
from funcexplain.engine.pool import PoolDriver
from funcexplain.engine.progress import Callback, Meter, Reporter
from funcexplain.engine.recheck import rows_to_repeat
from funcexplain.engine.trial import Trial, check_starts, row_of, try_rows
from funcexplain.networks.memory import is_out_of_memory
from funcexplain.networks.network import Network
from funcexplain.problems.grid import by_model, take_rows
from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.state import Info, Method, State, Stopping

ROWS_PER_MODEL = 64
"""Rows from which on a model of an ensemble gets batches of its own (docs/benchmarks.md)."""
# Where rows are few, several compiled steps in one call save the overhead of the call.
_FEW_ROWS, _UNROLLED = 4, 5
# Windows in one call, to measure what a call for each of them costs.
_MEASURED_ROWS = 16

_logger = logging.getLogger("funcexplain")


class _Search(NamedTuple):
    """What all groups of rows share."""

    method: Method
    stopping: Stopping
    execution: Execution
    outputs: Outputs
    meter: Meter | None
    compiler: Compiler


def solve_rows(problem: Problem, method: Method, stopping: Stopping, execution: Execution) -> Solution:
    """Answer a grid of rows; all settings are checked already (`solve`)."""
    total, callback, size = math.prod(problem.shape), execution.callback, execution.chunk_size
    numbers = torch.arange(total, device=problem.args["x0"].device)
    outputs = Outputs(problem, execution.max_steps, execution.history_every)
    meter = Meter(callback, total) if isinstance(callback, Reporter) else None
    few = total <= _FEW_ROWS and callback is None
    compiler = Compiler(execution.compile, unroll=_UNROLLED if few else 1)
    search = _Search(method, stopping, execution, outputs, meter, compiler)
    sizes = None if size is None else ChunkSizes(size, size)
    if numbers.device.type == "cpu":
        reuse_blocks()
    try:
        choice: Choice | None = None
        for dims, args, rows in by_model(problem.dims, problem.args, numbers, ROWS_PER_MODEL):
            if not len(rows):
                break
            grid = replace(problem, dims=dims, args=args)
            if choice is None:
                trial = try_rows(grid, method, stopping, rows)
                outputs.set_dtypes(trial.kept)
                choice = _choose(grid, search, trial)
            left, reason = rows, choice.reason
            if choice.way == "alone":
                check_starts(grid, rows, None)
            else:
                batched = make_batched(grid, method, stopping, trial, samples=choice.way == "samples")
                if sizes is None:
                    make = _batches(grid, batched, rows)
                    sizes = choose_chunk_size(batched.step, make, len(rows), rows.device)
                # The first step of a batch finds them, too, but not before other rows have ended.
                if len(rows) > sizes.plain and not outputs.any_ended():
                    check_starts(grid, rows, batched.weights)
                driver = PoolDriver(grid, batched, outputs, meter, compiler, rows, sizes, callback)
                left, reason = _drive(driver, search)
                sizes = driver.sizes
            if len(left):
                _solve_each(grid, left, search, reason)
    except KeyboardInterrupt:
        ended = int((outputs.status != Status.INTERRUPTED).sum())
        _logger.warning(f"interrupted: {ended} of {total} rows have ended")
    finally:
        if meter:
            meter.end()
    for number, error in list(outputs.exceptions.items())[:1]:
        _logger.warning(f"the network failed in {len(outputs.exceptions)} rows, as in {number}: {error}")
    return outputs.solution()


def _choose(grid: Problem, search: _Search, trial: Trial) -> Choice:
    """How rows share a batch; one row alone never needs one, unless it is compiled."""
    execution = search.execution
    if len(search.outputs.status) == 1 and execution.compile is not True:
        return Choice("alone", "")
    return choose_way(grid, search.method, search.stopping, trial, execution.rows)


def _drive(driver: PoolDriver, search: _Search) -> tuple[Tensor, str]:
    """Solve rows in batches; return those that must be solved alone, and the reason."""
    outputs, rows = search.outputs, driver.waiting

    def solved(number: int) -> Solution:
        return solve_alone(row_of(driver.grid, number), *search[:2], _quiet(search.execution))

    reason = "some of them depend on others in a batch"
    try:
        driver.run()
    except FailsAtStartError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = f"a batch fails ({describe(error)})"
    unsolved = rows[outputs.status[rows] == Status.INTERRUPTED]
    ended = rows[outputs.status[rows] != Status.INTERRUPTED]
    wrong = rows_to_repeat(driver.grid, driver.batched, outputs, ended, solved)
    return torch.cat([unsolved, wrong]), reason


def _solve_each(grid: Problem, rows: Tensor, search: _Search, reason: str) -> None:
    """Solve rows one at a time."""
    outputs, meter, execution = search.outputs, search.meter, _quiet(search.execution)
    if reason:
        message = (
            f"solve: {len(rows)} of {len(outputs.status)} rows are solved one at a time, because "
            f"{reason}{_slowdown(grid, rows)}"
        )
        warnings.warn(message, stacklevel=5)
        _logger.warning(message)
    callback = search.execution.callback
    if callback is not None:
        execution = execution._replace(callback=_AsBatch(callback))
    if meter:
        meter.begin(chunk_size=1)
    counted = outputs.status != Status.INTERRUPTED
    outputs.clear(rows)
    for number in rows.tolist():
        solution = None
        try:
            solution = solve_alone(row_of(grid, number), search.method, search.stopping, execution)
        except Exception as error:
            if is_out_of_memory(error) or not outputs.any_ended():
                raise FailsAtStartError(number) from error
            outputs.fail(number, error)
        if solution is not None:
            outputs.write_solution(number, solution)
            if solution.status is Status.INTERRUPTED:
                raise KeyboardInterrupt
        if meter and not counted[number]:
            meter.add(1, int(outputs.status[number] == Status.HIT))


def _quiet(execution: Execution) -> Execution:
    return execution._replace(callback=None)


class _AsBatch:
    """Shows a callback one row as a batch of one, as it sees a grid."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def __call__(self, state: State, info: Info) -> None:
        both: Any = (state, info)
        batch: Any = optree.tree_map(lambda leaf: leaf[None], both)
        self._callback(*batch)


def _slowdown(grid: Problem, rows: Tensor) -> str:
    """How much slower rows alone are, measured on the network's forward pass, if it takes a batch."""
    row = row_of(grid, int(rows[0]))
    apply, params, x0 = row.apply, row.args["params"], row.args["x0"]
    if not isinstance(apply, Network):
        return ""
    try:
        began = time.perf_counter()
        for _ in range(_MEASURED_ROWS):
            apply(params, x0)
        middle = time.perf_counter()
        apply.samples(params, x0.expand(_MEASURED_ROWS, *x0.shape))
        ratio = (middle - began) / (time.perf_counter() - middle)
    except Exception:  # it takes one window at a time
        return ""
    return f"; its forward pass of {_MEASURED_ROWS} rows takes {max(1.0, ratio):.0f} times as long so"


def _batches(grid: Problem, batched: Batched, rows: Tensor) -> Callable[[int], tuple[State, Args]]:
    """Batches of any number of rows, to measure a step with."""

    def make(count: int) -> tuple[State, Args]:
        some = rows[torch.arange(count, device=rows.device) % len(rows)]
        args = take_rows(grid.dims, grid.args, some)
        return batched.init(args), args

    return make
