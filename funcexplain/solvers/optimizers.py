"""Optimizers as pairs of pure functions, written for one search point.

``init(z) -> state`` and ``update(grads, state, z) -> (updates, state)``; the updates are *added* to
``z``, sign included. States are NamedTuples of tensors, so that a pair can be mapped by
``torch.func.vmap``. Names and defaults are those of torch.optim where they have a twin there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from funcexplain.problems.checks import check_number, check_pair
from funcexplain.problems.grid import map_rows, mapped_dims
from funcexplain.problems.problem import Args, Problem, identity
from funcexplain.solutions.html import table
from funcexplain.solvers.foreign import adapt
from funcexplain.solvers.gradient import (
    backward_value_and_grad,
    is_readable,
    make_objective,
    with_gradient,
)
from funcexplain.solvers.state import (
    Advance,
    BoundMethod,
    Evaluation,
    Method,
    Objective,
    State,
    Stopping,
    ValueAndGrad,
)


class Optimizer(NamedTuple):
    """A stateless optimizer: two pure functions.

    Attributes:
        init: ``z -> state``.
        update: ``(grads, state, z) -> (updates, state)``; ``z + updates`` is the next point.
    """

    init: Callable[[Tensor], Any]
    update: Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]]

    def _repr_html_(self) -> str:
        settings = getattr(self.update, "keywords", {})
        return table(("optimizer", "value"), [(name, f"{value:g}") for name, value in settings.items()])

    def bind(
        self, problem: Problem, stopping: Stopping, gradient: Callable[[Objective], ValueAndGrad]
    ) -> BoundMethod:
        """Return the functions of one row's step: the gradient, and an update that is projected."""

        def init(z: Tensor, args: Args) -> Any:
            del args
            return self.init(z)

        def advance(state: State, args: Args, at: Evaluation) -> Advance:
            updates, carried = check_pair(self.update(at.slopes, state.optimizer, state.z))
            (shape, dtype), (got, kind) = ((tuple(t.shape), t.dtype) for t in (at.slopes, updates))
            if (shape, dtype) != (got, kind):
                raise ValueError(
                    f"method: updates must have the shape and dtype of the search point {shape} "
                    f"{dtype}, got {got} {kind}"
                )
            z = problem.project(state.z + updates, args)
            return Advance(z, carried, at.value, state.kept.value, at.loss, at.slopes)

        def advance_adam(state: State, args: Args, at: Evaluation) -> Advance:
            settings = cast(Any, self.update).keywords
            z, carried = _move(at.slopes, state.optimizer, state.z, **settings)
            return Advance(project(z, args), carried, at.value, state.kept.value, at.loss, at.slopes)

        project, is_adam = problem.project, getattr(self.update, "func", None) is _adam_update
        if problem.dims and project is not identity:
            project = map_rows(project, 0, mapped_dims(problem.dims, problem.args))
        return BoundMethod(
            problem=problem,
            init=init,
            evaluate=with_gradient(make_objective(problem), gradient),
            backward=partial(with_gradient, gradient=backward_value_and_grad),
            advance=advance,
            stopping=stopping,
            advance_in_place=advance_adam if is_adam else None,
        )


class AdamState(NamedTuple):
    """State of `adam`: updates made, and running means of gradients and their squares."""

    num_updates: Tensor
    mu: Tensor
    nu: Tensor


class SgdState(NamedTuple):
    """State of `sgd`: the decaying sum of gradients."""

    velocity: Tensor


