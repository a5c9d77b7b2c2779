"""A row's step for a batch of rows: by ``vmap``, or on the network's own sample dimension.

A network maps ``(n_samples, C, L, A)`` to ``(n_samples, A)``. If its samples are independent, rows can
share that dimension, and the network runs as it was written, without the cost of mapping every
operation. Whether they are independent is tried, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from funcexplain.networks.network import SEED, Network
from funcexplain.problems.grid import mapped_dims, take_rows, varying_dims
from funcexplain.problems.problem import Args, Problem
from funcexplain.solvers.gradient import Scored, where_finite
from funcexplain.solvers.state import Init, Method, Objective, Step, Stopping
from funcexplain.solvers.step import begin, bind, take

Rows = Literal["auto", "vmap", "samples"]
# Rows whose own starts are tried together.
_TRIED_ROWS = 16


class Batched(NamedTuple):
    """The parts of a step, and ``decode``, for a batch of rows; equal keys mean equal functions."""

    init: Init
    step: Step
    decode: Callable[[Tensor, Args], Tensor]
    key: tuple[Any, ...]


def batch(grid: Problem, method: Method, stopping: Stopping, rows: Tensor, how: Rows) -> Batched:
    """Make the step of a batch of rows.

    The network is mapped forwards, or called on its own sample dimension, and differentiated by one
    plain backward pass for all rows. Rows are independent, so that gives the same numbers as mapping
    the gradient, at half the cost.

    Args:
        grid: the rows' problem.
        method: what searches.
        stopping: when a search ends.
        rows: numbers of the rows, at least one.
        how: by ``"vmap"``, as ``"samples"``, or ``"auto"``.

    Raises:
        ValueError: for ``"samples"`` where they are not independent; it says why.
    """
    reason = why_not_samples(grid, rows) if how != "vmap" else None
    if how == "samples" and reason:
        raise ValueError(f"solve: rows='samples' needs independent samples, but {reason}")
    samples = how != "vmap" and not reason
    bound, dims = bind(method, grid, stopping), mapped_dims(grid.dims, grid.args)
    objective = _batched_objective(grid, dims, samples)
    advance = torch.func.vmap(bound.advance, in_dims=(0, dims, 0))
    functions = (grid.apply, grid.loss, grid.decode, grid.project, grid.penalties, grid.costs)
    return Batched(
        init=torch.func.vmap(partial(begin, bound), in_dims=(dims,)),
        step=partial(take, bound, bound.backward(objective), advance),
        decode=torch.func.vmap(grid.decode, in_dims=(0, dims)),
        key=(
            functions,
            grid.criterion,
            _method_key(method),
            bound.stopping,
            samples,
            tuple(sorted(dims.items())),
        ),
    )


def _method_key(method: Method) -> object:
    """What tells methods apart: themselves; one that cannot be hashed equals no other."""
    try:
        hash(method)
    except TypeError:
        return object()
    return method


def _batched_objective(grid: Problem, dims: dict[str, int | None], samples: bool) -> Objective:
    """From search points to ``(value, (loss, weights))``, one of each per row."""
    decode = torch.func.vmap(grid.decode, in_dims=(0, dims))
    evaluate = torch.func.vmap(grid.evaluate, in_dims=(0, dims))
    score = torch.func.vmap(grid.score, in_dims=(0, 0, dims))
    costs = [torch.func.vmap(cost, in_dims=(0, dims)) for cost in grid.costs]
    target_ndim = grid.args["target"].ndim - len(varying_dims(grid.dims, "target"))

    def objective(z: Tensor, args: Args) -> Scored:
        target = args["target"]
        if dims["target"] is None:
            target = target.expand(len(z), *[-1] * target_ndim)

        def scored(x: Tensor) -> Scored:
            if not samples:
                return evaluate(x, args)
            return score(cast(Network, grid.apply).samples(args["params"], x), x, args)

        value, aux = where_finite(decode(z, args), grid.criterion.weights_like(target), scored, rows=1)
        return sum((cost(z, args) for cost in costs), start=value), aux

    return objective


def why_not_samples(grid: Problem, rows: Tensor) -> str | None:
    """Why rows cannot share the sample dimension, or None if they can.

    Args:
        grid: a grid of rows.
        rows: numbers of its rows, at least one.

    Returns:
        The reason, or None.
    """
    params, apply = grid.args["params"], grid.apply
    dims = mapped_dims(grid.dims, grid.args)
    if not isinstance(apply, Network):
        return "the network is a function of one window"
    if dims["params"] is not None:
        return "each row has its own parameters"
    if SEED in params:
        return "each row has its own dropout noise"
    if len(rows) == 1:
        return None  # one window is alone in its batch
    # The rows' own starts; of many rows, some.
    count = max(3, min(len(rows), _TRIED_ROWS))
    own = torch.linspace(0, len(rows) - 1, count, dtype=torch.float64, device=rows.device).long()
    args = take_rows(grid.dims, grid.args, rows[own])
    start = torch.func.vmap(grid.start, in_dims=(dims,))(args)
    starts = torch.func.vmap(grid.decode, in_dims=(0, dims))(start, args).nan_to_num()
    # Three that differ even where the starts do not.
    xs = starts[:3]
    spread = xs.std()
    spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    noise = torch.randn(xs.shape, generator=torch.Generator().manual_seed(0), dtype=xs.dtype)
    xs = xs + 0.1 * spread * noise.to(xs.device)
    # One of the other sign: what decides by the sign of a whole batch decides otherwise for it alone.
    xs[1] = -xs[1]
    poisoned = xs.clone()
    poisoned[1] = torch.nan
    try:
        with torch.random.fork_rng(devices=[]):  # a network may draw random numbers
            together, beside_nan = apply.samples(params, xs), apply.samples(params, poisoned)
            alone = torch.stack([apply(params, x) for x in xs])
            # Few rows are all held against each one alone, of many rows three.
            held = list(range(len(starts))) if len(rows) <= _TRIED_ROWS else [0, len(starts) // 2, -1]
            starts_together = apply.samples(params, starts)[held]
            starts_alone = torch.stack([apply(params, starts[index]) for index in held])
            counts = [xs[:1].expand(count, *xs.shape[1:]) for count in (2, 4)]
            calls = [_count_calls(apply, params, windows) for windows in counts]
    except Exception as error:
        return f"the network does not accept a batch of windows ({error})"
    eps = torch.finfo(xs.dtype).eps
    # Half precision rounds by more than a hundredth: what cannot be told from coupling is mapped.
    rtol, atol = min(1e3 * eps, 1e-2), min(1e2 * eps, 1e-2)
    pairs = ((together, alone), (starts_together, starts_alone))
    if not all(torch.allclose(*pair, rtol=rtol, atol=atol, equal_nan=True) for pair in pairs):
        return "a window's weights depend on the other windows of its batch"
    others = [0, 2]
    if not torch.allclose(together[others], beside_nan[others], rtol=0.0, atol=0.0, equal_nan=True):
        return "a window that is not finite changes the weights of others in its batch"
    if calls[1] > calls[0]:
        return "the network loops over its samples, which vmap does not"
    return None


def _count_calls(apply: Network, params: Any, xs: Tensor) -> int:
    with _CallCounter() as counter:
        apply.samples(params, xs)
    return counter.count


class _CallCounter(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        self.count += 1
        return func(*args, **(kwargs or {}))
