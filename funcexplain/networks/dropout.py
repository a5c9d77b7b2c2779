"""Dropout whose noise is a function of a seed: one seed, one thinned network.

In training mode dropout draws from torch's global generator, which a pure function must not use and
``torch.func.vmap`` rejects. While `SeededDropout` is active, every dropout of the network, in a layer, a
function or attention, computes its mask from the seed and the number of the call instead. A seed gives
the same thinned network at every step and in every batch, so that a search has a fixed objective; rows
with different seeds sample from the approximate posterior of dropout (Gal, Ghahramani 2016, https://arxiv.org/abs/1506.02142).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from funcexplain.networks.noise import uniform
from funcexplain.networks.recurrent import KERNELS, split_arguments

# Dropout of whole features (sample, channel), as torch defines them.
_FEATURES = (F.dropout1d, F.dropout2d, F.dropout3d)
_UNSEEDED = (F.alpha_dropout, F.feature_alpha_dropout, F.rrelu)


class SeededDropout(TorchFunctionMode):
    """Context in which dropout is a pure function of a seed.

    Args:
        seed: scalar int64 tensor; may be mapped.

    Example:
        >>> x = torch.ones(6)
        >>> with SeededDropout(torch.tensor(1)):
        ...     first = torch.nn.functional.dropout(x, 0.5)
        >>> with SeededDropout(torch.tensor(1)):
        ...     again = torch.nn.functional.dropout(x, 0.5)
        >>> torch.equal(first, again)
        True
    """

    def __init__(self, seed: Tensor) -> None:
        super().__init__()
        self.seed = seed
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run torch's function, or its seeded replacement."""
        del types
        kwargs = kwargs or {}
        if func is F.dropout or func in _FEATURES:
            return self._drop(func in _FEATURES, *args, **kwargs)
        if _draws(func, args, kwargs):
            raise RuntimeError(
                f"network: {func.__name__} in training mode draws from torch's global generator, which "
                "cannot be seeded per row; use dropout, or functionalize with train=False"
            )
        return func(*args, **kwargs)

    def _drop(
        self, features: bool, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        del inplace  # in-place callers use the returned tensor
        if not training or p == 0.0:
            return x
        self.calls += 1
        shape = x.shape[:2] + (1,) * (x.ndim - 2) if features else x.shape
        # The number of the call is in the upper bits; seeds are hashed, so that calls do not overlap.
        kept = uniform(self.seed + (self.calls << 32), shape) >= p
        return x * kept / (1.0 - p) if p < 1.0 else torch.zeros_like(x)


def _draws(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call would draw from torch's generator."""
    if func in _UNSEEDED:
        return bool(kwargs.get("training", False))
    if func is F.scaled_dot_product_attention:
        return bool((args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)) > 0.0)
    if func in KERNELS:
        _, (_, _, _, _, dropout, train, *_) = split_arguments(args)
        return bool(dropout > 0.0 and train)
    return False
