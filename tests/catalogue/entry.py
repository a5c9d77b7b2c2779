"""What a catalogue holds: networks, and what may be expected of each.

A network joins one of the catalogues and thereby the law of ``tests/laws/test_every_way.py``: every way
to an answer gives the answer of the network alone, or refuses. Flags name what may be refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.helpers import SHAPE


class Entry(NamedTuple):
    """A network and its flags; without flags every way serves it.

    Attributes:
        make: builds the network; torch's generator is seeded.
        mappable: whether ``torch.func`` serves it.
        samples: whether rows may share its sample dimension. They may not where they affect each other,
            or where it loops over them.
        noisy: whether two calls differ in eval mode.
        refused: words with which ``fe.problem`` may refuse it.
        verdict: words of ``check_gradient`` where its gradient is not that of its output.
        warns: words of a warning that a search of it may give.
        twice: whether torch's own gradient is wrong for a batch of one (instance and batch norm).
        dtype: of its parameters and windows.
        lr: learning rate of the searches.
        rtol: relative tolerance of the comparison of answers.
    """

    make: Callable[[], nn.Module]
    mappable: bool = True
    samples: bool = True
    noisy: bool = False
    refused: str = ""
    verdict: str = ""
    warns: str = ""
    twice: bool = False
    dtype: torch.dtype = torch.float64
    lr: float = 1.0
    rtol: float = 1e-7


Catalogue = dict[str, Entry]


class Allocator(nn.Module):
    """Weights by a softmax of one score per asset."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.scores(x), -1)

    def scores(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Then(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def histories(x: Tensor) -> Tensor:
    """The assets' histories as one batch, ``(N, C, L, A) -> (N * A, C, L)``."""
    return x.permute(0, 3, 1, 2).flatten(0, 1)


def days(x: Tensor) -> Tensor:
    """The days as a sequence, ``(N, C, L, A) -> (N, L, C * A)``."""
    return x.permute(0, 2, 1, 3).flatten(2)


def assets(x: Tensor) -> Tensor:
    """The assets as tokens, ``(N, C, L, A) -> (N, A, C * L)``."""
    return x.flatten(1, 2).mT


def build(entry: Entry, variant: int = 0) -> nn.Module:
    """Build a network in training mode, the same one every time; variants differ in their numbers."""
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated ways to build one
        torch.manual_seed(17 + variant)
        torch.set_default_dtype(entry.dtype)
        try:
            return entry.make()
        finally:
            torch.set_default_dtype(default)


def make_starts(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The first of eight windows of standard normal noise."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(8, *SHAPE, generator=generator, dtype=torch.float64)[:count].to(dtype)
