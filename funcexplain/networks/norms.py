"""Rules (see `prepare`) for normalization: contiguous layouts, explicit batch norm and weight_norm.

torch's CPU kernel for the gradient of instance and batch normalization misreads memory when the batch
has ONE sample of several channels, and input and cotangent have different layouts (pytorch issues 62967,
63224, 175189). The gradient is then silently wrong by more than its own size, in every precision. Layers
that permute their input or output cause such layouts, and a question about one window is a batch of
one. Group, layer and RMS normalization read the layout correctly and need no rule.

Batch normalization with fixed statistics is a scale and a shift of every channel; written explicitly it
avoids that kernel and its cost.

The kernel of ``weight_norm`` is correct but has no batching rule: mapped over stacked
parameters it runs one model at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.weight_norm import WeightNorm


class _ContiguousCotangent(torch.autograd.Function):
    """The identity; its backward pass makes the cotangent contiguous."""

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
    """Make the backward pass of a normalization layer independent of memory layouts."""
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(), *inputs[1:]))
    module.register_forward_hook(lambda module, inputs, output: _ContiguousCotangent.apply(output))
    return module


def affine_batch_norm(module: nn.Module) -> nn.Module:
    """Write batch normalization as ``x * scale + shift``, if its statistics are fixed."""
    norm: Any = module
    overridden = type(module).forward is not _BatchNorm.forward  # by a subclass
    if norm.training or norm.running_mean is None or overridden:
        return contiguous_cotangents(module)

    def forward(x: Tensor) -> Tensor:
        norm._check_input_dim(x)
        if x.shape[1] != norm.num_features:
            raise RuntimeError(
                f"{type(norm).__name__}: expected {norm.num_features} channels, got {x.shape[1]}"
            )
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean * scale
        shift = shift if norm.bias is None else shift + norm.bias
        per_channel = (-1,) + (1,) * (x.ndim - 2)
        return torch.addcmul(shift.view(per_channel), x, scale.view(per_channel))

    norm.forward = forward
    return module


def explicit_weight_norm(module: nn.Module) -> nn.Module:
    """Write ``weight_norm`` as ``g * v / |v|``."""
    kept: Any = module.dim  # -1: one norm for the whole tensor

    module.forward = lambda weight_g, weight_v: _normalized(weight_g, weight_v, kept)
    return module


class ExplicitWeightNorm(WeightNorm):
    """The same for the hook of the older ``nn.utils.weight_norm``."""

    def compute_weight(self, module: nn.Module) -> Tensor:
        """The weight of a module, from the parameters in its place."""
        g, v = (getattr(module, self.name + end) for end in ("_g", "_v"))
        return _normalized(g, v, self.dim)


def _normalized(g: Tensor, v: Tensor, kept: int) -> Tensor:
    others = [dim for dim in range(v.ndim) if dim != kept]
    # torch takes the norm over no dimension as that over all.
    return v * (g / (torch.linalg.vector_norm(v, dim=others, keepdim=kept >= 0) if others else v.abs()))
