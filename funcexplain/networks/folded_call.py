"""One call of an opaque function under torch.func: its mapped rows are folded into one batch.

Two ``torch.autograd.Function`` do this. `_Apply` runs the function by ordinary autograd on plain
tensors; `_Pull` sends cotangents back through the graph of that run. Both have a rule for ``vmap``. They
share a `Call`, which records how each level of ``vmap`` was mapped, and the graph of the last level.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from funcexplain.networks.folding import (
    Dim,
    Dims,
    Tensors,
    check_rows,
    dims_per_tensor,
    fold,
    mask_other_rows,
    move_to_front,
    narrow_rows,
    select_row,
    stack_rows,
    unfold,
)
from funcexplain.networks.trial import find_fault


class Owner(Protocol):
    """The module whose function is called.

    Attributes:
        fn: the function.
        out_batch: the dim of independent rows of each output.
        fault: why rows run alone, empty if they share a batch; None if that is not yet tried.
    """

    fn: Callable[..., Any]
    out_batch: Dims
    fault: str | None


@dataclass(eq=False)
class Call:
    """One application of a function: how each level of ``vmap`` was mapped, and the graph of the last.

    A level that maps no shared argument is folded into the batch of its only child; any other level has
    one child per row.
    """

    owner: Owner
    fn: Callable[..., Any]
    bind: Callable[[Sequence[Tensor]], AbstractContextManager[Any]]
    in_batch: tuple[Dim, ...]
    record: bool
    mappable: Callable[..., Any] | None = None
    count: int = 1  # of folded rows
    folded: bool = False
    children: list[Call] = field(default_factory=list)
    graph: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ())

    @property
    def out_batch(self) -> Dims:
        """The dim of independent rows of each output."""
        return self.owner.out_batch

    def branch(self, size: int = 1) -> Call:
        """A child, of ``size`` rows of the next level."""
        count = self.count * size
        child = replace(self, count=count, folded=False, children=[], graph=((), ()))
        self.children.append(child)
        return child

    def share_batch(self, inputs: Sequence[Tensor]) -> bool:
        """Whether folded rows may share one batch; tried once."""
        if self.count > 1 and self.owner.fault is None:
            fault = find_fault(self.fn, inputs, self.in_batch, self.out_batch, self.count)
            self.owner.fault = fault
            if fault:
                name = getattr(self.owner.fn, "__name__", type(self.owner.fn).__name__)
                warnings.warn(
                    f"opaque: mapped rows of {name} run one at a time, since {fault}; pass "
                    "in_batch=None and out_batch=None to do so without a warning",
                    stacklevel=2,
                )
        return self.count == 1 or not self.owner.fault

    def run(self, inputs: Tensors) -> Tensors:
        """Call the function on plain tensors, and keep the graph."""
        with torch.set_grad_enabled(self.record), _saved_tensor_hooks():
            sources = [t.detach().requires_grad_(self.record and _is_real(t)) for t in inputs]
            if self.share_batch(sources):
                outputs = self.fn(*sources)
            else:
                alone = [
                    self.fn(*narrow_rows(sources, self.in_batch, k, self.count))
                    for k in range(self.count)
                ]
                dims = dims_per_tensor(self.out_batch, len(alone[0]))
                columns = zip(dims, zip(*alone, strict=True), strict=True)
                outputs = tuple(torch.cat(column, dim or 0) for dim, column in columns)
        rows = [t.shape[d] for t, d in zip(inputs, self.in_batch, strict=True) if d is not None]
        check_rows("output", outputs, self.out_batch, *rows[:1])
        if self.record:
            self.graph = sources, outputs
        return tuple(t.detach() for t in outputs)

    def pull(self, task: _Task, cotangents: Tensors) -> Tensors:
        """Send cotangents, plain tensors, back through the graph."""
        inputs, outputs = self.graph
        sources = [inputs[i] for i in task.wanted]
        # A backward pass may run or read the module.
        with self.bind(inputs), _saved_tensor_hooks():
            if task.directions and self.mappable is not None:
                with torch.enable_grad():
                    outputs = self.mappable(*inputs) or outputs
            real = [n for n, k in enumerate(task.kept) if outputs[k].requires_grad]
            if not real:
                mapped = cotangents[0].shape[: task.directions]
                return tuple(torch.zeros_like(t).expand(*mapped, *t.shape) for t in sources)
            outs = [outputs[task.kept[n]] for n in real]

            def pull(*cotangents: Tensor) -> Tensors:
                # The graph is kept: a Jacobian sends several cotangents through it.
                grads = torch.autograd.grad(
                    outs, sources, cotangents, retain_graph=True, allow_unused=True
                )
                return tuple(
                    torch.zeros_like(t) if g is None else g for t, g in zip(sources, grads, strict=True)
                )

            for _ in range(task.directions):
                pull = torch.func.vmap(pull)
            return pull(*[cotangents[n] for n in real])


@contextmanager
def _saved_tensor_hooks() -> Iterator[None]:
    """Allow hooks on saved tensors (activation checkpointing), which torch.func disables."""
    autograd = torch._C._autograd
    message = autograd._saved_tensors_hooks_get_disabled_error_message()
    autograd._saved_tensors_hooks_enable()
    try:
        yield
    finally:
        if message is not None:
            autograd._saved_tensors_hooks_disable(message)


def refuse_derivative(ctx: Any, *grads: Any) -> NoReturn:
    """A derivative that does not exist."""
    raise RuntimeError(
        "opaque: only one derivative, in reverse mode, is available, since the function runs under "
        "ordinary autograd, which torch.func does not see; for more, write the function in operations "
        "that torch.func knows, or use finite differences of the gradient"
    )


def apply(call: Call, *operands: Tensor) -> Tensors:
    """Call a function under the active transforms."""
    outputs: Tensors = _Apply.apply(call, *operands)
    return outputs


class _Apply(torch.autograd.Function):
    """The function: ``(call, *inputs) -> outputs``."""

    jvp = staticmethod(refuse_derivative)

    @staticmethod
    def forward(call: Call, *inputs: Tensor) -> Tensors:
        return call.run(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.call = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[t for t in output if not _is_real(t)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = tuple(i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed)
        kept = tuple(k for k, grad in enumerate(grads) if grad is not None)
        results: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if wanted and kept:
            # Cotangents may be wrapped by transforms, but the graph is one of plain tensors, which only
            # `_Pull` reaches. The inputs show which levels are mapped; a cotangent that all rows share
            # does not.
            task = _Task(ctx.call, wanted, kept)
            pulled = _Pull.apply(task, *ctx.saved_tensors, *[grads[k] for k in kept])
            for i, grad in zip(wanted, pulled, strict=True):
                results[1 + i] = grad
        return tuple(results)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Dim, ...], call: Call, *inputs: Tensor
    ) -> tuple[Tensors, tuple[int, ...]]:
        size, dims = info.batch_size, in_dims[1:]
        if size == 0:
            raise ValueError("opaque: a mapped dimension must have at least one row, got size 0")
        call.folded = all(
            d is None for d, batch in zip(dims, call.in_batch, strict=True) if batch is None
        )
        if call.folded:
            folded = [
                t if batch is None else fold(move_to_front(t, d, size), batch)
                for t, d, batch in zip(inputs, dims, call.in_batch, strict=True)
            ]
            outputs = _Apply.apply(call.branch(size), *folded)
            out_batch = dims_per_tensor(call.out_batch, len(outputs))
            mapped = tuple(unfold(t, batch, size) for t, batch in zip(outputs, out_batch, strict=True))
        else:
            mapped = stack_rows(
                [_Apply.apply(call.branch(), *select_row(inputs, dims, b)) for b in range(size)]
            )
        return mapped, (0,) * len(mapped)


@dataclass(eq=False)
class _Task:
    """Gradients of the ``wanted`` inputs of a call, from cotangents of the ``kept`` outputs."""

    call: Call
    wanted: tuple[int, ...]
    kept: tuple[int, ...]
    directions: int = 0  # first dimensions of cotangents and gradients, through one graph


class _Pull(torch.autograd.Function):
    """The derivative of `_Apply`: ``(task, *inputs, *cotangents) -> gradients of the wanted inputs``."""

    backward = staticmethod(refuse_derivative)
    jvp = staticmethod(refuse_derivative)

    @staticmethod
    def forward(task: _Task, *tensors: Tensor) -> Tensors:
        call = task.call
        return call.pull(task, tensors[len(call.in_batch) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        del ctx, inputs, output

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Dim, ...], task: _Task, *tensors: Tensor
    ) -> tuple[Tensors, tuple[int, ...]]:
        size, dims = info.batch_size, in_dims[1:]
        call, wanted, count, skip = task.call, task.wanted, len(task.call.in_batch), task.directions
        cotangents = [
            move_to_front(t, d, size) for t, d in zip(tensors[count:], dims[count:], strict=True)
        ]
        new_level = all(d is None for d in dims[:count])
        # A level that is new in the backward pass is a Jacobian: one graph, several cotangents.
        if new_level and call.mappable is not None:
            pulled = _Pull.apply(replace(task, directions=skip + 1), *tensors[:count], *cotangents)
            return pulled, (0,) * len(wanted)
        if new_level or not call.folded:
            calls = [call] * size if new_level else call.children
            rows = [
                _Pull.apply(replace(task, call=each), *select_row(tensors, dims, b))
                for b, each in enumerate(calls)
            ]
            return stack_rows(rows), (0,) * len(wanted)

        (child,), out_batch = call.children, dims_per_tensor(call.out_batch, max(task.kept) + 1)
        levels = select_row(tensors[:count], dims[:count], 0)

        def pull(numbers: list[int], cotangents: list[Tensor]) -> Tensors:
            folded = [fold(t, out_batch[k], skip) for t, k in zip(cotangents, task.kept, strict=True)]
            inner = replace(task, call=child, wanted=tuple(numbers))
            return _Pull.apply(inner, *levels, *folded) if numbers else ()

        own = [i for i in wanted if call.in_batch[i] is not None]
        shared = [i for i in wanted if call.in_batch[i] is None]
        grads = {
            i: unfold(g, call.in_batch[i], size, skip)
            for i, g in zip(own, pull(own, cotangents), strict=True)
        }
        # A backward pass sums the gradient of a shared input over all rows. For the gradient of one row,
        # the cotangents of all others are set to zero.
        masked = [[mask_other_rows(t, b) for t in cotangents] for b in range(size if shared else 0)]
        grads.update(zip(shared, stack_rows([pull(shared, cots) for cots in masked]), strict=True))
        return tuple(grads[i] for i in wanted), (0,) * len(wanted)


def _is_real(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()
