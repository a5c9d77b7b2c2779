"""A grid of rows: taken in turn into a batch, solved by one mapped step, put back where they belong.

The batch is a pool of at most ``chunk_size`` rows. Rows that end leave it at once, the next ones move
up, and so the pool stays full until none is waiting; nobody waits for the slowest row of a chunk. A row
knows its own number of steps, and never sees its neighbours. Answers land in outputs that are allocated
beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import optree
import torch
from torch import Tensor

from funcexplain.networks.functional import Network
from funcexplain.problems.grid import by_model, mapped_dims, take
from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.chunks import choose_chunk_size, is_out_of_memory, say
from funcexplain.solvers.gradient import backward_value_and_grad
from funcexplain.solvers.loop import iterate
from funcexplain.solvers.progress import Callback, Meter
from funcexplain.solvers.samples import Rows, refusal
from funcexplain.solvers.step import Info, Parts, Rules, State, decide

# Rows that have ended are carried along until they are this share of the pool: taking them out costs
# about as much as a step of all bookkeeping.
_ENDED_SHARE = 1 / 8
# Rows from which on a model of an ensemble gets batches of its own (docs/benchmarks.md).
_ROWS_PER_MODEL = 64


class Pool(NamedTuple):
    """Rows in work, one per slot.

    Attributes:
        rows: their numbers in the grid, ``(B,)``.
        args: their data; what varies leads with ``B``.
        state: their states, which lead with ``B``.
    """

    rows: Tensor
    args: Args
    state: State


class Mapped(NamedTuple):
    """The parts of a step, and ``decode``, for a batch of rows."""

    init: Callable[[Args], State]
    step: Callable[[State, Args], tuple[State, Info]]
    decode: Callable[[Tensor, Args], Tensor]


def map_parts(problem: Problem, parts: Parts, rules: Rules, *, samples: bool = False) -> Mapped:
    """Map the parts of a row's step over the rows of a batch.

    The network is mapped forwards, or called on its own sample dimension (``samples``), and
    differentiated by one ordinary backward pass for all rows, which gives the same numbers as mapping
    its gradient, since rows are independent, at half the cost.
    """
    dims = mapped_dims(problem.dims, problem.args)
    decode = torch.func.vmap(problem.decode, in_dims=(0, dims))
    score = torch.func.vmap(problem.score, in_dims=(0, 0, dims))

    def sampled(z: Tensor, args: Args) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x, network = decode(z, args), cast(Network, problem.apply)
        return score(network.samples(args["params"], x), x, args)

    objective = sampled if samples else torch.func.vmap(parts.objective, in_dims=(0, dims))
    differentiate = backward_value_and_grad(objective)
    move = torch.func.vmap(parts.move, in_dims=(0, dims, 0))

    def step(state: State, args: Args) -> tuple[State, Info]:
        evaluated = differentiate(state.z, args)
        return decide(rules, state, args["target"], evaluated, move(state, args, evaluated[1]))

    return Mapped(
        init=torch.func.vmap(parts.init, in_dims=(dims,)),
        step=step,
        decode=decode,
    )


def solve_rows(
    problem: Problem,
    parts: Parts,
    rules: Rules,
    *,
    max_steps: int,
    history_every: int,
    chunk_size: int | None,
    callback: Callback | None,
    how: Rows,
) -> Solution:
    """Answer a grid of rows; all settings are checked already (`solve`)."""
    outputs, meter = _Outputs(problem, max_steps, history_every), None
    for dims, args, rows in by_model(problem.dims, problem.args, _ROWS_PER_MODEL):
        if not len(rows):
            break
        grid = replace(problem, dims=dims, args=args)
        reason = "" if how == "vmap" else refusal(grid, rows)
        if how == "samples" and reason:
            raise ValueError(f"solve: rows='samples' needs independent samples, but {reason}")
        mapped = map_parts(grid, parts, rules, samples=reason is None)
        if chunk_size is None:

            def batch(count: int) -> tuple[State, Args]:
                taken = take(dims, args, rows[torch.arange(count, device=rows.device) % len(rows)])  # noqa: B023
                return mapped.init(taken), taken  # noqa: B023

            chunk_size = choose_chunk_size(mapped.step, batch, len(rows), rows.device)
        meter = meter or Meter(callback, len(outputs.status), min(chunk_size, len(rows)))
        driver = _Driver(grid, mapped, outputs, max_steps, chunk_size, callback, meter, rows)
        if not driver.run():
            break
        chunk_size = driver.chunk_size
    return outputs.solution()


class _Driver:
    """Moves rows from waiting to the pool, and from there to the outputs."""

    def __init__(
        self,
        problem: Problem,
        mapped: Mapped,
        outputs: _Outputs,
        max_steps: int,
        chunk_size: int,
        callback: Callback | None,
        meter: Meter,
        rows: Tensor,
    ) -> None:
        self.problem, self.mapped, self.outputs = problem, mapped, outputs
        self.max_steps, self.chunk_size, self.callback = max_steps, chunk_size, callback
        self.meter, self.waiting = meter, rows
        self.pool: Pool | None = None

    def run(self) -> bool:
        """Solve all rows. Ctrl-C ends it early (False), and what was found so far stays."""
        try:
            while self.pool is not None or len(self.waiting):
                try:
                    self.turn_over()
                    self.search()
                except torch.linalg.LinAlgError as error:
                    self.end_failing_rows(error)
                except Exception as error:
                    if not is_out_of_memory(error) or self.chunk_size == 1:
                        _explain_vmap(error)
                        raise
                    self.shrink()
        except KeyboardInterrupt:
            if self.pool is not None:
                self.outputs.put(self.pool, self.mapped.decode, self.max_steps)
            ended = int((self.outputs.status != Status.INTERRUPTED).sum())
            say(f"interrupted: {ended} of {len(self.outputs.status)} rows have ended", urgent=True)
            return False
        return True

    def turn_over(self) -> None:
        """Write the rows that have ended to the outputs, and let waiting ones take their place."""
        old, staying = self.pool, self.waiting[:0]
        if old is not None:
            ended = has_ended(old.state, self.max_steps)
            landed = self.pick(old, ended.nonzero()[:, 0])
            if len(landed.rows):
                self.outputs.put(landed, self.mapped.decode, self.max_steps)
                self.meter.add(len(landed.rows), int((landed.state.status == Status.HIT).sum()))
            staying = (~ended).nonzero()[:, 0]
        room = self.chunk_size - len(staying)
        coming, left = self.waiting[:room], self.waiting[room:]
        states = [] if old is None or not len(staying) else [rows_of(old.state, staying)]
        if len(coming):
            states.append(self.mapped.init(self.take(coming)))
        rows = coming if old is None else torch.cat([old.rows[staying], coming])
        new: Pool | None = None
        if len(rows):
            state = tree_map(lambda *leaves: torch.cat(leaves), *states)
            new = Pool(rows, self.take(rows), state)
        self.pool, self.waiting = new, left

    def search(self) -> None:
        """Take steps until enough rows have ended, or the oldest have used up their budget."""
        if self.pool is None:
            return
        enough = math.ceil(_ENDED_SHARE * len(self.pool.rows))
        rows, begun = self.pool.rows, self.pool.state.num_steps
        losses: list[Tensor] = []

        def ends(state: State, info: Info) -> bool:
            assert self.pool is not None
            losses.append(info.loss)
            self.pool = self.pool._replace(state=state)
            if self.callback is not None:
                self.callback(state, info)
            return int(state.done.sum()) >= enough

        # One step more than updates: the last one evaluates the point that the answer holds.
        most = self.max_steps + 1 - int(begun.amax())
        try:
            iterate(self.mapped.step, self.pool.state, self.pool.args, most, ends)
        finally:
            self.outputs.record(rows, begun, losses)

    def take(self, rows: Tensor) -> Args:
        return take(self.problem.dims, self.problem.args, rows)

    def pick(self, pool: Pool, slots: Tensor) -> Pool:
        rows = pool.rows[slots]
        return Pool(rows, self.take(rows), rows_of(pool.state, slots))

    def end_failing_rows(self, error: Exception) -> None:
        """Find the rows for which a factorization fails: it raises for the whole batch."""
        failing = []
        if self.pool is not None:
            slots = torch.arange(len(self.pool.rows), device=self.waiting.device)
            failing = [slot for slot in slots if self.fails(self.pick(self.pool, slot[None]))]
        if self.pool is None or not failing:
            raise error
        status = self.pool.state.status.clone()
        status[torch.stack(failing)] = int(Status.NONFINITE)
        self.pool = self.pool._replace(state=self.pool.state._replace(status=status))

    def fails(self, row: Pool) -> bool:
        try:
            self.mapped.step(row.state, row.args)
        except torch.linalg.LinAlgError:
            return True
        return False

    def shrink(self) -> None:
        """Halve the chunk after memory ran out; the rows in work begin again."""
        in_work = self.waiting[:0] if self.pool is None else self.pool.rows
        self.pool, self.waiting = None, torch.cat([in_work, self.waiting])
        self.chunk_size = math.ceil(self.chunk_size / 2)
        say(f"out of memory: chunk_size is halved to {self.chunk_size}", urgent=True)


class _Outputs:
    """Answers of all rows, allocated beforehand; what was never reached is NaN and INTERRUPTED."""

    def __init__(self, problem: Problem, max_steps: int, history_every: int) -> None:
        x0, target = problem.args["x0"], problem.args["target"]
        total = math.prod(problem.shape)
        self.problem, self.every = problem, max(1, history_every)
        kept = math.ceil(max_steps / history_every) if history_every else 0
        own = target.shape[sum("target" in dim.varying for dim in problem.dims) :]
        self.x = x0.new_full((total, *x0.shape[-3:]), math.nan)
        self.weights = target.new_full((total, *own), math.nan)
        self.loss = target.new_full((total,), math.nan)
        self.history = target.new_full((total, kept), math.nan)
        self.num_steps = torch.zeros(total, dtype=torch.int64, device=x0.device)
        self.status = torch.full_like(self.num_steps, int(Status.INTERRUPTED))

    def record(self, rows: Tensor, begun: Tensor, losses: list[Tensor]) -> None:
        """Write the losses ``(B,)`` of some steps of rows that had taken ``begun`` steps before."""
        if not losses or not self.history.shape[1]:
            return
        steps = begun[:, None] + torch.arange(len(losses), device=rows.device)
        places = steps // self.every
        kept = (steps % self.every == 0) & (places < self.history.shape[1])
        numbers = rows[:, None].expand_as(steps)
        values = torch.stack(losses, dim=1).to(self.history.dtype)
        self.history[numbers[kept], places[kept]] = values[kept]

    def put(self, pool: Pool, decode: Callable[[Tensor, Args], Tensor], max_steps: int) -> None:
        """Write the answers of rows; those that have not ended are INTERRUPTED."""
        state, rows = pool.state, pool.rows
        num_steps = state.num_steps.clamp(max=max_steps)
        # What was recorded of a row after its end is not part of its search.
        steps = self.every * torch.arange(self.history.shape[1], device=rows.device)
        self.history[rows] = self.history[rows].masked_fill(steps >= num_steps[:, None], math.nan)
        self.x[rows] = decode(state.kept.z, pool.args)
        self.weights[rows] = state.kept.weights
        self.loss[rows] = state.kept.loss
        self.num_steps[rows] = num_steps
        ended = has_ended(state, max_steps)
        self.status[rows] = torch.where(ended, state.status, int(Status.INTERRUPTED))

    def solution(self) -> Solution:
        """Give the outputs the shape of the grid."""
        shape = self.problem.shape
        names = ("x", "weights", "loss", "history", "num_steps", "status")
        outputs = {name: getattr(self, name) for name in names}
        fields = {name: t.reshape(*shape, *t.shape[1:]) for name, t in outputs.items()}
        return Solution(**fields, dims=tuple(dim.name for dim in self.problem.dims))


def has_ended(state: State, max_steps: int) -> Tensor:
    """Which rows have an end of their own, or no budget left."""
    return state.done | (state.num_steps > max_steps)


def rows_of(state: State, slots: Tensor) -> State:
    """The states of some slots."""
    return tree_map(lambda leaf: leaf[slots], state)


def tree_map(function: Callable[..., Tensor], *trees: Any) -> Any:
    """Map tensors; of trees of NamedTuples, which optree's types do not know."""
    return optree.tree_map(function, *trees)


def _explain_vmap(error: Exception) -> None:
    """Say what to do about a network that cannot be mapped; torch's own message does not know."""
    if "vmap" in str(error):
        error.add_note(
            "solve: the network cannot be mapped over rows as it is written; "
            "fe.problem(fe.opaque(network), ...) maps it through its own sample dimension, and "
            "problem[i] picks single rows, which are solved without mapping"
        )
