"""The objective of a search point, and its gradient by torch.func or by one plain backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from funcexplain.networks.network import bound, slope
from funcexplain.problems.problem import Args, Problem
from funcexplain.solvers.state import Evaluate, Evaluation, Objective, ValueAndGrad

T = TypeVar("T")
# The value, loss and weights of a point.
Scored = tuple[Tensor, tuple[Tensor, Tensor]]


def make_objective(problem: Problem) -> Objective:
    """From a search point to ``(value, (loss, weights))``; NaN where its window is not finite."""

    def objective(z: Tensor, args: Args) -> Scored:
        x = problem.windows(z, args)
        weights_like = problem.criterion.weights_like(args["target"])
        value, aux = where_finite(x, weights_like, lambda x: problem.evaluate(x, args))
        return sum((cost(z, args) for cost in problem.costs), start=value), aux

    return objective


def value_and_grad(fn: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> ValueAndGrad:
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


def backward_value_and_grad(fn: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> ValueAndGrad:
    """Gradient by one plain backward pass: the same numbers, where no transform is active.

    ``torch.func.grad`` records its backward pass for a possible second derivative, which doubles its
    cost, and rejects custom functions that were not written for it (cvxpylayers). A search needs
    neither.

    Args:
        fn: function ``(z, args) -> (value, aux)`` with a scalar value, or with one value per row of
            ``z`` that depends on no other row; aux holds tensors.

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
        grads = slope(value, z, torch.ones_like(value))
        return (value.detach(), tuple(leaf.detach() for leaf in aux)), grads

    return wrapped


def with_gradient(
    objective: Objective, gradient: Callable[[Objective], ValueAndGrad] = value_and_grad
) -> Evaluate:
    """Evaluate an objective with its gradient as the slopes.

    Args:
        objective: ``(z, args) -> (value, (loss, weights))``.
        gradient: `value_and_grad` or `backward_value_and_grad`.
    """
    differentiated = gradient(objective)

    def evaluate(z: Tensor, args: Args) -> Evaluation:
        (value, (loss, weights)), grads = differentiated(z, args)
        return Evaluation(value, loss, weights, grads)

    return evaluate


def with_bound_network(
    problem: Problem, evaluate: Callable[[Tensor, Args], T]
) -> Callable[[Tensor, Args], T]:
    """Keep the parameters in the network while it is evaluated, backward passes included."""

    def bound_evaluate(z: Tensor, args: Args) -> T:
        with bound(problem.apply, args["params"]):
            return evaluate(z, args)

    return bound_evaluate


def where_finite(
    x: Tensor, weights_like: Tensor, evaluate: Callable[[Tensor], Scored], rows: int = 0
) -> Scored:
    """Evaluate windows that are finite; value, loss and weights of others are NaN.

    The network never sees the others: some kernels of torch crash on NaN, some solvers raise for the
    whole batch.

    Args:
        x: a window, or windows that lead with their rows.
        weights_like: of the shape of the weights, with the rows in front.
        evaluate: from such windows to ``(value, (loss, weights))``.
        rows: number of leading dimensions, 0 or 1.
    """
    # A sum is the fastest pass over memory that sees every NaN.
    detached = x.detach()
    if is_readable(detached) and math.isfinite(detached.sum()):
        return evaluate(x)
    finite = (
        detached.flatten(rows).sum(-1, dtype=torch.float64).isfinite()
    )  # float32 may have overflowed
    if is_readable(finite) and finite.all():
        return evaluate(x)
    if is_readable(finite) and not finite.any():
        unknown = torch.full_like(weights_like, torch.nan)
        value = unknown.flatten(rows).sum(-1)
        return value, (value, unknown)
    stand_in = x.index_select(0, finite.to(torch.int64).argmax(keepdim=True)) if rows else x
    stand_in = torch.where(stand_in.isfinite(), stand_in, torch.zeros_like(stand_in)).detach()
    value, (loss, weights) = evaluate(where_rows(finite, x, stand_in))
    value, loss, weights = (
        where_rows(finite, t, torch.full_like(t, torch.nan)) for t in (value, loss, weights)
    )
    return value, (loss, weights)


def where_rows(flags: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``torch.where`` with one flag for each row."""
    return torch.where(flags.view(flags.shape + (1,) * (new.ndim - flags.ndim)), new, old)


def is_readable(t: Tensor) -> bool:
    """Whether Python may look at the numbers: no transform, no trace, no GPU to wait for."""
    return (
        t.device.type == "cpu"
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )
