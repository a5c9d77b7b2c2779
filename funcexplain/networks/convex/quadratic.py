"""Markowitz and risk budgeting: a search for the bounds, then Newton's method in plain torch operations.

The search returns the solution and the weights that move with the data. A Newton step from there has
length zero, but it is a function of the data, and its derivatives are those of the solution: of all
orders for a quadratic objective, which one step solves from any point; up to order ``2^k - 1`` after k
steps otherwise.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from funcexplain.networks.convex.checks import (
    broadcast_batch,
    check_cap,
    check_square,
    check_tensor,
    equal_split,
    is_equal_split,
)
from funcexplain.networks.convex.constants import constant
from funcexplain.networks.convex.newton import differentiable_step
from funcexplain.networks.convex.program import solve_program

_NEWTON_STEPS = 2  # of risk budgeting: derivatives up to third order


def markowitz(
    expected_returns: Tensor,
    cov_sqrt: Tensor,
    gamma_sqrt: Tensor,
    alpha: Tensor,
    max_weight: float = 1.0,
) -> Tensor:
    """The mean-variance portfolio with a ridge penalty and an upper bound on each weight.

    ``w = argmax r @ w - ||gamma_sqrt * S @ w||^2 - |alpha| * ||w||^2`` subject to ``sum(w) = 1`` and
    ``0 <= w <= max_weight``, the program of deepdow's ``NumericalMarkowitz``: gamma_sqrt is inside the
    square, and there is no factor one half. If several portfolios are optimal, one of them is returned,
    with the derivatives of one optimal path.

    Args:
        expected_returns: r, ``(..., A)``, of any floating dtype; computed in float64.
        cov_sqrt: S, ``(..., A, A)``, with ``S' S`` the covariance; it may be singular.
        gamma_sqrt: square root of the risk aversion, ``(...)``.
        alpha: strength of the ridge penalty, ``(...)``; its absolute value is used.
        max_weight: upper bound on each weight, at least ``1 / A``; 1 or more means no bound.

    Returns:
        Weights ``(..., A)`` in the dtype of ``expected_returns``, differentiable in all tensors any
        number of times; a row with an entry that is not finite is NaN.

    Raises:
        TypeError: if an argument is not a floating tensor or ``max_weight`` is not a number.
        ValueError: if shapes do not match, or ``A * max_weight < 1``.

    Example:
        >>> import torch
        >>> from funcexplain.networks.convex import markowitz
        >>> returns, cov_sqrt = torch.tensor([0.3, 0.2, 0.0]), torch.eye(3)
        >>> markowitz(returns, cov_sqrt, torch.tensor(0.5), torch.tensor(0.0))
        tensor([0.6000, 0.4000, 0.0000])
        >>> markowitz(returns, cov_sqrt, torch.tensor(0.5), torch.tensor(0.0), max_weight=0.5)
        tensor([0.5000, 0.4500, 0.0500])

    References:
        Markowitz, Portfolio selection (1952), https://doi.org/10.2307/2975974.
        Krepl, deepdow (2020), https://github.com/jankrepl/deepdow, ``layers/allocate.py``.
    """
    check_tensor("markowitz", "expected_returns", expected_returns, "(..., A)", 1)
    check_tensor("markowitz", "cov_sqrt", cov_sqrt, "(..., A, A)", 2)
    check_tensor("markowitz", "gamma_sqrt", gamma_sqrt, "(...)", 0)
    check_tensor("markowitz", "alpha", alpha, "(...)", 0)
    num_assets = expected_returns.shape[-1]
    check_square("markowitz", "cov_sqrt", cov_sqrt, num_assets)
    cap = check_cap("markowitz", num_assets, max_weight)

    root = cov_sqrt.double() * gamma_sqrt.double()[..., None, None]
    returns = 0.5 * expected_returns.double()  # halved, as is the matrix, which is then the covariance
    ridge = alpha.double().abs()[..., None].expand(*alpha.shape, num_assets)
    matrix, returns, ridge = broadcast_batch("markowitz", root.mT @ root, returns, ridge)
    if is_equal_split(num_assets, cap):
        return equal_split(returns, ridge, matrix.flatten(-2)).to(expected_returns.dtype)

    weights, moving = constant(partial(_search_markowitz, cap), matrix, returns, ridge)
    gradient = (matrix @ weights[..., None])[..., 0] + ridge * weights - returns
    step = differentiable_step(matrix, ridge, gradient, moving)
    return (weights + (step - step.detach())).to(expected_returns.dtype)


def _search_markowitz(
    cap: float, matrix: Tensor, returns: Tensor, ridge: Tensor
) -> tuple[Tensor, Tensor]:
    matrix = matrix.clone()
    matrix.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return solve_program(cap, matrix, returns, torch.zeros_like(returns))


def risk_budgeting(cov_sqrt: Tensor, budgets: Tensor, max_weight: float = 1.0) -> Tensor:
    """The portfolio with given risk contributions of its assets and an upper bound on each weight.

    ``w = argmin 1/2 ||S @ w||^2 - sum(b * log(w))`` subject to ``sum(w) = 1`` and
    ``0 <= w <= max_weight``, the program of deepdow's ``NumericalRiskBudgeting``. Budgets are not
    normalized: large budgets dominate the covariance. An asset with budget zero may have weight zero.

    Args:
        cov_sqrt: S, ``(..., A, A)``, of any floating dtype, with ``S' S`` the covariance; it may be
            singular. Computed in float64.
        budgets: b, ``(..., A)``, non-negative.
        max_weight: upper bound on each weight, at least ``1 / A``; 1 or more means no bound.

    Returns:
        Weights ``(..., A)`` in the dtype of ``cov_sqrt``, with exact derivatives up to the third order
        in both tensors; a row with a negative budget or an entry that is not finite is NaN.

    Raises:
        TypeError: if an argument is not a floating tensor or ``max_weight`` is not a number.
        ValueError: if shapes do not match, or ``A * max_weight < 1``.

    Example:
        >>> import torch
        >>> from funcexplain.networks.convex import risk_budgeting
        >>> cov_sqrt, budgets = torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([0.5, 0.5])
        >>> risk_budgeting(cov_sqrt, budgets)
        tensor([0.6588, 0.3412])
        >>> risk_budgeting(cov_sqrt, budgets, max_weight=0.6)
        tensor([0.6000, 0.4000])

    References:
        Bruder and Roncalli, Managing risk exposures using the risk budgeting approach (2012),
        https://mpra.ub.uni-muenchen.de/37749/.
        Spinu, An algorithm for computing risk parity weights (2013), https://ssrn.com/abstract=2297383.
    """
    check_tensor("risk_budgeting", "cov_sqrt", cov_sqrt, "(..., A, A)", 2)
    check_tensor("risk_budgeting", "budgets", budgets, "(..., A)", 1)
    num_assets = budgets.shape[-1]
    check_square("risk_budgeting", "cov_sqrt", cov_sqrt, num_assets)
    cap = check_cap("risk_budgeting", num_assets, max_weight)

    root = cov_sqrt.double()
    matrix, shares = broadcast_batch("risk_budgeting", root.mT @ root, budgets.double())
    if is_equal_split(num_assets, cap):
        return equal_split(shares, matrix.flatten(-2)).to(cov_sqrt.dtype)

    zeros = torch.zeros_like(shares)
    solution, moving = constant(partial(solve_program, cap), matrix, zeros, shares)
    weights = solution
    for _ in range(_NEWTON_STEPS):
        safe = weights.masked_fill(~moving | (weights <= 0.0), 1.0)
        pull = shares / safe
        barrier = (pull / safe).masked_fill(~moving, 0.0)
        gradient = (matrix @ weights[..., None])[..., 0] - pull
        weights = weights + differentiable_step(matrix, barrier, gradient, moving)
    return (solution + (weights - weights.detach())).to(cov_sqrt.dtype)
