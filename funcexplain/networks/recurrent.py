"""Rules (see `prepare`) for recurrent layers: mapped rows are folded into the layer's own batch.

A recurrent layer calls one fused kernel for all its steps. ``torch.func.vmap`` has no rule for it: it
fails, or runs row by row with a warning, although the kernel supports any number of rows. While a
transform is active, this rule intercepts only the call of the kernel and makes it `opaque`; the rest of
the layer (initial states, packed sequences, checks) remains torch's own. Otherwise the layer is called
directly.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from funcexplain.networks.lstm import is_faster_lstm, lstm
from funcexplain.networks.opaque import Opaque
from funcexplain.networks.unrolled import (
    gru_cell,
    lstm_cell,
    relu_cell,
    tanh_cell,
    unroll,
)
from funcexplain.networks.versions import is_traced

KERNELS: tuple[Callable[..., Any], ...] = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


def fold_recurrent(module: nn.RNNBase) -> nn.RNNBase:
    """Make a recurrent layer work under torch.func at the cost of one batched call.

    Outputs are those of the layer, for all options, for batched, unbatched and packed input and any
    initial state. Under ``grad``, ``vmap``, ``jacrev`` and their nestings with one derivative, all
    mapped rows are one batch, whether input or initial states are mapped. With mapped parameters (an
    ensemble), the kernel runs once per model, and with packed sequences once per mapped row. On a CPU,
    all directions of a Jacobian share one backward pass.

    The module's ``forward`` is changed in place. While a transform is active, it raises a
    ``RuntimeError`` for a second derivative, and if dropout between layers is active (in training mode):
    its noise would ignore the ``randomness`` of ``vmap``.

    Example:
        >>> import torch
        >>> layer = fold_recurrent(torch.nn.GRU(3, 2, batch_first=True))
        >>> windows = torch.zeros(64, 7, 3)
        >>> output, hidden = torch.func.vmap(layer)(windows)
        >>> output.shape, hidden.shape
        (torch.Size([64, 7, 2]), torch.Size([64, 1, 2]))
    """
    layer: Any = module
    plain, flatten = layer.forward, layer.flatten_parameters
    # functional_call of older torch replaces the entries of this list in place.
    layer._flat_weights = list(layer._flat_weights)

    def forward(*inputs: Any, **named: Any) -> Any:
        if not (torch._C._are_functorch_transforms_active() or is_traced()):
            on_gpu = any(weight.is_cuda for weight in layer._flat_weights)
            trains = layer.training or not torch.is_grad_enabled() or not on_gpu
            with nullcontext() if trains else DifferentiableKernels():
                return plain(*inputs, **named)
        if layer.training and layer.dropout > 0 and layer.num_layers > 1:
            raise RuntimeError(
                f"{type(layer).__name__}: dropout={layer.dropout} between layers cannot be drawn under "
                "torch.func; use eval mode, or dropout=0"
            )
        with _FoldKernels():
            return plain(*inputs, **named)

    def flatten_parameters() -> None:
        # It reads `.data`, which mapped parameters refuse in torch 2.0.
        if not torch._C._are_functorch_transforms_active():
            flatten()

    layer.forward, layer.flatten_parameters = forward, flatten_parameters
    return module


class DifferentiableKernels(TorchFunctionMode):
    """Runs recurrent kernels as in training, without dropout: cuDNN has no backward in eval mode."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, or the kernel with other settings."""
        if func in KERNELS:
            sizes, _ = split_arguments(args)
            dropout = 5 + len(sizes)
            args = (*args[:dropout], 0.0, True, *args[dropout + 2 :])
        return func(*args, **(kwargs or {}))


