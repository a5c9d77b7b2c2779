"""Recurrent layers written out, step by step, in operations that can be mapped, traced and compiled.

The fused kernels are faster as they stand, but nothing can be seen inside of them. A compiler, which
fuses the written form again, makes better code of it than the kernels are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

States = tuple[Tensor, ...]
_PROXY = torch._C._TorchDispatchModeKey.PROXY


def lstm_cell(from_x: Tensor, from_h: Tensor, h: Tensor, c: Tensor) -> States:
    """One step of an LSTM from ``W x + b`` and ``U h + b``: the next ``h`` and ``c``."""
    del h
    take, forget, new, show = (from_x + from_h).chunk(4, -1)
    c = forget.sigmoid() * c + take.sigmoid() * _tanh(new)
    return show.sigmoid() * _tanh(c), c


def gru_cell(from_x: Tensor, from_h: Tensor, h: Tensor) -> States:
    """One step of a GRU: the next ``h``."""
    (reset, keep, new), (reset_h, keep_h, new_h) = from_x.chunk(3, -1), from_h.chunk(3, -1)
    kept = (keep + keep_h).sigmoid()
    return (kept * h + (1 - kept) * _tanh(new + (reset + reset_h).sigmoid() * new_h),)


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


def unrolled(
    kernel: Any, data: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], *shape: Any
) -> tuple[Tensor, ...]:
    """Compute what a recurrent kernel of torch computes, without dropout and projections.

    Args:
        kernel: a key of `CELLS`.
        data: as in `walk_layers`, like all that follow.
        states: initial states.
        weights: of each layer and direction.
        shape: ``bias, layers, bidirectional, batch_first``.

    Returns:
        The output, and the last of each state.

    Example:
        >>> rnn = torch.nn.RNN(3, 2)
        >>> x, h = torch.zeros(5, 4, 3), torch.zeros(1, 4, 2)
        >>> out, last = unrolled(torch.rnn_tanh, x, [h], rnn._flat_weights, True, 1, False, False)
        >>> torch.allclose(out, rnn(x, h)[0])
        True
    """
    cell = CELLS[kernel]

    def run(
        x: Tensor, now: States, w: Tensor, u: Tensor, biases: Sequence[Tensor]
    ) -> tuple[Tensor, States]:
        b, b_h = biases if biases else (None, None)
        shown = []
        # One product for all steps would give each a place of its own in the result, and a compiler
        # would make code of its own for each.
        for x_t in x.unbind(0):
            now = cell(linear(x_t, w, b), linear(now[0], u, b_h), *now)
            shown.append(now[0])
        return torch.stack(shown), now

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
    """Send a sequence through all layers and directions of a recurrent network.

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
        The output, and the last of each state.
    """
    count, directions = 4 if bias else 2, 2 if bidirectional else 1
    x = data.transpose(0, 1) if batch_first else data
    lasts: list[States] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            w, u, *biases = weights[count * place : count * (place + 1)]
            begun = tuple(state[place] for state in states)
            output, last = run(x.flip(0) if direction else x, begun, w, u, biases)
            outputs.append(output.flip(0) if direction else output)
            lasts.append(last)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    return x.transpose(0, 1) if batch_first else x, *map(torch.stack, zip(*lasts, strict=True))


def is_traced() -> bool:
    """Whether operations are being recorded to a graph, to be compiled."""
    return torch._C._get_dispatch_mode(_PROXY) is not None


def _tanh(x: Tensor) -> Tensor:
    # The same to rounding, in a quarter of the time of torch's tanh on a CPU.
    return 2.0 * (2.0 * x).sigmoid() - 1.0
