"""Value and gradient of a function of the search point, by torch.func or by one plain backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Objective = Callable[[Tensor, Any], tuple[Tensor, Any]]
ValueAndGrad = Callable[[Tensor, Any], tuple[tuple[Tensor, Any], Tensor]]


def value_and_grad(fn: Objective) -> ValueAndGrad:
    """Gradient by ``torch.func.grad``: pure, so that it can be mapped and differentiated again.

    Args:
        fn: function ``(z, args) -> (value, aux)`` with a scalar value; aux holds tensors.

    Returns:
        Function ``(z, args) -> ((value, aux), grads)``; torch's ``grad_and_value`` returns the reverse.

    Example:
        >>> f = value_and_grad(lambda z, args: ((z * args).sum(), z))
        >>> (value, aux), grads = f(torch.ones(2), torch.tensor(3.0))
        >>> value, grads
        (tensor(6.), tensor([3., 3.]))
    """

    def wrapped(z: Tensor, args: Any) -> tuple[tuple[Tensor, Any], Tensor]:
        grads, value_and_aux = torch.func.grad_and_value(fn, has_aux=True)(z, args)
        return value_and_aux, grads

    return wrapped


def backward_value_and_grad(fn: Objective) -> ValueAndGrad:
    """Gradient by one ordinary backward pass: the same numbers, where no transform is active.

    ``torch.func.grad`` records its backward pass for a possible next derivative, which costs as much
    again, and refuses custom functions that were not written for it (cvxpylayers). A search needs
    neither.

    Args:
        fn: function ``(z, args) -> (value, aux)`` with a scalar value, or with one value for each row
            of ``z``, which depends on no other row; aux holds tensors.

    Returns:
        Function ``(z, args) -> ((value, aux), grads)``, all detached.

    Example:
        >>> f = backward_value_and_grad(lambda z, args: ((z * args).sum(), (z,)))
        >>> (value, aux), grads = f(torch.ones(2), torch.tensor(3.0))
        >>> value, grads
        (tensor(6.), tensor([3., 3.]))
    """

    def wrapped(z: Tensor, args: Any) -> tuple[tuple[Tensor, Any], Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value, aux = fn(z, args)
            # A network may ignore its input or cut the graph; torch.func then has zeros, too.
            grads = None
            if value.requires_grad:
                ones = torch.ones_like(value) if value.ndim else None
                (grads,) = torch.autograd.grad(value, z, ones, allow_unused=True)
        if grads is None:
            grads = torch.zeros_like(z)
        return (value.detach(), tuple(leaf.detach() for leaf in aux)), grads

    return wrapped
