"""Jacobian of the values that a target bounds: of one row by torch.func, or by plain reverse passes.

Many allocators end in a softmax, or another normalization, of scores, each of an asset's own column:
``w_k = f_k(x_k) / sum(f)``. With ``g_a``, the gradient of ``log f_a`` in its column,

    ``dw_k / dx_a = w_k (1[k = a] - w_a) g_a``.

The pullback of ``v`` from the weights is ``e_a g_a`` on column ``a``, with ``e = w (v - w'v)``: if ``e``
has no zeros, one pullback gives the whole Jacobian. A second pullback, of another direction, tests
whether a network has this form: if columns interact, the first does not predict it.

References:
    A. R. Curtis, M. J. D. Powell, J. K. Reid (1974), On the Estimation of Sparse Jacobian Matrices,
    https://doi.org/10.1093/imamat/13.1.117
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from funcexplain.networks.checks import is_out_of_memory
from funcexplain.networks.network import slope
from funcexplain.networks.rounding import agree
from funcexplain.problems.problem import Args
from funcexplain.solvers.gradient import is_readable
from funcexplain.solvers.state import Evaluate, Evaluation, Objective

Measure = Callable[[Tensor, Args], Tensor]
# From measured values, search points and directions to the pullback of each direction.
Pull = Callable[[Tensor, Tensor, Tensor], Tensor]
# Evaluations from one check of a Jacobian's structure to the next; the first one is checked.
_CHECK_EVERY = 4
# Weights below this count as zero, so that no direction overflows.
_FLOOR = 1e-30


def with_jacobian(objective: Objective, measure: Measure) -> Evaluate:
    """Evaluate one row with its Jacobian by torch.func: pure, so that it can be mapped.

    Args:
        objective: ``(z, args) -> (value, (loss, weights))``.
        measure: ``(weights, args) -> measured``, K numbers.

    Returns:
        Function ``(z, args) -> Evaluation`` with slopes ``(K, N)`` for N entries searched.

    Example:
        >>> fn = lambda z, args: (z.sum(), (z.sum(), 2.0 * z))
        >>> with_jacobian(fn, lambda weights, args: weights)(torch.ones(2), {}).slopes
        tensor([[2., 0.],
                [0., 2.]])
    """

    def evaluate(z: Tensor, args: Args) -> Evaluation:
        def measured(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            value, (loss, weights) = objective(z, args)
            return measure(weights, args).flatten(), (value, loss, weights)

        jacobian, (value, loss, weights) = torch.func.jacrev(measured, has_aux=True)(z)
        return Evaluation(value, loss, weights, jacobian.flatten(1))

    return evaluate


def with_backward_jacobian(objective: Objective, measure: Measure) -> Evaluate:
    """Evaluate with the Jacobian: one forward pass, and a reverse pass for each number measured.

    If each asset is scored from its own column, one reverse pass gives all (see `column_jacobian`).
    That is checked at the first and every fourth evaluation, and given up after one failure.

    Args:
        objective: ``(z, args) -> (value, (loss, weights))``, of one question, or of rows that depend on
            no others.
        measure: ``(weights, args) -> measured``, also for rows.

    Returns:
        Function ``(z, args) -> Evaluation``, all detached.

    Example:
        >>> fn = lambda z, args: (z.sum(1), (z.sum(1), 2.0 * z))
        >>> with_backward_jacobian(fn, lambda weights, args: weights)(torch.ones(3, 2), {}).slopes.shape
        torch.Size([3, 2, 2])
    """
    way: Pull | None = None  # how directions share a reverse pass, once that was tried
    columns: bool | None = None  # whether each asset is scored from its own column, likewise
    count = 0

    def evaluate(z: Tensor, args: Args) -> Evaluation:
        nonlocal way, columns, count
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value, (loss, weights) = objective(z, args)
            rows = value.ndim
            measured = measure(weights, args).flatten(rows)
        readable, slopes = is_readable(measured), None
        if columns is not False and (readable or columns):
            checks = readable and count % _CHECK_EVERY == 0
            slopes = column_jacobian(measured, weights, z, args.get("factor"), checks=checks)
            columns, count = slopes is not None, count + 1
        if slopes is None:
            # Of rows, the pullback of their sum: each depends on its own entries alone.
            directions = torch.eye(measured.shape[-1], device=measured.device).to(measured)
            if rows:
                directions = directions[:, None].expand(-1, *measured.shape)
            jacobian, way = _pull_back(measured, z, directions, way)
            slopes = jacobian.flatten(rows + 1).movedim(0, rows)
        return Evaluation(value.detach(), loss.detach(), weights.detach(), slopes)

    return evaluate


def column_jacobian(
    measured: Tensor, weights: Tensor, z: Tensor, factor: Tensor | None, *, checks: bool
) -> Tensor | None:
    """The Jacobian of the measured values, if each asset is scored from its own column.

    Args:
        measured: values of the weights, ``(*rows, K)``; the graph to ``z`` is kept.
        weights: ``(*rows, A)``.
        z: the search points, ``(*rows, ..., A)``.
        factor: lower triangular ``(*rows, days, A, A)`` by which the columns of ``z`` are mixed, if they
            are; without rows if these share it.
        checks: whether a second pullback must agree.

    Returns:
        The Jacobian ``(*rows, K, N)`` for N entries searched; None if columns interact.

    Example:
        >>> z = torch.randn(5, 3, requires_grad=True)
        >>> weights = torch.softmax(z.square().sum(0), -1)
        >>> column_jacobian(weights, weights, z, None, checks=True).shape
        torch.Size([3, 15])
        >>> weights = torch.softmax(z.square().sum(0) * z.sum(), -1)
        >>> column_jacobian(weights, weights, z, None, checks=True) is None
        True
    """
    w, rows, count = weights.detach(), measured.ndim - 1, weights.shape[-1]
    if w.ndim != rows + 1 or z.ndim < w.ndim or z.shape[-1] != count or not weights.requires_grad:
        return None
    if factor is not None and z.ndim != rows + 2:
        return None

    def pull(effect: Tensor) -> tuple[Tensor, Tensor]:
        """The pullback of a direction to columns, ``(*rows, days, A)``, and what of it they get."""
        # The slope of a weight of zero shows in its own direction.
        v = effect / torch.where(w.abs() > _FLOOR, w, 1.0)
        reached = (w * v).double()
        reached = (reached - w * reached.sum(-1, keepdim=True)).to(w.dtype).unsqueeze(-2)
        pulled = slope(weights, z, v, retain_graph=True).reshape(*w.shape[:-1], -1, count)
        return pulled if factor is None else _unmix(pulled, factor), reached

    # The sum is zero, so that a softmax passes all of it on.
    effect = torch.ones(count, dtype=w.dtype, device=w.device)
    effect[-1] = 1.0 - count
    pulled, reached = pull(effect)
    gradients = torch.where(reached == 0.0, 0.0, pulled / reached)
    if checks:
        pulled, reached = pull(torch.arange(count, device=w.device).to(w).square().cos())
        error = (pulled - reached * gradients).flatten(rows).abs().amax(-1)
        scale = pulled.flatten(rows).abs().amax(-1)
        # A window that is not finite shows nothing.
        agrees = error <= min(1e3 * torch.finfo(w.dtype).eps, 1e-3) * scale
        if not (agrees | ~w.isfinite().all(-1)).all():
            return None
    compared = torch.eye(count, device=w.device).to(w)
    if measured is not weights:
        directions = torch.eye(measured.shape[-1], device=w.device).to(w)
        if rows:
            directions = directions[:, None].expand(-1, *measured.shape)
        compared = slope(measured, weights, directions, batched=True, retain_graph=True).movedim(0, rows)
    scores = (compared - compared @ w.unsqueeze(-1)) * w.unsqueeze(-2)
    if factor is None:
        return (scores.unsqueeze(-2) * gradients.unsqueeze(rows)).flatten(rows + 1)
    return torch.einsum("...ka,...da,...daj->...kdj", scores, gradients, factor).flatten(rows + 1)


def _unmix(pulled: Tensor, factor: Tensor) -> Tensor:
    """From the pullback to shocks ``z`` to that to returns, which move by ``F z``; frozen: zero."""
    held = factor.diagonal(dim1=-2, dim2=-1) == 0
    whole = factor + torch.diag_embed(held.to(factor))
    return torch.linalg.solve_triangular(whole.mT, pulled.unsqueeze(-1), upper=True).squeeze(-1)


def _pull_back(
    measured: Tensor, z: Tensor, directions: Tensor, way: Pull | None
) -> tuple[Tensor, Pull | None]:
    """The pullback of each direction, and the way that it took, once ways were tried.

    Directions share a pass by the rules of ``torch.func.vmap``; where an operation has none, by torch's
    older rules, which cost less then. A shared pass is compared with a plain one of a combination
    before it is believed; a custom function that cannot be mapped, or not correctly, has a pass for each
    direction.
    """
    if not measured.requires_grad:  # the network ignores its input, or cuts the graph
        return z.detach().new_zeros(len(directions), *z.shape), way
    tries = way is None and is_readable(measured)
    for shared in (_pull_by_rules, _pull_by_older_rules) if tries else (way or _pull_by_older_rules,):
        try:
            if not tries:
                return shared(measured, z, directions), way
            with warnings.catch_warnings(record=True) as noted:
                warnings.simplefilter("always")
                jacobian = shared(measured, z, directions)
            # Not of equal parts: the weights of a portfolio always sum to one.
            numbers = torch.arange(len(directions), device=measured.device)
            parts = numbers.to(measured).cos().view(-1, *[1] * measured.ndim)
            combined = (parts.view(-1, *[1] * z.ndim) * jacobian).sum(0)
            plain = slope(measured, z, (parts * directions).sum(0), retain_graph=True)
            # An operation without a rule runs row by row, with a warning.
            if agree(combined, plain) and not (noted and shared is _pull_by_rules):
                return jacobian, shared
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
    return _pull_one_by_one(measured, z, directions), _pull_one_by_one


def _pull_by_rules(measured: Tensor, z: Tensor, directions: Tensor) -> Tensor:
    return torch.func.vmap(partial(slope, measured, z, retain_graph=True))(directions)


def _pull_by_older_rules(measured: Tensor, z: Tensor, directions: Tensor) -> Tensor:
    return slope(measured, z, directions, batched=True, retain_graph=True)


def _pull_one_by_one(measured: Tensor, z: Tensor, directions: Tensor) -> Tensor:
    return torch.stack([slope(measured, z, each, retain_graph=True) for each in directions])
