"""Laws of the trial of `opaque`: rows that cannot share a batch run one at a time, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import funcexplain as fe
from tests.helpers import assert_close, make_target, make_x0, params

ROWS = torch.linspace(-2.0, 2.0, 5 * 3 * 4, dtype=torch.float64).view(5, 3, 4).sin()


def branch(x: Tensor) -> Tensor:
    return x.exp() if x.sum() > 0 else -2.0 * x


def item(x: Tensor) -> Tensor:
    return x * x.abs().max().item()


def mean(x: Tensor) -> Tensor:
    return x - x.mean(0, keepdim=True)


def threshold(x: Tensor) -> Tensor:
    return torch.where(x.abs().max() > 6.0, x.tanh(), x)


def gradient_only(x: Tensor) -> Tensor:
    class Coupled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g - g.mean(0, keepdim=True)

    return Coupled.apply(x)


def size(x: Tensor) -> Tensor:
    return x / len(x)


def one_row(x: Tensor) -> Tensor:
    return x.reshape(1, 12).reshape(3, 4).sin()


def refuse_negative(x: Tensor) -> Tensor:
    if bool((x.sum() < -1e3).any()):
        raise ValueError("negative")
    return x.sin()


DEPENDENT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "branch": (branch, "it reads values of tensors"),
    "item": (item, "it reads values"),
    "mean": (mean, "its rows depend on each other"),
    "threshold": (threshold, "its rows depend"),
    "gradient": (gradient_only, "its rows depend"),
    "size": (size, "its rows depend"),
    "one_row": (one_row, r"it fails for several rows \(RuntimeError"),
    "raises": (refuse_negative, "it reads values"),
}


@pytest.mark.parametrize("name", params(DEPENDENT))
def test_dependent_rows_run_one_at_a_time(name: str) -> None:
    fn, reason = DEPENDENT[name]
    layer, before = fe.opaque(fn), torch.get_rng_state()
    slope = grad(lambda x: layer(x).sin().sum())
    with pytest.warns(
        UserWarning, match=f"opaque: mapped rows of {fn.__name__} .*{reason}.*in_batch=None"
    ):
        found = vmap(slope)(ROWS)
    expected = []
    for row in ROWS:
        x = row.clone().requires_grad_()
        fn(x).sin().sum().backward()
        assert x.grad is not None
        expected.append(x.grad)
    assert_close(found, torch.stack(expected))
    assert torch.equal(before, torch.get_rng_state())
    with warnings.catch_warnings():  # one warning
        warnings.simplefilter("error")
        assert_close(vmap(vmap(slope))(ROWS[None]), found[None])
        assert_close(vmap(layer)(ROWS), torch.stack([fn(row) for row in ROWS]))


def positive_only(x: Tensor) -> Tensor:
    return torch.linalg.cholesky(torch.diag_embed(x)).diagonal(dim1=-2, dim2=-1)


def noise(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


INDEPENDENT: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "refuses_negative_windows": positive_only,
    "noise": noise,
    "nan": lambda x: x.log(),
    "integers": lambda x: x.argsort(-1),
    "no_gradient": lambda x: x.detach(),
}


@pytest.mark.parametrize("name", params(INDEPENDENT))
def test_independent_rows_share_one_batch(name: str) -> None:
    sizes: list[int] = []

    def fn(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return INDEPENDENT[name](x)

    layer = fe.opaque(fn)
    vmap(layer)(ROWS.abs() + 1.0)
    tried = len(sizes)
    vmap(vmap(layer))(ROWS[None].abs() + 1.0)
    assert sizes[-1] == 15
    assert len(sizes) == tried + 1


def test_a_trial_sees_no_row_that_is_not_finite() -> None:
    def fn(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.sin()

    seen: list[Tensor] = []
    broken = ROWS.clone()
    broken[[0, 4]] = torch.nan
    layer = fe.opaque(fn)
    vmap(layer)(torch.full_like(ROWS, torch.nan))
    assert layer.fault is None  # not yet tried
    seen.clear()
    vmap(layer)(broken)
    assert layer.fault == ""
    assert all(x.isfinite().all() for x in seen[:-1])


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(60, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x.flatten(1))
        return torch.softmax(h if h.sum() > 0 else -2.0 * h, -1)


@pytest.mark.filterwarnings("ignore:opaque. mapped rows of Branching run one at a time")
def test_a_grid_of_an_opaque_network_with_an_if_is_that_of_rows_alone() -> None:
    torch.manual_seed(0)
    network, x0s = Branching().double(), torch.stack([make_x0(seed=seed) for seed in range(6)])
    problem = fe.problem(fe.opaque(network), make_target(), x0s[0])
    found = fe.solve(fe.vmap(problem, x0=x0s), fe.adam(lr=0.1), max_steps=4, rows="vmap")
    for x0, x, weights in zip(x0s, found.x, found.weights, strict=True):
        by_hand = x0.clone().requires_grad_()
        optimizer = torch.optim.Adam([by_hand], lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            (network(by_hand[None])[0] - make_target()).square().mean().backward()
            optimizer.step()
        assert_close(x, by_hand.detach(), rtol=1e-9)
        assert_close(weights, network(x[None])[0].detach())


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


class ReadsInBackward(nn.Module):
    """A product whose backward pass reads the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        layer = self

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x @ layer.weight

            @staticmethod
            def backward(ctx: Any, g: Tensor) -> Tensor:
                return g @ layer.weight.T

        return Product.apply(x)


@pytest.mark.parametrize("mapped", ["params", "both"])
@pytest.mark.parametrize("cls", [Checkpointed, ReadsInBackward])
def test_a_backward_pass_sees_the_parameters_of_the_forward_pass(
    cls: Callable[[], nn.Module], mapped: str
) -> None:
    torch.manual_seed(0)
    models = [cls().double() for _ in range(2)]
    layer, x = fe.opaque(models[0]), ROWS[0]
    names = [name for name, _ in models[0].named_parameters()]
    stacked = {
        f"fn.{name}": torch.stack([model.get_parameter(name).detach() for model in models])
        for name in names
    }

    def slope(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return grad(lambda x: torch.func.functional_call(layer, p, (x,)).sin().sum())(x)

    expected = []
    for model in models:
        own = x.clone().requires_grad_()
        model(own).sin().sum().backward()
        expected.append(own.grad)
    if mapped == "params":
        found = vmap(slope, (0, None))(stacked, x)
    else:
        found = vmap(vmap(slope, (None, 0)), (0, None))(stacked, torch.stack([x, x]))[:, 1]
    assert_close(found, torch.stack(expected))  # type: ignore[arg-type]
