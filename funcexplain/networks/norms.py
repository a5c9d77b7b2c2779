"""Rules for normalisation: contiguous cotangents for its layers, a mappable form of weight_norm.

torch's CPU kernel for the gradient of instance and batch normalisation reads a cotangent that is laid
out channels-last as if it were contiguous when the batch holds ONE sample of several channels. The
gradient is then wrong by more than its own size, silently, in every precision. Recurrent layers that
permute their output send back exactly such cotangents, and a question about one window is a batch of
one. Group, layer and RMS normalisation read the layout correctly and need no rule.

The kernel of ``parametrizations.weight_norm`` is right, but has no batching rule: mapped over stacked
parameters it runs one model at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _ContiguousCotangent(torch.autograd.Function):
    """The identity, whose backward pass hands on a contiguous cotangent."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        del ctx
        return grad.contiguous()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        del ctx
        return tangent.view_as(tangent)


def contiguous_cotangents(module: nn.Module) -> nn.Module:
    """Make the backward pass of a normalisation layer safe from its cotangent's memory layout.

    Args:
        module: private copy of an instance or batch normalisation layer; it is changed in place.

    Returns:
        The same module, with a forward hook that appends the identity of this file's class.
    """

    def append_identity(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        del module, inputs
        return _ContiguousCotangent.apply(output)

    module.register_forward_hook(append_identity)
    return module


def explicit_weight_norm(module: nn.Module) -> nn.Module:
    """Write ``weight_norm`` as what it is, ``g * v / |v|``.

    Args:
        module: private copy of the parametrization; its ``forward`` is replaced.

    Returns:
        The same module.
    """
    kept: Any = module.dim  # -1: one norm for the whole tensor

    def forward(weight_g: Tensor, weight_v: Tensor) -> Tensor:
        others = [dim for dim in range(weight_v.ndim) if dim != kept]
        return weight_v * (weight_g / torch.linalg.vector_norm(weight_v, dim=others, keepdim=kept >= 0))

    module.forward = forward
    return module
