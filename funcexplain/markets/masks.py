"""Free shocks: masks of days and assets, and the covariance factors that apply them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from funcexplain.problems.checks import (
    as_index,
    check_count,
    check_covariance,
    check_memory,
    check_positive,
)


def factors(cov: Tensor, free: Tensor | None = None) -> Tensor:
    """Cholesky factors of the covariance of each day's free assets; other rows and columns are zero.

    ``F F' = M cov M`` with the day's flags ``M`` on the diagonal. Zeroing the shocks of frozen assets
    after one common factor would also achieve this, but the ``z`` of frozen assets would move free ones;
    zeroing these ``z`` too would change the covariance of the free assets.

    Args:
        cov: covariance, ``(..., A, A)``, positive definite.
        free: bool, True = free, ``(..., D, A)``. Default: all assets on all days.

    Returns:
        Lower triangular factors ``(..., D, A, A)``, of the dtype of ``cov``; ``D`` is one by default.
        Stacks of them can be mapped over: ``fe.vmap(problem, factor=factors(cov, masks))``.

    Raises:
        TypeError: if ``cov`` is not a floating tensor or ``free`` not a bool tensor.
        ValueError: if ``cov`` is not a covariance, or shapes do not fit.

    Example:
        >>> cov = torch.tensor([[1.0, 0.6], [0.6, 1.0]])
        >>> factors(cov)
        tensor([[[1.0000, 0.0000],
                 [0.6000, 0.8000]]])
        >>> factors(cov, torch.tensor([[False, True]]))
        tensor([[[0., 0.],
                 [0., 1.]]])
    """
    cov = check_covariance("factors", cov)
    if free is None:
        free = torch.ones(1, cov.shape[-1], dtype=torch.bool, device=cov.device)
    free = _check_free("factors", free, cov.shape[-1]).to(cov.device)
    both = free[..., :, None] & free[..., None, :]
    # Ones on the diagonal of frozen assets keep the matrix positive definite and decouple them from the
    # free ones. In float64, since the last pivots are small differences.
    whole = torch.where(both, cov.double().unsqueeze(-3), torch.eye(cov.shape[-1], device=cov.device))
    return torch.where(both, torch.linalg.cholesky(whole), 0.0).to(cov)


def shock_mask(
    num_days: int,
    num_assets: int,
    *,
    assets: Iterable[int] | None = None,
    last_days: int | None = None,
) -> Tensor:
    """Mask of free shocks (True = free): those of some assets, on the last days.

    Args:
        num_days: days of the returns, ``L + span - 1``.
        num_assets: number of assets.
        assets: positions of the free assets. Default: all.
        last_days: number of free days, counted from the last one, at most ``num_days``. Default: all.

    Returns:
        Mask ``(num_days, num_assets)``, bool.

    Raises:
        TypeError: if a number is not an int.
        ValueError: for fewer than one day or asset, too many days, or an asset out of range.

    Example:
        >>> shock_mask(3, 2, assets=[1], last_days=2)
        tensor([[False, False],
                [False,  True],
                [False,  True]])
    """
    days = check_positive("shock_mask", "num_days", num_days)
    count = check_positive("shock_mask", "num_assets", num_assets)
    last = days if last_days is None else check_count("shock_mask", "last_days", last_days)
    if last > days:
        raise ValueError(f"shock_mask: last_days must be at most num_days = {days}, got {last}")
    check_memory("shock_mask", "num_days", days, days * count, torch.device("cpu"))
    mask = torch.zeros(days, count, dtype=torch.bool)
    if assets is not None and not isinstance(assets, Iterable):
        raise TypeError(f"shock_mask: assets must be a list of ints, got {type(assets).__name__}")
    for asset in range(count) if assets is None else assets:
        index = as_index(asset)
        if index is None:
            raise TypeError(f"shock_mask: assets must be ints, got {type(asset).__name__}")
        if not -count <= index < count:
            raise ValueError(f"shock_mask: assets must be below num_assets = {count}, got {index}")
        mask[days - last :, index] = True
    return mask


def reached(free: Tensor, lookback: int) -> Tensor:
    """Mask of the window entries that free shocks can change (True), for the standard features.

    A shock changes the return of its own day, and momentum and volatility from then on, for ``span``
    days. As the problem's mask, together with `freeze`, it keeps all other entries bit-equal to the
    reference; otherwise they are recomputed from unchanged returns and agree to rounding.

    Args:
        free: mask of shocks, bool, ``(L + span - 1, A)``, as in `scenario`.
        lookback: days per window, ``L``.

    Returns:
        Mask ``(3, L, A)``, bool.

    Raises:
        TypeError: if ``free`` is not a bool tensor or ``lookback`` not an int.
        ValueError: if there are fewer days than ``lookback``.

    Example:
        >>> reached(torch.tensor([[True], [False], [False], [False]]), lookback=3).flatten(1)
        tensor([[False, False, False],
                [ True, False, False],
                [ True, False, False]])
    """
    days = check_positive("reached", "lookback", lookback)
    free = _check_free("reached", free)
    if free.ndim != 2 or len(free) < days:
        raise ValueError(
            f"reached: free must have shape (L + span - 1, A) with at least lookback = {days} days, got "
            f"{tuple(free.shape)}"
        )
    trailing = free.unfold(0, len(free) - days + 1, 1).any(-1)
    return torch.stack([free[-days:], trailing, trailing])


def _check_free(where: str, free: Tensor, num_assets: int | None = None) -> Tensor:
    """A copy of a mask of shocks; raises unless it is one."""
    if not isinstance(free, Tensor) or free.dtype is not torch.bool:
        got = free.dtype if isinstance(free, Tensor) else type(free).__name__
        raise TypeError(f"{where}: free must be a bool tensor (True = free), got {got}")
    if free.ndim < 2 or (num_assets is not None and free.shape[-1] != num_assets):
        raise ValueError(
            f"{where}: free must have shape (days, {num_assets or 'assets'}), one flag for each day and "
            f"asset, got {tuple(free.shape)}"
        )
    return free.detach().clone()
