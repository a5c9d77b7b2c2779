"""Memory that is used again in every step, and not given back to the system in between.

glibc's malloc takes large blocks from the system one by one, and returns them, and the free end of its
heap, as they are freed: every step of a search would fault its pages in anew, for a third to a half of
its time. What is large adapts (``mallopt(3)``, M_MMAP_THRESHOLD): a freed block of up to 32 MiB makes
blocks of that size ordinary, and twice that the least free end that is returned.
"""

from __future__ import annotations

import torch

_LARGEST = (32 << 20) - (1 << 16)  # bytes, 32 MiB but for malloc's own
KEPT_FREE = 64 << 20
"""Bytes at the end of the heap that are kept for reuse; more than that is returned to the system."""


def reuse_blocks() -> None:
    """Take and free one block, untouched, so that later ones of its size are kept for reuse."""
    torch.empty(_LARGEST, dtype=torch.uint8)
