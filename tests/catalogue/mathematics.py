"""Allocators that solve, sort, decompose or transform: mathematics inside of a network."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from tests.catalogue.entry import Allocator, Catalogue, Entry, assets
from tests.helpers import ASSETS, CHANNELS, LOOKBACK, SIZE

HISTORY = CHANNELS * LOOKBACK


def covariance(x: Tensor) -> Tensor:
    """The covariance of each window's first channel, with a ridge, ``(N, A, A)``."""
    centered = x[:, 0] - x[:, 0].mean(1, keepdim=True)
    return centered.mT @ centered / LOOKBACK + 0.3 * torch.eye(ASSETS, dtype=x.dtype)


class MinimumVariance(nn.Module):
    """``cov^-1 1``, by one of several routes to it."""

    def __init__(self, route: str) -> None:
        super().__init__()
        self.route, self.scale = route, nn.Parameter(1.0 + 0.1 * torch.randn(ASSETS))

    def forward(self, x: Tensor) -> Tensor:
        cov, ones = covariance(x * self.scale), torch.ones(ASSETS, dtype=x.dtype)
        if self.route == "vector":
            weights = torch.linalg.solve(cov, ones)
        elif self.route == "column":
            weights = torch.linalg.solve(cov, ones.expand(len(x), -1)[..., None])[..., 0]
        elif self.route == "cholesky":
            factor = torch.linalg.cholesky(cov)
            weights = torch.cholesky_solve(ones.expand(len(x), -1)[..., None], factor).squeeze(-1)
        elif self.route == "inverse":
            weights = torch.linalg.inv(cov).sum(-1)
        elif self.route == "eigh":
            values, vectors = torch.linalg.eigh(cov)
            weights = ((vectors / values[:, None]) @ vectors.mT).sum(-1)
        else:
            left, values, right = torch.linalg.svd(cov)
            weights = (right.mT / values[:, None] @ left.mT).sum(-1)
        return weights / weights.sum(-1, keepdim=True)


class MeanVariance(nn.Module):
    """End to end: a network forecasts, and the optimality conditions are solved as one system."""

    def __init__(self) -> None:
        super().__init__()
        self.forecast = nn.Linear(HISTORY, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean, cov = self.forecast(assets(x)), covariance(x)
        ones = torch.ones(len(x), ASSETS, 1, dtype=x.dtype)
        corner = torch.zeros(len(x), 1, 1, dtype=x.dtype)
        system = torch.cat([torch.cat([cov, ones], 2), torch.cat([ones.mT, corner], 2)], 1)
        return torch.linalg.solve(system, torch.cat([mean, corner + 1], 1))[:, :ASSETS, 0]


class InverseVolatility(nn.Module):
    """Weights in proportion to one over the volatility; without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        inverse = 1.0 / x[:, 0].std(dim=1)
        return inverse / inverse.sum(dim=1, keepdim=True)


class RiskParity(nn.Module):
    """Equal risk by unrolled Newton steps on ``w' C w / 2 - mean(log w)``."""

    def __init__(self) -> None:
        super().__init__()
        self.budgets = nn.Parameter(torch.full((ASSETS,), 1 / ASSETS))

    def forward(self, x: Tensor) -> Tensor:
        cov = covariance(x)
        w = self.budgets.expand(len(x), -1) / cov.diagonal(dim1=1, dim2=2).sqrt()
        for _ in range(4):
            slope = (cov @ w[..., None])[..., 0] - self.budgets / w
            bend = cov + torch.diag_embed(self.budgets / w**2)
            w = (w - torch.linalg.solve(bend, slope[..., None])[..., 0]).clamp_min(1e-3)
        return w / w.sum(-1, keepdim=True)


class LeastSquares(Allocator):
    """A regression of every window's second channel on its first."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(LOOKBACK, LOOKBACK, bias=False)

    def scores(self, x: Tensor) -> Tensor:
        first, second = x[:, 0] + self.mix(x[:, 1].mT).mT, x[:, 1].mean(-1, keepdim=True)
        return torch.linalg.pinv(first).matmul(second)[..., 0]


class Heads(nn.Module):
    """A linear layer under a head that is not a softmax."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(SIZE, ASSETS), head

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.head)(self.body(x.flatten(1)))

    def sparsemax(self, scores: Tensor) -> Tensor:
        """Martins and Astudillo (2016), by sorting."""
        ordered = scores.sort(-1, descending=True).values
        ranks = torch.arange(1, ASSETS + 1, dtype=scores.dtype)
        support = (1 + ranks * ordered > ordered.cumsum(-1)).sum(-1, keepdim=True)
        level = (ordered.cumsum(-1).gather(-1, support - 1) - 1) / support
        return (scores - level).clamp_min(0)

    def entmax(self, scores: Tensor) -> Tensor:
        """Peters, Niculae, Martins (2019), by bisection and one corrected normalization."""
        low, high = scores.amax(-1, keepdim=True) - 2.0, scores.amax(-1, keepdim=True)
        with torch.no_grad():
            for _ in range(30):
                middle = (low + high) / 2
                full = (scores - middle).clamp_min(0).square().sum(-1, keepdim=True) > 1
                low, high = torch.where(full, middle, low), torch.where(full, high, middle)
        root = (scores - low).clamp_min(0)
        # One Newton step on the level gives its gradient.
        level = low + (root.square().sum(-1, keepdim=True) - 1) / (2 * root.sum(-1, keepdim=True))
        return (scores - level).clamp_min(0).square()

    def straight_top(self, scores: Tensor) -> Tensor:
        """Equal weights of the best three, with the gradient of a softmax."""
        soft = torch.softmax(scores, -1)
        chosen = scores.topk(3, -1).indices
        hard = torch.zeros_like(soft).scatter(-1, chosen, 1 / 3)
        return hard + soft - soft.detach()

    def long_short(self, scores: Tensor) -> Tensor:
        centered = scores - scores.mean(-1, keepdim=True)
        return torch.tanh(centered) / torch.tanh(centered).abs().sum(-1, keepdim=True)

    def log_softmax(self, scores: Tensor) -> Tensor:
        return torch.log_softmax(scores, -1).exp()

    def stick_breaking(self, scores: Tensor) -> Tensor:
        pieces = torch.sigmoid(scores[:, :-1])
        left = torch.cumprod(torch.cat([torch.ones_like(pieces[:, :1]), 1 - pieces], 1), 1)
        return torch.cat([pieces, torch.ones_like(pieces[:, :1])], 1) * left


