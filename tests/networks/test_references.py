"""Laws of `references`: whatever a network refers to, its copy reads its own parts and parameters."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from funcexplain.networks.prepare import Copy, prepare
from tests.helpers import assert_close, assert_same, assert_untouched, make_x0, params, snapshot

HIDDEN, OUT = 8, 5


@dataclass
class Record:
    layer: Any
    other: Any = None


@dataclass(slots=True)
class SlotRecord:
    layer: Any


class Pair(NamedTuple):
    layer: Any
    other: Any = 1


class Helper:
    """An object that computes with a layer, in an attribute whose setter must not be called."""

    def __init__(self, layer: Any) -> None:
        self.__dict__["layer"] = layer
        self.back = self

    @property
    def other(self) -> Any:
        raise AssertionError("user code was called")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("user code was called")

    def __hash__(self) -> int:
        return 1

    def run(self, x: Tensor) -> Tensor:
        return self.__dict__["layer"](x)


class SlotHelper:
    __slots__ = ("layer", "unset")

    def __init__(self, layer: Any) -> None:
        self.layer = layer


class Registry(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        raise AssertionError("user code was called")


class Unregistered(nn.Module):
    """A module outside of the tree that calls one inside."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inside = (layer,)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside[0](x)


def registry_of(layer: Any) -> Registry:
    found = Registry()
    dict.__setitem__(found, "layer", layer)
    return found


def default(x: Tensor, layer: Any = None, *, name: str = "") -> Tensor:
    return layer(x)


def nested(inner: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: inner(x)


def with_defaults(layer: Any, keyword: bool) -> Callable[[Tensor], Tensor]:
    if keyword:

        def run(x: Tensor, *, inside: Any = layer) -> Tensor:
            return inside(x)

        return run

    def short(x: Tensor, inside: Any = layer) -> Tensor:
        return inside(x)

    return short


def cyclic(layer: Any) -> Any:
    items: list[Any] = [layer]
    items.append((items,))
    return items


# What an attribute holds, and how a forward pass finds the layer there.
KEPT: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Tensor], Tensor]]] = {
    "method": (lambda layer: layer.forward, lambda kept, x: kept(x)),
    "partial": (lambda layer: functools.partial(layer.forward), lambda kept, x: kept(x)),
    "partial_argument": (
        lambda layer: functools.partial(default, layer=layer, name="a"),
        lambda kept, x: kept(x),
    ),
    "lambda": (lambda layer: lambda x: layer(x), lambda kept, x: kept(x)),
    "nested": (lambda layer: nested(nested(layer)), lambda kept, x: kept(x)),
    "default": (lambda layer: with_defaults(layer, False), lambda kept, x: kept(x)),
    "keyword_default": (lambda layer: with_defaults(layer, True), lambda kept, x: kept(x)),
    "lru_cache": (lambda layer: functools.lru_cache(layer.forward), lambda kept, x: kept(x)),
    "dataclass": (lambda layer: Record([layer]), lambda kept, x: kept.layer[0](x)),
    "slot_dataclass": (SlotRecord, lambda kept, x: kept.layer(x)),
    "named_tuple": (Pair, lambda kept, x: kept.layer(x)),
    "tuple": (lambda layer: (1, (layer,)), lambda kept, x: kept[1][0](x)),
    "deque": (lambda layer: deque([layer], 3), lambda kept, x: kept[0](x)),
    "set": (lambda layer: {layer}, lambda kept, x: next(iter(kept))(x)),
    "frozenset": (lambda layer: frozenset([layer]), lambda kept, x: next(iter(kept))(x)),
    "key": (lambda layer: {layer: 1}, lambda kept, x: next(iter(kept))(x)),
    "defaultdict": (
        lambda layer: defaultdict(lambda: layer),
        lambda kept, x: kept["new"](x),
    ),
    "ordered": (lambda layer: OrderedDict(a=1, b=layer), lambda kept, x: kept["b"](x)),
    "dict_subclass": (registry_of, lambda kept, x: kept["layer"](x)),
    "namespace": (lambda layer: SimpleNamespace(a=layer), lambda kept, x: kept.a(x)),
    "weakref": (weakref.ref, lambda kept, x: kept()(x)),
    "proxy": (lambda layer: [weakref.proxy(layer)], lambda kept, x: kept[0].forward(x)),
    "weak_method": (lambda layer: weakref.WeakMethod(layer.forward), lambda kept, x: kept()(x)),
    "weak_values": (
        lambda layer: weakref.WeakValueDictionary({"a": layer}),
        lambda kept, x: kept["a"](x),
    ),
    "helper": (Helper, lambda kept, x: kept.run(x)),
    "method_of_helper": (lambda layer: Helper(layer).run, lambda kept, x: kept(x)),
    "slot_helper": (SlotHelper, lambda kept, x: kept.layer(x)),
    "module_outside": (lambda layer: [Unregistered(layer)], lambda kept, x: kept[0](x)),
    "cycle": (cyclic, lambda kept, x: kept[1][0][0](x)),
    "built_in_method": (lambda layer: [layer].copy, lambda kept, x: kept()[0](x)),
}


