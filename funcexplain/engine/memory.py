"""How many rows at once, and memory that is reused from step to step.

A batch shares the overhead of every operation, so more rows are better until the intermediate results of
a step no longer fit the cache, or the system reclaims them after every step. Then every row costs more.

glibc's malloc takes large blocks from the system one at a time, and returns them, and the free end of
its heap, as they are freed: every step would fault its pages in again. What counts as large adapts
(``mallopt(3)``, M_MMAP_THRESHOLD): after a block of up to 32 MiB was freed, blocks of that size come
from the heap, and twice that stays free at its end. See docs/benchmarks.md for the gain.
"""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_LARGEST_BLOCK = (32 << 20) - (1 << 16)  # bytes, 32 MiB but for malloc's own
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_FREE = 64 << 20  # bytes that malloc keeps free at the end of its heap

MINIMUM_ROWS, MAXIMUM_ROWS = 16, 8192
# What one step may write, as a multiple of the last cache: the best chunks of all networks measured are
# near it (docs/benchmarks.md).
_CACHES_WRITTEN = 3
# About half of what a step writes exists at once, and is freed together; of a Jacobian's, half as much.
_MAXIMUM_WRITTEN = 2 * _KEPT_FREE
_TIMES_WITH_JACOBIAN = 2
# Compiled, fewer rows fill the time of a step, and all should fit the cache.
_MINIMUM_COMPILED, _MAXIMUM_COMPILED = 64, 256
_CACHES_COMPILED = 1 / 2
_DEFAULT_CACHE = 32 << 20
_CACHE_FILE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_GPU_FRACTION = 0.25  # of the free memory

_logger = logging.getLogger("funcexplain")


def reuse_blocks() -> None:
    """Take and free one block, untouched, so that later ones of its size are kept for reuse."""
    torch.empty(_LARGEST_BLOCK, dtype=torch.uint8, device="cpu")


def reuse_blocks_of_dask() -> None:
    """In a Dask worker, set the thresholds to what they would adapt to.

    Dask pins the trim threshold to 64 KiB, which also stops the adapting: steps of large batches take
    up to 2.4 times as long. A value set by others in the environment is kept.
    """
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") != "65536":
        return
    with suppress(OSError, AttributeError):  # another malloc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, num_bytes in ((_M_TRIM_THRESHOLD, _KEPT_FREE), (_M_MMAP_THRESHOLD, 32 << 20)):
            mallopt(parameter, num_bytes)


class _ByteCounter(TorchDispatchMode):
    """Counts the bytes of all new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count the bytes of its results that are not views."""
        out = func(*args, **(kwargs or {}))
        given = _tensors((*args, *(kwargs or {}).values()))
        known = {t.untyped_storage().data_ptr() for t in given}
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
    step(*batch(2))  # what a step finds out at first, it writes only once
    for count in (2, 4):
        state, args = batch(count)
        with _ByteCounter() as counter:
            step(state, args)
        written.append(counter.num_bytes)
    return max(1.0, (written[1] - written[0]) / 2)


class ChunkSizes(NamedTuple):
    """Maximum number of rows at a time: of eager steps, and of compiled code."""

    plain: int
    compiled: int


def choose_chunk_size(
    step: Any,
    batch: Any,
    total: int,
    device: torch.device,
    measured: list[float] | None = None,
    *,
    jacobian: bool = False,
) -> ChunkSizes:
    """Choose the maximum number of rows at a time, and log it.

    Args:
        step: as in `row_bytes`.
        batch: as in `row_bytes`.
        total: rows of the grid.
        device: where they are.
        measured: holds the `row_bytes` of an earlier call, or gets those of this one.
        jacobian: whether a step computes Jacobians.

    Returns:
        The sizes; all rows if they are few. That of compiled code is a power of two.
    """
    if total <= MINIMUM_ROWS:
        return ChunkSizes(total, total)
    measured = [] if measured is None else measured
    try:
        if not measured:
            measured.append(row_bytes(step, batch))
    except Exception:  # the search itself meets it again, and handles it
        return ChunkSizes(MINIMUM_ROWS, MINIMUM_ROWS)
    each = measured[0]
    if device.type == "cuda":
        plain = compiled = int(_GPU_FRACTION * torch.cuda.mem_get_info(device)[0] / each)
    else:
        written = min(_CACHES_WRITTEN * _last_cache(), _MAXIMUM_WRITTEN)
        written *= _TIMES_WITH_JACOBIAN if jacobian else 1
        plain = min(MAXIMUM_ROWS, int(written / each))
        fitting = max(
            _MINIMUM_COMPILED, min(_MAXIMUM_COMPILED, int(_CACHES_COMPILED * _last_cache() / each))
        )
        compiled = 1 << (fitting.bit_length() - 1)
    sizes = ChunkSizes(min(total, max(MINIMUM_ROWS, plain)), min(total, max(MINIMUM_ROWS, compiled)))
    _logger.info(
        f"chunk_size={sizes.plain} of {total} rows, {sizes.compiled} if compiled: "
        f"a step writes {each / 1024:.0f} KiB per row"
    )
    return sizes


def _last_cache() -> int:
    """Bytes of the third-level cache, or a default where the system does not report it."""
    try:
        return int(_CACHE_FILE.read_text().strip().removesuffix("K")) << 10
    except (OSError, ValueError):  # not Linux, or no such cache
        return _DEFAULT_CACHE
