"""A pool of rows: admitted from a grid, moved by one batched step, written to the outputs.

Finished rows leave the pool and waiting ones take their slots, so it stays full, and no row waits for
the slowest of a chunk. A row counts its own steps and does not depend on its neighbors.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from funcexplain.engine.alone import FailsAtStartError, describe, status_of
from funcexplain.engine.batching import Batched
from funcexplain.engine.compiled import Compiler
from funcexplain.engine.memory import ChunkSizes
from funcexplain.engine.outputs import Outputs
from funcexplain.engine.progress import Callback, Meter
from funcexplain.networks.checks import is_out_of_memory
from funcexplain.networks.rounding import agree, coarsest_eps
from funcexplain.problems.grid import take_rows
from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.status import Status
from funcexplain.solvers.gradient import where_rows
from funcexplain.solvers.loop import iterate
from funcexplain.solvers.state import Info, State, Step

# Ended rows stay until they are this fraction of the pool: removing them costs about as much as a step's
# bookkeeping.
_ENDED_FRACTION = 1 / 8
# Steps between two looks for ended rows on a GPU.
_LOOK_EVERY = 16
# Steps after which compile="auto" knows how long a step takes.
_MEASURED_STEPS = 8
# Rounding of a loss near zero, in units of that of the weights.
_ROUNDING = 1e3

_logger = logging.getLogger("funcexplain")


class Pool(NamedTuple):
    """The rows of a batch, one per slot.

    Attributes:
        rows: their numbers in the grid, ``(B,)``.
        args: their data; what varies leads with ``B``.
        state: their states, which lead with ``B``.
        live: which slots hold a row of their own, bool, ``(B,)``.
    """

    rows: Tensor
    args: Args
    state: State
    live: Tensor


class PoolDriver:
    """Moves rows from waiting to the pool, and from there to the outputs.

    Args:
        grid: the problem, in which rows are numbered.
        batched: functions for batches of its rows.
        outputs: where answers go.
        meter: counts finished rows for a callback.
        compiler: compiles steps if requested.
        rows: numbers of the rows to solve.
        sizes: maximum number of rows in the pool.
        callback: called after every step.
    """

    def __init__(
        self,
        grid: Problem,
        batched: Batched,
        outputs: Outputs,
        meter: Meter | None,
        compiler: Compiler,
        rows: Tensor,
        sizes: ChunkSizes,
        callback: Callback | None,
    ) -> None:
        self.grid, self.batched, self.outputs = grid, batched, outputs
        self.meter, self.compiler, self.callback = meter, compiler, callback
        self.waiting, self.max_steps, self.seconds_per_step = rows, outputs.max_steps, 0.0
        self.num_rows, self.sizes = len(rows), sizes
        self.chunk_size = sizes.compiled if compiler.wanted is True or compiler.in_use else sizes.plain
        self.pool: Pool | None = None
        # Whether compiled code has moved the rows in the pool, and how many answers it got wrong.
        self.compiled, self.outdated = False, 0
        if meter:
            meter.begin(self.full_size)

    @property
    def full_size(self) -> int:
        """Number of rows of a full pool."""
        return min(self.chunk_size, self.num_rows)

    def run(self) -> None:
        """Solve all rows. On Ctrl-C, rows in the pool are written before the exception propagates."""
        try:
            while self.pool is not None or len(self.waiting):
                try:
                    self.write_ended()
                    self.admit_waiting()
                    self.take_steps()
                except Exception as error:
                    if not is_out_of_memory(error):
                        self.end_failing_rows(error)
                    elif self.chunk_size > 1:
                        self.shrink()
                    else:
                        raise
        except KeyboardInterrupt:
            if self.pool is not None:
                left = self.select(self.pool, self.pool.live.nonzero()[:, 0])
                self.write(self.evaluate_plainly(left)[0] if self.compiled else left)
            raise

    def write_ended(self) -> None:
        """Write rows that have ended to the outputs; the others stay in the pool."""
        if self.pool is None:
            return
        pool, ended = self.pool, self.outputs.has_ended(self.pool.state) & self.pool.live
        staying = (pool.live & ~ended).nonzero()[:, 0]
        # An answer needs no state of the method, which may be most of it.
        answers = pool._replace(state=pool.state._replace(optimizer=()))
        leaving = answers if ended.all() else self.select(answers, ended.nonzero()[:, 0])
        if self.compiled and len(leaving.rows):
            failed = torch.tensor([row in self.outputs.exceptions for row in leaving.rows.tolist()])
            evaluated, wrong = self.evaluate_plainly(self.select(leaving, (~failed).nonzero()[:, 0]))
            if wrong:
                self.solve_uncompiled(wrong)
                return
            self.write(evaluated)
            self.write(self.select(leaving, failed.nonzero()[:, 0]))
        else:
            self.write(leaving)
        self.pool = self.select(pool, staying) if len(staying) else None
        if self.meter and len(leaving.rows):
            self.meter.add(len(leaving.rows), int((leaving.state.status == Status.HIT).sum()))

    def admit_waiting(self) -> None:
        """Let waiting rows take the free slots."""
        pools = [] if self.pool is None else [self.pool]
        room = self.chunk_size - sum(len(pool.rows) for pool in pools)
        coming, left = self.waiting[:room], self.waiting[room:]
        if len(coming):
            args, live = self.take_rows(coming), torch.ones_like(coming, dtype=torch.bool)
            pools.insert(0, Pool(coming, args, self.batched.init(args), live))
        size = sum(len(pool.rows) for pool in pools)
        # Compiled code is for one size: free slots are filled with copies of a row.
        slots = max(size, self.full_size) if self.keeps_size(size) else size
        if len(pools) > 1 or slots > size:
            rows = torch.cat([pool.rows for pool in pools])
            state = tree_map(lambda *leaves: torch.cat(leaves), *[pool.state for pool in pools])
            numbers = torch.arange(slots, device=rows.device)
            if slots > size:
                rows, state = rows[numbers % size], rows_of(state, numbers % size)
            pools = [Pool(rows, self.take_rows(rows), state, numbers < size)]
        self.pool, self.waiting = pools[0] if pools else None, left

    def take_steps(self) -> None:
        """Take steps until enough rows have ended, or the oldest are out of budget."""
        if self.pool is None:
            return
        # No reference to the state is kept here: it is most of a pool, and every step makes a new one.
        rows, args, _, live = self.pool
        begun, enough = self.pool.state.num_steps[live], math.ceil(_ENDED_FRACTION * int(live.sum()))
        # One step more than updates: the last one evaluates the point that the answer holds.
        budget = self.max_steps + 1 - int(begun.amax())
        pays = self.compiling_pays(len(rows), budget)
        if pays and self.chunk_size > self.sizes.compiled:
            self.begin_again(self.sizes.compiled)
            return
        losses, times = list[Tensor](), [time.monotonic()]
        # A look waits for a GPU, which should get the next steps meanwhile.
        going, look_every = True, _LOOK_EVERY if rows.is_cuda else 1
        seen: Tensor | None = None  # a step in which no row ends passes on the same tensor

        def ends(state: State, info: Info) -> bool:
            nonlocal going, seen
            one = info.loss.ndim == 1
            losses.extend([info.loss] if one else info.loss)
            times.append(time.monotonic())
            self.pool = Pool(rows, args, state, live)
            if self.callback is not None:
                # It may keep the state, and a step overwrites what the method holds.
                shown = state._replace(optimizer=tree_map(torch.clone, state.optimizer))
                self.callback(shown, info if one else Info(*(stack[-1] for stack in info)))
            if len(losses) % look_every == 0 and state.status is not seen:
                seen = state.status
                going = int(((state.status != Status.MAX_STEPS) & live).sum()) < enough
            return not going or self.is_outdated()

        several = self.compiled_step(self.pool) if pays else None
        step, calls = self.batched.step_in_place, budget
        if several:
            step, calls, self.compiled = several, math.ceil(budget / self.compiler.unroll), True
        elif self.compiler.wanted == "auto" and not self.seconds_per_step:
            calls = min(budget, _MEASURED_STEPS)
        try:
            iterate(step, self.pool.state, args, calls, ends)
        finally:
            if losses:
                self.outputs.record(rows[live], begun, torch.stack(losses, dim=1)[live])
        # The median: a machine that pauses for a second does not make a short search look long.
        seconds = [after - before for before, after in pairwise(times)]
        self.seconds_per_step = statistics.median(seconds) * len(seconds) / len(losses)

    def compiling_pays(self, size: int, budget: int) -> bool:
        """Whether the remaining steps, ``budget`` of them for this pool, should be compiled."""
        pools_left = len(self.waiting) / size
        seconds_left = self.seconds_per_step * (budget + pools_left * (self.max_steps + 1))
        return size >= self.full_size and self.compiler.pays(seconds_left)

    def compiled_step(self, pool: Pool) -> Step | None:
        """The compiled step, or None where it cannot be compiled."""
        step = self.compiler.compile(
            self.batched.step, self.batched.origin, pool.state, pool.args, self.max_steps
        )
        if step is None:
            self.set_chunk_size(self.sizes.plain)
        return step

    def is_outdated(self) -> bool:
        """Whether the callback has outdated the compiled code; the search then continues uncompiled."""
        if self.callback is None or not self.compiler.outdated(self.batched.origin):
            return False
        _logger.warning("goes on uncompiled: the callback changes what the steps read")
        self.compiler.give_up()
        self.set_chunk_size(self.sizes.plain)
        return True

    def evaluate_plainly(self, pool: Pool) -> tuple[Pool, int]:
        """Evaluate answers uncompiled; also count those that differ from the compiled results."""
        old, args, stopping = pool.state.kept, pool.args, self.batched.origin.stopping
        try:
            _, (loss, weights) = self.batched.score(old.z, args)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return pool, len(pool.rows)
        eps = coarsest_eps(args, weights)
        near_zero = _ROUNDING * eps * float(weights.nan_to_num().abs().max())
        wrong = 0
        if not (agree(loss, old.loss, eps, near_zero, 1) and agree(weights, old.weights, eps, rows=1)):
            pairs = zip(loss, old.loss, weights, old.weights, strict=True)
            wrong = sum(not (agree(a, b, eps, near_zero) and agree(c, d, eps)) for a, b, c, d in pairs)
        # A hit that only rounding decides remains one.
        atol = -1.0 if stopping.atol is None else stopping.atol
        missed = self.grid.criterion.error(weights, args["target"], rows=1, atol=atol) > atol
        rounded = (pool.state.status == Status.HIT) & missed
        kept = old._replace(
            loss=where_rows(rounded, old.loss, loss), weights=where_rows(rounded, old.weights, weights)
        )
        return pool._replace(state=pool.state._replace(kept=kept)), wrong

    def solve_uncompiled(self, wrong: int) -> None:
        """Solve the rows in the pool again, and what waits, uncompiled."""
        self.outdated += wrong
        self.compiler.forget()
        self.begin_again(self.sizes.plain)

    def keeps_size(self, live: int) -> bool:
        """Whether a pool of fewer rows keeps its size, for compiled code."""
        few = not len(self.waiting) and 4 * live < self.full_size
        return self.compiler.in_use and live > 0 and not few

    def take_rows(self, rows: Tensor) -> Args:
        """The data of rows."""
        return take_rows(self.grid.dims, self.grid.args, rows)

    def write(self, pool: Pool) -> None:
        """Write the answers of rows to the outputs."""
        if len(pool.rows):
            x = self.batched.decode(pool.state.kept.z, pool.args)
            self.outputs.write(pool.rows, pool.state, x, pool.args["target"])

    def select(self, pool: Pool, slots: Tensor) -> Pool:
        """Select some slots of a pool."""
        rows = pool.rows[slots]
        return Pool(rows, self.take_rows(rows), rows_of(pool.state, slots), pool.live[slots])

    def end_failing_rows(self, error: Exception) -> None:
        """End the rows at whose windows the network fails; the error is raised for the whole batch."""
        failing: dict[int, Exception] = {}
        if self.pool is not None:
            for slot in self.pool.live.nonzero()[:, 0].tolist():
                failure = self.failure_of(slot)
                if failure is not None:
                    failing[slot] = failure
        if self.pool is not None and not failing and self.compiler.in_use:
            self.compiler.give_up()  # it fails in a later step of a call of several
            return
        if self.pool is None or not failing:
            raise error
        pool = self.pool
        status = pool.state.status.clone()
        for slot, failure in failing.items():
            number, code = int(pool.rows[slot]), status_of(failure)
            at_start = not int(pool.state.num_steps[slot])
            if at_start and code is Status.FAILED and self.outputs.raises_at_start(number):
                raise FailsAtStartError(number) from failure
            status[slot] = int(code)
            self.outputs.exceptions[number] = describe(failure)
        self.pool = pool._replace(state=pool.state._replace(status=status))

    def failure_of(self, slot: int) -> Exception | None:
        """The error that a step of one row alone raises, if it does."""
        assert self.pool is not None
        row = self.select(self.pool, torch.tensor([slot], device=self.pool.rows.device))
        try:
            self.batched.step(row.state, row.args)
        except Exception as error:
            return error
        return None

    def shrink(self) -> None:
        """Halve the chunk after memory ran out."""
        half = math.ceil(self.chunk_size / 2)
        self.sizes = ChunkSizes(min(self.sizes.plain, half), min(self.sizes.compiled, half))
        self.begin_again(half)
        _logger.warning(f"out of memory: chunk_size is halved to {half}")

    def begin_again(self, chunk_size: int) -> None:
        """Continue in chunks of another size; rows in the pool restart."""
        pooled = self.waiting[:0] if self.pool is None else self.pool.rows[self.pool.live]
        self.pool, self.waiting, self.compiled = None, torch.cat([pooled, self.waiting]), False
        self.outputs.begin_again(pooled)
        self.set_chunk_size(chunk_size)

    def set_chunk_size(self, chunk_size: int) -> None:
        """Use chunks of another size from here on."""
        self.chunk_size = chunk_size
        if self.meter:
            self.meter.chunk_size = chunk_size


def rows_of(state: State, slots: Tensor) -> State:
    """The state of some slots."""
    return tree_map(lambda leaf: leaf[slots], state)


def tree_map(function: Callable[..., Tensor], *trees: Any) -> Any:
    """Map tensors; of trees of NamedTuples, which optree's types do not know."""
    return optree.tree_map(function, *trees)