class Net(nn.Module):
    """Dense layers with dropout, the first of which is called by what an attribute holds."""

    def __init__(self, keep: Callable[[Any], Any], call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(60, HIDDEN), nn.Dropout(0.5))
        self.head = nn.Linear(HIDDEN, OUT)
        self.kept, self.call = keep(self.first), call

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.head(torch.tanh(self.call(self.kept, x.flatten(1)))), -1)


def make(keep: Any, call: Any, seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(keep, call).double()


def call_with(copy: Copy, other: nn.Module, x: Tensor) -> Tensor:
    """The copy's output with the parameters of another network, as a search binds them."""
    tensors = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    before = [(slot, dict(copy.network.named_parameters())[slot.name]) for slot in copy.slots]
    for slot in copy.slots:
        slot.put(tensors[slot.name])
    out = torch.func.functional_call(copy.network, tensors, (x,))
    for slot, tensor in before:
        slot.put(tensor)
    return out.detach()


@pytest.mark.parametrize("name", params(KEPT))
def test_a_layer_is_found_wherever_it_is_kept(name: str) -> None:
    network, other = make(*KEPT[name]), make(*KEPT[name], seed=1)
    before, kept = snapshot(network), network.kept
    copy = prepare(network)
    x = make_x0()[None]
    for _ in range(2):
        assert_same(call_with(copy, other, x), other.eval()(x).detach())
        assert_same(copy.network(x), make(*KEPT[name]).eval()(x))
    assert network.kept is kept
    assert_untouched(before, network)


# Where a parameter is kept, and how a forward pass reads it.
HELD: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Tensor]]] = {
    "plain": (lambda w: {"w": w}, lambda kept: kept["w"]),
    "list": (lambda w: [1, w], lambda kept: kept[1]),
    "deque": (lambda w: deque([w]), lambda kept: kept[0]),
    "closure": (lambda w: lambda: w, lambda kept: kept()),
    "default": (lambda w: lambda inside=(w, 1): inside[0], lambda kept: kept()),
    "keyword": (lambda w: functools.partial(lambda *, w: w, w=w), lambda kept: kept()),
    "partial": (lambda w: functools.partial(torch.mul, w), lambda kept: kept(1.0)),
    "helper": (Record, lambda kept: kept.layer),
    "slot": (SlotHelper, lambda kept: kept.layer),
    "tuple": (lambda w: (w, (w, 2)), lambda kept: (kept[0] + kept[1][0]) / 2),
    "named_tuple": (lambda w: [Pair(w, w)], lambda kept: (kept[0].layer + kept[0].other) / 2),
    "method_of_tensor": (lambda w: w.mul, lambda kept: kept(1.0)),
    "module_outside": (lambda w: [nn.ParameterList([w])], lambda kept: kept[0][0]),
}


class Held(nn.Module):
    def __init__(self, hold: Callable[[Any], Any], read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.head = nn.Linear(60, OUT)
        self.__dict__["kept"], self.read = hold(self.head.weight), read

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x.flatten(1) @ self.read(self.kept).T, -1)


@pytest.mark.parametrize("name", params(HELD))
def test_a_parameter_is_replaced_wherever_it_is_kept(name: str) -> None:
    torch.manual_seed(0)
    network, other = Held(*HELD[name]), Held(*HELD[name])
    before, copy, x = snapshot(network), prepare(network), make_x0(torch.float32)[None]
    assert {slot.name for slot in copy.slots} == {"head.weight"}
    for _ in range(2):
        assert_close(call_with(copy, other, x), other(x).detach(), rtol=1e-6)
        assert_same(copy.network(x), network(x))
    assert_untouched(before, network)


