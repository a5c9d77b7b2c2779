"""Answers of all rows of a grid, in preallocated tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from funcexplain.engine.alone import describe, status_of
from funcexplain.engine.execution import Execution
from funcexplain.problems.grid import varying_dims
from funcexplain.problems.problem import Problem, identity
from funcexplain.solutions.solution import FIELDS, Solution, Status
from funcexplain.solvers.state import Iterate, State, Stopping
from funcexplain.solvers.step import status_at_end


class Outputs:
    """Answers of all rows, preallocated; rows that never began are NaN and INTERRUPTED."""

    def __init__(self, problem: Problem, stopping: Stopping, execution: Execution) -> None:
        max_steps, history_every = execution[:2]
        x0, target = problem.args["x0"], problem.args["target"]
        total = math.prod(problem.shape)
        self.problem, self.stopping, self.checks_starts = problem, stopping, execution.checks_starts
        self.max_steps, self.every = max_steps, max(1, history_every)
        kept = math.ceil(max_steps / history_every) if history_every else 0
        own = problem.criterion.weights_like(target).shape[len(varying_dims(problem.dims, "target")) :]
        self.x = self.z = x0.new_full((total, *x0.shape[-3:]), math.nan)
        self.weights = target.new_full((total, *own), math.nan)
        self.loss = target.new_full((total,), math.nan)
        self.history = target.new_full((total, kept), math.nan)
        self.num_steps = torch.zeros(total, dtype=torch.int64, device=x0.device)
        self.status = torch.full_like(self.num_steps, int(Status.INTERRUPTED))
        self.error = torch.full_like(self.loss, math.nan)
        self.exceptions: dict[int, str] = {}

    def set_dtypes(self, kept: Iterate) -> None:
        """Give weights and losses the dtypes of the network's, and the search point its own shape."""
        if self.problem.decode is not identity:
            self.z = self.x.new_full((len(self.x), *kept.z.shape), math.nan)
        self.weights = self.weights.to(kept.weights.dtype)
        for name in ("loss", "history", "error"):
            setattr(self, name, getattr(self, name).to(kept.loss.dtype))

    def record(self, rows: Tensor, begun: Tensor, losses: Tensor) -> None:
        """Write the losses ``(B, steps)`` of rows that had taken ``begun`` steps before."""
        if not self.history.shape[1]:
            return
        steps = begun[:, None] + torch.arange(losses.shape[1], device=rows.device)
        places = steps // self.every
        kept = (steps % self.every == 0) & (places < self.history.shape[1])
        numbers = rows[:, None].expand_as(steps)
        self.history[numbers[kept], places[kept]] = losses[kept].to(self.history.dtype)

    def write(self, rows: Tensor, state: State, x: Tensor, target: Tensor) -> None:
        """Write the answers ``x`` of rows; those that have not ended are INTERRUPTED."""
        num_steps = state.num_steps.clamp(max=self.max_steps)
        # Losses recorded after a row's end are not part of its search.
        steps = self.every * torch.arange(self.history.shape[1], device=rows.device)
        self.history[rows] = self.history[rows].masked_fill(steps >= num_steps[:, None], math.nan)
        self.x[rows] = x
        self.z[rows] = state.kept.z
        self.weights[rows] = state.kept.weights.to(self.weights.dtype)
        self.loss[rows] = state.kept.loss.to(self.loss.dtype)
        error = self.problem.criterion.error(state.kept.weights, target, rows=1)
        self.error[rows] = error.to(self.error.dtype)
        self.num_steps[rows] = num_steps
        ended = self.has_ended(state)
        status = status_at_end(self.problem, self.stopping, state, target)
        self.status[rows] = torch.where(ended, status, int(Status.INTERRUPTED))

    def write_solution(self, number: int, solution: Solution) -> None:
        """Write the answer of a row that was solved alone."""
        for name in ("x", "z", "weights", "loss", "num_steps", "error"):
            getattr(self, name)[number] = getattr(solution, name)
        self.history[number] = math.nan
        self.history[number, : len(solution.history)] = solution.history
        self.status[number] = int(solution.status)
        self.exceptions.pop(number, None)
        for error in solution.exceptions.values():
            self.exceptions[number] = error

    def clear(self, rows: Tensor) -> None:
        """Forget the answers of rows that will be solved again."""
        for name in ("x", "z", "weights", "loss", "history", "error"):
            getattr(self, name)[rows] = math.nan
        self.num_steps[rows], self.status[rows] = 0, int(Status.INTERRUPTED)

    def fail(self, number: int, error: BaseException) -> None:
        """Record the error at a row's start; it has no answer."""
        self.status[number] = int(status_of(error))
        self.exceptions[number] = describe(error)

    def any_ended(self) -> bool:
        """Whether there is an answer already."""
        return bool((self.status != Status.INTERRUPTED).any())

    def raises_at_start(self, number: int) -> bool:
        """Whether to raise an error at the start of a row, since no answer would be lost."""
        return (self.checks_starts or number == 0) and not self.any_ended()

    def has_ended(self, state: State) -> Tensor:
        """Which rows have ended or are out of budget."""
        return (state.status != Status.MAX_STEPS) | (state.num_steps > self.max_steps)

    def begin_again(self, rows: Tensor) -> None:
        """Clear the records of rows that restart."""
        self.history[rows] = math.nan
        for row in rows.tolist() if self.exceptions else ():
            self.exceptions.pop(row, None)

    def solution(self) -> Solution:
        """Give the outputs the shape of the grid."""
        shape = self.problem.shape
        outputs = {name: getattr(self, name) for name in FIELDS}
        fields = {name: t.reshape(*shape, *t.shape[1:]) for name, t in outputs.items()}
        if self.z is self.x:
            fields["z"] = fields["x"]
        dims = tuple(dim.name for dim in self.problem.dims)
        return Solution(**fields, dims=dims, exceptions=dict(sorted(self.exceptions.items())))
