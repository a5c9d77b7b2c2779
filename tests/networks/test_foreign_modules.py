"""TorchScript and exported programs as networks and as parts; quantized layers are refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.helpers import ASSETS, assert_close, assert_untouched, make_target, make_x0, params, snapshot

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Small(nn.Module):
    """Normalization and dropout; sequences of days in a recurrent layer."""

    def __init__(self, recurrent: bool = True) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(2), nn.Dropout(0.5)
        self.cell = nn.GRU(10, 4, batch_first=True) if recurrent else None
        self.head = nn.Linear(4 if recurrent else 60, ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(x)).permute(0, 2, 1, 3).flatten(2)
        hidden = x.flatten(1)
        if self.cell is not None:
            hidden = self.cell(x)[0][:, -1]
        return torch.softmax(self.head(torch.tanh(hidden)), -1)


def make(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Small().double().eval()


def export(network: nn.Module, rows: int) -> nn.Module:
    example = torch.zeros(rows, 2, 6, 5, dtype=torch.float64)
    dims = ({0: torch.export.Dim("n")},) if rows > 1 else None
    return torch.export.export(network, (example,), dynamic_shapes=dims).module()


class Part(nn.Module):
    """A program as the part of a network in Python."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.body, self.scale = program, nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.scale * self.body(torch.tanh(x)), -1)


EXAMPLE = torch.zeros(1, 2, 6, 5, dtype=torch.float64)
PROGRAMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "script": torch.jit.script,
    "script_in_train_mode": lambda network: torch.jit.script(network.train()),
    "trace": lambda network: torch.jit.trace(network, EXAMPLE, check_trace=False),
    "export": lambda network: export(network, 2),
    "export_of_one_row": lambda network: export(network, 1),
}
fixed = pytest.mark.filterwarnings("ignore:opaque. mapped rows of GraphModule run one at a time")


@cache
def build(name: str, part: bool, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A program, and the same network in Python; no test may change them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = PROGRAMS[name](make(seed))
    return (Part(program), Part(make(seed))) if part else (program, make(seed))


@fixed
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("name", params(PROGRAMS))
def test_a_program_is_a_network(name: str, part: bool) -> None:
    program, network = build(name, part)
    before, x, target = copy.deepcopy(program.state_dict()), make_x0(), make_target()
    apply, p = fe.functionalize(program)
    ours, q = fe.functionalize(network)
    assert p.keys() == q.keys()
    assert_close(apply(p, x), ours(q, x))
    slope, right = (
        torch.func.grad(lambda p, x, f=f: fe.losses.mse(f(p, x), target), argnums=(0, 1))
        for f in (apply, ours)
    )
    weights = {name: t for name, t in p.items() if t.is_floating_point()}
    assert_close(slope(weights, x)[1], right(q | weights, x)[1]) if len(weights) == len(p) else None
    assert_close(torch.func.jacrev(apply, 1)(p, x), torch.func.jacrev(ours, 1)(q, x))
    xs = torch.stack([make_x0(seed=seed) for seed in range(3)])
    for mapped in (torch.func.vmap(f, (None, 0)) for f in (apply,)):
        assert_close(mapped(p, xs), torch.stack([ours(q, x) for x in xs]))
    after = program.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("name", params(PROGRAMS))
def test_an_ensemble_of_programs_is_each_of_them(name: str) -> None:
    pairs = [build(name, False, seed) for seed in range(2)]
    apply, stacked = fe.stack([program for program, _ in pairs])
    x = make_x0()
    expected = torch.stack([network(x[None])[0].detach() for _, network in pairs])
    assert_close(torch.func.vmap(apply, (0, None))(stacked, x), expected)


@fixed
@pytest.mark.parametrize("name", params(PROGRAMS))
def test_a_grid_of_a_program_is_that_of_the_network(name: str) -> None:
    x0s = torch.stack([make_x0(seed=seed) for seed in range(3)])
    found, expected = (
        fe.solve(
            fe.vmap(fe.problem(network, make_target(), x0s[0]), x0=x0s), fe.adam(lr=0.1), max_steps=3
        )
        for network in build(name, False)
    )
    assert_close(found.x, expected.x, rtol=1e-8)


@pytest.mark.parametrize("name", params(["script", "export"]))
def test_the_callers_program_keeps_its_mode(name: str) -> None:
    program, _ = build(name, False)
    modes = [part.training for part in program.modules()]
    fe.explain(program, make_target(), make_x0(), max_steps=1)
    assert [part.training for part in program.modules()] == modes


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_layer_is_refused_by_its_name() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(60, ASSETS)))
    quantized: Any = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    with pytest.raises(TypeError, match=r"1\.0 is a quantized Linear; pass the float network"):
        fe.functionalize(quantized)


def test_python_networks_stay_untouched_around_a_program() -> None:
    network = Part(torch.jit.script(make()))
    before = snapshot(network)
    fe.explain(network, make_target(), make_x0(), max_steps=1)
    assert_untouched(before, network)
