"""A few rows alone, computed plainly: what a batch of rows is held against before it is believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from funcexplain.engine.alone import FailsAtStartError, status_of
from funcexplain.networks.memory import is_out_of_memory
from funcexplain.networks.network import SEED, Network, bound
from funcexplain.networks.noise import normal
from funcexplain.networks.rounding import agree, coarsest_eps
from funcexplain.problems.grid import mapped_dims, take_rows
from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.status import Status
from funcexplain.solvers.gradient import make_objective, with_bound_network
from funcexplain.solvers.state import Evaluation, Iterate, Method, Stopping
from funcexplain.solvers.step import bind, make_plain_step

# Rows that are evaluated with their gradients, whose own starts are called together, and of a part.
_EVALUATED, _CALLED, _PART = 3, 16, 128
# Noise on a trial's points, in standard deviations of their entries.
_NOISE = 0.1


Weights = Callable[[Tensor, Args], Tensor]


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

        At a point that hits, a gradient is only rounding.
        """
        eps = coarsest_eps(self.args, self.kept.weights)
        return agree(ours, theirs, eps, 1e2 * eps * largest, rows=1)


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
    numbers = rows[_spread(len(rows), _EVALUATED, rows.device)]
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
    begin = torch.func.vmap(grid.start, in_dims=(dims,))
    decode = torch.func.vmap(grid.decode, in_dims=(0, dims))
    own = take_rows(grid.dims, grid.args, rows[_spread(len(rows), _CALLED, rows.device)])
    windows = [decode(begin(own), own)]
    start = begin(take_rows(grid.dims, grid.args, numbers))
    alone = [_evaluate_alone(grid, method, stopping, *row) for row in zip(numbers, start, strict=True)]
    runs = torch.tensor([evaluation is not None for evaluation in alone], device=rows.device)
    numbers, start = numbers[runs], start[runs]
    args = take_rows(grid.dims, grid.args, numbers)
    if not len(numbers):
        return Trial(kept, args, [], windows)
    near = torch.func.vmap(grid.project, in_dims=(0, dims))(start + _noise_for(start), args)
    nearby = [_evaluate_alone(grid, method, stopping, *row) for row in zip(numbers, near, strict=True)]
    points = [(start, _stack(alone))]
    if None not in nearby:
        points.append((near, _stack(nearby)))
    xs = decode(near, args).clone()
    # One of the other sign: what decides by the sign of a whole batch decides otherwise for it alone.
    xs[len(xs) // 2] *= -1.0
    return Trial(kept, args, points, [*windows, xs])


def _noise_for(z: Tensor) -> Tensor:
    """Noise in proportion to the spread of some points."""
    spread = z.std().nan_to_num() if z.numel() > 1 else torch.zeros_like(z.sum())
    scale = _NOISE * torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    return scale * normal(torch.zeros((), dtype=torch.int64, device=z.device), z.shape, z.dtype)


def row_of(grid: Problem, number: int) -> Problem:
    """One row of a grid, by its number in row-major order."""
    index = []
    for dim in reversed(grid.dims):
        number, place = divmod(number, dim.size)
        index.append(place)
    return grid[tuple(reversed(index))]


def _spread(total: int, count: int, device: torch.device) -> Tensor:
    """Up to ``count`` places, spread evenly."""
    count = min(total, count)
    return torch.linspace(0, total - 1, count, dtype=torch.float64, device=device).long()


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


def check_starts(grid: Problem, rows: Tensor, weights: Weights | None) -> None:
    """Raise a `FailsAtStartError` if the network raises at the start window of a row.

    Args:
        grid: the rows' problem.
        rows: their numbers.
        weights: ``(x, args) -> weights`` of a batch of rows, or None to call the network for each.
    """
    dims = mapped_dims(grid.dims, grid.args)
    begin = torch.func.vmap(grid.start, in_dims=(dims,))
    decode = torch.func.vmap(grid.decode, in_dims=(0, dims))
    for part in rows.split(_PART if weights else 1):
        args = take_rows(grid.dims, grid.args, part)
        windows = decode(begin(args), args)
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


def why_not_samples(grid: Problem, trial: Trial) -> str | None:
    """Why rows cannot share the network's sample dimension, or None if they can.

    Windows that are not finite are not shown to the network, here or later: some solvers print, some
    networks refuse them.
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
