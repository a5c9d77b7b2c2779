"""What versions of torch differ in, from the oldest supported one, 2.0, on: nothing else asks for a version.

Each function names the version that brought what it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack


def loads_safely() -> bool:
    """Whether ``torch.load(weights_only=True)`` does what it promises.

    It runs code from a crafted file before 2.6 (CVE-2025-32434) and corrupts memory before 2.10.
    """
    return torch.__version__ >= (2, 10)


def itemsize(dtype: torch.dtype) -> int:
    """Bytes of one number; ``dtype.itemsize`` since 2.1."""
    return torch.empty((), dtype=dtype).element_size()


def slope(
    outputs: Tensor, z: Tensor, direction: Tensor, *, batched: bool = False, retain_graph: bool = False
) -> Tensor:
    """The pullback of a direction, or of several; ``torch.autograd.grad(materialize_grads=)`` since 2.1.

    A network may ignore its input or cut the graph. The result is zero then, as in torch.func.
    """
    found = None
    if outputs.requires_grad:
        (found,) = torch.autograd.grad(
            outputs, z, direction, retain_graph, is_grads_batched=batched, allow_unused=True
        )
    return z.detach().new_zeros(*direction.shape[:batched], *z.shape) if found is None else found


def is_traced() -> bool:
    """Whether operations are being traced to a graph; ``torch._C._get_dispatch_mode`` since 2.1."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    from torch.fx.experimental.proxy_tensor import get_innermost_proxy_mode

    return get_innermost_proxy_mode() is not None


@contextmanager
def without_transforms() -> Iterator[None]:
    """Leave all transforms of torch.func; ``temporarily_clear_interpreter_stack`` since 2.1."""
    with ExitStack() as stack:
        while _functorch.peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_pop_interpreter_stack())
        yield
