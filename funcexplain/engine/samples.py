"""Rows on a network's own sample dimension, where that is exact: its batch in place of ``vmap``.

A network maps ``(n_samples, C, L, A)`` to ``(n_samples, A)``. If its samples are independent, rows can
lie there, and the network runs as it was written, without the cost of mapping every operation. Whether
they are is tried, not believed.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from funcexplain.networks.functional import SEED, Network
from funcexplain.networks.noise import normal
from funcexplain.problems.grid import mapped_dims, take
from funcexplain.problems.problem import Problem

Rows = Literal["auto", "vmap", "samples"]


def refusal(grid: Problem, rows: Tensor) -> str | None:
    """Why rows cannot lie on the sample dimension, or None if they can.

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
        return "rows have parameters of their own"
    if SEED in params:
        return "dropout gives every row noise of its own"
    args = take(grid.dims, grid.args, rows[torch.arange(3, device=rows.device) % len(rows)])
    start = torch.func.vmap(grid.start, in_dims=(dims,))(args)
    # Rows that differ even where the grid has one.
    xs = torch.func.vmap(grid.decode, in_dims=(0, dims))(start, args).nan_to_num()
    spread = xs.std()
    spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    xs = xs + 0.1 * spread * normal(torch.tensor(0, device=xs.device), xs.shape, xs.dtype)
    # One of the other sign: what decides by the sign of a whole batch decides otherwise for it alone.
    xs[1] = -xs[1]
    poisoned = xs.clone()
    poisoned[1] = torch.nan
    try:
        with torch.random.fork_rng(devices=[]):  # a network may draw random numbers
            together, beside_nan = apply.samples(params, xs), apply.samples(params, poisoned)
            alone = torch.stack([apply(params, x) for x in xs])
            counts = [xs[:1].expand(count, *xs.shape[1:]) for count in (2, 4)]
            calls = [_count_calls(apply, params, windows) for windows in counts]
    except Exception as error:
        return f"the network does not take a batch of windows ({error})"
    eps = torch.finfo(xs.dtype).eps
    if not torch.allclose(together, alone, rtol=1e3 * eps, atol=1e2 * eps, equal_nan=True):
        return "a window's weights depend on the other windows of its batch"
    others = [0, 2]
    if not torch.allclose(together[others], beside_nan[others], rtol=0.0, atol=0.0, equal_nan=True):
        return "a window that is not finite changes the weights of others in its batch"
    if calls[1] > calls[0]:
        return "the network loops over its samples, which vmap does not"
    return None


def _count_calls(apply: Network, params: Any, xs: Tensor) -> int:
    with _Calls() as mode:
        apply.samples(params, xs)
    return mode.count


class _Calls(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        self.count += 1
        return func(*args, **(kwargs or {}))
