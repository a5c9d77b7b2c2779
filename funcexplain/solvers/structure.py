"""The Jacobian of networks that score each asset from its own column: one reverse pass gives all of it.

Many allocators end in a softmax, or another normalization, of scores ``s_a(x_a)``, one for each asset:
``w_k = f_k / sum(f)``. With ``g_a``, the gradient of ``log f_a`` with respect to its own column,

    ``dw_k / dx_a = w_k (1[k = a] - w_a) g_a``.

The pullback of ``v`` from the weights is ``e_a g_a`` on column ``a``, with ``e = w (v - w'v)``. One
pullback with no zero in ``e`` gives all gradients. Whether a network is of this kind is found out by a
second pullback, of another direction, which these gradients must predict: columns that interact make
the two disagree, as random products find a wrong matrix product.

Searched scenarios mix the columns of shocks by a factor of their covariance, ``r_t = F_t z_t``:
the gradients for columns of ``r`` follow from those for ``z`` by a triangular solve.

References:
    A. R. Curtis, M. J. D. Powell, J. K. Reid (1974), On the Estimation of Sparse Jacobian Matrices,
    https://doi.org/10.1093/imamat/13.1.117; R. Freivalds (1977), Probabilistic Machines Can Use Less
    Running Time, IFIP Congress
"""

from __future__ import annotations

import torch
from torch import Tensor

from funcexplain.networks.network import slope

# Weights below this count as zero, so that no direction overflows.
_FLOOR = 1e-30
# Rounding of a prediction, in units of that of the dtype.
_ROUNDING = 1e3


def column_jacobian(
    measured: Tensor, weights: Tensor, z: Tensor, factor: Tensor | None, *, checks: bool
) -> Tensor | None:
    """The Jacobian of what is measured, if each asset is scored from its own column.

    Args:
        measured: what is measured of the weights, ``(*rows, K)``; the graph to ``z`` is kept.
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
        pulled = slope(weights, z, v, retain_graph=True)
        return _unmix(pulled.reshape(*w.shape[:-1], -1, count), factor), reached

    # The sum is zero, so that a softmax passes all of it on.
    effect = torch.ones(count, dtype=w.dtype, device=w.device)
    effect[-1] = 1.0 - count
    pulled, reached = pull(effect)
    gradients = torch.where(reached == 0.0, 0.0, pulled / reached)
    if checks:
        pulled, reached = pull(torch.arange(count).to(w).square().cos())
        error = (pulled - reached * gradients).flatten(rows).abs().amax(-1)
        scale = pulled.flatten(rows).abs().amax(-1)
        # A window that is not finite shows nothing.
        agrees = error <= _ROUNDING * torch.finfo(w.dtype).eps * scale
        if not (agrees | ~w.isfinite().all(-1)).all():
            return None
    compared = torch.eye(count, dtype=w.dtype, device=w.device)
    if measured is not weights:
        directions = torch.eye(measured.shape[-1], dtype=w.dtype, device=w.device)
        if rows:
            directions = directions[:, None].expand(-1, *measured.shape)
        compared = slope(measured, weights, directions, batched=True, retain_graph=True).movedim(0, rows)
    scores = (compared - compared @ w.unsqueeze(-1)) * w.unsqueeze(-2)
    if factor is None:
        return (scores.unsqueeze(-2) * gradients.unsqueeze(rows)).flatten(rows + 1)
    return torch.einsum("...ka,...da,...daj->...kdj", scores, gradients, factor).flatten(rows + 1)


def _unmix(pulled: Tensor, factor: Tensor | None) -> Tensor:
    """From the pullback to shocks, ``F' g``, to that to returns; a frozen asset has none."""
    if factor is None:
        return pulled
    held = factor.diagonal(dim1=-2, dim2=-1) == 0
    whole = factor + torch.diag_embed(held.to(factor))
    return torch.linalg.solve_triangular(whole.mT, pulled.unsqueeze(-1), upper=True).squeeze(-1)
