"""Layers, functions and numbers that a network keeps where no copy of its tables reaches."""

from __future__ import annotations

import weakref
from collections import OrderedDict, UserList, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.catalogue.entry import Allocator, Catalogue, Entry
from tests.helpers import ASSETS, SIZE

HIDDEN = 8
COPY = r"eval mode|\bdiffers?\b|copy"  # the words of a refusal
OTHER = f"match|{COPY}"  # of models that differ in a setting


class Kept(Allocator):
    """Registered layers with dropout that ``forward`` reaches through ``self.kept`` alone."""

    def __init__(self, keep: Callable[[Kept], Any], call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.drop, self.head = (
            nn.Linear(SIZE, HIDDEN),
            nn.Dropout(0.5),
            nn.Linear(HIDDEN, ASSETS),
        )
        self.kept, self.call = keep(self), call

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.drop(self.body(x)))

    def scores(self, x: Tensor) -> Tensor:
        return self.head(self.call(self.kept, x.flatten(1)))


@dataclass
class Pair:
    first: nn.Module
    second: nn.Module


class Couple(NamedTuple):
    first: nn.Module
    second: nn.Module


class Registry(dict):
    """A subclass of dict."""


class Slotted:
    """A helper without a ``__dict__``."""

    __slots__ = ("layers",)

    def __init__(self, *layers: nn.Module) -> None:
        self.layers = layers

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return torch.tanh(x)


def in_turn(layers: Any, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return torch.tanh(x)


def both(pair: Any, x: Tensor) -> Tensor:
    return in_turn((pair.first, pair.second), x)


def called(kept: Any, x: Tensor) -> Tensor:
    return kept(x)


def by_name(kept: Any, x: Tensor) -> Tensor:
    return in_turn((kept["body"], kept["drop"]), x)


def closure(n: Kept) -> Callable[[Tensor], Tensor]:
    body, drop = n.body, n.drop

    def run(x: Tensor) -> Tensor:
        return torch.tanh(drop(body(x)))

    return run


def defaults(n: Kept) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor, body: nn.Module = n.body, drop: nn.Module = n.drop) -> Tensor:
        return torch.tanh(drop(body(x)))

    return run


def parts(n: Kept) -> dict[str, nn.Module]:
    return {"body": n.body, "drop": n.drop}


CONTAINERS: dict[str, tuple[Callable[[Kept], Any], Callable[[Any, Tensor], Tensor]]] = {
    "list": (lambda n: [n.body, n.drop], in_turn),
    "tuple": (lambda n: (n.body, n.drop), in_turn),
    "nested": (
        lambda n: [{"both": (n.body, [n.drop])}],
        lambda k, x: in_turn((k[0]["both"][0], *k[0]["both"][1]), x),
    ),
    "dict": (parts, by_name),
    "ordered_dict": (lambda n: OrderedDict(parts(n)), by_name),
    "default_dict": (lambda n: defaultdict(nn.Identity, parts(n)), by_name),
    "dict_subclass": (lambda n: Registry(parts(n)), by_name),
    "keys": (lambda n: {n.body: 0, n.drop: 1}, in_turn),
    "user_list": (lambda n: UserList([n.body, n.drop]), in_turn),
    "deque": (lambda n: deque([n.body, n.drop]), in_turn),
    "iterator_maker": (
        lambda n: partial(map, lambda layer: layer, [n.body, n.drop]),
        lambda k, x: in_turn(k(), x),
    ),
    "named_tuple": (lambda n: Couple(n.body, n.drop), both),
    "dataclass": (lambda n: Pair(n.body, n.drop), both),
    "namespace": (lambda n: SimpleNamespace(first=n.body, second=n.drop), both),
    "slots": (lambda n: Slotted(n.body, n.drop), called),
    "weakref": (
        lambda n: (weakref.ref(n.body), weakref.ref(n.drop)),
        lambda k, x: in_turn((k[0](), k[1]()), x),
    ),
    "weakref_proxy": (lambda n: [weakref.proxy(n.body), weakref.proxy(n.drop)], in_turn),
    "weak_dict": (lambda n: weakref.WeakValueDictionary(parts(n)), by_name),
    "bound_method": (lambda n: n.hidden, called),
    "bound_methods": (lambda n: [n.body.forward, n.drop.forward], in_turn),
    "partial": (lambda n: partial(n.hidden), called),
    "partial_of_layers": (lambda n: partial(in_turn, (n.body, n.drop)), called),
    "lambda": (lambda n: lambda x: n.hidden(x), called),
    "closure": (closure, called),
    "defaults": (defaults, called),
}


class Unregistered(Allocator):
    """The registered parameters of a layer, used through another attribute."""

    def __init__(
        self, keep: Callable[[nn.Linear], Any], read: Callable[[Any], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.layer = nn.Linear(SIZE, ASSETS)
        self.kept, self.read = keep(self.layer), read

    def scores(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(x.flatten(1)), *self.read(self.kept))


TENSORS: dict[str, tuple[Callable[[nn.Linear], Any], Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "list": (lambda s: [s.weight, s.bias], tuple),
    "tuple": (lambda s: (s.weight, s.bias), lambda k: k),
    "dict": (lambda s: {"w": s.weight, "b": s.bias}, lambda k: (k["w"], k["b"])),
    "nested": (lambda s: {"all": [(s.weight, s.bias)]}, lambda k: k["all"][0]),
    "named_parameters": (lambda s: dict(s.named_parameters()), lambda k: (k["weight"], k["bias"])),
    "namespace": (lambda s: SimpleNamespace(w=s.weight, b=s.bias), lambda k: (k.w, k.b)),
    "closure": (lambda s: lambda: (s.weight, s.bias), lambda k: k()),
    "view": (
        lambda s: [s.weight.detach().view(-1), s.bias.detach()],
        lambda k: (k[0].view(ASSETS, SIZE), k[1]),
    ),
}


class Plain(Allocator):
    """What the model draws when it is made is kept outside of parameters and buffers, or sparse."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(SIZE, ASSETS), kind
        drawn = 0.5 + torch.rand(ASSETS, ASSETS)
        self.setting = float(drawn[0, 0])
        self.function = torch.sin if self.setting > 0.75 else torch.cos
        self.tensor, self.array, self.numbers = drawn, drawn.numpy(), drawn.tolist()
        if kind == "graph":
            self.register_buffer("graph", drawn.to_sparse())

    def scores(self, x: Tensor) -> Tensor:
        h = self.layer(torch.tanh(x.flatten(1)))
        if self.kind == "setting":
            return h * self.setting
        if self.kind == "function":
            return self.function(3.0 * h)
        if self.kind == "graph":
            return torch.sparse.mm(self.graph, h.mT).mT
        return h @ torch.as_tensor(getattr(self, self.kind), dtype=h.dtype)


KINDS = ("setting", "function", "tensor", "array", "numbers")

CONTAINED: Catalogue = {
    **{f"kept_in_{n}": Entry(partial(Kept, *a), refused=COPY) for n, a in CONTAINERS.items()},
    **{f"tensors_in_{n}": Entry(partial(Unregistered, *a), refused=COPY) for n, a in TENSORS.items()},
    **{f"plain_{k}": Entry(partial(Plain, k), refused=OTHER) for k in KINDS},
    "sparse_graph": Entry(lambda: Plain("graph"), refused=OTHER, mappable=False),
}
