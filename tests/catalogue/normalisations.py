"""Normalisation layers times the memory layouts of what they are given, of what they give back.

torch's own gradient of instance and batch norm is wrong on the CPU for a batch of one where input and
cotangent have different layouts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.catalogue.entry import Allocator, Catalogue, Entry
from tests.helpers import ASSETS, CHANNELS, trained_norm

WIDTH = 4


def strided(x: Tensor) -> Tensor:
    """The same numbers, every second entry of a larger tensor."""
    return torch.stack([x, x], -1)[..., 0]


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # How (N, W, L, A) comes to the layer, and how it leaves.
    "contiguous": (torch.Tensor.contiguous, lambda h: h),
    "channels_last": (lambda h: h.contiguous(memory_format=torch.channels_last), lambda h: h),
    "sent_back_last": (
        lambda h: h.contiguous(),
        lambda h: h.permute(0, 2, 3, 1).square().permute(0, 3, 1, 2),
    ),
    "samples_last": (lambda h: h.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2), lambda h: h),
    "transposed": (lambda h: h.mT.contiguous().mT, lambda h: h.mT.exp().mT),
    "strided": (strided, strided),
    "flipped": (lambda h: h.flip(-1), lambda h: h.flip(-1)),
}


class Normalized(Allocator):
    """Linear layers over the channels around a normalisation layer."""

    def __init__(self, norm: Callable[[], nn.Module], layout: str) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(CHANNELS, WIDTH), trained_norm(norm())
        self.head, self.layout = nn.Linear(WIDTH, 1), layout

    def scores(self, x: Tensor) -> Tensor:
        before, after = LAYOUTS[self.layout]
        hidden = torch.tanh(self.mix(x.permute(2, 3, 0, 1))).permute(2, 3, 0, 1)
        hidden = torch.tanh(after(self.norm(before(hidden))))
        return 3.0 * self.head(hidden.permute(0, 2, 3, 1))[..., 0].mean(1)


class Flat(nn.Module):
    """A normalisation layer of another rank: the days and assets flattened, or the batch of days."""

    def __init__(self, norm: nn.Module, shape: str) -> None:
        super().__init__()
        self.norm, self.shape = trained_norm(norm), shape

    def forward(self, x: Tensor) -> Tensor:
        if self.shape == "1d":
            return self.norm(x.flatten(2)).view_as(x)
        if self.shape == "3d":
            return self.norm(x[:, :, None].expand(-1, -1, 2, -1, -1))[:, :, 1]
        return self.norm(x.permute(0, 2, 3, 1)).permute(
            0, 3, 1, 2
        )  # the channels last: layer and RMS norm


class Rms(nn.Module):
    """A root mean square norm by hand, in place."""

    def forward(self, x: Tensor) -> Tensor:
        out = x.clone()
        return out.div_(x.square().mean(1, keepdim=True).add(1e-6).sqrt())


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(WIDTH),
    "batch_own": lambda: nn.BatchNorm2d(WIDTH, track_running_stats=False),
    "batch_plain": lambda: nn.BatchNorm2d(WIDTH, affine=False),
    "instance": lambda: nn.InstanceNorm2d(WIDTH, affine=True),
    "instance_kept": lambda: nn.InstanceNorm2d(WIDTH, track_running_stats=True),
    "group": lambda: nn.GroupNorm(2, WIDTH),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "batch_1d_own": lambda: Flat(nn.BatchNorm1d(WIDTH, track_running_stats=False), "1d"),
    "batch_3d": lambda: Flat(nn.BatchNorm3d(WIDTH), "3d"),
    "batch_3d_own": lambda: Flat(nn.BatchNorm3d(WIDTH, track_running_stats=False), "3d"),
    "instance_1d": lambda: Flat(nn.InstanceNorm1d(WIDTH), "1d"),
    "instance_3d": lambda: Flat(nn.InstanceNorm3d(WIDTH, affine=True), "3d"),
    "layer": lambda: Flat(nn.LayerNorm(WIDTH), "last"),
    "layer_wide": lambda: nn.LayerNorm([6, ASSETS]),
    "rms_by_hand": Rms,
    "local_response": lambda: nn.LocalResponseNorm(2),
}
if hasattr(nn, "RMSNorm"):  # since torch 2.4
    OTHERS["rms"] = lambda: Flat(nn.RMSNorm(WIDTH), "last")


ALL = tuple(LAYOUTS)
TRIED: dict[str, tuple[str, ...]] = {
    "batch": ("contiguous", "channels_last", "samples_last"),
    "batch_own": ALL,
    "batch_plain": ("sent_back_last", "strided"),
    "instance": ALL,
    "instance_kept": ("channels_last", "sent_back_last", "transposed"),
    "group": ("channels_last", "samples_last", "flipped"),
}


def _entry(name: str, layout: str) -> Entry:
    norm, wrong = {**NORMS, **OTHERS}[name], name.startswith(("batch", "instance"))
    # vmap cannot tell a memory format from another.
    mappable = layout != "channels_last"
    return Entry(
        lambda: Normalized(norm, layout), mappable=mappable, samples="own" not in name, twice=wrong
    )


NORMALISATIONS: Catalogue = {
    f"{name}_{layout}": _entry(name, layout)
    for name in (*NORMS, *OTHERS)
    for layout in TRIED.get(name, ("samples_last",))
}