class Features(Allocator):
    """A linear layer over hand-made features of a window."""

    centers: Tensor

    def __init__(self, feature: str, width: int) -> None:
        super().__init__()
        self.feature, self.head = feature, nn.Linear(width, 1)
        self.register_buffer("centers", torch.randn(4, HISTORY))
        self.embed = nn.Embedding(ASSETS, 3)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(getattr(self, self.feature)(x)).squeeze(-1)

    def kernel(self, x: Tensor) -> Tensor:
        return torch.exp(-0.05 * torch.cdist(assets(x), self.centers).square())

    def spectrum(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(assets(x), dim=-1).abs()

    def quantiles(self, x: Tensor) -> Tensor:
        levels = torch.tensor([0.1, 0.5, 0.9], dtype=x.dtype)
        return torch.quantile(x[:, 0], levels, dim=1).permute(1, 2, 0)

    def order(self, x: Tensor) -> Tensor:
        ordered = x[:, 1].sort(1)[0]
        return torch.stack([ordered[:, 0], x[:, 1].median(1).values, ordered.diff(dim=1).amax(1)], -1)

    def asset_ids(self, x: Tensor) -> Tensor:
        ids = torch.arange(x.shape[-1])
        return torch.cat([assets(x), self.embed(ids).expand(len(x), -1, -1)], -1).tanh()

    def places(self, x: Tensor) -> Tensor:
        place = torch.arange(LOOKBACK, dtype=x.dtype)[:, None] / 10.0 ** torch.arange(2, dtype=x.dtype)
        table = torch.stack([place.sin(), place.cos()], -1).flatten(1)
        return torch.tanh(x[:, 0].mT[..., None] * table).flatten(2)

    def masks(self, x: Tensor) -> Tensor:
        recent = torch.tril(torch.ones(LOOKBACK, LOOKBACK, dtype=x.dtype))
        return (recent @ x).flatten(1, 2).mT.tanh()

    def expanding(self, x: Tensor) -> Tensor:
        return torch.logcumsumexp(x[:, 0], 1).mT + x[:, 0].cummax(1).values.mT

    def einsum(self, x: Tensor) -> Tensor:
        products = torch.einsum("ncla,ncmb->nalm", x, x) / HISTORY
        return torch.einsum("nalm,nalm->nal", products, products).tanh()

    def complex_phase(self, x: Tensor) -> Tensor:
        signal = torch.complex(x[:, 0], x[:, 1]).mT
        return torch.view_as_real(signal * torch.exp(torch.tensor(0.3j * math.pi))).flatten(2).tanh()


class NeuralOde(Allocator):
    """Chen et al. (2018): Euler steps of a field that knows the time."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = nn.Linear(HISTORY + 1, HISTORY), nn.Linear(HISTORY, 1)

    def scores(self, x: Tensor) -> Tensor:
        state = assets(x)
        for time in torch.linspace(0.0, 1.0, 4, dtype=x.dtype)[:-1]:
            clock = time.expand(*state.shape[:-1], 1)
            state = state + torch.tanh(self.field(torch.cat([state, clock], -1))) / 3
        return self.head(state)[..., 0]


class HyperNetwork(Allocator):
    """Ha, Dai, Le (2017): one layer computes the weights of another from the window."""

    def __init__(self) -> None:
        super().__init__()
        self.hyper = nn.Linear(SIZE, HISTORY)

    def scores(self, x: Tensor) -> Tensor:
        return torch.bmm(assets(x), self.hyper(torch.tanh(x.flatten(1)))[..., None])[..., 0]


PARTS = {
    "kernel": 4,
    "spectrum": HISTORY // 2 + 1,
    "quantiles": 3,
    "order": 3,
    "asset_ids": HISTORY + 3,
    "places": 4 * LOOKBACK,
    "masks": HISTORY,
    "expanding": LOOKBACK,
    "einsum": LOOKBACK,
    "complex_phase": 2 * LOOKBACK,
}
ROUTES = ("vector", "column", "cholesky", "inverse", "eigh", "svd")
HEADS = ("sparsemax", "entmax", "long_short", "log_softmax", "stick_breaking")

MATHEMATICS: Catalogue = {
    # Under vmap, torch.linalg.solve takes a vector for a batch of matrices.
    **{
        f"minimum_variance_{r}": Entry(partial(MinimumVariance, r), mappable=r != "vector")
        for r in ROUTES
    },
    "neural_ode": Entry(NeuralOde),
    "hyper_network": Entry(HyperNetwork),
    "mean_variance": Entry(MeanVariance),
    "inverse_volatility": Entry(InverseVolatility),
    "risk_parity": Entry(RiskParity),
    "least_squares": Entry(LeastSquares),
    **{f"head_{head}": Entry(partial(Heads, head)) for head in HEADS},
    "head_straight_top": Entry(lambda: Heads("straight_top"), verdict="does NOT agree"),
    **{f"features_{f}": Entry(partial(Features, f, w)) for f, w in PARTS.items()},
}
