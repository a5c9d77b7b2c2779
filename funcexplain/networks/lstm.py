"""A faster LSTM for many rows.

torch's CPU kernel always computes the gradient of the weights. Here the backward pass computes it only
if needed; and hidden units come first and rows last, so that every gate of all rows is one contiguous
block. With more than a few hundred rows this takes half the time of the kernel; with fewer, its many
small operations cost more than they save.

    i, f, o = sigmoid(W x_t + U h + b),   g = tanh(W x_t + U h + b)
    c = f c + i g,                        h = o tanh(c)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcexplain.networks.unrolled import States, walk_layers

_MIN_ROWS = 512  # sequences; with fewer, torch's kernel is faster (docs/benchmarks.md)
_aten = torch.ops.aten


def is_faster_lstm(h: Tensor, c: Tensor) -> bool:
    """Whether `lstm` supports these states of unpacked input and is faster than ``torch.lstm``."""
    projected = h.shape[-1] != c.shape[-1]
    return h.shape[1] >= _MIN_ROWS and h.device.type == "cpu" and not projected


def lstm(data: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], *shape: Any) -> States:
    """Compute ``torch.lstm`` without dropout and projections; see `walk_layers`.

    References:
        S. Hochreiter, J. Schmidhuber (1997), Long Short-Term Memory,
        https://doi.org/10.1162/neco.1997.9.8.1735
    """
    return walk_layers(_run_layer, data, states, weights, *shape)


def _run_layer(
    x: Tensor, states: States, w: Tensor, u: Tensor, biases: Sequence[Tensor]
) -> tuple[Tensor, States]:
    b = biases[0] + biases[1] if biases else w.new_zeros(w.shape[0])
    out, h, c = _Layer.apply(x, *states, w, u, b)
    return out, (h, c)


class _Layer(torch.autograd.Function):
    """One layer in one direction: ``(x, h, c, W, U, b) -> (output, h, c)``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor, c0: Tensor, w: Tensor, u: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, rows, channels = x.shape
        units = h0.shape[-1]
        # torch orders the gates i, f, g, o; with g last the sigmoids are one block.
        joint, shift = _reorder_gates(torch.cat([w, u], 1)), _reorder_gates(b)[:, None]
        # tanh(x) = 2 sigmoid(2 x) - 1 takes a quarter of the time of torch's tanh.
        factor = torch.ones_like(shift)
        factor[3 * units :] = 2.0
        doubled, doubled_shift = factor * joint, factor * shift
        inputs = x.new_empty(steps + 1, channels + units, rows)  # x_t and h of every step
        inputs[:steps, :channels], inputs[0, channels:] = x.transpose(1, 2), h0.T
        gates = x.new_empty(steps, 4 * units, rows)
        cells, tanh_cells = x.new_empty(steps + 1, units, rows), x.new_empty(steps, units, rows)
        cells[0] = c0.T
        for t in range(steps):
            torch.addmm(doubled_shift, doubled, inputs[t], out=gates[t]).sigmoid_()
            i, f, o, g = gates[t].split(units)
            g.mul_(2.0).sub_(1.0)
            torch.mul(f, cells[t], out=cells[t + 1]).addcmul_(i, g)
            torch.mul(cells[t + 1], 2.0, out=tanh_cells[t]).sigmoid_().mul_(2.0).sub_(1.0)
            torch.mul(o, tanh_cells[t], out=inputs[t + 1, channels:])
        ctx.save_for_backward(gates, cells, tanh_cells, joint, inputs)
        hidden = inputs[1:, channels:].transpose(1, 2)
        return hidden.clone(), hidden[-1].clone(), cells[-1].T.clone()

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[Tensor | None, ...]:
        gates, cells, tanh_cells, joint, inputs = ctx.saved_tensors
        steps, units, rows = tanh_cells.shape
        channels, transposed = joint.shape[1] - units, joint.T.contiguous()
        needs_weights = any(ctx.needs_input_grad[3:])
        d_joint, d_shift = torch.zeros_like(joint), joint.new_zeros(len(joint))
        d_x = gates.new_empty(steps, channels, rows)
        d_h, d_c = d_h.T, d_c.T
        d_gates, d_input = gates.new_empty(4 * units, rows), gates.new_empty(channels + units, rows)
        for t in range(steps - 1, -1, -1):
            i, f, o, g = gates[t].split(units)
            d_i, d_f, d_o, d_g = d_gates.split(units)
            d_h = d_h + d_out[t].T
            d_c = d_c + _aten.tanh_backward(d_h * o, tanh_cells[t])
            torch.mul(d_h, tanh_cells[t], out=d_o)
            torch.mul(d_c, g, out=d_i)
            torch.mul(d_c, cells[t], out=d_f)
            torch.mul(d_c, i, out=d_g)
            sigmoids = d_gates[: 3 * units]
            _aten.sigmoid_backward(sigmoids, gates[t, : 3 * units], grad_input=sigmoids)
            _aten.tanh_backward(d_g, g, grad_input=d_g)
            d_c = d_c * f
            torch.mm(transposed, d_gates, out=d_input)
            d_x[t], d_h = d_input[:channels], d_input[channels:]
            if needs_weights:
                d_joint += d_gates @ inputs[t].T
                d_shift += d_gates.sum(1)
        d_joint, d_shift = _reorder_gates(d_joint), _reorder_gates(d_shift)
        d_w, d_u = d_joint[:, :channels], d_joint[:, channels:]
        return d_x.transpose(1, 2), d_h.T, d_c.T, d_w, d_u, d_shift


def _reorder_gates(blocks: Tensor) -> Tensor:
    """Convert torch's order of gates, i f g o, to i f o g, or back."""
    i, f, g, o = blocks.chunk(4)
    return torch.cat([i, f, o, g])
