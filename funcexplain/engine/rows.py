"""A grid of rows, from the question to the answer: how rows share a batch, how many, then the pool.

Batches are verified: rows are tried before they share one (`try_rows`) and checked when they end
(`rows_to_repeat`). Rows that a batch cannot solve correctly are solved alone.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.alone import FailsAtStartError, describe, solve_alone, status_of
from funcexplain.engine.batching import (
    Batched,
    Choice,
    Known,
    make_batched,
    recall,
    remember,
    row_of,
    spread,
    trial_key,
)
from funcexplain.engine.compiled import Compiler
from funcexplain.engine.execution import Execution
from funcexplain.engine.memory import ChunkSizes, choose_chunk_size, reuse_blocks
from funcexplain.engine.outputs import Outputs
from funcexplain.engine.pool import PoolDriver, tree_map
from funcexplain.engine.progress import AsBatch, Meter, Reporter
from funcexplain.engine.trial import choose_way, try_rows
from funcexplain.networks.checks import is_out_of_memory
from funcexplain.networks.network import Network, bound, raise_pending, set_seed
from funcexplain.networks.rounding import agree, coarsest_eps
from funcexplain.networks.trial import reads_values
from funcexplain.problems.grid import by_model, map_rows, mapped_dims, take_rows, varying_dims
from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.state import Method, State, Stopping

ROWS_PER_MODEL = 64
"""Rows from which on a model of an ensemble gets batches of its own (docs/benchmarks.md)."""
# Where rows are few, several compiled steps in one call save the overhead of the call.
_FEW_ROWS, _UNROLLED = 4, 5
# Windows in one call, to measure what a call for each of them costs.
_MEASURED_ROWS = 16

# Of ended rows: computed again alone, in a batch of another composition, and looked at together.
_ALONE, _TOGETHER, _PART = 16, 128, 1024

_logger = logging.getLogger("funcexplain")


class _Search(NamedTuple):
    """Settings that all groups of rows share."""

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
    outputs = Outputs(problem, stopping, execution)
    meter = Meter(callback, total) if isinstance(callback, Reporter) else None
    few = total <= _FEW_ROWS and callback is None
    compiler = Compiler(execution.compile, unroll=_UNROLLED if few else 1)
    search = _Search(method, stopping, execution, outputs, meter, compiler)
    sizes = None if size is None else ChunkSizes(size, size)
    if numbers.device.type == "cpu":
        reuse_blocks()
    try:
        tried: Known | None = None
        for dims, args, rows in by_model(problem.dims, problem.args, numbers, ROWS_PER_MODEL):
            if not len(rows):
                break
            grid = replace(problem, dims=dims, args=args)
            if tried is None:
                tried = _try(grid, search, rows)
                outputs.set_dtypes(tried.kept)
            left, (way, reason) = rows, tried.choice
            if way == "alone":
                if execution.checks_starts:
                    check_starts(grid, rows, None)
            else:
                batched = make_batched(grid, method, stopping, tried.kept, samples=way == "samples")
                if sizes is None:
                    make = _batches(grid, batched, rows)
                    sizes = choose_chunk_size(
                        *(batched.step, make, len(rows), rows.device, tried.row_bytes),
                        jacobian=batched.jacobian,
                    )
                # The first step of a batch finds them, too, but not before other rows have ended.
                unchecked = len(rows) > sizes.plain and execution.checks_starts
                if unchecked and not outputs.any_ended():
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
    if errors := outputs.exceptions:
        first = min(errors)
        _logger.warning(
            f"the network failed in {len(errors)} of {total} rows, first in row {first}: {errors[first]}"
        )
    return outputs.solution()


def _try(grid: Problem, search: _Search, rows: Tensor) -> Known:
    """How rows share a batch, from a trial of some, or from one of an earlier search of the kind.

    One row alone never needs a batch, unless it is compiled.
    """
    method, stopping, execution = search[:3]
    alone = len(search.outputs.status) == 1 and execution.compile is not True
    key = None if alone else trial_key(grid, method, stopping, execution.rows)
    known = recall(grid, key)
    if known is None:
        trial = try_rows(grid, method, stopping, rows)
        choice = Choice("alone")
        if not alone:
            choice = choose_way(grid, method, stopping, trial, execution.rows)
        known = remember(grid, key, trial.kept, choice)
    return known


def _drive(driver: PoolDriver, search: _Search) -> tuple[Tensor, str]:
    """Solve rows in batches; return those that must be solved alone, and the reason."""
    outputs, rows = search.outputs, driver.waiting

    def solved(number: int) -> Solution:
        solution = solve_alone(row_of(driver.grid, number), *search[:2], _quiet(search.execution))
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        return solution

    reason = "some of them depend on others in a batch"
    try:
        with _bound(driver.grid):
            driver.run()
    except FailsAtStartError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = f"a batch fails ({describe(error)})"
    if driver.outdated:
        warnings.warn(
            f"solve: compiled steps are out of date: {driver.outdated} answers have another loss or "
            "other weights when evaluated uncompiled, so rows are solved again uncompiled; the loss or "
            "the network reads what changes during the search, or what compilation cannot follow",
            stacklevel=5,
        )
    unsolved = outputs.status[rows] == Status.INTERRUPTED
    left, ended = (rows[unsolved], rows[~unsolved]) if unsolved.any() else (rows[:0], rows)
    wrong = rows_to_repeat(driver.grid, driver.batched, outputs, ended, solved)
    return torch.cat([left, wrong]), reason


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
        execution = execution._replace(callback=AsBatch(callback))
    if meter:
        meter.begin(chunk_size=1)
    counted = outputs.status != Status.INTERRUPTED
    outputs.clear(rows)
    for number in rows.tolist():
        solution = None
        try:
            solution = solve_alone(row_of(grid, number), search.method, search.stopping, execution)
        except Exception as error:
            if is_out_of_memory(error) or outputs.raises_at_start(number):
                raise FailsAtStartError(number) from error
            outputs.fail(number, error)
        if solution is not None:
            outputs.write_solution(number, solution)
            if solution.status is Status.INTERRUPTED:
                raise KeyboardInterrupt
        if meter and not counted[number]:
            meter.add(1, int(outputs.status[number] == Status.HIT))


def _bound(grid: Problem) -> AbstractContextManager[None]:
    """Keep the parameters in the network, if rows share them."""
    varies = varying_dims(grid.dims, "params")
    return nullcontext() if varies else bound(grid.apply, grid.args["params"])


def _quiet(execution: Execution) -> Execution:
    return execution._replace(callback=None)


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
    times = f"{max(1.0, ratio):.0f} times as long"
    return f"; {_MEASURED_ROWS} forward passes take {times} as one batch of them"


def _batches(grid: Problem, batched: Batched, rows: Tensor) -> Callable[[int], tuple[State, Args]]:
    """Batches of any number of rows, to measure a step with."""

    def make(count: int) -> tuple[State, Args]:
        some = rows[torch.arange(count, device=rows.device) % len(rows)]
        args = take_rows(grid.dims, grid.args, some)
        return batched.init(args), args

    return make


def check_starts(grid: Problem, rows: Tensor, weights: Callable[[Tensor, Args], Tensor] | None) -> None:
    """Raise a `FailsAtStartError` if the network raises at the start window of a row.

    Args:
        grid: the rows' problem.
        rows: their numbers.
        weights: ``(x, args) -> weights`` of a batch of rows, or None to call the network for each.
    """
    dims = mapped_dims(grid.dims, grid.args)
    begin = map_rows(grid.start, dims)
    see = map_rows(grid.windows, 0, dims)
    for part in rows.split(_TOGETHER if weights else 1):
        raise_pending()
        args = take_rows(grid.dims, grid.args, part)
        windows = see(begin(args), args)
        if not windows.isfinite().all():
            continue  # which the network never sees; the search meets the others
        try:
            if weights and len(part) > 1:
                weights(windows, args)
                continue
        except Exception:
            pass
        for number, x in zip(part.tolist(), windows, strict=True):
            row = row_of(grid, number)
            try:
                row.evaluate(x, row.args)
            except Exception as error:
                if status_of(error) is Status.FAILED and not is_out_of_memory(error):
                    raise FailsAtStartError(number) from error


def rows_to_repeat(
    grid: Problem,
    batched: Batched,
    outputs: Outputs,
    rows: Tensor,
    solved: Callable[[int], Solution],
) -> Tensor:
    """The rows whose weights are not the network's, or that other rows of their batch affected.

    A network may branch on its whole batch (``if x.abs().max() > 6``) at windows that the trial before
    the search did not reach. All weights are recomputed, mapped, or in other batches if the network
    cannot be mapped, and some alone; if any differ, or an unmappable network reads values, all are
    recomputed alone.

    Args:
        grid: the rows' problem.
        batched: the functions that solved them.
        outputs: their answers.
        rows: their numbers.
        solved: solves a row alone.
    """
    wrong = _differ_alone(grid, outputs, rows[spread(len(rows), _ALONE, rows.device)])
    if len(wrong) or _differ_together(grid, batched, outputs, rows):
        wrong = _differ_alone(grid, outputs, rows)
    # Of rows that ended in trouble, one shows whether it is their own.
    codes = outputs.status[rows]
    troubled = rows[(codes == Status.NONFINITE) | (codes == Status.FAILED)]
    if len(rows) > 1 and len(troubled):
        number = int(troubled[0])
        try:
            own = int(solved(number).status) == int(outputs.status[number])
        except Exception:  # at its start
            own = True
        if not own:
            wrong = torch.cat([wrong, troubled]).unique()
    return wrong


def _differ_together(grid: Problem, batched: Batched, outputs: Outputs, rows: Tensor) -> bool:
    """Whether any weights differ, mapped or in batches of another composition, or may do so alone."""
    eps = coarsest_eps(grid.args, outputs.weights)
    mapped = map_rows(grid.evaluate, 0, mapped_dims(grid.dims, grid.args))
    ways: list[Callable[[Tensor, Args], Tensor]] = [
        lambda x, args: mapped(x, args)[1][1],
        batched.weights,
    ]
    for some in rows.split(_PART):  # no copies of all windows
        raise_pending()
        known = some[outputs.weights[some].flatten(1).isfinite().all(1)]
        sizes = outputs.x[known].flatten(1).abs().amax(1)
        for part in known[sizes.argsort()].split(_TOGETHER) if len(known) else ():
            args = take_rows(grid.dims, grid.args, part)
            windows, weights = _windows_seen(grid, outputs, part), None
            while weights is None:
                try:
                    weights = ways[0](windows, args)
                except Exception:
                    # A batch that fails says nothing of these answers, nor one that decides by a value.
                    if len(ways) == 1 or _reads_values(grid, windows, args):
                        return True
                    ways.pop(0)
            if not agree(weights, outputs.weights[part], eps, rows=1):
                return True
    return False


def _reads_values(grid: Problem, windows: Tensor, args: Args) -> bool:
    """Whether the network reads values in a batch of windows."""
    apply, shared = grid.apply, mapped_dims(grid.dims, grid.args)["params"] is None
    return isinstance(apply, Network) and shared and reads_values(apply, args["params"], windows)


def _differ_alone(grid: Problem, outputs: Outputs, rows: Tensor) -> Tensor:
    """The rows whose weights the network alone does not hold at their windows."""
    eps, apply = coarsest_eps(grid.args), grid.apply
    needed = {name: grid.args[name] for name in ("params", "seed")}
    dims = mapped_dims(grid.dims, needed)
    known = rows[outputs.weights[rows].flatten(1).isfinite().all(1)]
    alone = list[Tensor | None]()
    with _bound(grid):
        for number in known:
            raise_pending()
            one = needed
            if any(dim == 0 for dim in dims.values()):
                taken = take_rows(grid.dims, needed, number[None])
                one = {n: tree_map(_first, t) if dims[n] == 0 else t for n, t in taken.items()}
            try:
                (window,) = _windows_seen(grid, outputs, number[None])
                alone.append(apply(set_seed(one["params"], one["seed"]), window))
            except Exception:
                alone.append(None)
    ours = outputs.weights[known]
    served = [theirs for theirs in alone if theirs is not None]
    if len(served) == len(alone) and (not alone or agree(torch.stack(served), ours, eps, rows=1)):
        return known[:0]
    pairs = zip(alone, ours, strict=True)
    return known[[theirs is None or not agree(theirs, own, eps) for theirs, own in pairs]]


def _windows_seen(grid: Problem, outputs: Outputs, rows: Tensor) -> Tensor:
    """The windows of which the network gave the weights of some answers."""
    if grid.nearby is None:
        return outputs.x[rows]
    args = take_rows(grid.dims, grid.args, rows)
    return map_rows(grid.windows, 0, mapped_dims(grid.dims, grid.args))(outputs.z[rows], args)


def _first(t: Tensor) -> Tensor:
    return t[0]
