"""Checks of a function before `opaque` runs it under a transform, and of the errors that it raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.nn.modules.batchnorm import _BatchNorm


def is_wrapped(t: Tensor) -> bool:
    """Whether a transform of torch.func maps or tracks a tensor."""
    return _functorch.is_batchedtensor(t) or _functorch.is_gradtrackingtensor(t)


def check_batch_statistics(fn: nn.Module) -> None:
    """Raise if a part would normalize mapped rows by statistics of all of them."""
    for name, part in fn.named_modules():
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
            raise ValueError(
                f"opaque: {name or 'fn'} ({type(part).__name__}) uses the statistics of its batch, "
                "which would mix mapped rows; call .eval(), or replace it if it tracks no statistics"
            )


def check_captured(fn: Callable[..., Any]) -> None:
    """Raise if a function captures tensors that a transform sees."""
    # Inside a `Call` such a tensor would be a constant, and its gradient silently zero.
    cells = getattr(fn, "__closure__", None) or ()
    for item in (getattr(fn, "__self__", None), *(cell.cell_contents for cell in cells)):
        tensors = [item] if isinstance(item, Tensor) else []
        tensors += [*item.parameters(), *item.buffers()] if isinstance(item, nn.Module) else []
        if any(is_wrapped(t) for t in tensors):
            raise ValueError(
                f"opaque: fn must not capture tensors that torch.func transforms, got a "
                f"{type(item).__name__}; pass its tensors as arguments, or the module itself as fn"
            )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