def test_a_plain_attribute_that_is_a_parameter_is_replaced() -> None:
    network = nn.Linear(2, 2)
    network.__dict__["again"] = network.weight
    copy = prepare(network)
    (slot,) = copy.slots
    slot.put(torch.ones(2, 2))
    assert_same(vars(copy.network)["again"], torch.ones(2, 2))
    assert network.__dict__["again"] is network.weight


class Featured(nn.Module):
    """Reads features that a hook has put into a dict."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(60, HIDDEN), nn.Linear(HIDDEN, OUT)
        self.features: dict[str, Tensor] = {}
        store = self.features

        def save(module: nn.Module, inputs: Any, output: Tensor) -> None:
            store["first"] = output

        def save_named(module: nn.Module, inputs: Any, named: Any, output: Tensor) -> None:
            store["first"] = output

        if hook == "closure":
            self.first.register_forward_hook(save)
        elif hook == "keywords":
            self.first.register_forward_hook(save_named, with_kwargs=True)
        elif hook == "default":
            self.first.register_forward_hook(lambda m, i, o, kept=store: kept.update(first=o))
        elif hook == "partial":
            self.first.register_forward_hook(
                functools.partial(lambda kept, m, i, o: kept.update(first=o), store)
            )
        elif hook == "self":
            self.first.register_forward_hook(lambda m, i, o: self.features.update(first=o))
        else:
            self.first.register_forward_hook(self.save)
        self.handle = next(iter(self.first._forward_hooks))

    def save(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features["first"] = output

    def forward(self, x: Tensor) -> Tensor:
        self.first(x.flatten(1))
        return torch.softmax(self.head(torch.tanh(self.features["first"])), -1)


@pytest.mark.parametrize("hook", ["closure", "keywords", "default", "partial", "self", "method"])
def test_a_hook_and_a_forward_pass_share_one_dict(hook: str) -> None:
    network, x = Featured(hook).double(), make_x0()[None]
    copy = prepare(network)
    out = copy.network(x)
    assert network.features == {}
    assert any(original is network.features for original in copy.containers)
    network.features["first"] = torch.full((1, HIDDEN), torch.nan)
    assert_same(copy.network(x), out)
    assert_same(network(x), out)


def test_a_method_that_closes_over_a_dict_of_a_hook_reads_the_copy() -> None:
    features: dict[str, Tensor] = {}

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.features = nn.Linear(60, OUT), features
            self.first.register_forward_hook(lambda m, i, o: features.update(first=o))

        def forward(self, x: Tensor) -> Tensor:
            self.first(x.flatten(1))
            return torch.softmax(features["first"], -1)

    network = Closed().double()
    out = prepare(network).network(make_x0()[None])
    assert features == {}
    assert_same(network(make_x0()[None]), out)


def test_a_handle_removes_the_hook_of_the_copy() -> None:
    network = nn.Linear(2, 2)
    network.handle = network.register_forward_hook(lambda *_: None)  # type: ignore[assignment]
    copy: Any = prepare(network).network
    copy.handle.remove()
    assert not copy._forward_hooks
    assert len(network._forward_hooks) == 1


def test_one_object_stays_one_object() -> None:
    network = nn.Linear(2, 2)
    shared: list[Any] = [network]
    network.one, network.two = shared, {"again": shared, "call": lambda: shared}  # type: ignore[assignment]
    copy: Any = prepare(network).network
    assert copy.one is copy.two["again"] is copy.two["call"]()
    assert copy.one == [copy]


def test_what_does_not_refer_to_the_network_is_shared() -> None:
    class Opinionated:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError("user code was called")

    network = nn.Linear(2, 2)
    outside = nn.Linear(3, 3)
    kept = [
        threading.Lock(),
        outside,
        Opinionated(),
        lambda: outside,
        print,
    ]
    network.kept = kept  # type: ignore[assignment]
    copy: Any = prepare(network).network
    assert copy.kept is not kept
    assert all(one is other for one, other in zip(copy.kept, kept, strict=True))


def test_a_list_that_only_a_hook_holds_is_the_callers() -> None:
    seen: list[int] = []
    network = nn.Linear(2, 2)
    network.register_forward_hook(lambda *_: seen.append(1))
    prepare(network).network(torch.zeros(1, 2))
    assert seen == [1]


def test_what_cannot_be_copied_is_shared() -> None:
    class Odd(threading.local):
        pass

    network = nn.Linear(2, 2)
    odd, error = Odd(), ValueError(network)
    odd.layer = network
    network.kept = [odd, error]  # type: ignore[assignment]
    prepare(network).network(torch.zeros(1, 2))
    assert network.kept[0] is odd  # type: ignore[index]
