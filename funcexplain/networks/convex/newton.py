"""One Newton step of a quadratic model over the moving weights, with a given sum.

``d = argmin_d  1/2 d' H d + g' d``  subject to ``sum(d) = s`` and ``d = 0`` for all other weights.

The bordered system of this problem is regular exactly when ``H + rho 1 1'`` on the moving weights is
positive definite, for any rho > 0, and gives the same step: the added term is constant for a fixed sum.
So a singular covariance needs no pseudo-inverse, and one symmetric positive definite matrix of
unchanged size is enough.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def step_matrix(matrix: Tensor, barrier: Tensor, moving: Tensor) -> Tensor:
    """``H + rho 1 1'`` over the moving weights and ``rho I`` over the others, ``(..., A, A)``.

    ``H = Q + diag(barrier)``, with ``matrix`` Q ``(..., A, A)``; ``barrier`` and ``moving`` are ``(...,
    A)``.
    """
    # rho of the size of Q: the barrier of a weight near zero is many orders larger.
    rho = matrix.detach().diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
    rho = torch.maximum(rho, barrier.detach().amin(-1, keepdim=True))[..., None]
    rho = rho.masked_fill(rho == 0.0, 1.0)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    both = moving[..., :, None] & moving[..., None, :]
    diagonal = torch.where(moving, barrier, rho[..., 0])
    return torch.addcmul(torch.where(both, matrix + rho, 0.0), identity, diagonal[..., None, :])


def newton_step(
    gradient: Tensor, moving: Tensor, total: Tensor, solve: Callable[[Tensor], Tensor]
) -> Tensor:
    """The step ``(..., A)`` of sum ``total``, ``(..., 1)``; zero for weights that may not move.

    Adding a constant to the gradient ``(..., A)`` does not change the step. ``solve`` maps right-hand
    sides ``(..., A, 2)`` to solutions of the system `step_matrix`.
    """
    ones = moving.to(gradient.dtype)
    free, along = solve(torch.stack([-gradient * ones, ones], -1)).unbind(-1)
    # The second solution changes the sum; if nothing moves, both are zero.
    rate = along.sum(-1, keepdim=True).masked_fill(~moving.any(-1, keepdim=True), 1.0)
    step = free + along * ((total - free.sum(-1, keepdim=True)) / rate)
    # Twice: if Q is small relative to the gradient, the first correction has lost digits.
    return step + along * ((total - step.sum(-1, keepdim=True)) / rate)


def differentiable_step(matrix: Tensor, barrier: Tensor, gradient: Tensor, moving: Tensor) -> Tensor:
    """`newton_step` with sum zero, in operations that torch can differentiate any number of times."""
    # Not torch.linalg.solve: its forward-mode derivatives of second order are wrong (torch 2.13).
    inverse = torch.linalg.inv_ex(step_matrix(matrix, barrier, moving)).inverse
    total = torch.zeros_like(gradient[..., :1])
    return newton_step(gradient, moving, total, lambda rhs: inverse @ rhs)
