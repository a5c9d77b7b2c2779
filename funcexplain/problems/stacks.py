"""Stacks to map over: one-hot targets, masks of single assets, noisy starts, historical windows."""

from __future__ import annotations

import torch
from torch import Tensor

from funcexplain.networks.noise import normal
from funcexplain.problems.checks import (
    check_count,
    check_device,
    check_dtype,
    check_memory,
    check_number,
    check_positive,
    check_scale,
    check_tensor,
    check_window,
)


def one_hot_targets(
    n_assets: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Make one target for each asset: hold that asset alone.

    Args:
        n_assets: number of assets, at least 1.
        dtype: floating dtype. Default: torch's default.
        device: device of the result.

    Returns:
        Targets ``(A, A)``; row k has a weight of one in asset k.

    Raises:
        TypeError: if ``n_assets`` is not an int, or ``dtype`` is not floating.
        ValueError: if ``n_assets`` is below one.

    Example:
        >>> one_hot_targets(2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    check_positive("one_hot_targets", "n_assets", n_assets)
    check_dtype("one_hot_targets", dtype)
    check_device("one_hot_targets", device)
    cpu = torch.device("cpu")
    check_memory("one_hot_targets", "n_assets", n_assets, 2 * n_assets**2, cpu)
    return torch.eye(n_assets, dtype=dtype, device=device)


def asset_masks(x0: Tensor) -> Tensor:
    """Make one mask for each asset: free its history alone (True = free to change).

    Args:
        x0: window, shape ``(C, L, A)``.

    Returns:
        Masks, bool, ``(A, C, L, A)``; row k frees asset k.

    Raises:
        TypeError, ValueError: if ``x0`` is not a window.

    Example:
        >>> asset_masks(torch.zeros(1, 1, 2)).flatten(1)
        tensor([[ True, False],
                [False,  True]])
    """
    n_assets = check_window("asset_masks", x0).shape[-1]
    own = torch.eye(n_assets, dtype=torch.bool, device=x0.device)
    return own[:, None, None, :].expand(n_assets, *x0.shape).clone()


def starts(x0: Tensor, *, scale: float | Tensor, seeds: Tensor) -> Tensor:
    """Make noisy starts around a window: ``x0 + scale * noise(seed)``, one for each seed.

    A seed gives the same noise in every stack and on every device. To store no starts and to work in
    units of the search space, use `jitter` with ``seed`` mapped.

    Args:
        x0: window, shape ``(C, L, A)``.
        scale: standard deviation of the noise, in units of x; a number, or a tensor that broadcasts to
            x0, such as ``(C, 1, 1)``.
        seeds: int64, ``(S,)``.

    Returns:
        Starts, ``(S, C, L, A)``, of the window's dtype.

    Raises:
        TypeError: if seeds are not integers, or another argument has a wrong type.
        ValueError: for a negative scale or a shape that does not fit.

    Example:
        >>> starts(torch.zeros(1, 1, 2), scale=0.1, seeds=torch.arange(3)).shape
        torch.Size([3, 1, 1, 2])
    """
    x0 = check_window("starts", x0)
    if not isinstance(scale, Tensor):
        check_number("starts", "scale", scale, minimum=0.0)
    sigma = check_scale("starts", scale, x0)
    kind = seeds.dtype if isinstance(seeds, Tensor) else type(seeds).__name__
    if kind is not torch.int64:
        raise TypeError(f"starts: seeds must be an int64 tensor, such as torch.arange(8), got {kind}")
    if seeds.ndim != 1:
        raise ValueError(f"starts: seeds must have shape (S,), got {tuple(seeds.shape)}")
    if len(seeds) == 0:
        return x0.new_empty((0, *x0.shape))
    noise = torch.func.vmap(lambda seed: normal(seed, x0.shape, x0.dtype))(seeds.to(x0.device))
    return x0 + sigma * noise


def windows(history: Tensor, lookback: int) -> Tensor:
    """Cut a history of features into all its windows, oldest first.

    Args:
        history: features of every day, shape ``(C, days, A)``.
        lookback: days per window, ``L``.

    Returns:
        Windows ``(days - L + 1, C, L, A)``. As starts, map them together with their references:
        ``fe.vmap(problem, x0=windows, reference=windows)``.

    Raises:
        TypeError: if ``history`` is not a floating tensor.
        ValueError: if it is not finite, has another shape, or is shorter than one window.

    Example:
        >>> windows(torch.arange(4.0).view(1, 4, 1), lookback=3).flatten(1)
        tensor([[0., 1., 2.],
                [1., 2., 3.]])
    """
    history = check_tensor("windows", "history", history)
    length = check_count("windows", "lookback", lookback)
    if history.ndim != 3 or not 1 <= length <= history.shape[1]:
        raise ValueError(
            "windows: history must have shape (channels, days, assets) with at least lookback days, and "
            f"lookback must be >= 1, got {tuple(history.shape)} and {length}"
        )
    return history.unfold(1, length, 1).permute(1, 0, 3, 2).contiguous()
