"""Shared, replaced and written parts of a network: ties, adapters, hooks, caches, parametrizations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.catalogue.containers import COPY
from tests.catalogue.entry import Allocator, Catalogue, Entry
from tests.helpers import ASSETS, SHAPE, SIZE, weight_norm

HIDDEN = 8


class Tied(Allocator):
    """An embedding whose transpose is the last layer, and a parameter of two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIZE, HIDDEN), nn.Linear(HIDDEN, SIZE)
        self.second.weight = nn.Parameter(self.first.weight.mT)
        self.second.register_parameter("bias", None)
        self.third = nn.Linear(SIZE, HIDDEN)
        self.third.weight = self.first.weight
        self.heads = nn.ModuleList([nn.Linear(HIDDEN, ASSETS)] * 2)

    def scores(self, x: Tensor) -> Tensor:
        hidden = self.second(torch.tanh(self.first(x.flatten(1))))
        return sum(head(torch.tanh(self.third(hidden))) for head in self.heads)


class Lora(Allocator):
    """A low-rank adapter that is merged into the layer in eval mode."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.layer, self.gain = nn.Linear(SIZE, ASSETS), gain
        self.down, self.up = nn.Parameter(torch.randn(2, SIZE)), nn.Parameter(torch.randn(ASSETS, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Lora:
        if mode == self.merged:
            sign = -1.0 if mode else 1.0
            self.layer.weight.data += sign * 0.1 * self.gain * (self.up @ self.down).detach()
            self.merged = not mode
        return super().train(mode)

    def scores(self, x: Tensor) -> Tensor:
        flat = torch.tanh(x.flatten(1))
        out = self.layer(flat)
        return out if self.merged else out + 0.1 * flat @ self.down.mT @ self.up.mT


class Temperature(Allocator):
    """A temperature that ``train`` sets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.temperature = nn.Linear(SIZE, ASSETS), 1.0

    def train(self, mode: bool = True) -> Temperature:
        self.temperature = 1.0 if mode else 0.2
        return super().train(mode)

    def scores(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(x.flatten(1))) / self.temperature


class ReadsFeatures(Allocator):
    """A forward hook fills a dict that ``forward`` reads."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(SIZE, HIDDEN), nn.Linear(HIDDEN, ASSETS)
        seen: dict[str, Tensor] = {}
        self.seen = seen if place == "attribute" else {}
        self.read = (lambda: seen) if place == "closure" else None
        if place == "method":
            self.layer.register_forward_hook(self.keep)
        else:
            self.layer.register_forward_hook(lambda m, i, out: seen.__setitem__("layer", out))

    def keep(self, module: nn.Module, inputs: Any, out: Tensor) -> None:
        self.seen["layer"] = out

    def scores(self, x: Tensor) -> Tensor:
        self.layer(torch.tanh(x.flatten(1)))
        seen = self.seen if self.read is None else self.read()
        return self.head(torch.sin(3.0 * seen["layer"]))


def mlp() -> nn.Sequential:
    layers = nn.Linear(SIZE, HIDDEN), nn.Tanh(), nn.Dropout(0.5), nn.Linear(HIDDEN, ASSETS)
    return nn.Sequential(nn.Flatten(), *layers, nn.Softmax(-1))


def changed(change: Callable[[nn.Sequential], Any]) -> Callable[[], nn.Module]:
    """A small network after a change of its layers."""

    def make() -> nn.Module:
        network = mlp()
        return change(network) or network

    return make


def after_a_call(network: nn.Module) -> nn.Module:
    """The network once the caller has called it, as it was before: in training mode."""
    network.eval()(torch.randn(1, *SHAPE))
    return network.train()


class Cache(Allocator):
    """Buffers that ``forward`` writes: a counter, a cache that is read in the same call, a new one."""

    last: Tensor
    count: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(SIZE, ASSETS), how
        self.register_buffer("last", torch.zeros(1, SIZE), persistent=how != "fresh")
        self.register_buffer("count", torch.tensor(0.0), persistent=False)

    def scores(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if self.how == "counter":
            self.count.add_(1)
            return self.layer(torch.tanh(flat))
        if self.how == "in_place":
            self.last.resize_(flat.shape).copy_(flat.detach())
        else:
            self.last = torch.tanh(flat)
        return self.layer(self.last.sin() + torch.tanh(flat))


class Inspecting(Allocator):
    """A parent that looks at its parts: their types, attributes, weights and mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.cell = nn.BatchNorm1d(2), nn.LSTM(10, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, ASSETS)
        self.attend = nn.MultiheadAttention(HIDDEN, 2, batch_first=True)

    def scores(self, x: Tensor) -> Tensor:
        assert isinstance(self.cell, nn.LSTM)
        assert isinstance(self.norm, nn.BatchNorm1d)
        assert self.cell.batch_first
        assert type(self.attend) is nn.MultiheadAttention
        assert len(list(self.children())) == 4
        start = torch.zeros(self.cell.num_layers, len(x), self.cell.hidden_size, dtype=x.dtype)
        hidden = self.norm(x.flatten(2)).view_as(x).transpose(1, 2).flatten(2)
        out = self.cell(hidden, (start, start))[0]
        if isinstance(self.attend, nn.MultiheadAttention):
            out = self.attend(out, out, out)[0] * self.attend.num_heads
        return 3.0 * self.head(out[:, -1])


