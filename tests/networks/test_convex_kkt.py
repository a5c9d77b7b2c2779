"""The allocators solve their programs to rounding: optimality of thousands, degenerate ones included.

The gaps below are written from the programs alone and share no code with the solvers; the projection
that two of them need is a bisection.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from funcexplain.networks.convex import capped_softmax, markowitz, risk_budgeting, sparsemax

Markowitz = tuple[Tensor, Tensor, Tensor, Tensor]  # returns, cov_sqrt, gamma_sqrt, alpha

ACCURACY = 1e-12
ROWS = 300
SIZES = [(2, 0.6), (3, 0.5), (5, 0.2000001), (6, 0.3), (20, 0.06), (20, 0.2), (20, 1.0), (7, 3.0)]


def solve_total(link: str, x: Tensor, cap: float) -> Tensor:
    """The weights ``min(cap, link(x - tau))`` that sum to one, by bisection over tau."""
    x = x - x.amax(-1, keepdim=True)
    low, high = x.amin(-1, keepdim=True) - 1.0, torch.full_like(x[..., :1], math.log(x.shape[-1]) + 1.0)

    def weights(tau: Tensor) -> Tensor:
        return (x - tau).clamp(0.0, cap) if link == "linear" else (x - tau).exp().clamp(max=cap)

    for _ in range(120):
        middle = (low + high) / 2.0
        enough = weights(middle).sum(-1, keepdim=True) >= 1.0
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return weights(low)


def sparsemax_gap(x: Tensor, weights: Tensor, cap: float) -> Tensor:
    """Distance from the projection of the scores."""
    return (weights - solve_total("linear", x, cap)).abs().amax(-1)


def softmax_gap(x: Tensor, weights: Tensor, cap: float) -> Tensor:
    """Distance from ``min(cap, exp(x - tau))``."""
    return (weights - solve_total("exp", x, cap)).abs().amax(-1)


def markowitz_gap(arguments: Markowitz, weights: Tensor, cap: float) -> Tensor:
    """Length of a projected gradient step, scaled by the largest entry; also the error of the sum."""
    returns, root, gamma, alpha = arguments
    matrix = 2.0 * gamma[:, None, None] ** 2 * (root.mT @ root)
    matrix = matrix + 2.0 * torch.diag_embed(alpha.abs()[:, None].expand_as(returns))
    gradient = (matrix @ weights[..., None])[..., 0] - returns
    scale = torch.maximum(matrix.abs().amax((-2, -1)), returns.abs().amax(-1)).clamp(min=1.0)[:, None]
    moved = solve_total("linear", weights - gradient / scale, cap)
    return torch.maximum((weights - moved).abs().amax(-1), (weights.sum(-1) - 1.0).abs())


def risk_gap(arguments: tuple[Tensor, Tensor], weights: Tensor, cap: float) -> Tensor:
    """Violation of ``w (Q w - tau) = b`` between the bounds and of the signs on them, scaled alike."""
    root, budgets = arguments
    matrix = root.mT @ root
    scale = torch.maximum(matrix.abs().amax((-2, -1)), budgets.amax(-1)).clamp(min=1e-300)[:, None]
    pull = (matrix @ weights[..., None])[..., 0]
    slope = (pull - budgets / torch.where(budgets > 0.0, weights, 1.0)) / scale
    capped, empty = weights >= cap, (weights <= 0.0) & (budgets == 0.0)
    between = ~(capped | empty)
    share = torch.where(between, weights, 0.0)
    price = (share * slope).sum(-1, keepdim=True) / share.sum(-1, keepdim=True).clamp(min=1e-300)
    most = slope.masked_fill(~capped, -torch.inf).amax(-1, keepdim=True)
    price = torch.where(between.any(-1, keepdim=True), price, most)
    gap = torch.where(between, weights * (slope - price), 0.0).abs()
    gap = torch.where(capped, (slope - price).clamp(min=0.0), gap)
    gap = torch.where(empty, (price - slope).clamp(min=0.0), gap)
    return torch.maximum(gap.amax(-1), (weights.sum(-1) - 1.0).abs())


def assert_solved(gap: Tensor, weights: Tensor, cap: float) -> None:
    assert float(gap.max()) <= ACCURACY
    assert float(weights.min()) >= 0.0
    assert float(weights.max()) <= cap + 1e-15
    assert float((weights.sum(-1) - 1.0).abs().max()) <= 1e-14


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SCORES = {
    "generic": lambda n: draw(ROWS, n),
    "narrow": lambda n: 1e-3 * draw(ROWS, n),
    "wide": lambda n: 30.0 * draw(ROWS, n),
    "ties": lambda n: (2.0 * draw(ROWS, n)).round(),
    "equal": lambda n: torch.zeros(ROWS, n, dtype=torch.float64),
    "shifted": lambda n: (4.0 * draw(ROWS, n)).round() / 4.0 + 2.0**20,
}


@pytest.mark.parametrize("kind", SCORES)
def test_scores_are_solved(kind: str) -> None:
    for num_assets, cap in SIZES:
        x = SCORES[kind](num_assets)
        bound = min(cap, 1.0)
        weights = sparsemax(x, cap)
        # Scores of size 30 are themselves known to 4e-15 only.
        assert_solved(sparsemax_gap(x, weights, bound), weights, bound)
        weights = capped_softmax(x, cap)
        assert_solved(softmax_gap(x, weights, bound), weights, bound)


def make_markowitz(kind: str, num_assets: int, rank: int, rows: int = ROWS) -> Markowitz:
    root = draw(rows, num_assets, num_assets, seed=1) / num_assets**0.5
    root[:, rank:] = 0.0
    returns, gamma = draw(rows, num_assets, seed=2), draw(rows, seed=3)
    alpha = torch.where(draw(rows, seed=4) > 0.0, 0.0, 0.1 * draw(rows, seed=5))
    if kind == "ties":
        root, returns, gamma = (2.0 * root).round(), returns.round(), gamma.sign()
    if kind == "least variance":
        returns = torch.zeros_like(returns)
    if kind == "daily":
        root, returns = 0.02 * root, 1e-3 * returns
    if kind == "steep":
        returns = 1e4 * returns
    return returns, root, gamma, alpha


@pytest.mark.parametrize("kind", ["generic", "ties", "least variance", "daily", "steep"])
def test_markowitz_is_solved(kind: str) -> None:
    for num_assets, cap in SIZES:
        ranks = [make_markowitz(kind, num_assets, rank, 50) for rank in (0, 1, 2, 20)]
        arguments: Any = tuple(torch.cat(parts) for parts in zip(*ranks, strict=True))
        bound = min(cap, 1.0)
        weights = markowitz(*arguments, cap)  # type: ignore[call-arg]  # mypy counts the star once
        assert_solved(markowitz_gap(arguments, weights, bound), weights, bound)


def make_budgets(kind: str, num_assets: int, rows: int = ROWS) -> Tensor:
    share = torch.rand(rows, num_assets, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return {
        "equal": torch.full_like(share, 1.0 / num_assets),
        "generic": share,
        "some zero": torch.where(share < 0.5, 0.0, share),
        "all zero": torch.zeros_like(share),
        "one": torch.nn.functional.one_hot(share.argmax(-1), num_assets).double(),
        "orders apart": 10.0 ** (-10.0 * share),
        "large": 1e6 * share,
        "small": 1e-7 * share,
    }[kind]


@pytest.mark.parametrize(
    "kind", ["equal", "generic", "some zero", "all zero", "one", "orders apart", "large", "small"]
)
def test_risk_budgeting_is_solved(kind: str) -> None:
    # A covariance far below the budgets still decides among the assets without one.
    for num_assets, cap in SIZES:
        roots = []
        for rank, scale in itertools.product((0, 1, 20), (1.0, 1e-3)):
            root = scale * draw(20, num_assets, num_assets, seed=1) / num_assets**0.5
            root[:, rank:] = 0.0
            roots.append(root)
        arguments = (torch.cat(roots), make_budgets(kind, num_assets, 20).repeat(len(roots), 1))
        bound = min(cap, 1.0)
        weights = risk_budgeting(*arguments, cap)
        assert_solved(risk_gap(arguments, weights, bound), weights, bound)


def test_a_bound_of_one_over_n_leaves_the_equal_split() -> None:
    for num_assets in (1, 3, 7, 49):  # 49 * (1 / 49) is less than one
        x, root = draw(4, num_assets), draw(4, num_assets, num_assets)
        one, cap = torch.ones(4, dtype=torch.float64), 1.0 / num_assets
        expected = torch.full_like(x, cap)
        for weights in (
            sparsemax(x, cap),
            capped_softmax(x, cap),
            markowitz(x, root, one, one, cap),
            risk_budgeting(root, x.abs(), cap),
        ):
            assert torch.equal(weights, expected)


def test_where_all_is_equal_nothing_is_preferred() -> None:
    zeros = torch.zeros(2, 6, dtype=torch.float64)
    weights = markowitz(zeros, torch.zeros(6, 6).double(), zeros[:, 0], zeros[:, 0], 0.4)
    torch.testing.assert_close(weights, torch.full_like(zeros, 1.0 / 6.0), rtol=0.0, atol=1e-14)
    assert torch.equal(sparsemax(zeros), weights.new_full((2, 6), 1.0 / 6.0))
