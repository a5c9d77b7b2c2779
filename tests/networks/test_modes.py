"""Laws of the mode: what a class does when its mode changes happens to the copy alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.networks.prepare import prepare
from tests.helpers import (
    assert_close,
    assert_untouched,
    make_target,
    make_x0,
    params,
    snapshot,
)

OUT = 5


class Merging(nn.Linear):
    """An adapter that is merged into its weight in place outside of training, as LoRA's is."""

    def __init__(self) -> None:
        super().__init__(60, OUT)
        self.down, self.up = nn.Parameter(torch.randn(2, 60)), nn.Parameter(torch.randn(OUT, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1.0 if mode else 1.0) * self.up @ self.down
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.merged else out + 2.0 * x @ (self.up @ self.down).T


class Deleting(Merging):
    """Also deletes the adapter and adds a scale."""

    def eval(self) -> Deleting:
        super().eval()
        if "up" in self._parameters:
            del self.up, self.down
            self.scale = nn.Parameter(torch.full((OUT,), 0.5))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * getattr(self, "scale", 1.0)


class Tempered(nn.Linear):
    """A temperature that the mode sets, and a part that is never trained."""

    def __init__(self) -> None:
        super().__init__(60, OUT)
        self.temperature = 5.0
        self.drop = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> Tempered:
        super().train(mode)
        self.temperature = 5.0 if mode else 1.0
        self.drop.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.drop(x)) / self.temperature


class Kept(Merging):
    """Reads its own weight from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.kept[0], self.bias)


LAYERS = {"merging": Merging, "deleting": Deleting, "tempered": Tempered, "kept": Kept}


def make(name: str, seed: int = 0, alone: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = LAYERS[name]()
    if alone:
        return nn.Sequential(nn.Flatten(), layer, nn.Softmax(-1)).double()
    return nn.Sequential(nn.Flatten(), nn.Sequential(layer), nn.Softmax(-1)).double()


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", params(LAYERS))
def test_the_copy_is_in_eval_mode_as_its_class_defines_it(name: str, mode: bool) -> None:
    network = make(name).train(mode)
    oracle, before, x = copy.deepcopy(network).eval(), snapshot(network), make_x0()
    apply, p = fe.functionalize(network)
    assert_close(apply(p, x), oracle(x[None])[0].detach())
    assert p.keys() == {n for n, _ in oracle.named_parameters()}
    assert_untouched(before, network)


@pytest.mark.parametrize("name", params(LAYERS))
def test_train_mode_is_that_of_the_class(name: str) -> None:
    network = make(name).eval()
    oracle, x = copy.deepcopy(network).train(), make_x0()
    apply, p = fe.functionalize(network, train=True)
    assert_close(apply(p, x), oracle(x[None])[0].detach())


def test_eval_of_the_network_itself_is_called() -> None:
    network = Deleting().double()
    assert set(dict(prepare(network).network.named_parameters())) == {"weight", "bias", "scale"}
    assert set(dict(network.named_parameters())) == {"weight", "bias", "up", "down"}


@pytest.mark.parametrize("name", params(["merging", "tempered"]))
def test_an_ensemble_is_searched_as_each_model_alone(name: str) -> None:
    models = [make(name, seed) for seed in range(2)]
    x0s = torch.stack([make_x0(seed=seed) for seed in range(2)])
    problem = fe.problem(models[0], make_target(), x0s[0])
    grid = fe.vmap(fe.vmap(problem, x0=x0s), params=fe.stack(models)[1])
    solution: Any = fe.solve(grid, fe.adam(lr=0.1), max_steps=4)
    for found, model in zip(solution.x, models, strict=True):
        oracle = copy.deepcopy(model).eval()
        for row, x0 in zip(found, x0s, strict=True):
            assert_close(row, search_by_hand(oracle, x0), rtol=1e-7)


def search_by_hand(network: nn.Module, x0: Tensor) -> Tensor:
    """Adam of torch on the network itself."""
    x = x0.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        (network(x[None])[0] - make_target()).square().mean().backward()
        optimizer.step()
    return x.detach()


LAZY: dict[str, Any] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(OUT)),
    "conv": lambda: nn.Sequential(nn.LazyConv2d(5, (6, 5), groups=1), nn.Flatten()),
    "conv_transpose": lambda: nn.Sequential(
        nn.LazyConvTranspose2d(1, 1), nn.Flatten(), nn.LazyLinear(OUT)
    ),
    "batch_norm": lambda: nn.Sequential(nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(OUT)),
}
lazily = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")


@lazily
@pytest.mark.parametrize("name", params(LAZY))
def test_a_lazy_layer_with_loaded_weights_is_a_layer(name: str) -> None:
    trained, loaded, x = LAZY[name]().double().eval(), LAZY[name]().double(), make_x0()
    expected = trained(x[None])[0].detach()
    loaded.load_state_dict(trained.state_dict())
    before, classes = snapshot(loaded), [type(part) for part in loaded.modules()]
    apply, p = fe.functionalize(loaded)
    assert_close(apply(p, x), expected)
    assert_close(torch.func.vmap(apply, (None, 0))(p, x[None]), expected[None])
    assert_untouched(before, loaded)
    assert [type(part) for part in loaded.modules()] == classes


@lazily
def test_a_lazy_layer_without_weights_is_refused_by_its_name() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Sequential(nn.LazyLinear(OUT)))
    with pytest.raises(
        ValueError, match=r"1\.0 \(LazyLinear\) has no weights yet; run the network once"
    ):
        fe.functionalize(network)
