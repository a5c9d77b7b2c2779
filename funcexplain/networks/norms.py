"""Rule for normalisation layers: what comes back to them in the backward pass is made contiguous.

torch's CPU kernel for the gradient of instance and batch normalisation reads a cotangent that is laid
out channels-last as if it were contiguous when the batch holds ONE sample of several channels. The
gradient is then wrong by more than its own size, silently, in every precision. Recurrent layers that
permute their output send back exactly such cotangents, and a question about one window is a batch of
one. Group, layer and RMS normalisation read the layout correctly and need no rule.
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
