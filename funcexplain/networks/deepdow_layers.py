"""Rules for the layers of deepdow that torch.func cannot run, or whose gradient is cut.

``NCO`` clusters assets and ``Resample`` draws portfolios: both decide by values, sample by sample, and
with a ``random_state`` they reseed torch's global generator. They become opaque, and leave the generator
as it was. The clusters themselves are constants of the gradient, as any choice is. ``Zoom`` builds its
grid from numbers, which cuts the gradient to its scale; here the grid stays a tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from funcexplain.networks.opaque import opaque


def opaque_samples(layer: nn.Module) -> nn.Module:
    """Make a layer without parameters of its own opaque; it is called once for each mapped row.

    Args:
        layer: private copy of the layer.

    Returns:
        A module that is called like the layer. Random numbers come from torch's generator as it is
        found, which is put back.
    """
    return _RowByRow(layer)


class _RowByRow(nn.Module):
    """Calls a layer through `opaque`, once a row; arguments that are no tensors are settings."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.kept = (layer,)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        (layer,) = self.kept
        values = [*args, *kwargs.values()]
        given = [i for i, value in enumerate(values) if isinstance(value, Tensor)]

        def sampled(*tensors: Tensor) -> Tensor:
            called = list(values)
            for i, tensor in zip(given, tensors, strict=True):
                called[i] = tensor
            named = dict(zip(kwargs, called[len(args) :], strict=True))
            with torch.random.fork_rng(devices=[]):
                return layer(*called[: len(args)], **named)

        # Mapped rows are called one by one: in one batch, a row's noise would depend on its place.
        return opaque(sampled, in_batch=None, out_batch=None)(*(values[i] for i in given))


def differentiable_zoom(layer: nn.Module) -> nn.Module:
    """Let the gradient through to the scale of a ``Zoom``.

    Args:
        layer: private copy of the layer; its ``forward`` is replaced.

    Returns:
        The same module.
    """
    settings: Any = layer

    def forward(x: Tensor, scale: Tensor) -> Tensor:
        # The grid that affine_grid would make, which has no batching rule.
        _, _, lookback, num_assets = x.shape
        scale = scale.to(x.dtype)[:, None]
        days = scale * _positions(lookback, x) + (1 - scale)
        shape = (len(x), lookback, num_assets)
        across = _positions(num_assets, x).expand(shape)
        grid = torch.stack([across, days[:, :, None].expand(shape)], dim=-1)
        return F.grid_sample(
            x, grid, mode=settings.mode, padding_mode=settings.padding_mode, align_corners=True
        )

    layer.forward = forward
    return layer


def _positions(count: int, like: Tensor) -> Tensor:
    """Pixels' places from -1 to 1; a single one lies in the middle."""
    if count == 1:
        return torch.zeros(1, dtype=like.dtype, device=like.device)
    return torch.linspace(-1, 1, count, dtype=like.dtype, device=like.device)
