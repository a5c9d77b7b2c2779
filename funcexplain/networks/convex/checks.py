"""What every allocator asks of its arguments, and the precision that it works in."""

from __future__ import annotations

import torch
from torch import Tensor

# n * max_weight is compared with 1 up to rounding: 49 * (1 / 49) is 0.9999999999999999.
_ROUNDING = 1e-12


def check_tensor(function: str, name: str, value: Tensor, shape: str, num_dims: int) -> None:
    """Refuse what is no floating tensor of at least ``num_dims`` dimensions, or has no assets."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{function}: {name} must be a torch.Tensor of shape {shape}, got {type(value).__name__}"
        )
    if not value.is_floating_point():
        raise TypeError(
            f"{function}: {name} must have a floating dtype, got {value.dtype}; convert it by .double()"
        )
    if value.ndim < num_dims or (num_dims and value.shape[-1] == 0):
        raise ValueError(
            f"{function}: {name} must have shape {shape} with at least one asset, got "
            f"{tuple(value.shape)}"
        )


def check_square(function: str, name: str, value: Tensor, num_assets: int) -> None:
    """Refuse a matrix that is not square over the assets."""
    if tuple(value.shape[-2:]) != (num_assets, num_assets):
        raise ValueError(
            f"{function}: {name} must have shape (..., {num_assets}, {num_assets}) to match "
            f"{num_assets} assets, got {tuple(value.shape)}"
        )


def check_cap(function: str, num_assets: int, max_weight: float) -> float:
    """Refuse a bound under which the weights cannot sum to one; return it as a float, at most one."""
    if isinstance(max_weight, bool) or not isinstance(max_weight, int | float):
        raise TypeError(
            f"{function}: max_weight must be a number, the same for all assets, got "
            f"{type(max_weight).__name__}"
        )
    if not num_assets * max_weight >= 1.0 - _ROUNDING:
        raise ValueError(
            f"{function}: max_weight must be at least 1 / {num_assets}, since the weights of "
            f"{num_assets} assets sum to one, got {max_weight}; raise it or use more assets"
        )
    return min(float(max_weight), 1.0)


def is_equal_split(num_assets: int, cap: float) -> bool:
    """Whether the bound leaves one allocation only, ``1 / n`` each."""
    return num_assets * cap <= 1.0 + _ROUNDING


def equal_split(*arguments: Tensor) -> Tensor:
    """``1 / n`` of the shape and dtype of the first argument; NaN where a row is not finite.

    The arguments ``(..., *)`` share their leading dimensions; derivatives exist and are zero.
    """
    first = arguments[0]
    poison = sum((0.0 * argument).sum(-1, keepdim=True) for argument in arguments)
    return torch.full_like(first, 1.0 / first.shape[-1]) + poison


def broadcast_batch(function: str, matrix: Tensor, *vectors: Tensor) -> list[Tensor]:
    """Give a matrix ``(..., A, A)`` and vectors ``(..., A)`` common leading dimensions."""
    batches = [matrix.shape[:-2], *(vector.shape[:-1] for vector in vectors)]
    try:
        batch = torch.broadcast_shapes(*batches)
    except RuntimeError:
        raise ValueError(
            f"{function}: the leading dimensions of all tensors must broadcast, got "
            + ", ".join(str(tuple(shape)) for shape in batches)
        ) from None
    return [
        matrix.expand(*batch, *matrix.shape[-2:]),
        *(vector.expand(*batch, vector.shape[-1]) for vector in vectors),
    ]
