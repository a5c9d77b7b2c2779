"""Memory that is used again in every step, and not given back to the system in between.

glibc's malloc takes large blocks from the system one by one, and returns them, and the free end of its
heap, as they are freed: every step of a search would fault its pages in anew, for a third to a half of
its time. What is large adapts (``mallopt(3)``, M_MMAP_THRESHOLD): a freed block of up to 32 MiB makes
blocks of that size ordinary, and twice that the least free end that is returned.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import torch

_LARGEST = (32 << 20) - (1 << 16)  # bytes, 32 MiB but for malloc's own
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_FREE = 64 << 20
"""Bytes at the end of the heap that are kept for reuse; more than that is returned to the system."""


def reuse_blocks() -> None:
    """Take and free one block, untouched, so that later ones of its size are kept for reuse."""
    torch.empty(_LARGEST, dtype=torch.uint8)


def reuse_blocks_of_dask() -> None:
    """In a worker of Dask, set the thresholds to what they would adapt to.

    Dask pins the least free end that is returned to 64 KiB, which also ends the adapting: steps of large
    batches take up to 2.4 times as long. What somebody else has set in the environment stays.
    """
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") != "65536":
        return
    with suppress(OSError, AttributeError):  # another malloc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, num_bytes in ((_M_TRIM_THRESHOLD, KEPT_FREE), (_M_MMAP_THRESHOLD, 32 << 20)):
            mallopt(parameter, num_bytes)
