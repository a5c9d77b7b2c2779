"""Recurrent layers unrolled step by step, in operations that can be mapped, traced and compiled.

The fused kernels are faster when run directly, but cannot be traced. Compiled, the unrolled form is
faster than the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

States = tuple[Tensor, ...]


def lstm_cell(from_x: Tensor, from_h: Tensor, h: Tensor, c: Tensor) -> States:
    """One step of an LSTM from ``W x + b`` and ``U h + b``: the next ``h`` and ``c``."""
    del h
    i, f, g, o = (from_x + from_h).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * _tanh(g)
    return o.sigmoid() * _tanh(c), c


def gru_cell(from_x: Tensor, from_h: Tensor, h: Tensor) -> States:
    """One step of a GRU: the next ``h``."""
    (reset, update, new), (reset_h, update_h, new_h) = from_x.chunk(3, -1), from_h.chunk(3, -1)
    z = (update + update_h).sigmoid()
    return (z * h + (1 - z) * _tanh(new + (reset + reset_h).sigmoid() * new_h),)


def tanh_cell(from_x: Tensor, from_h: Tensor, h: Tensor) -> States:
    """One step of a plain recurrent layer with tanh."""
    del h
    return (_tanh(from_x + from_h),)


def relu_cell(from_x: Tensor, from_h: Tensor, h: Tensor) -> States:
    """One step of a plain recurrent layer with relu."""
    del h
    return ((from_x + from_h).relu(),)


CELLS: dict[Any, Callable[..., States]] = {
    torch.lstm: lstm_cell,
    torch.gru: gru_cell,
    torch.rnn_tanh: tanh_cell,
    torch.rnn_relu: relu_cell,
}


def unroll(
    kernel: Any, data: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], *shape: Any
) -> tuple[Tensor, ...]:
    """Compute a recurrent kernel of torch, a key of `CELLS`, without dropout; see `walk_layers`.

    Example:
        >>> rnn = torch.nn.RNN(3, 2)
        >>> x, h = torch.zeros(5, 4, 3), torch.zeros(1, 4, 2)
        >>> out, last = unroll(torch.rnn_tanh, x, [h], rnn._flat_weights, True, 1, False, False)
        >>> torch.allclose(out, rnn(x, h)[0])
        True
    """
    cell = CELLS[kernel]

    def run(
        x: Tensor, now: States, w: Tensor, u: Tensor, biases: Sequence[Tensor]
    ) -> tuple[Tensor, States]:
        b, b_h = biases if biases else (None, None)
        hidden = []
        # Not one product for all steps: a compiler would generate separate code for each slice of it.
        for x_t in x.unbind(0):
            now = cell(linear(x_t, w, b), linear(now[0], u, b_h), *now)
            hidden.append(now[0])
        return torch.stack(hidden), now

    return walk_layers(run, data, states, weights, *shape)


def walk_layers(
    run: Callable[..., tuple[Tensor, States]],
    data: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Run a sequence through all layers and directions of a recurrent network.

    Args:
        run: one layer in one direction, ``(x, states, W, U, biases) -> (output, last states)``.
        data: input, ``(T, N, C)``, or ``(N, T, C)`` if ``batch_first``.
        states: initial states, ``(layers * directions, N, H)`` each.
        weights: of each layer and direction ``W``, ``U``, and two biases if ``bias``.
        bias: whether there are biases.
        layers: number of layers.
        bidirectional: whether every layer also runs backwards.
        batch_first: layout of ``data`` and of the output.

    Returns:
        The output, and the last states.
    """
    count, directions = 4 if bias else 2, 2 if bidirectional else 1
    x = data.transpose(0, 1) if batch_first else data
    lasts: list[States] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            w, u, *biases = weights[count * index : count * (index + 1)]
            initial = tuple(state[index] for state in states)
            output, last = run(x.flip(0) if direction else x, initial, w, u, biases)
            outputs.append(output.flip(0) if direction else output)
            lasts.append(last)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    return x.transpose(0, 1) if batch_first else x, *map(torch.stack, zip(*lasts, strict=True))


def _tanh(x: Tensor) -> Tensor:
    # Equal to rounding, in a quarter of the time of torch's tanh on a CPU.
    return 2.0 * (2.0 * x).sigmoid() - 1.0