def adam(lr: float = 1e-1, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """Adam with bias correction: ``z -= lr * m_hat / (sqrt(v_hat) + eps)``.

    ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g**2``, ``m_hat = m / (1 - b1**t)`` and
    ``v_hat = v / (1 - b2**t)``. Equal to ``torch.optim.Adam`` to rounding; every step is differentiable.

    Args:
        lr: step size, >= 0, in the units of the search variable.
        betas: decay rates of both means, in ``[0, 1)``.
        eps: added to the root of the second mean, >= 0.

    Returns:
        The pair ``(init, update)``.

    Raises:
        TypeError: if a setting is not a number.
        ValueError: if a setting is out of range (the value is named).

    Example:
        >>> optimizer = adam(lr=0.1)
        >>> z = torch.zeros(2)
        >>> updates, state = optimizer.update(torch.tensor([1.0, -5.0]), optimizer.init(z), z)
        >>> updates
        tensor([-0.1000,  0.1000])

    References:
        D. P. Kingma, J. Ba (2015), Adam: A Method for Stochastic Optimization,
        https://arxiv.org/abs/1412.6980
    """
    lr = check_number("adam", "lr", lr, minimum=0.0)
    eps = check_number("adam", "eps", eps, minimum=0.0)
    try:
        b1, b2 = betas
    except (TypeError, ValueError):
        raise TypeError(f"adam: betas must be a pair of numbers, got {betas!r}") from None
    for index, beta in enumerate((b1, b2)):
        if check_number("adam", f"betas[{index}]", beta, minimum=0.0) >= 1.0:
            raise ValueError(f"adam: betas[{index}] must be < 1, got {beta!r}")
    return _adam(lr, float(b1), float(b2), eps)


@cache  # equal settings are one optimizer: code that was compiled with it serves again
def _adam(lr: float, b1: float, b2: float, eps: float) -> Optimizer:
    # Not closures: an optimizer is pickled when it goes to another process.
    return Optimizer(_adam_init, partial(_adam_update, lr=lr, b1=b1, b2=b2, eps=eps))


def _adam_init(z: Tensor) -> AdamState:
    count = torch.zeros((), dtype=torch.int64, device=z.device)
    # Squares of small gradients vanish in half precision; the means are kept in single, at least.
    wide = torch.promote_types(z.dtype, torch.float32)
    return AdamState(count, torch.zeros_like(z, dtype=wide), torch.zeros_like(z, dtype=wide))


def _adam_update(
    grads: Tensor, state: AdamState, z: Tensor, *, lr: float, b1: float, b2: float, eps: float
) -> tuple[Tensor, AdamState]:
    grads = grads.to(state.mu.dtype)
    num_updates = state.num_updates + 1
    mu = torch.lerp(state.mu, grads, 1.0 - b1)
    nu = torch.addcmul(state.nu * b2, grads, grads, value=1.0 - b2)
    # The corrections are computed in float64 and then rounded, as torch.optim does with Python's
    # floats; in float32, 1 - b2**t loses half its digits to cancellation.
    step_size: float | Tensor
    root_correction: float | Tensor
    if num_updates.ndim == 0 and is_readable(num_updates):
        time = int(num_updates)
        step_size, root_correction = lr / (1.0 - b1**time), math.sqrt(1.0 - b2**time)
    else:
        correction, root_correction = (c.to(grads.dtype) for c in _corrections(num_updates, b1, b2))
        step_size = lr * correction
    if isinstance(step_size, float) and eps > 0.0 and not torch.is_grad_enabled():
        updates = (mu * -step_size).div_(nu.sqrt().div_(root_correction).add_(eps))
    else:
        # The smallest normal number does not change the root, and keeps its derivative finite at zero.
        root = (nu + torch.finfo(nu.dtype).tiny).sqrt()
        updates = -step_size * mu / (root / root_correction + eps)
    return updates.to(z.dtype), AdamState(num_updates, mu, nu)


def _move(
    grads: Tensor, state: AdamState, z: Tensor, *, lr: float, b1: float, b2: float, eps: float
) -> tuple[Tensor, AdamState]:
    """The next point, or those of rows that each count their updates; the means change in place."""
    grads = grads.to(state.mu.dtype)
    num_updates = state.num_updates + 1
    mu = state.mu.lerp_(grads, 1.0 - b1)
    nu = state.nu.mul_(b2).addcmul_(grads, grads, value=1.0 - b2)
    root = nu.sqrt() if eps > 0.0 else (nu + torch.finfo(nu.dtype).tiny).sqrt_()
    # Both corrections change the step size and eps, and no entry of a window.
    first, last = 0, 1
    if is_readable(num_updates):
        first, last = map(int, num_updates.aminmax() if num_updates.ndim else (num_updates,) * 2)
    if first == last:
        root_correction = math.sqrt(1.0 - b2**first)
        step_size = lr * root_correction / (1.0 - b1**first)
        z = torch.addcdiv(z, mu, root.add_(eps * root_correction), value=-step_size).to(z.dtype)
    else:
        rows = (-1,) + (1,) * (z.ndim - 1)
        correction, roots = (c.to(mu.dtype).view(rows) for c in _corrections(num_updates, b1, b2))
        steps = mu * (-lr * roots * correction)
        z = torch.addcdiv(z, steps, root.add_(eps * roots)).to(z.dtype)
    return z, AdamState(num_updates, mu, nu)


def _corrections(num_updates: Tensor, b1: float, b2: float) -> tuple[Tensor, Tensor]:
    """Factors ``1 / (1 - b1**t)`` and ``sqrt(1 - b2**t)`` of rows with a count of their own, float64.

    Both in one tensor, and by logarithms: compiled code then computes them once per row, and not once
    per entry of its window, where they would cost more than everything else.
    """
    times = num_updates.double()
    log_b1, log_b2 = (math.log(beta) if beta else -math.inf for beta in (b1, b2))
    log_1 = torch.log1p(-(times * log_b1).exp())
    log_2 = torch.log1p(-(times * log_b2).exp())
    both = torch.stack([-log_1, 0.5 * log_2], dim=-1).exp()
    return both[..., 0], both[..., 1]


def sgd(lr: float = 1e-1, momentum: float = 0.0) -> Optimizer:
    """Gradient descent with heavy-ball momentum: ``v = momentum * v + g``, ``z -= lr * v``.

    Equal to ``torch.optim.SGD`` with the same settings to rounding.

    Args:
        lr: step size, >= 0.
        momentum: decay of the velocity, >= 0.

    Returns:
        The pair ``(init, update)``.

    Raises:
        TypeError: if a setting is not a number.
        ValueError: if a setting is negative (the value is named).

    Example:
        >>> optimizer = sgd(lr=0.1)
        >>> z = torch.zeros(2)
        >>> optimizer.update(torch.tensor([1.0, -5.0]), optimizer.init(z), z)[0]
        tensor([-0.1000,  0.5000])

    References:
        B. T. Polyak (1964), Some Methods of Speeding Up the Convergence of Iteration Methods,
        https://doi.org/10.1016/0041-5553(64)90137-5
    """
    lr = check_number("sgd", "lr", lr, minimum=0.0)
    return _sgd(lr, check_number("sgd", "momentum", momentum, minimum=0.0))


@cache
def _sgd(lr: float, momentum: float) -> Optimizer:
    return Optimizer(_sgd_init, partial(_sgd_update, lr=lr, momentum=momentum))


def _sgd_init(z: Tensor) -> SgdState:
    return SgdState(torch.zeros_like(z))


def _sgd_update(
    grads: Tensor, state: SgdState, z: Tensor, *, lr: float, momentum: float
) -> tuple[Tensor, SgdState]:
    del z
    velocity = momentum * state.velocity + grads
    return -lr * velocity, SgdState(velocity)


def as_optimizer(pair: Any) -> Optimizer:
    """Take any ``(init, update)`` pair as an optimizer.

    An ``update`` with parameters named ``params`` or ``inplace``, as torchopt's have, gets the point as
    ``params`` and ``inplace=False``; torchopt is not imported. States may hold ``None``, numbers and
    bools; where rows are mapped, ``update`` sees its numbers as tensors.

    Args:
        pair: an `Optimizer`, or anything that unpacks into two functions ``init(z) -> state`` and
            ``update(grads, state, z) -> (updates, state)``.

    Returns:
        An optimizer.

    Raises:
        TypeError: if it is not a pair of functions; a ``torch.optim`` class or object is named as such.

    Example:
        >>> signs = (lambda z: (), lambda grads, state, z: (-0.1 * grads.sign(), state))
        >>> as_optimizer(signs).update(torch.tensor([3.0]), (), torch.zeros(1))[0]
        tensor([-0.1000])
    """
    return check_optimizer("as_optimizer", "pair", pair)


def as_method(where: str, method: Any) -> Method:
    """Take ``None`` as Adam and any ``(init, update)`` pair as an optimizer; else raise."""
    if method is None:
        return adam()
    if isinstance(method, Method) and not isinstance(method, type):
        return method
    return check_optimizer(where, "method", method)


def check_optimizer(where: str, name: str, pair: Any) -> Optimizer:
    """Raise unless ``pair`` is an optimizer; see `as_optimizer`."""
    if isinstance(pair, Optimizer):
        return pair
    try:
        init, update = pair
    except (TypeError, ValueError):
        init = update = None
    if not (callable(init) and callable(update)):
        of_torch = isinstance(pair, torch.optim.Optimizer) or (
            isinstance(pair, type) and issubclass(pair, torch.optim.Optimizer)
        )
        remedy = "it is called with its settings first, as in fe.adam(lr=0.1)"
        if isinstance(pair, str):
            remedy = "pass the optimizer itself, as fe.adam(lr=0.1), not its name"
        if of_torch:
            remedy = "torch.optim changes tensors in place; fe.adam() and fe.sgd() are pure twins"
        got = getattr(pair, "__name__", type(pair).__name__)
        raise TypeError(
            f"{where}: {name} must be an optimizer, a pair (init, update) of functions, got {got}; "
            f"{remedy}"
        )
    return Optimizer(*adapt(init, update))
