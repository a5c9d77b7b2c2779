"""A faster LSTM, for many rows, or for many directions of a Jacobian.

torch's CPU kernel always computes the gradient of the weights, and takes directions one at a time. Here
the backward pass computes that gradient only if needed, and directions that ``torch.func.vmap`` maps
share one pass. Hidden units come first and rows last, so that every gate of all rows is one contiguous
block. With more than a few hundred rows this takes half the time of the kernel; with fewer, and a single
direction, its many small operations cost more than they save.

    i, f, o = sigmoid(W x_t + U h + b),   g = tanh(W x_t + U h + b)
    c = f c + i g,                        h = o tanh(c)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from funcexplain.networks.folded_call import refuse_derivative
from funcexplain.networks.folding import Dim, move_to_front
from funcexplain.networks.unrolled import States, walk_layers

_MIN_ROWS = 512  # sequences; with fewer, torch's kernel is faster (docs/benchmarks.md)
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


def is_faster_lstm(h: Tensor) -> bool:
    """Whether `lstm` is faster than ``torch.lstm`` for these initial states and one direction."""
    return h.shape[1] >= _MIN_ROWS and h.device.type == "cpu"


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
        # tanh(x) = 2 sigmoid(2 x) - 1 takes a quarter of the time of torch's tanh.
        factor = torch.ones_like(b).view(4, units)
        factor[2] = 2.0  # torch orders the gates i, f, g, o
        factor = factor.view(-1, 1)
        joint, shift = factor * torch.cat([w, u], 1), factor * b[:, None]
        inputs = x.new_empty(steps + 1, channels + units, rows)  # x_t and h of every step
        inputs[:steps, :channels], inputs[0, channels:] = x.transpose(1, 2), h0.T
        gates = x.new_empty(steps, 4 * units, rows)
        cells, tanh_cells = x.new_empty(steps + 1, units, rows), x.new_empty(steps, units, rows)
        cells[0] = c0.T
        for t in range(steps):
            torch.addmm(shift, joint, inputs[t], out=gates[t]).sigmoid_()
            i, f, g, o = gates[t].split(units)
            g.mul_(2.0).sub_(1.0)
            torch.mul(f, cells[t], out=cells[t + 1]).addcmul_(i, g)
            torch.mul(cells[t + 1], 2.0, out=tanh_cells[t]).sigmoid_().mul_(2.0).sub_(1.0)
            torch.mul(o, tanh_cells[t], out=inputs[t + 1, channels:])
        ctx.save_for_backward(w, u, gates, cells, tanh_cells, inputs)
        hidden = inputs[1:, channels:].transpose(1, 2)
        return hidden.clone(), hidden[-1].clone(), cells[-1].T.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        needs_weights = any(ctx.needs_input_grad[3:])
        pulled = _Pull.apply(needs_weights, *[t[None] for t in cotangents], *ctx.saved_tensors)
        return *[t[0] for t in pulled], *[None] * (6 - len(pulled))


class _Pull(torch.autograd.Function):
    """The derivative of `_Layer`: all directions, the first dimension of the cotangents, at once."""

    backward = staticmethod(refuse_derivative)
    jvp = staticmethod(refuse_derivative)

    @staticmethod
    def forward(
        needs_weights: bool, d_out: Tensor, d_h: Tensor, d_c: Tensor, *saved: Tensor
    ) -> tuple[Tensor, ...]:
        w, u, gates, cells, tanh_cells, inputs = saved
        count, steps, rows, units = d_out.shape
        # Units first, then directions and rows.
        d_out, d_h, d_c = d_out.permute(1, 3, 0, 2).contiguous(), _units_first(d_h), _units_first(d_c)
        d_x = d_out.new_empty(steps, w.shape[1], count * rows)
        d_gates = d_out.new_empty(4, units, count, rows)
        all_gates, hidden = d_gates.view(4 * units, -1), d_h.view(units, -1)
        # Derivatives: of c by the gates i, f and g; of h by the gate o, and by c.
        factors = d_out.new_empty(5, units, 1, rows)
        of_i, of_f, of_g, of_o, of_c = factors.squeeze(2).unbind(0)
        d_weights = [d_out.new_zeros(count, *t.shape) for t in (w, u, w[:, 0])] if needs_weights else []
        for t in range(steps - 1, -1, -1):
            i, f, g, o = gates[t].split(units)
            _sigmoid_backward(g, i, grad_input=of_i)
            _sigmoid_backward(cells[t], f, grad_input=of_f)
            _tanh_backward(i, g, grad_input=of_g)
            _sigmoid_backward(tanh_cells[t], o, grad_input=of_o)
            _tanh_backward(o, tanh_cells[t], grad_input=of_c)
            d_h.add_(d_out[t])
            d_c.addcmul_(d_h, factors[4])
            torch.mul(d_c, factors[:3], out=d_gates[:3])
            torch.mul(d_h, factors[3], out=d_gates[3])
            d_c.mul_(f.unsqueeze(1))
            torch.mm(w.T, all_gates, out=d_x[t])
            torch.mm(u.T, all_gates, out=hidden)
            if needs_weights:
                by_direction = d_gates.flatten(0, 1).transpose(0, 1)
                d_w, d_u = (by_direction @ inputs[t].T).split([w.shape[1], units], -1)
                for total, part in zip(d_weights, (d_w, d_u, by_direction.sum(-1)), strict=True):
                    total.add_(part)
        d_x = d_x.unflatten(2, (count, rows)).permute(2, 0, 3, 1)
        return d_x, d_h.permute(1, 2, 0), d_c.permute(1, 2, 0), *d_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        del ctx, inputs, output

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Dim, ...], needs_weights: bool, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size, dims = info.batch_size, in_dims[1:4]
        cotangents = [move_to_front(t, d, size) for t, d in zip(tensors[:3], dims, strict=True)]
        pulled = _Pull.apply(needs_weights, *[t.flatten(0, 1) for t in cotangents], *tensors[3:])
        return tuple(t.unflatten(0, (size, -1)) for t in pulled), (0,) * len(pulled)


def _units_first(t: Tensor) -> Tensor:
    """A copy of a cotangent of a state, ``(D, N, H)``, as ``(H, D, N)``."""
    return t.permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
