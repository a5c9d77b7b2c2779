"""The trial of rows before they share a batch: whether a batch computes what rows compute alone.

A network's samples may not be independent, and ``vmap`` may map a network or its backward pass wrongly.
So a few rows in a batch are compared with each alone; if all ways differ, rows are solved alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from funcexplain.engine.alone import FailsAtStartError
from funcexplain.engine.batching import Batched, Choice, make_batched, row_of, spread
from funcexplain.engine.execution import Rows
from funcexplain.networks.checks import is_out_of_memory
from funcexplain.networks.network import SEED, Network, bound
from funcexplain.networks.rounding import agree, coarsest_eps
from funcexplain.problems.grid import map_rows, mapped_dims, take_rows
from funcexplain.problems.problem import Args, Problem
from funcexplain.solvers.gradient import make_objective, with_bound_network
from funcexplain.solvers.state import Evaluation, Iterate, Method, Stopping
from funcexplain.solvers.step import bind, make_plain_step

# Rows that are evaluated with their gradients, and rows whose own starts are called together.
_EVALUATED, _CALLED = 3, 16
# Noise on a trial's points, in standard deviations of their entries.
_NOISE = 0.1
# Words of torch's errors, and what they say of a network.
_CAUSES = {
    "data-dependent control flow": "it branches on values; torch.where can replace an `if`",
    "calling .item()": "it reads values of tensors, as `.item()` does",
    "randomness error mode": "it draws random numbers",
}


class Trial(NamedTuple):
    """Rows alone.

    Attributes:
        kept: the first evaluated point of a row, for its dtypes.
        args: data of the rows that are evaluated.
        points: search points of these rows, one each, with their evaluations alone.
        windows: windows at which the network is called together and alone: the rows' starts, and some
            near them.
    """

    kept: Iterate
    args: Args
    points: list[tuple[Tensor, Evaluation]]
    windows: list[Tensor]

    def agree(self, ours: Tensor, theirs: Tensor, largest: float = 0.0) -> bool:
        """Whether every row's numbers agree; ``largest`` is their size at other points.

        At a point that hits, a loss and its gradient are only rounding.
        """
        eps = coarsest_eps(self.args, self.kept.weights)
        return agree(ours, theirs, eps, min(1e6 * eps, 1e-3) * largest, rows=1)


def try_rows(grid: Problem, method: Method, stopping: Stopping, rows: Tensor) -> Trial:
    """Evaluate a few rows alone.

    Args:
        grid: the rows' problem.
        method: what searches.
        stopping: when a search ends.
        rows: numbers of the rows, at least one.

    Raises:
        FailsAtStartError: if the network, or the method, raises at the start of the first row.
    """
    with torch.random.fork_rng(devices=[]):  # a network may draw random numbers
        return _try_rows(grid, method, stopping, rows)


def _try_rows(grid: Problem, method: Method, stopping: Stopping, rows: Tensor) -> Trial:
    numbers = rows[spread(len(rows), _EVALUATED, rows.device)]
    first = row_of(grid, int(numbers[0]))
    init, step = make_plain_step(first, method, stopping)
    try:
        state, _ = step(init(first.args), first.args)
        kept = state.kept
    except torch.linalg.LinAlgError:
        kept = init(first.args).kept
    except Exception as error:
        raise FailsAtStartError(int(numbers[0])) from error
    dims = mapped_dims(grid.dims, grid.args)
    begin = map_rows(grid.start, dims)
    decode = map_rows(grid.decode, 0, dims)
    own = take_rows(grid.dims, grid.args, rows[spread(len(rows), _CALLED, rows.device)])
    windows = [decode(begin(own), own)]
    start = begin(take_rows(grid.dims, grid.args, numbers))
    alone = [_evaluate_alone(grid, method, stopping, *row) for row in zip(numbers, start, strict=True)]
    runs = torch.tensor([evaluation is not None for evaluation in alone], device=rows.device)
    numbers, start = numbers[runs], start[runs]
    args = take_rows(grid.dims, grid.args, numbers)
    if not len(numbers):
        return Trial(kept, args, [], windows)
    near = map_rows(grid.project, 0, dims)(start + noise_for(start), args)
    nearby = [_evaluate_alone(grid, method, stopping, *row) for row in zip(numbers, near, strict=True)]
    points = [(start, _stack(alone))]
    if None not in nearby:
        points.append((near, _stack(nearby)))
    xs = decode(near, args).clone()
    # One of the other sign: what decides by the sign of a whole batch decides otherwise for it alone.
    xs[len(xs) // 2] *= -1.0
    return Trial(kept, args, points, [*windows, xs])


def noise_for(z: Tensor) -> Tensor:
    """Noise in proportion to the spread of some points."""
    std = z.std().nan_to_num() if z.numel() > 1 else torch.zeros_like(z.sum())
    scale = _NOISE * torch.where(std > 1e-6, std, torch.ones_like(std))
    waves = torch.arange(1, z.numel() + 1, dtype=torch.float64, device=z.device).square().cos()
    return scale * waves.view(z.shape).to(z.dtype)


def _evaluate_alone(
    grid: Problem, method: Method, stopping: Stopping, number: Tensor, z: Tensor
) -> Evaluation | None:
    """Evaluate one row at a point, or return None if the network fails there."""
    row = row_of(grid, int(number))
    evaluate = with_bound_network(row, bind(method, row, stopping).backward(make_objective(row)))
    try:
        return evaluate(z, row.args)
    except Exception:  # the search meets it again
        return None


def _stack(evaluations: Sequence[Evaluation | None]) -> Evaluation:
    """Evaluations of rows as those of a batch."""
    known = [evaluation for evaluation in evaluations if evaluation is not None]
    return Evaluation(*map(torch.stack, zip(*known, strict=True)))


def why_not_samples(grid: Problem, trial: Trial) -> str | None:
    """Why rows cannot share the network's sample dimension, or None if they can.

    The network never sees non-finite windows, here or later: some solvers print, some networks raise.
    """
    params, apply = grid.args["params"], grid.apply
    if not isinstance(apply, Network):
        return "the network is a function of one window"
    if mapped_dims(grid.dims, grid.args)["params"] is not None:
        return "each row has its own parameters"
    if SEED in params:
        return "each row has its own dropout noise"
    with torch.random.fork_rng(devices=[]), bound(apply, params):
        for windows in trial.windows:
            pairs = [(x, _call(apply, params, x)) for x in windows if x.isfinite().all()]
            known = [(x, alone) for x, alone in pairs if alone is not None]
            if not known:
                continue
            xs = torch.stack([x for x, _ in known])
            try:
                together = apply.samples(params, xs)
                counts = [_count_calls(apply, params, xs[:1].expand(n, *xs.shape[1:])) for n in (2, 4)]
            except Exception as error:
                if is_out_of_memory(error):
                    continue
                return f"the network does not accept a batch of windows ({error})"
            if not trial.agree(together, torch.stack([alone for _, alone in known])):
                return "a window's weights depend on the other windows of its batch"
            if counts[1] > counts[0]:
                return "the network loops over its samples, which vmap does not"
    return None


def _call(apply: Network, params: Any, x: Tensor) -> Tensor | None:
    try:
        return apply(params, x)
    except Exception:  # such a window shows nothing of how rows share a batch
        return None


def _count_calls(apply: Network, params: Any, xs: Tensor) -> int:
    with _CallCounter() as counter:
        apply.samples(params, xs)
    return counter.count


class _CallCounter(TorchFunctionMode):
    """Counts calls of torch's functions."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function and count it."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def choose_way(grid: Problem, method: Method, stopping: Stopping, trial: Trial, how: Rows) -> Choice:
    """Choose how rows share a batch: the fastest way that agrees with the rows alone.

    Args:
        grid: the rows' problem.
        method: what searches.
        stopping: when a search ends.
        trial: some of the rows, alone.
        how: ``"vmap"``, ``"samples"``, or ``"auto"``.

    Raises:
        ValueError: for ``"vmap"`` or ``"samples"`` if rows differ; the message gives the reason.
    """
    reason = None
    if how != "vmap":
        reason = why_not_samples(grid, trial) or _why_not(
            make_batched(grid, method, stopping, trial.kept, samples=True), trial
        )
        if reason is None:
            return Choice("samples")
        if how == "samples":
            raise ValueError(f"solve: rows='samples' needs independent samples, but {reason}")
    reason = _why_not(make_batched(grid, method, stopping, trial.kept, samples=False), trial)
    if reason is None:
        return Choice("vmap")
    if how == "vmap":
        raise ValueError(f"solve: rows='vmap' needs what torch.func.vmap can map, but {reason}")
    return Choice("alone", reason)


