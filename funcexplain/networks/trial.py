"""A trial of folding: do rows in a batch agree with the same rows alone?

An opaque function must have independent rows. Before the first batch, a few rows are tried: unchanged,
negated, larger, and with noise, since the first windows may not reach a branch or a threshold. Values
and gradients in one batch are compared with those of each row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from funcexplain.networks.checks import is_out_of_memory
from funcexplain.networks.folding import Dim, Dims, Tensors, dims_per_tensor, narrow_rows
from funcexplain.networks.rounding import agree

# Functions that turn the value of a tensor into one of Python.
_READS = frozenset(
    (
        "__bool__",
        "__float__",
        "__index__",
        "__int__",
        "allclose",
        "equal",
        "is_nonzero",
        "item",
        "tolist",
    )
)

# What a convex solver, too, may do with the values of each row.
_CONVERSIONS = frozenset(("numpy", "__array__"))

Row = list[Tensor]


def reads_values(network: Any, params: Any, windows: Tensor) -> bool:
    """Whether a network reads values of tensors, as `if` does, so that one window decides for a batch.

    Args:
        network: as `functionalize` returns it.
        params: its parameters.
        windows: ``(N, C, L, A)``.
    """
    with _Reads(_READS | _CONVERSIONS) as reads, suppress(Exception):  # the caller meets it again
        network.samples(params, windows)
    return reads.found


def find_fault(
    fn: Callable[..., Tensors],
    inputs: Sequence[Tensor],
    in_batch: tuple[Dim, ...],
    out_batch: Dims,
    count: int,
) -> str | None:
    """Find why mapped rows cannot share one batch.

    Args:
        fn: function of tensors with outputs in a tuple.
        inputs: its arguments, of ``count`` mapped rows.
        in_batch: the dim of each argument's rows.
        out_batch: the dim of each output's rows.
        count: number of mapped rows.

    Returns:
        The reason, in words; ``""`` if there is none; ``None`` if nothing could be tried, because no
        row is finite or memory ran out. torch's generators are as before.
    """
    devices = {t.device for t in inputs if t.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        torch.manual_seed(0)
        rows = _trial_rows(inputs, in_batch, count)
        tried: list[Row] = []
        alone: list[Row] = []
        for row in rows:
            try:
                found = _evaluate(fn, row, in_batch)
            except Exception:  # a window that the function refuses says nothing
                continue
            tried.append(row)
            alone.append(found)
        if len(tried) < 2:
            return "" if rows else None
        if not _agree(_evaluate(fn, tried[0], in_batch), alone[0]):
            return ""  # it draws noise, which differs between rows anyway
        together = [
            columns[0] if dim is None else torch.cat(columns, dim)
            for dim, columns in zip(in_batch, zip(*tried, strict=True), strict=True)
        ]
        try:
            with _Reads(_READS) as reads:
                folded = _evaluate(fn, together, in_batch)
        except Exception as error:
            if is_out_of_memory(error):
                return None
            return f"it fails for several rows ({type(error).__name__}: {error})"
    if reads.found:
        return "it reads values of tensors, as `if` and `.item()` do"
    num_outputs = len(folded) - sum(dim is not None for dim in in_batch)
    dims = [*dims_per_tensor(out_batch, num_outputs), *(dim for dim in in_batch if dim is not None)]
    for index, row in enumerate(alone):
        if not _agree(narrow_rows(folded, dims, index, len(alone)), row):
            return "its rows depend on each other"
    return ""


class _Reads(TorchFunctionMode):
    """Sees whether a function reads the value of a tensor."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names, self.found = names, False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.found = self.found or getattr(func, "__name__", "") in self.names
        return func(*args, **(kwargs or {}))


def _trial_rows(inputs: Sequence[Tensor], in_batch: tuple[Dim, ...], count: int) -> list[Row]:
    """The first, middle and last mapped row, and changed ones; only finite rows."""
    picked = [narrow_rows(inputs, in_batch, k, count) for k in sorted({0, count // 2, count - 1})]
    rows = [row for row in picked if all(t.isfinite().all() for t in row if t.is_floating_point())]

    def change(row: Row, how: Callable[[Tensor], Tensor]) -> Row:
        return [
            t if dim is None or not t.is_floating_point() else how(t)
            for t, dim in zip(row, in_batch, strict=True)
        ]

    changed = [
        change(rows[index], how)
        for index, how in (
            (0, torch.neg),
            (-1, torch.neg),
            (0, lambda t: 8.0 * t),
            (-1, lambda t: t + 0.3 * t.abs().mean() * torch.randn_like(t)),
        )
        if rows
    ]
    return [*rows, *changed]


def _evaluate(fn: Callable[..., Tensors], row: Row, in_batch: tuple[Dim, ...]) -> Row:
    """The outputs at a row, and the gradients of a smooth sum of them in the arguments with rows."""
    sources = [t.detach().clone() for t in row]
    for t in sources:
        t.requires_grad_(t.is_floating_point())
    outputs = fn(*sources)
    wanted = [t for t, dim in zip(sources, in_batch, strict=True) if dim is not None]
    terms = [t.sin().sum() for t in outputs if t.requires_grad]
    leaves = [t for t in wanted if t.requires_grad]
    slopes: list[Tensor | None]
    if terms and leaves:
        grads = iter(torch.autograd.grad(terms, leaves, allow_unused=True))
        slopes = [next(grads) if t.requires_grad else None for t in wanted]
    else:
        slopes = [None] * len(wanted)
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, slopes, strict=True)]
    return [t.detach() for t in (*outputs, *filled)]


def _agree(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether tensors are equal but for rounding; NaN equals NaN."""
    pairs = zip(left, right, strict=True)
    return all(agree(a, b) if b.is_floating_point() else torch.equal(a, b) for a, b in pairs)
