"""Which shocks are free: masks of days and assets, and the covariance factors that carry them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from funcexplain.problems.checks import as_index, check_count, check_covariance, check_positive


def factors(cov: Tensor, free: Tensor | None = None) -> Tensor:
    """Cholesky factors of the covariance of the free assets of each day; rows and columns else zero.

    ``F F' = M cov M`` with the day's flags ``M`` on the diagonal. Zeroing the shocks of frozen assets
    behind one factor of all would do that, too, but let a free asset be moved by the ``z`` of frozen
    ones; cutting these ``z`` off as well would take from it what it has in common with them.

    Args:
        cov: covariance, ``(..., A, A)``, positive definite.
        free: bool, True = free to be shocked, ``(..., D, A)``. Default: all, on all days.

    Returns:
        Lower triangular factors ``(..., D, A, A)``, of the dtype of ``cov``; ``D`` is one by default.
        Stacks of them can be mapped over: ``fe.vmap(problem, factor=factors(cov, masks))``.

    Raises:
        TypeError: if ``cov`` is no floating tensor or ``free`` no bool tensor.
        ValueError: if ``cov`` is no covariance, or shapes do not fit.

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
    free = _flags("factors", free, cov.shape[-1]).to(cov.device)
    both = free[..., :, None] & free[..., None, :]
    # Ones on the diagonal where an asset is frozen keep the matrix positive definite, and the frozen and
    # the free apart. In float64, since the last pivots are small differences.
    whole = torch.where(both, cov.double().unsqueeze(-3), torch.eye(cov.shape[-1], device=cov.device))
    return torch.where(both, torch.linalg.cholesky(whole), 0.0).to(cov)


def shock_mask(
    num_days: int,
    num_assets: int,
    *,
    assets: Iterable[int] | None = None,
    last_days: int | None = None,
) -> Tensor:
    """Say which shocks are free: those of some assets, on the last days (True = free to be shocked).

    Args:
        num_days: days of the returns, ``L + span - 1``.
        num_assets: number of assets.
        assets: places of the assets that are free. Default: all.
        last_days: how many of the last days are free, at most ``num_days``. Default: all.

    Returns:
        Mask ``(num_days, num_assets)``, bool.

    Raises:
        TypeError: if a number is no int.
        ValueError: for fewer than one day or asset, more days than there are, or an asset that is none.

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
    mask = torch.zeros(days, count, dtype=torch.bool)
    for asset in range(count) if assets is None else assets:
        place = as_index(asset)
        if place is None:
            raise TypeError(f"shock_mask: assets must be ints, got {type(asset).__name__}")
        if not -count <= place < count:
            raise ValueError(f"shock_mask: assets must be below num_assets = {count}, got {place}")
        mask[days - last :, place] = True
    return mask


def reached(free: Tensor, lookback: int) -> Tensor:
    """Which entries of a window free shocks can change (True), with the features of the markets.

    A shock changes the return of its own day, and momentum and volatility from then on, for ``span``
    days. As the problem's mask, together with `freeze`, it makes all other entries bit-equal to the
    reference; without, they are computed anew from unchanged returns and agree to rounding.

    Args:
        free: mask of shocks, bool, ``(L + span - 1, A)``, as in `scenario`.
        lookback: days per window, ``L``.

    Returns:
        Mask ``(3, L, A)``, bool.

    Raises:
        TypeError: if ``free`` is no bool tensor or ``lookback`` no int.
        ValueError: if there are fewer days than ``lookback``.

    Example:
        >>> reached(torch.tensor([[True], [False], [False], [False]]), lookback=3).flatten(1)
        tensor([[False, False, False],
                [ True, False, False],
                [ True, False, False]])
    """
    days = check_positive("reached", "lookback", lookback)
    free = _flags("reached", free)
    if free.ndim != 2 or len(free) < days:
        raise ValueError(
            f"reached: free must have shape (L + span - 1, A) with at least lookback = {days} days, got "
            f"{tuple(free.shape)}"
        )
    trailing = free.unfold(0, len(free) - days + 1, 1).any(-1)
    return torch.stack([free[-days:], trailing, trailing])


def _flags(where: str, free: Tensor, num_assets: int | None = None) -> Tensor:
    if not isinstance(free, Tensor) or free.dtype is not torch.bool:
        got = free.dtype if isinstance(free, Tensor) else type(free).__name__
        raise TypeError(f"{where}: free must be a bool tensor (True = free to be shocked), got {got}")
    if free.ndim < 2 or (num_assets is not None and free.shape[-1] != num_assets):
        raise ValueError(
            f"{where}: free must have shape (days, {num_assets or 'assets'}), one flag for each day and "
            f"asset, got {tuple(free.shape)}"
        )
    return free.detach().clone()
