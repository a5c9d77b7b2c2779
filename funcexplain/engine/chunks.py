"""How many rows at once: from the measured memory of a row, the caches, and what memory is free.

A batch pays for the overhead of every operation once, so that more rows are better until what a step
writes no longer fits the cache, or is so much that the system takes it back after every step.
Then every row costs more: its intermediate results go to memory and come back.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from funcexplain.engine.malloc import KEPT_FREE

LEAST_ROWS, MOST_ROWS = 16, 8192
# What one step may write, as a multiple of the last cache: the best chunks of all networks measured lie
# near it (docs/benchmarks.md).
_CACHES_WRITTEN = 3
# Some half of that is there at once, and freed together: twice what malloc keeps of the end of its heap.
_MOST_WRITTEN = 2 * KEPT_FREE
# Compiled, fewer rows fill the time of a step, and all should fit the cache.
_LEAST_COMPILED, _MOST_COMPILED = 64, 256
_CACHES_COMPILED = 1 / 2
_USUAL_CACHE = 32 << 20
_CACHE_FILE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_GPU_SHARE = 0.25  # of the free memory

_logger = logging.getLogger("funcexplain")


def say(message: str, *, urgent: bool = False) -> None:
    """Tell what was chosen or what happened, through the logger ``funcexplain``."""
    _logger.log(logging.WARNING if urgent else logging.INFO, message)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class _Written(TorchDispatchMode):
    """Counts the bytes of all new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count its results that are no views."""
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in _tensors(args)}
        for t in _tensors(out):
            if t.untyped_storage().data_ptr() not in known:
                self.num_bytes += t.numel() * t.element_size()
        return out


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.layout is torch.strided else []
    return [t for item in value for t in _tensors(item)] if isinstance(value, tuple | list) else []


def row_bytes(step: Any, batch: Any) -> float:
    """Bytes that a step writes for one more row.

    Args:
        step: mapped step, ``(state, args) -> ...``.
        batch: function ``number of rows -> (state, args)``.

    Returns:
        The difference between steps of four and of two rows, per row.
    """
    written = []
    for count in (2, 4):
        state, args = batch(count)
        with _Written() as mode:
            step(state, args)
        written.append(mode.num_bytes)
    return max(1.0, (written[1] - written[0]) / 2)


class Sizes(NamedTuple):
    """Rows in work at once: with the step as it is, and with compiled code."""

    plain: int
    compiled: int


def choose_chunk_size(step: Any, batch: Any, total: int, device: torch.device) -> Sizes:
    """Choose how many rows are in work at once, and say it through the logger.

    Args:
        step: as in `row_bytes`.
        batch: as in `row_bytes`.
        total: rows of the grid.
        device: where they are.

    Returns:
        Rows; all of them if they are few. Those of compiled code are a power of two.
    """
    if total <= LEAST_ROWS:
        return Sizes(total, total)
    try:
        each = row_bytes(step, batch)
    except Exception:  # the search itself meets it again, and knows what to do
        return Sizes(LEAST_ROWS, LEAST_ROWS)
    if device.type == "cuda":
        plain = compiled = int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0] / each)
    else:
        plain = min(MOST_ROWS, int(min(_CACHES_WRITTEN * _last_cache(), _MOST_WRITTEN) / each))
        fitting = max(_LEAST_COMPILED, min(_MOST_COMPILED, int(_CACHES_COMPILED * _last_cache() / each)))
        compiled = 1 << (fitting.bit_length() - 1)
    sizes = Sizes(min(total, max(LEAST_ROWS, plain)), min(total, max(LEAST_ROWS, compiled)))
    say(
        f"chunk_size={sizes.plain} of {total} rows, {sizes.compiled} if compiled: "
        f"a step writes {each / 1024:.0f} KiB per row"
    )
    return sizes


def _last_cache() -> int:
    """Bytes of the third-level cache, or a usual size where the system does not tell."""
    try:
        return int(_CACHE_FILE.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):  # not Linux, or no such cache
        return _USUAL_CACHE
