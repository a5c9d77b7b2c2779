"""Rules (see `prepare`) for layers of deepdow that torch.func cannot run, or that block gradients.

``NCO`` clusters assets and ``Resample`` draws portfolios: both branch on values, sample by sample, and
reseed torch's global generator if they have a ``random_state``. They become opaque, and the generator is
restored. The clusters are constants of the gradient, like any discrete choice. ``Zoom`` builds its grid
from Python numbers, which blocks the gradient of its scale; here the grid is a tensor. The root of a
``CovarianceMatrix`` reads the rank of the matrix; here small singular values are zero instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from funcexplain.networks.opaque import opaque


class OpaqueRows(nn.Module):
    """Calls a layer without parameters through `opaque`, once per mapped row.

    Arguments that are not tensors are settings. torch's generator is restored after every call.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = (layer,)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the layer with its own arguments."""
        (layer,) = self.layers
        values = [*args, *kwargs.values()]
        tensor_indices = [i for i, value in enumerate(values) if isinstance(value, Tensor)]

        def call(*tensors: Tensor) -> Tensor:
            arguments = list(values)
            for i, tensor in zip(tensor_indices, tensors, strict=True):
                arguments[i] = tensor
            named = dict(zip(kwargs, arguments[len(args) :], strict=True))
            with torch.random.fork_rng(devices=[]):
                return layer(*arguments[: len(args)], **named)

        # One call per mapped row: in one batch, a row's noise would depend on its position.
        return opaque(call, in_batch=None, out_batch=None)(*(values[i] for i in tensor_indices))


def differentiable_zoom(layer: nn.Module) -> nn.Module:
    """Make a ``Zoom`` differentiable in its scale."""
    settings: Any = layer

    def forward(x: Tensor, scale: Tensor) -> Tensor:
        # The grid of affine_grid, which has no batching rule.
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


def mapped_root(layer: nn.Module) -> nn.Module:
    """Make the square root of a ``CovarianceMatrix`` independent of the values of the matrix."""
    settings: Any = layer
    settings.compute_sqrt = _root
    return layer


def _root(m: Tensor) -> Tensor:
    """The square root of a positive semidefinite matrix, as deepdow computes it."""
    _, s, v = torch.svd(m)
    positive = s > s.max() * len(s) * torch.finfo(s.dtype).eps
    # The inner `where` keeps the gradient of the unused branch finite.
    roots = torch.where(positive, torch.where(positive, s, 1.0).sqrt(), 0.0)
    return (v * roots) @ v.mT


def _positions(count: int, like: Tensor) -> Tensor:
    """Pixel positions from -1 to 1; a single pixel is in the middle."""
    if count == 1:
        return torch.zeros(1, dtype=like.dtype, device=like.device)
    return torch.linspace(-1, 1, count, dtype=like.dtype, device=like.device)
