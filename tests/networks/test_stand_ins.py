"""Laws of stand-ins: a replaced layer is itself to its parent, and its replacement when called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.networks.prepare import prepare
from funcexplain.networks.stand_ins import replacement_of
from tests.helpers import assert_close, assert_same, assert_untouched, make_x0, params, snapshot


class Doubling(nn.Linear):
    """A layer with an attribute, a method, and weights."""

    factor = 2.0

    def __init__(self) -> None:
        super().__init__(60, 5)
        self.setting = "kept"

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * super().forward(x)

    def norm(self) -> Tensor:
        return self.weight.square().sum()


class Called(Doubling):
    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * nn.functional.linear(x, self.weight, self.bias)


class Curious(nn.Module):
    """Looks at its part before calling it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.list = [layer]

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        assert isinstance(layer, Doubling)
        assert layer.setting == "kept"
        assert layer.weight.shape == (5, 60)
        assert self.list[0] is layer
        return torch.softmax(layer(x.flatten(1)) + layer.norm(), -1) * layer.weight.sum()


class Inside(nn.Module):
    """Holds the layer where no table shows it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = (layer,)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


def other_layer(layer: nn.Linear) -> nn.Module:
    replacement = nn.Linear(60, 5)
    replacement.weight, replacement.bias = layer.weight, layer.bias
    replacement.register_forward_hook(lambda module, inputs, output: 2.0 * output)
    return replacement


REPLACEMENTS: dict[str, tuple[Any, str]] = {
    "opaque": (fe.opaque, "layer.fn."),
    "same_names": (other_layer, "layer."),
    "child": (lambda layer: nn.Sequential(layer), "layer.0."),
}


@pytest.mark.parametrize("cls", [Doubling, Called])
@pytest.mark.parametrize("name", params(REPLACEMENTS))
def test_a_parent_sees_the_layer_and_calls_the_replacement(
    name: str, cls: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    network, other = Curious(cls()).double(), Curious(cls()).double()
    rule, prefix = REPLACEMENTS[name]
    before, x = snapshot(network), make_x0()
    apply, p = fe.functionalize(network, rules={Doubling: rule})
    assert p.keys() == {f"{prefix}weight", f"{prefix}bias"}
    assert_close(apply(p, x), network(x[None])[0].detach())
    bound = {name: other.get_parameter(name.replace(prefix, "layer.")).detach() for name in p}
    assert_close(apply(bound, x), other(x[None])[0].detach())
    models = {name: torch.stack([p[name], bound[name]]) for name in p}
    expected = torch.stack([n(x[None])[0].detach() for n in (network, other)])
    assert_close(torch.func.vmap(apply, (0, None))(models, x), expected)
    assert_untouched(before, network)


def test_the_class_stays_the_class() -> None:
    network = nn.Sequential(nn.ReLU(), nn.GRU(2, 2), nn.LSTMCell(2, 2), nn.BatchNorm1d(2))
    copy = prepare(network, rules={nn.ReLU: lambda layer: nn.Tanh()}).network
    assert [type(part) for part in copy.children()] == [type(part) for part in network]
    assert [type(part) for part in prepare(network).network.children()] == [type(p) for p in network]


def test_hooks_of_a_replaced_layer_run_once() -> None:
    layer = Doubling().double()
    calls: list[str] = []
    layer.register_forward_pre_hook(lambda module, inputs: calls.append("before"))

    def triple(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        calls.append("after")
        return 3.0 * output

    layer.register_forward_hook(triple)
    network, x = nn.Sequential(nn.Flatten(), layer), make_x0()[None]
    expected = network(x)
    for rule in (fe.opaque, Inside, lambda layer: nn.Sequential(layer)):
        calls.clear()
        assert_same(prepare(network, rules={Doubling: rule}).network(x), expected)
        assert calls == ["before", "after"]


def test_a_replaced_network_is_still_checked() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    with pytest.raises(ValueError, match="the network is opaque and holds a Dropout"):
        fe.functionalize(network, train=True, rules={nn.Sequential: fe.opaque})
    copy = prepare(network, rules={nn.Sequential: fe.opaque}).network
    assert isinstance(copy, nn.Sequential)
    assert replacement_of(copy) is not copy
    assert replacement_of(network) is network


class OptimizedModule(nn.Module):
    """What torch.compile makes of a module, by its name and its child."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def test_a_compiled_part_shows_the_attributes_of_its_module() -> None:
    network, layer = nn.Module(), Doubling()
    network.layer = OptimizedModule(layer)
    copy: Any = prepare(network).network
    assert copy.layer.setting == "kept"
    assert copy.layer.weight is layer.weight
