"""Realistic starts: real windows near the target, and resampled history."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.forward import weights_of
from funcexplain.networks.noise import uniform
from funcexplain.problems.checks import check_memory, check_number, check_positive, check_tensor
from funcexplain.problems.problem import problem

__all__ = ["Nearest", "bootstrap", "nearest_dates", "nearest_first", "replayed"]


class Nearest(NamedTuple):
    """The windows of `nearest_dates`, nearest first.

    Attributes:
        places: positions of the windows in the stack, int64, ``(k,)``.
        error: largest ``|weights - target|`` of each, ``(k,)``.
        weights: the network's weights there, ``(k, A)``.
    """

    places: Tensor
    error: Tensor
    weights: Tensor


def nearest_dates(network: Any, windows: Tensor, target: Tensor, k: int) -> Nearest:
    """Find the real windows at which the network comes closest to the target.

    The distance is the largest ``|weights - target|``, as in the hit criterion of a search. These
    windows answer the question without a search, and are starts for one:
    ``fe.vmap(problem, x0=windows[nearest.places])``.

    Args:
        network: as in ``fe.problem``.
        windows: history of windows, ``(N, C, L, A)``.
        target: allocation, ``(A,)``.
        k: number of windows, at most ``N``.

    Returns:
        The nearest windows; ties in the order of the stack. Windows at which the network raises or its
        weights are not finite come last.

    Raises:
        TypeError, ValueError: as in ``fe.problem``, or if there are fewer than ``k`` windows.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> windows = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0]]).view(3, 1, 1, 2)
        >>> nearest_dates(network, windows, torch.tensor([0.7, 0.3]), k=2)
        Nearest(places=tensor([2, 1]), error=tensor([0.0311, 0.1808]), weights=...)
    """
    windows = check_tensor("nearest_dates", "windows", windows)
    count = check_positive("nearest_dates", "k", k)
    if windows.ndim != 4 or len(windows) < count:
        raise ValueError(
            f"nearest_dates: windows must have shape (N, channels, lookback, assets) with N >= k, got "
            f"{tuple(windows.shape)} and k = {count}"
        )
    question = problem(network, target, windows[0])
    weights = weights_of(question, windows, question.args, skip_errors=True)
    error = (
        (weights - question.args["target"]).abs().amax(-1).nan_to_num(nan=torch.inf, posinf=torch.inf)
    )
    places = error.argsort(stable=True)[:count]
    return Nearest(places, error[places], weights[places])


def nearest_first(error: Tensor, distance: Tensor, atol: float) -> Tensor:
    """Order of real windows ``(N,)``: those that hold the target by distance, then the others by error.

    Example:
        >>> nearest_first(torch.tensor([0.2, 0.0, 0.1, 0.0]), torch.tensor([1.0, 3.0, 1.0, 2.0]), 1e-3)
        tensor([3, 1, 2, 0])
    """
    order = error.argsort(stable=True)
    return order[torch.where(error <= atol, distance, torch.inf)[order].argsort(stable=True)]


def replayed(base: Tensor, history: Tensor, ends: Tensor, free: Tensor) -> Tensor:
    """Paths that repeat history where they are free: the last free day repeats the last day of history.

    Args:
        base: returns of a path, ``(D, A)``.
        history: daily log returns, ``(T, A)``.
        ends: number of days of history up to the last one of each path, each at least ``D``, ``(k,)``.
        free: where a path repeats history (True), bool, ``(D, A)``.

    Returns:
        Paths ``(k, D, A)``, elsewhere as ``base``.

    Example:
        >>> free = torch.tensor([[False], [True], [True]])
        >>> replayed(torch.zeros(3, 1), torch.arange(9.0)[:, None], torch.tensor([5, 9]), free)[..., 0]
        tensor([[0., 3., 4.],
                [0., 7., 8.]])
    """
    days = torch.arange(len(base), device=base.device) - len(base)
    return torch.where(free, history[ends[:, None] + days], base)


def bootstrap(history: Tensor, num_days: int, *, seeds: Tensor, block: float = 10.0) -> Tensor:
    """Resample returns from history in blocks of consecutive days, all assets together.

    The stationary bootstrap: the first day is a random day of history; each further day is the successor
    of the previous one with probability ``1 - 1 / block``, else another random day. History is circular.
    Correlations between assets are preserved, and those between days within blocks.

    Args:
        history: returns, ``(T, A)``.
        num_days: number of days to draw, such as ``L + span - 1``.
        seeds: int64, ``(S,)``; a seed's draw does not depend on the others.
        block: mean length of the blocks, in days, >= 1; at 1 all days are independent.

    Returns:
        Returns ``(S, num_days, A)``. Their features are starts:
        ``fe.vmap(problem, x0=torch.func.vmap(features)(draws))``.

    Raises:
        TypeError: if ``history`` is not a floating tensor, or ``seeds`` not an int64 tensor.
        ValueError: if a shape does not fit, or a number is below one.

    Example:
        >>> draws = bootstrap(torch.arange(100.0)[:, None], 8, seeds=torch.arange(2), block=4.0)
        >>> draws[0, :, 0].tolist()
        [...]

    References:
        D. N. Politis, J. P. Romano (1994), The Stationary Bootstrap,
        https://doi.org/10.1080/01621459.1994.10476870
    """
    history = check_tensor("bootstrap", "history", history)
    days = check_positive("bootstrap", "num_days", num_days)
    check_number("bootstrap", "block", block, minimum=1.0)
    if history.ndim != 2 or history.numel() == 0:
        raise ValueError(
            f"bootstrap: history must have shape (days, assets), got {tuple(history.shape)}"
        )
    kind = seeds.dtype if isinstance(seeds, Tensor) else type(seeds).__name__
    if kind is not torch.int64:
        raise TypeError(f"bootstrap: seeds must be an int64 tensor, such as torch.arange(8), got {kind}")
    if seeds.ndim != 1:
        raise ValueError(f"bootstrap: seeds must have shape (S,), got {tuple(seeds.shape)}")
    if len(seeds) == 0:
        return history.new_empty((0, days, history.shape[1]))
    num_bytes = len(seeds) * days * history.shape[1] * history.element_size()
    check_memory("bootstrap", "num_days", days, num_bytes, history.device)
    noise = torch.func.vmap(lambda seed: uniform(seed, (2, days)))(seeds.to(history.device))
    begins = noise[:, 0] < 1.0 / block
    begins[:, 0] = True
    day = torch.arange(days, device=history.device)
    first = torch.where(begins, day, 0).cummax(-1).values  # first day of each day's block
    drawn = (noise[:, 1] * len(history)).long()
    return history[(drawn.gather(1, first) + day - first) % len(history)]
