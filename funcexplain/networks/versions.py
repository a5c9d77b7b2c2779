"""Differences between supported versions of torch, 2.0.1 and later; no other module depends on one.

Each docstring names the feature that is not used directly, and the version that introduced it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.nn.utils._named_member_accessor import NamedMemberAccessor
from torch.nn.utils.stateless import _untie_named_tensors_map


def is_traced() -> bool:
    """Whether operations are being traced to a graph: ``torch._C._get_dispatch_mode`` (2.1)."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    from torch.fx.experimental.proxy_tensor import get_innermost_proxy_mode

    return get_innermost_proxy_mode() is not None


@contextmanager
def without_transforms() -> Iterator[None]:
    """Leave all transforms of torch.func: ``temporarily_clear_interpreter_stack`` (2.1)."""
    with ExitStack() as stack:
        while _functorch.peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_pop_interpreter_stack())
        yield


@contextmanager
def reparametrized(module: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Put tensors into a module, also tied ones: ``_reparametrize_module(stack_weights=True)`` (2.1)."""
    accessor = NamedMemberAccessor(module)
    untied = _untie_named_tensors_map(module, tensors)
    own, _ = accessor.swap_tensors_dict(untied, allow_missing=True)
    try:
        yield
    finally:
        # The last first: a part with two names was replaced twice.
        accessor.swap_tensors_dict(dict(reversed(own.items())), allow_missing=True)


def eager() -> AbstractContextManager[None]:
    """Run modules of `torch.compile` uncompiled where that is possible: ``set_stance`` (2.6)."""
    stances = torch.__version__ >= "2.6"
    return torch.compiler.set_stance("force_eager") if stances else nullcontext()


def load_program(path: str) -> nn.Module:
    """The module of an exported program: ``torch.export.load`` (2.1)."""
    if torch.__version__ < "2.1":
        raise RuntimeError(f"exported programs need torch 2.1, got {torch.__version__}")
    return torch.export.load(path).module()


def loads_safely() -> bool:
    """Whether ``torch.load(weights_only=True)`` is safe (2.10).

    It ran code from a crafted file before 2.6 (CVE-2025-32434), and could corrupt memory before 2.10.
    """
    return torch.__version__ >= "2.10"


def compiles() -> bool:
    """Whether steps can be compiled: ``FakeTensorMode(static_shapes=)`` (2.1), graphs on a GPU (2.2)."""
    return torch.__version__ >= "2.2"
