"""Rules (see `prepare`) for attention: matrix products instead of fused kernels.

torch's fused attention kernels have no batching rule: under ``vmap`` they run one row at a time. As
matrix products and a softmax, which torch itself uses if attention weights are requested, the same layer
runs as one batch.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# torch's own function without its dispatch to an active mode as one call: modes are disabled inside a
# call that they run, and would not see its dropout (see `dropout.SeededDropout`).
_attend = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


def explicit_attention(module: nn.Module) -> nn.Module:
    """Make a ``MultiheadAttention`` always compute its weights explicitly."""
    if type(module).forward is not nn.MultiheadAttention.forward:
        return module  # a subclass with its own forward
    layer: Any = module

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        transposed = layer.batch_first and query.dim() == 3
        if transposed:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        output, weights = _attend(
            query,
            key,
            value,
            layer.embed_dim,
            layer.num_heads,
            layer.in_proj_weight,
            layer.in_proj_bias,
            layer.bias_k,
            layer.bias_v,
            layer.add_zero_attn,
            layer.dropout,
            layer.out_proj.weight,
            layer.out_proj.bias,
            training=layer.training,
            key_padding_mask=key_padding_mask,
            need_weights=True,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
            use_separate_proj_weight=not layer._qkv_same_embed_dim,
            q_proj_weight=layer.q_proj_weight,
            k_proj_weight=layer.k_proj_weight,
            v_proj_weight=layer.v_proj_weight,
        )
        return output.transpose(0, 1) if transposed else output, weights if need_weights else None

    layer.forward = forward
    return module


def plain_encoder_layer(module: nn.Module) -> nn.Module:
    """Disable the fused kernel of a ``TransformerEncoderLayer`` by hiding its activation's kind."""
    module.activation_relu_or_gelu = 0  # type: ignore[assignment]
    return module


def plain_encoder(module: nn.Module) -> nn.Module:
    """Disable the nested tensors of a ``TransformerEncoder`` for padded batches."""
    module.use_nested_tensor = False  # type: ignore[assignment]
    return module