def _why_not(batched: Batched, trial: Trial) -> str | None:
    """Why a batch does not compute what rows compute alone, or None if it does."""
    if not trial.points:
        return None
    with warnings.catch_warnings(record=True) as caught:  # which may be errors, but not the network's
        warnings.simplefilter("always")
        reason = _differs(batched, trial)
        try:
            if reason is None:
                batched.step(batched.init(trial.args), trial.args)
        except Exception as error:
            reason = None if is_out_of_memory(error) else f"the method cannot be mapped: {_cause(error)}"
    for warning in caught if reason is None else ():
        warnings.warn(warning.message, warning.category, stacklevel=6)
    return reason


def _differs(batched: Batched, trial: Trial) -> str | None:
    """Why evaluations in a batch are not those of rows alone."""
    largest = [
        max(float(alone[field].nan_to_num().abs().max()) for _, alone in trial.points)
        for field in range(len(Evaluation._fields))
    ]
    value, loss, weights, slopes = largest
    largest = [max(value, weights), max(loss, weights), weights, slopes]
    for z, alone in trial.points:
        try:
            together = batched.evaluate(z, trial.args)
        except Exception as error:
            return None if is_out_of_memory(error) else f"the network cannot be mapped: {_cause(error)}"
        for name, ours, theirs, size in zip(Evaluation._fields, together, alone, largest, strict=True):
            if not trial.agree(ours, theirs, size):
                part = "gradient" if name == "slopes" else name
                return f"a row's {part} differs in a batch from what it is alone"
    return None


def _cause(error: Exception) -> str:
    """Why mapping fails: in plain words where torch's are known, else the beginning of its message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((cause for words, cause in _CAUSES.items() if words in lines[0]), lines[0][:200])
