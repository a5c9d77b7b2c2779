"""Losses: distance of an allocation from the target, ``(weights, target) -> scalar``.

Each is a pure function of two allocations of shape ``(A,)``, the network's and the one to reach, with a
scalar value; of allocations that lead with rows, with a value for each. Following the conventions of
their fields, `mse`, `mae` and `huber` average over assets; `kl`, `js` and `cross_entropy` sum, and need
non-negative allocations. Logarithms clamp weights to the dtype's smallest normal number, so that a
weight of exactly zero has a large but finite cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cosine_distance", "cross_entropy", "huber", "js", "kl", "mae", "mse"]


def mse(weights: Tensor, target: Tensor) -> Tensor:
    """Mean of squared differences, ``mean((w - t)**2)``; no factor one half.

    Through a softmax its gradient vanishes near one-hot allocations; that of `kl` does not.

    Returns:
        Scalar, zero only where both are equal.

    Example:
        >>> mse(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        tensor(0.2500)
    """
    return (weights - target).square().mean(-1)


def mae(weights: Tensor, target: Tensor) -> Tensor:
    """Mean of absolute differences, ``mean(|w - t|)``.

    Returns:
        Scalar; its gradient is zero where both are equal.

    Example:
        >>> mae(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        tensor(0.5000)
    """
    return (weights - target).abs().mean(-1)


def huber(weights: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Mean of Huber's function: ``d**2 / 2`` for ``|d| <= delta``, else ``delta * (|d| - delta / 2)``.

    Weights differ by at most one, so the default is half of `mse`; 0.01 is a sensible ``delta``
    (``functools.partial(huber, delta=0.01)``).

    Args:
        weights: allocation, shape ``(A,)``.
        target: allocation to reach, shape ``(A,)``.
        delta: difference at which the function becomes linear.

    Example:
        >>> huber(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), delta=0.1)
        tensor(0.0450)

    References:
        P. J. Huber (1964), Robust Estimation of a Location Parameter,
        https://doi.org/10.1214/aoms/1177703732
    """
    distance = (weights - target).abs()
    square = 0.5 * distance.square()
    line = delta * (distance - 0.5 * delta)
    return torch.where(distance <= delta, square, line).mean(-1)


def kl(weights: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence from target to weights, ``sum(t * log(t / w))``, in nats.

    Its gradient through a softmax is ``w - t``, also near one-hot allocations. Terms with ``t = 0`` are
    zero. A negative weight (a short position) makes the loss NaN: use `mse` or `mae` instead.

    Returns:
        Scalar, non-negative if both have the same sum.

    Example:
        >>> kl(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        tensor(0.6931)

    References:
        S. Kullback, R. A. Leibler (1951), On Information and Sufficiency,
        https://doi.org/10.1214/aoms/1177729694
    """
    return (torch.xlogy(target, target) - torch.xlogy(target, _clamp_positive(weights))).sum(-1)


def js(weights: Tensor, target: Tensor) -> Tensor:
    """Jensen-Shannon divergence, ``(kl(m, t) + kl(m, w)) / 2`` with ``m = (w + t) / 2``, in nats.

    Returns:
        Scalar in ``[0, log 2]`` if both sum to one; symmetric.

    Example:
        >>> js(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
        tensor(0.6931)

    References:
        J. Lin (1991), Divergence Measures Based on the Shannon Entropy,
        https://doi.org/10.1109/18.61115
    """
    middle = _clamp_positive(0.5 * (weights + target)).log()
    from_target = torch.xlogy(target, target) - target * middle
    # weights * log(weights) has an infinite slope at zero; the clamp keeps it finite.
    from_weights = weights * (_clamp_positive(weights).log() - middle)
    return 0.5 * (from_target + from_weights).sum(-1)


def cross_entropy(weights: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the weights under the target, ``-sum(t * log(w))``, in nats.

    It is `kl` plus the target's entropy: the same gradient, but nonzero at the target.

    Example:
        >>> cross_entropy(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]))
        tensor(0.6931)
    """
    return -torch.xlogy(target, _clamp_positive(weights)).sum(-1)


def cosine_distance(weights: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine similarity, ``1 - <w, t> / (|w| |t|)``.

    Scale-invariant: it measures the target's proportions, not its size.

    Returns:
        Scalar in ``[0, 2]``; norms are clamped to at least 1e-8.

    Example:
        >>> cosine_distance(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
        tensor(1.)
    """
    return 1.0 - torch.nn.functional.cosine_similarity(weights, target, dim=-1, eps=1e-8)


def _clamp_positive(weights: Tensor) -> Tensor:
    return weights.clamp_min(torch.finfo(weights.dtype).tiny)


ROWWISE = (mse, mae, huber, kl, js, cross_entropy, cosine_distance)
"""Losses that need no mapping to take rows."""
