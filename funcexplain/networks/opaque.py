"""Make any batched differentiable function work under torch.func.

``torch.func`` transforms a function operation by operation, and fails at the first unknown one: a fused
recurrent kernel, a convex solver, any code outside of torch. Such code usually supports a batch of
independent rows, which is enough for mapping: the mapped dimension is folded into the function's own
batch dimension, the function is called once, and its result is unfolded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from funcexplain.networks.checks import check_batch_statistics, check_captured, is_wrapped
from funcexplain.networks.folded_call import Call, apply
from funcexplain.networks.folding import Dims, check_rows, dims_per_tensor
from funcexplain.networks.versions import reparametrized

_STATISTICS = ("running_mean", "running_var")


def opaque(fn: Callable[..., Any], in_batch: Dims = 0, out_batch: Dims = 0) -> nn.Module:
    """Make a batched function work under torch.func, even with operations that it cannot transform.

    Without an active transform, ``fn`` is called directly. Under ``grad``, ``vjp``, ``jacrev`` and
    ``vmap``, in any nesting with one derivative, it runs forward once for all mapped rows, and
    backward once for each cotangent::

        vmap(opaque(fn))(x)  ==  fn(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    Args:
        fn: differentiable function of tensors that returns a tensor or a tuple of tensors, or such a
            module. Parameters and dense buffers of a module are arguments that all rows share:
            ``functional_call`` can replace them, and they can be mapped and differentiated.
        in_batch: for each argument, the dim of its independent rows, into which mapped rows are folded,
            or ``None`` if all rows share the argument. If a shared argument is mapped (the parameters
            of an ensemble), ``fn`` runs once for each of its values. An int or ``None`` applies to all
            arguments.
        out_batch: the same for each output. ``None`` if and only if no argument has a batch dim;
            mapping is then a loop.

    Returns:
        A module with the positional arguments of ``fn``; a module ``fn`` becomes its child ``fn``.

    Raises:
        TypeError: if ``fn`` is not callable or a dim is not an int; when called, if an argument or an
            output is not a tensor.
        ValueError: if the dims contradict each other; when called, if tensors do not have rows in their
            dims, or if a batch normalization in ``fn`` uses the statistics of its batch.
        RuntimeError: for second or forward-mode derivatives.

    Rows must be independent. Before mapped rows first share a batch, a few of them, also modified ones,
    are compared with the same rows alone. If they differ (``fn`` subtracts the mean of its batch),
    if ``fn`` fails for several rows, or if it reads values (``if``, ``.item()``), mapped rows run one at
    a time from then on, with a warning.

    Limits: tensors that ``fn`` captures are constants without a gradient, so pass a module
    itself, not a function that calls it. Random numbers differ between rows, for any ``randomness`` of
    ``vmap``. The gradient of a shared argument *for each mapped row* costs one backward pass of the
    whole batch per row. ``torch.compile`` does not trace ``fn``.

    Example:
        >>> import torch
        >>> gru = torch.nn.GRU(3, 2)                              # torch.func.vmap refuses it
        >>> layer = opaque(gru, in_batch=1, out_batch=1)          # (steps, rows, channels)
        >>> loss = lambda x: layer(x)[0].square().sum()
        >>> windows = torch.zeros(64, 7, 1, 3)
        >>> torch.func.vmap(torch.func.grad(loss))(windows).shape
        torch.Size([64, 7, 1, 3])
    """
    return Opaque(fn, in_batch, out_batch)


class Opaque(nn.Module):
    """The module that `opaque` returns.

    With ``mappable``, all directions of a Jacobian share one backward pass: it returns outputs equal to
    those of ``fn`` whose backward pass torch.func maps, or None if it maps that of ``fn`` itself.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        in_batch: Dims = 0,
        out_batch: Dims = 0,
        *,
        trial: bool = True,
        mappable: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        if not callable(fn):
            raise TypeError(f"opaque: fn must be callable, got {type(fn).__name__}")
        for name, dims in {"in_batch": in_batch, "out_batch": out_batch}.items():
            if not all(dim is None or type(dim) is int for dim in dims_per_tensor(dims, 1)):
                raise TypeError(f"opaque: {name} must be an int, None or a tuple of these, got {dims!r}")
        batched = any(dim is not None for dim in dims_per_tensor(in_batch, 1))
        if any((dim is not None) != batched for dim in dims_per_tensor(out_batch, 1)):
            raise ValueError(
                f"opaque: with in_batch={in_batch!r}, {'every' if batched else 'no'} output has a batch "
                f"dim, got out_batch={out_batch!r}"
            )
        self.fn, self.in_batch, self.out_batch, self.mappable = fn, in_batch, out_batch, mappable
        self.fault: str | None = None if trial else ""  # why rows run alone; None: not yet tried

    def forward(self, *args: Tensor) -> Any:
        """Call the function; fold mapped dimensions if a transform is active."""
        check_rows("argument", args, self.in_batch)
        # autograd.Function uses the same test; it has no public name.
        if not torch._C._are_functorch_transforms_active():
            return self.fn(*args)

        fn = self.fn
        state: dict[str, Tensor] = {}
        check_captured(fn)
        if isinstance(fn, nn.Module):
            check_batch_statistics(fn)
            state = {**dict(fn.named_buffers()), **dict(fn.named_parameters())}
        # Shared tensors that no transform tracks are constants: each operand costs time, and the sparse
        # buffers of a cvxpylayers layer cannot be operands.
        names = [name for name, t in state.items() if _is_tracked(t)]
        in_batch = dims_per_tensor(self.in_batch, len(args))
        tracked = [i for i, t in enumerate(args) if in_batch[i] is not None or _is_tracked(t)]
        fixed = {i: t for i, t in enumerate(args) if i not in tracked}
        single = False

        def bind(operands: Sequence[Tensor]) -> AbstractContextManager[Any]:
            if not isinstance(fn, nn.Module):
                return nullcontext()
            own = {
                # torch refuses running statistics that require a gradient.
                name: t.detach() if name.endswith(_STATISTICS) else t
                for name, t in zip(names, operands[len(tracked) :], strict=True)
            }
            return reparametrized(fn, {**state, **own})

        def run(fn: Callable[..., Any], *operands: Tensor) -> Any:
            nonlocal single
            inputs = {**fixed, **dict(zip(tracked, operands, strict=False))}
            with bind(operands):
                out = fn(*(inputs[i] for i in sorted(inputs)))
            single = isinstance(out, Tensor)
            return (out,) if single else out

        dims = (*[in_batch[i] for i in tracked], *[None] * len(names))
        call = Call(self, partial(run, fn), bind, dims, torch.is_grad_enabled())
        if self.mappable is not None:
            call.mappable = partial(run, self.mappable)
        outputs = apply(call, *[args[i] for i in tracked], *[state[name] for name in names])
        return outputs[0] if single else outputs


def _is_tracked(t: Tensor) -> bool:
    return t.requires_grad or is_wrapped(t)
