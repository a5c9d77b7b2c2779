"""Every layer of deepdow: alone, mapped, by Jacobians, and under a parent that looks at its parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.helpers import ASSETS, CHANNELS, LOOKBACK, assert_close, make_target, make_x0, params

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    layers = pytest.importorskip("deepdow.layers", reason="deepdow is not installed")

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*rows one at a time"
)


class Around(nn.Module):
    """Weights from one layer, which is looked at before it is called."""

    def __init__(self, layer: nn.Module, use: Callable[[Any, Tensor], Tensor], attributes: str) -> None:
        super().__init__()
        self.layer, self.use, self.kind = layer, use, type(layer)
        self.attributes = {name: getattr(layer, name) for name in attributes.split()}
        self.head = nn.LazyLinear(ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.layer, self.kind)
        assert all(getattr(self.layer, name) == value for name, value in self.attributes.items())
        found = self.use(self.layer, x).flatten(1)
        return torch.softmax(self.head(torch.tanh(found)), -1)


def covariance(x: Tensor) -> Tensor:
    returns = x[:, 0] - x[:, 0].mean(1, keepdim=True)
    return returns.mT @ returns / LOOKBACK + 0.3 * torch.eye(ASSETS, dtype=x.dtype)


def scores(x: Tensor) -> Tensor:
    return torch.tanh(x.mean((1, 2)))


def root(x: Tensor) -> Tensor:
    return torch.linalg.cholesky(covariance(x)).mT


def positive(x: Tensor) -> Tensor:
    return torch.softmax(scores(x), -1)


def strength(x: Tensor) -> Tensor:
    return 1.0 + 0.1 * torch.tanh(x.mean((1, 2, 3)))


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor], str]] = {
    "AnalyticalMarkowitz": (
        lambda: layers.AnalyticalMarkowitz(),
        lambda f, x: f(covariance(x), rets=scores(x)),
        "",
    ),
    "AttentionCollapse": (lambda: layers.AttentionCollapse(CHANNELS), lambda f, x: f(x), ""),
    "AverageCollapse": (lambda: layers.AverageCollapse(2), lambda f, x: f(x), "collapse_dim"),
    "Conv_2D": (lambda: layers.Conv(CHANNELS, 3), lambda f, x: f(x), "method"),
    "Conv_1D": (lambda: layers.Conv(CHANNELS, 3, method="1D"), lambda f, x: f(x.mean(2)), "method"),
    "Cov2Corr": (lambda: layers.Cov2Corr(), lambda f, x: f(covariance(x)), ""),
    "CovarianceMatrix_root": (lambda: layers.CovarianceMatrix(), lambda f, x: f(x[:, 0]), "sqrt"),
    "CovarianceMatrix": (
        lambda: layers.CovarianceMatrix(sqrt=False, shrinkage_strategy="identity"),
        lambda f, x: f(x[:, 0]),
        "sqrt shrinkage_strategy",
    ),
    "CovarianceMatrix_learned": (
        lambda: layers.CovarianceMatrix(shrinkage_coef=None),
        lambda f, x: f(x[:, 0], torch.sigmoid(scores(x).mean(1))),
        "sqrt",
    ),
    "ElementCollapse": (lambda: layers.ElementCollapse(), lambda f, x: f(x), "element_ix"),
    "ExponentialCollapse": (
        lambda: layers.ExponentialCollapse(forgetting_factor=0.5),
        lambda f, x: f(x),
        "collapse_dim",
    ),
    "MaxCollapse": (lambda: layers.MaxCollapse(), lambda f, x: f(x), "collapse_dim"),
    "MultiplyByConstant": (
        lambda: layers.MultiplyByConstant(CHANNELS, 1),
        lambda f, x: f(x),
        "dim_size",
    ),
    "NCO": (lambda: layers.NCO(2, random_state=1), lambda f, x: f(covariance(x)), "n_clusters"),
    "NumericalMarkowitz": (
        lambda: layers.NumericalMarkowitz(ASSETS, max_weight=0.6),
        lambda f, x: f(scores(x), root(x), strength(x), strength(x)),
        "cvxpylayer",
    ),
    "NumericalRiskBudgeting": (
        lambda: layers.NumericalRiskBudgeting(ASSETS, max_weight=0.6),
        lambda f, x: f(root(x), positive(x)),
        "cvxpylayer",
    ),
    "RNN": (lambda: layers.RNN(CHANNELS, 4), lambda f, x: f(x), ""),
    "Resample": (
        lambda: layers.Resample(layers.AnalyticalMarkowitz(), n_portfolios=2, random_state=1),
        lambda f, x: f(covariance(x)),
        "n_portfolios allocator",
    ),
    "SoftmaxAllocator": (lambda: layers.SoftmaxAllocator(2.0), lambda f, x: f(scores(x)), "temperature"),
    "SoftmaxAllocator_learned": (
        lambda: layers.SoftmaxAllocator(None),
        lambda f, x: f(scores(x), strength(x)),
        "temperature",
    ),
    "SoftmaxAllocator_capped": (
        lambda: layers.SoftmaxAllocator(1, "variational", ASSETS, max_weight=0.3),
        lambda f, x: f(scores(x)),
        "formulation",
    ),
    "SparsemaxAllocator": (
        lambda: layers.SparsemaxAllocator(ASSETS, max_weight=0.5),
        lambda f, x: f(scores(x)),
        "temperature",
    ),
    "SumCollapse": (lambda: layers.SumCollapse(), lambda f, x: f(x), "collapse_dim"),
    "Warp": (lambda: layers.Warp(), lambda f, x: f(x, torch.tanh(x[:, 0].mean(-1)) * 0.5), "mode"),
    "WeightNorm": (lambda: layers.WeightNorm(ASSETS), lambda f, x: f(x) * x.mean((1, 2)), ""),
    "Zoom": (lambda: layers.Zoom(), lambda f, x: f(x, strength(x)), "mode"),
}
INEXACT = (
    "NumericalMarkowitz",
    "NumericalRiskBudgeting",
    "SoftmaxAllocator_capped",
    "SparsemaxAllocator",
)


def make(name: str) -> nn.Module:
    build, use, attributes = LAYERS[name]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        network = Around(build(), use, attributes).double().eval()
        network(make_x0()[None])
    return network


def test_the_catalogue_is_complete() -> None:
    # KMeans returns clusters, not weights; it is a part of NCO.
    kinds = {name for name in vars(layers) if isinstance(getattr(layers, name), type)}
    assert kinds - {"KMeans"} == {name.partition("_")[0] for name in LAYERS}


@pytest.mark.parametrize("name", params(LAYERS))
def test_a_layer_alone_mapped_and_by_jacobians_is_the_layer(name: str) -> None:
    network, xs = make(name), torch.stack([make_x0(seed=seed) for seed in range(3)])
    with torch.random.fork_rng(devices=[]):
        own = torch.cat([network(x[None]) for x in xs]).detach()
    apply, p = fe.functionalize(network)
    alone = torch.stack([apply(p, x) for x in xs])
    assert_close(alone, own, rtol=0, atol=5e-3 if name in INEXACT else 1e-12)
    assert_close(torch.func.vmap(apply, (None, 0))(p, xs), alone, rtol=1e-9, atol=1e-12)
    jacobian = torch.func.jacrev(apply, 1)
    expected = torch.stack([jacobian(p, x) for x in xs])
    assert_close(torch.func.vmap(jacobian, (None, 0))(p, xs), expected, rtol=1e-7, atol=1e-10)
    direction = torch.randn(xs[0].shape, dtype=xs.dtype, generator=torch.Generator().manual_seed(0))
    step = 1e-5 * direction
    slope = (apply(p, xs[0] + step) - apply(p, xs[0] - step)) / 2e-5
    if name not in ("Resample", "MaxCollapse"):
        found = (expected[0] * direction).sum((1, 2, 3))
        assert_close(found, slope.detach(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", params(LAYERS))
def test_levenberg_marquardt_of_a_grid_is_that_of_rows_alone(name: str) -> None:
    x0s = torch.stack([make_x0(seed=seed) for seed in range(2)])
    problem = fe.problem(make(name), make_target(), x0s[0])
    grid = fe.vmap(problem, x0=x0s)
    found = fe.solve(grid, fe.levenberg_marquardt(), max_steps=2)
    alone = fe.solve(grid[1], fe.levenberg_marquardt(), max_steps=2)
    assert_close(found.x[1], alone.x, rtol=1e-5, atol=1e-7)
