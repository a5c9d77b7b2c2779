"""State of the process that a command changes and restores: threads, random states, the import path."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with this many threads; small networks are fastest with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Start from torch's seed 0, and restore the random states of torch, numpy and Python."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 (the user's)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Let modules in a folder be imported, as ``python -m`` does."""
    before = list(sys.path)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
