"""State that one forward pass leaves to the next: it changes nothing of the caller's, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe

TARGET = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
STARTS = torch.randn(3, 2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Holder:
    """An object of the caller's own."""

    def __init__(self) -> None:
        self.inner = SimpleNamespace(array=np.zeros(1))


class Stateful(nn.Module):
    """A network that writes to itself; where `matters`, what it wrote changes the next weights."""

    def __init__(self, write: Callable[[Any, Tensor], Any], matters: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(24, 3, generator=generator, dtype=torch.float64))
        self.write, self.matters = write, matters
        self.number, self.first = 0, None
        self.array, self.tensor = np.zeros(1), torch.zeros(1, dtype=torch.float64)
        self.listed, self.nested = [torch.zeros(1)], {"a": ([0], np.zeros(1))}
        self.generator, self.holder = torch.Generator(), Holder()
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        gain = torch.as_tensor(self.write(self, x)).to(x)
        return torch.softmax((1.0 + 0.3 * self.matters * gain) * x.flatten(1) @ self.weight, -1)

    def state(self) -> Any:
        arrays = (self.array.tolist(), self.tensor.tolist(), self.listed[0].tolist())
        drawn = self.generator.get_state().tolist()
        return (self.number, self.first, self.late, *arrays, str(self.nested), drawn)


def count(network: Any, x: Tensor) -> Any:
    network.number += 1
    return network.number


def write_array(network: Any, x: Tensor) -> Any:
    network.array += 1
    return network.array[0]


def write_tensor(network: Any, x: Tensor) -> Any:
    network.tensor += 1
    return network.tensor.clone()


def write_listed_tensor(network: Any, x: Tensor) -> Any:
    network.listed[0] += 1
    return network.listed[0].clone()


def write_nested(network: Any, x: Tensor) -> Any:
    network.nested["a"][0][0] += 1
    network.nested["a"][1][0] += 1
    return network.nested["a"][0][0] + network.nested["a"][1][0]


def write_held_array(network: Any, x: Tensor) -> Any:
    network.holder.inner.array += 1
    return network.holder.inner.array[0]


def keep_first_window(network: Any, x: Tensor) -> Any:
    if network.first is None:
        network.first = 10 * x.detach().abs().mean()
    return network.first


def fill_late_buffer(network: Any, x: Tensor) -> Any:
    if network.late is None:
        network.late = 10 * x.detach().abs().mean()
    return network.late


def draw(network: Any, x: Tensor) -> Any:
    return torch.randn((), generator=network.generator)


def counter() -> Callable[[Any, Tensor], Any]:
    calls = 0

    def write(network: Any, x: Tensor) -> Any:
        nonlocal calls
        calls += 1
        return calls

    return write


WRITES = (
    *(count, write_array, write_tensor, write_listed_tensor, write_nested, write_held_array),
    *(keep_first_window, fill_late_buffer, draw, counter()),
)


@pytest.mark.parametrize("write", WRITES, ids=[write.__name__ for write in WRITES])
def test_state_that_matters_is_refused(write: Callable[[Any, Tensor], Any]) -> None:
    network = Stateful(write, matters=True)
    before = network.state()
    with pytest.raises(ValueError, match="state that one call leaves to the next"):
        fe.problem(network, TARGET, STARTS[0])
    assert network.state() == before


@pytest.mark.parametrize("write", WRITES, ids=[write.__name__ for write in WRITES])
@pytest.mark.filterwarnings("ignore:.*one at a time")
def test_state_that_does_not_matter_is_allowed(write: Callable[[Any, Tensor], Any]) -> None:
    network = Stateful(write, matters=False)
    before = network.state()
    problem = fe.problem(network, TARGET, STARTS[0])
    for solution in (
        fe.solve(problem, fe.sgd(lr=1.0), max_steps=2),
        fe.solve(fe.vmap(problem, x0=STARTS), fe.sgd(lr=1.0), max_steps=2),
    ):
        weights = network(solution.x.reshape(-1, 2, 4, 3)).detach().view(solution.weights.shape)
        torch.testing.assert_close(solution.weights, weights, rtol=1e-10, atol=1e-10)
        network = Stateful(write, matters=False)
    assert network.state() == before


def test_plain_tensors_and_arrays_are_those_of_the_time_when_the_question_was_asked() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales: list[Any] = [torch.full((3,), 2.0, dtype=torch.float64), np.full(3, 3.0)]

        def forward(self, x: Tensor) -> Tensor:
            scale = self.scales[0] * torch.from_numpy(self.scales[1])
            return torch.softmax(x.mean((1, 2)) * scale, -1)

    network = Scaled()
    problem = fe.problem(network, TARGET, STARTS[0])
    expected = network(STARTS[:1])[0]
    network.scales[0].zero_()
    network.scales[1][:] = 0.0
    torch.testing.assert_close(fe.solve(problem, max_steps=0).weights, expected)


def test_a_network_that_asks_whether_its_window_has_a_gradient_is_refused() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x.flatten(1)[:, :3] * (1.0 if x.requires_grad else 0.3), -1)

    with pytest.raises(ValueError, match="same weights"):
        fe.problem(Asks(), TARGET, STARTS[0])