class _FoldKernels(TorchFunctionMode):
    """Replaces torch's recurrent kernels by folded ones; other functions run unchanged."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _fold_kernel(func, *args) if func in KERNELS else func(*args, **(kwargs or {}))


def split_arguments(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Split a kernel's arguments, which have two forms.

    They are ``(input, hx, weights, bias, layers, dropout, train, bidirectional, batch_first)`` and, for
    packed sequences, ``(data, batch_sizes, hx, weights, bias, layers, dropout, train, bidirectional)``;
    hx is one tensor, or the pair of the LSTM.

    Returns:
        ``(batch_sizes,)`` or ``()``, and all arguments from ``hx`` on.
    """
    sizes = args[1:2] if isinstance(args[3], list) else ()
    return sizes, args[1 + len(sizes) :]


def _fold_kernel(kernel: Callable[..., Any], *args: Any) -> tuple[Tensor, ...]:
    sizes, (hx, weights, bias, layers, _, _, *shape) = split_arguments(args)
    single = isinstance(hx, Tensor)
    states = (hx,) if single else tuple(hx)
    count = len(states)
    projected = states[0].shape[-1] != states[-1].shape[-1]
    if is_traced() and not sizes and not projected:
        return unroll(kernel, args[0], states, weights, bias, layers, *shape)

    is_served = kernel is torch.lstm and not sizes and not projected

    def explicit(data: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return lstm(data, tensors[:count], tensors[count:], bias, layers, *shape)

    def call(data: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        if is_served and is_faster_lstm(tensors[0]):
            return explicit(data, *tensors)
        hidden = tensors[0] if single else tensors[:count]
        # train=True, since cuDNN has no backward without it; dropout is 0.
        return kernel(data, *sizes, hidden, list(tensors[count:]), bias, layers, 0.0, True, *shape)

    def mappable(data: Tensor, *tensors: Tensor) -> tuple[Tensor, ...] | None:
        # Other kernels consist of operations that torch.func maps, on a CPU.
        return explicit(data, *tensors) if is_served and not is_faster_lstm(tensors[0]) else None

    # Rows of packed data differ in length, so mapped rows cannot share one batch.
    rows = None if sizes else (0 if shape[-1] else 1, *[1] * count)
    in_batch = None if rows is None else (*rows, *[None] * len(weights))
    maps = mappable if args[0].device.type == "cpu" else None
    return Opaque(call, in_batch, rows, trial=False, mappable=maps)(args[0], *states, *weights)


def explicit_cell(module: nn.RNNCellBase) -> nn.RNNCellBase:
    """Write a recurrent cell as matrix products and gates, which torch.func can map, unlike its kernel.

    Example:
        >>> import torch
        >>> cell = explicit_cell(torch.nn.GRUCell(3, 2))
        >>> torch.func.vmap(cell)(torch.zeros(64, 5, 3)).shape
        torch.Size([64, 5, 2])

    References:
        S. Hochreiter, J. Schmidhuber (1997), https://doi.org/10.1162/neco.1997.9.8.1735;
        K. Cho et al. (2014), https://arxiv.org/abs/1406.1078; both as torch.nn documents them.
    """
    plain = (nn.LSTMCell.forward, nn.GRUCell.forward, nn.RNNCell.forward)
    if type(module).forward not in plain:
        return module  # a subclass with its own forward
    linear, is_lstm = torch.nn.functional.linear, isinstance(module, nn.LSTMCell)
    cell: Any = module
    step: Any = lstm_cell if is_lstm else gru_cell
    if isinstance(module, nn.RNNCell):
        step = tanh_cell if module.nonlinearity == "tanh" else relu_cell

    def forward(x: Tensor, hx: Any = None) -> Any:
        if hx is None:
            hx = x.new_zeros(*x.shape[:-1], cell.hidden_size)
            hx = (hx, hx) if is_lstm else hx
        h, *cells = hx if is_lstm else (hx,)
        from_x = linear(x, cell.weight_ih, cell.bias_ih)
        from_h = linear(h, cell.weight_hh, cell.bias_hh)
        states = step(from_x, from_h, h, *cells)
        return states if is_lstm else states[0]

    cell.forward = forward
    return module
