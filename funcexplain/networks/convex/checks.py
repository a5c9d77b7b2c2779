"""Checks of the allocators' arguments."""

from __future__ import annotations

import torch
from torch import Tensor

# Tolerance of n * max_weight >= 1: 49 * (1 / 49) is 0.9999999999999999.
_ROUNDING = 1e-12


def check_tensor(where: str, name: str, value: Tensor, shape: str, num_dims: int) -> None:
    """Raise unless a value is a floating tensor of at least ``num_dims`` dimensions with assets."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{where}: {name} must be a torch.Tensor of shape {shape}, got {type(value).__name__}"
        )
    if not value.is_floating_point():
        raise TypeError(
            f"{where}: {name} must have a floating dtype, got {value.dtype}; convert it with .double()"
        )
    if value.ndim < num_dims or (num_dims and value.shape[-1] == 0):
        raise ValueError(
            f"{where}: {name} must have shape {shape} with at least one asset, got {tuple(value.shape)}"
        )


def check_square(where: str, name: str, value: Tensor, num_assets: int) -> None:
    """Raise unless a matrix is square over the assets."""
    if tuple(value.shape[-2:]) != (num_assets, num_assets):
        raise ValueError(
            f"{where}: {name} must have shape (..., {num_assets}, {num_assets}) to match "
            f"{num_assets} assets, got {tuple(value.shape)}"
        )


def check_cap(where: str, num_assets: int, max_weight: float) -> float:
    """Raise if weights under the bound cannot sum to one; return the bound as a float of at most one."""
    if isinstance(max_weight, bool) or not isinstance(max_weight, int | float):
        raise TypeError(
            f"{where}: max_weight must be a number, the same for all assets, got "
            f"{type(max_weight).__name__}"
        )
    if not num_assets * max_weight >= 1.0 - _ROUNDING:
        raise ValueError(
            f"{where}: max_weight must be at least 1 / {num_assets}, since the weights of "
            f"{num_assets} assets sum to one, got {max_weight}; raise it or use more assets"
        )
    return min(float(max_weight), 1.0)


def is_equal_split(num_assets: int, cap: float) -> bool:
    """Whether ``1 / n`` each is the only allocation under the bound."""
    return num_assets * cap <= 1.0 + _ROUNDING


def equal_split(*arguments: Tensor) -> Tensor:
    """``1 / n`` of the shape and dtype of the first argument; NaN where a row is not finite.

    The arguments ``(..., *)`` share their leading dimensions; derivatives exist and are zero.
    """
    first = arguments[0]
    poison = sum((0.0 * argument).sum(-1, keepdim=True) for argument in arguments)
    return torch.full_like(first, 1.0 / first.shape[-1]) + poison


def broadcast_batch(where: str, matrix: Tensor, *vectors: Tensor) -> list[Tensor]:
    """Give a matrix ``(..., A, A)`` and vectors ``(..., A)`` common leading dimensions."""
    batches = [matrix.shape[:-2], *(vector.shape[:-1] for vector in vectors)]
    try:
        batch = torch.broadcast_shapes(*batches)
    except RuntimeError:
        raise ValueError(
            f"{where}: the leading dimensions of all tensors must broadcast, got "
            + ", ".join(str(tuple(shape)) for shape in batches)
        ) from None
    return [
        matrix.expand(*batch, *matrix.shape[-2:]),
        *(vector.expand(*batch, vector.shape[-1]) for vector in vectors),
    ]
