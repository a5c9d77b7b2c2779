"""Noise as a function of a seed: counter-based, so that it can be mapped and needs no generator.

Entry ``i`` of seed ``s`` is a hash of ``(s, i)``. A row of a grid therefore gets the same noise alone,
in a batch, in any order and on any device, and torch's global generator is not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _signed(constant: int) -> int:
    """The 64-bit pattern of ``constant`` as torch's signed integer."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical right shift; torch's own shift of signed integers repeats the sign bit."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """The finalizer of SplitMix64; int64 multiplication wraps, as the algorithm requires."""
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def fold_in(seed: Tensor, number: int) -> Tensor:
    """Derive a seed: another stream of noise for each number.

    Args:
        seed: scalar int64 tensor.
        number: which stream.

    Returns:
        Scalar int64 tensor.

    Example:
        >>> bool(fold_in(torch.tensor(7), 0) == fold_in(torch.tensor(7), 1))
        False
    """
    return _mix(_mix(seed + _GAMMA) + _signed(number * 0x9E3779B97F4A7C15 % (1 << 64)))


def uniform(seed: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform noise in the open interval (0, 1), float64.

    Args:
        seed: scalar int64 tensor.
        shape: shape of the noise.

    Returns:
        Tensor of ``shape`` on the seed's device; every value carries 52 random bits.

    Example:
        >>> uniform(torch.tensor(0), (2,)).dtype
        torch.float64

    References:
        G. L. Steele, D. Lea, C. H. Flood (2014), Fast Splittable Pseudorandom Number Generators,
        https://doi.org/10.1145/2660193.2660195
    """
    index = torch.arange(1, math.prod(shape) + 1, device=seed.device)
    # The seed is mixed first, so that neighboring seeds start far apart.
    bits = _mix(_mix(seed + _GAMMA) + index * _GAMMA)
    return ((_shift_right(bits, 12).double() + 0.5) * 2.0**-52).reshape(tuple(shape))


def normal(seed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Standard normal noise, by the inverse of the normal distribution function.

    Args:
        seed: scalar int64 tensor.
        shape: shape of the noise.
        dtype: floating dtype of the noise. It is computed in float64 and rounded, so that all dtypes
            have the same noise.

    Returns:
        Tensor of ``shape`` on the seed's device.

    Example:
        >>> torch.equal(normal(torch.tensor(7), (3,), torch.float32),
        ...             normal(torch.tensor(7), (3,), torch.float64).float())
        True
    """
    return torch.special.ndtri(uniform(seed, shape)).to(dtype)
