"""Modules with slots, guarded attributes, cycles, classes of parameters, or no initialization."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe

F64 = torch.float64
X0 = torch.randn(1, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
TARGET = torch.full((3,), 1 / 3, dtype=F64)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.linear(x.flatten(1)), -1)


class Slots(Base):
    __slots__ = ("layer", "scale", "seen", "weight")
    layer: Any
    scale: Any
    weight: Any

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(2.0, dtype=F64)
        self.seen: dict[str, int] = {}
        object.__setattr__(self, "layer", nn.Linear(3, 3).double())
        Slots.weight.__set__(self, self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        self.seen["x"] = 1
        return torch.softmax(self.scale * self.layer(x.flatten(1) @ self.weight.T), -1)


class Guarded(Base):
    def __init__(self) -> None:
        super().__init__()
        self.__dict__["closed"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "closed" in self.__dict__:
            raise AttributeError(name)
        super().__setattr__(name, value)


class GuardedSlots(Guarded):
    __slots__ = ("scale",)
    scale: Any

    def __init__(self) -> None:
        super().__init__()
        GuardedSlots.scale.__set__(self, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.scale * x)


class Ring(Base):
    def __init__(self) -> None:
        super().__init__()
        self.ring: list[Any] = [self]
        self.ring.append(self.ring)
        self.__dict__["me"] = self

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.ring[1][0].me.linear(x.flatten(1)), -1)


class Scaled(nn.Parameter):
    scale: float


class ParameterClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight: Any = torch.Tensor._make_subclass(Scaled, torch.ones(6, 3, dtype=F64).tril(), True)
        self.weight.scale = 3.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x.flatten(1) @ self.weight * self.weight.scale, -1)


class Doubled(Tensor):
    def twice(self) -> Tensor:
        return 2 * self


class TensorClass(Base):
    def __init__(self) -> None:
        super().__init__()
        self.bias: Any = nn.Parameter(torch.arange(3.0, dtype=F64).as_subclass(Doubled))

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) + self.bias.twice()).as_subclass(Tensor).softmax(-1)


@pytest.mark.parametrize(
    "cls",
    [Slots, Guarded, GuardedSlots, Ring, ParameterClass, TensorClass],
    ids=lambda cls: cls.__name__,
)
def test_unusual_modules_are_answered_and_unchanged(cls: type[nn.Module]) -> None:
    network = cls()
    held = dict(vars(network))
    alone = fe.solve(fe.problem(network, TARGET, X0), max_steps=2)
    starts = torch.stack([X0, X0 + 1])
    rows = fe.solve(fe.vmap(fe.problem(network, TARGET, X0), x0=starts), max_steps=2)
    assert vars(network) == held
    assert getattr(network, "seen", {}) == {}
    torch.testing.assert_close(alone.weights, network(alone.x[None])[0].detach())
    torch.testing.assert_close(rows.weights, network(rows.x).detach())


class Parent(Base):
    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Identity()
        self.child.parent = self


class Uninitialized(nn.Module):
    def __init__(self) -> None:
        pass


class Part(Base):
    def __init__(self) -> None:
        super().__init__()
        self._modules["part"] = Uninitialized()


@pytest.mark.parametrize(
    ("cls", "error", "message"),
    [
        (Parent, ValueError, "child.parent is the network itself, which contains it"),
        (Uninitialized, TypeError, r"the network must be an initialized .*super\(\).__init__\(\)"),
        (Part, TypeError, r"part must be an initialized module, got a Uninitialized"),
    ],
)
def test_what_torch_itself_cannot_call_is_refused(cls: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^functionalize: .*{message}"):
        fe.functionalize(cls())
