"""Stacks to map over: one-hot targets, masks of single assets, starts around a window, windows."""

from __future__ import annotations

import torch
from torch import Tensor

from funcexplain.networks.noise import normal
from funcexplain.problems.checks import FLOATING, check_count, check_number, check_scale, check_tensor


def one_hot_targets(
    n_assets: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Make the targets of holding one asset alone, for every asset.

    Args:
        n_assets: number of assets, at least 1.
        dtype: floating dtype. Default: torch's default.
        device: device of the result.

    Returns:
        Targets ``(A, A)``; row k holds all in asset k.

    Raises:
        TypeError: if ``n_assets`` is no int, or ``dtype`` not floating.
        ValueError: if there is no asset.

    Example:
        >>> one_hot_targets(2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    if check_count("one_hot_targets", "n_assets", n_assets) < 1:
        raise ValueError("one_hot_targets: n_assets must be >= 1, got 0")
    if dtype is not None and dtype not in FLOATING:
        raise TypeError(f"one_hot_targets: dtype must be a floating torch.dtype, got {dtype!r}")
    return torch.eye(n_assets, dtype=dtype, device=device)


def asset_masks(x0: Tensor) -> Tensor:
    """Make the masks that free the history of one asset alone, for every asset (True = free to change).

    Args:
        x0: window, shape ``(C, L, A)``.

    Returns:
        Masks, bool, ``(A, C, L, A)``; row k frees asset k.

    Raises:
        TypeError, ValueError: if ``x0`` is no window.

    Example:
        >>> asset_masks(torch.zeros(1, 1, 2)).flatten(1)
        tensor([[ True, False],
                [False,  True]])
    """
    n_assets = _window("asset_masks", x0).shape[-1]
    own = torch.eye(n_assets, dtype=torch.bool, device=x0.device)
    return own[:, None, None, :].expand(n_assets, *x0.shape).clone()


def starts(x0: Tensor, *, scale: float | Tensor, seeds: Tensor) -> Tensor:
    """Make starts around a window: ``x0 + scale * noise(seed)``, one for each seed.

    The noise of a seed is the same in every stack and on every device. `jitter` gives the same variety
    in units of the search space, with ``seed`` mapped and nothing stored.

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
    x0 = _window("starts", x0)
    if not isinstance(scale, Tensor):
        check_number("starts", "scale", scale, minimum=0.0)
    sigma = check_scale("starts", scale, x0)
    kind = seeds.dtype if isinstance(seeds, Tensor) else type(seeds).__name__
    if kind is not torch.int64:
        raise TypeError(f"starts: seeds must be an int64 tensor, as torch.arange(8) is, got {kind}")
    if seeds.ndim != 1:
        raise ValueError(f"starts: seeds must have shape (S,), got {tuple(seeds.shape)}")
    if len(seeds) == 0:
        return x0.new_empty((0, *x0.shape))
    noise = torch.func.vmap(lambda seed: normal(seed, x0.shape, x0.dtype))(seeds.to(x0.device))
    return x0 + sigma * noise


def windows(history: Tensor, lookback: int) -> Tensor:
    """Cut all windows out of a history of features, oldest first.

    Args:
        history: features of every day, shape ``(C, days, A)``.
        lookback: days per window, ``L``.

    Returns:
        Windows ``(days - L + 1, C, L, A)``. As starts they go together with their own references:
        ``fe.vmap(problem, x0=windows, reference=windows)``.

    Raises:
        TypeError: if ``history`` is no floating tensor.
        ValueError: if it is not finite or not of that shape, or shorter than one window.

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


def _window(where: str, x0: Tensor) -> Tensor:
    x0 = check_tensor(where, "x0", x0)
    if x0.ndim != 3:
        raise ValueError(
            f"{where}: x0 must be one window of shape (channels, lookback, assets), "
            f"got {tuple(x0.shape)}"
        )
    return x0