class Borrowing(Allocator):
    """``__getattr__`` passes on to the body, and ``__call__`` is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(SIZE, ASSETS)
        self.inner.gain = 1.5  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.softmax(self.gain * (torch.tanh(x.flatten(1)) @ self.weight.mT + self.bias), -1)


class Double(nn.Module):
    """A parametrization that has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(()) + 1)

    def forward(self, weight: Tensor) -> Tensor:
        return self.gain * torch.tanh(weight)


class Lazy(Allocator):
    """Lazy layers whose weights were loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LazyLinear(HIDDEN), nn.LazyLinear(ASSETS)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x.flatten(1))))


def loaded() -> nn.Module:
    first, second = Lazy(), Lazy()
    first(torch.zeros(1, SIZE))
    second.load_state_dict(first.state_dict())
    return second


def weight_norm_hook(network: nn.Sequential) -> None:
    nn.utils.weight_norm(network[1])


def spectral_norm_hook(network: nn.Sequential) -> None:
    nn.utils.spectral_norm(network[1])


def scaled_input(network: nn.Sequential) -> None:
    network[1].register_forward_pre_hook(lambda module, inputs: (2.0 * inputs[0],))


def changed_output(network: nn.Sequential) -> None:
    network[1].register_forward_hook(lambda module, inputs, out: out.sin())


def hook_of_another_layer(network: nn.Sequential) -> None:
    head: Any = network[4]
    network[1].register_forward_hook(lambda module, inputs, out: out + 0.5 * head.bias.sum())


def shadowed_forward(network: nn.Sequential) -> None:
    plain = network[1].forward
    network[1].forward = lambda x: 2.0 * plain(x)


def pruned(network: nn.Sequential) -> None:
    prune.random_unstructured(network[1], "weight", 0.3)


def scripted_tail(network: nn.Sequential) -> nn.Module:
    body: Any = network[:4]
    return nn.Sequential(*body, torch.jit.script(network[4:]))


def frozen(network: nn.Sequential) -> None:
    network.requires_grad_(False)


class Dicts(Allocator):
    """ModuleDict, ParameterList and ParameterDict, and a loop over named parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.Linear(SIZE, HIDDEN), "b": nn.Linear(HIDDEN, HIDDEN)})
        self.heads = nn.ParameterList(torch.randn(HIDDEN, ASSETS) for _ in range(2))
        self.shifts = nn.ParameterDict({"x": torch.randn(ASSETS)})

    def named(self) -> Iterator[nn.Module]:
        return (part for name, part in self.named_modules() if name.startswith("layers."))

    def scores(self, x: Tensor) -> Tensor:
        hidden = x.flatten(1)
        for layer in self.named():
            hidden = torch.tanh(layer(hidden))
        return sum(hidden @ head for head in self.heads) + self.shifts["x"]


STRUCTURE: Catalogue = {
    "tied": Entry(Tied),
    "lora": Entry(lambda: Lora(1.0), refused=COPY),
    "lora_merged_otherwise": Entry(lambda: Lora(3.0), refused=COPY),
    "temperature": Entry(Temperature, refused=COPY),
    "features_in_attribute": Entry(lambda: ReadsFeatures("attribute"), refused=COPY),
    "stale_features": Entry(lambda: after_a_call(ReadsFeatures("attribute")), refused=COPY),
    "stale_features_by_method": Entry(lambda: after_a_call(ReadsFeatures("method")), refused=COPY),
    "features_in_closure": Entry(lambda: ReadsFeatures("closure"), refused=COPY),
    "features_by_method": Entry(lambda: ReadsFeatures("method"), refused=COPY),
    "counter": Entry(lambda: Cache("counter")),
    "cache_in_place": Entry(lambda: Cache("in_place"), mappable=False, verdict="does NOT agree"),
    "cache_fresh": Entry(lambda: Cache("fresh")),
    "inspecting": Entry(Inspecting),
    "borrowing": Entry(Borrowing),
    "lazy": Entry(loaded),
    "dicts": Entry(Dicts),
    "weight_norm": Entry(changed(lambda n: void(weight_norm(n[1])))),
    "spectral_norm": Entry(changed(lambda n: void(parametrizations.spectral_norm(n[1])))),
    "orthogonal": Entry(changed(lambda n: void(parametrizations.orthogonal(n[1])))),
    "parametrized": Entry(
        changed(lambda n: void(parametrize.register_parametrization(n[1], "weight", Double())))
    ),
    "weight_norm_hook": Entry(changed(weight_norm_hook)),
    "spectral_norm_hook": Entry(changed(spectral_norm_hook)),
    "scaled_input": Entry(changed(scaled_input)),
    "changed_output": Entry(changed(changed_output)),
    "hook_of_another_layer": Entry(changed(hook_of_another_layer), refused=COPY),
    "shadowed_forward": Entry(changed(shadowed_forward), refused=COPY),
    "pruned": Entry(changed(pruned)),
    "frozen": Entry(changed(frozen)),
    "scripted": Entry(changed(torch.jit.script), mappable=False, refused="script|compiled"),
    "scripted_part": Entry(
        changed(scripted_tail),
        mappable=False,
        refused="script|compiled",
    ),
    "traced": Entry(
        changed(lambda n: torch.jit.trace(n.eval(), torch.zeros(2, SIZE))),
        mappable=False,
        refused="script|compiled",
    ),
}


def void(value: Any) -> None:
    """Drop the value of an expression."""
    del value
