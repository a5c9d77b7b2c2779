"""Awkward callers are served like tidy ones: odd strides, train mode, hooked or compiled networks."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests import helpers

TARGET, X0, MASK = helpers.make_target(), helpers.make_x0(), helpers.make_mask()


class InPlace(nn.Module):
    """Works in place on its input."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.mul_(1.0))


class Listed(nn.Module):
    """Keeps its layers a second time, in a plain list."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers, self.steps = layers, list(layers)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Switched(nn.Module):
    """Keeps one of its own methods in an attribute."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers, self.run = layers, self.plain

    def plain(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def hooked(layers: nn.Sequential) -> nn.Module:
    def note(module: nn.Module, *call: Any) -> None:
        vars(module)["seen"] = len(call)

    layers.register_forward_pre_hook(note)
    layers.register_forward_hook(note)
    layers.register_full_backward_hook(note)
    return layers


def weight_normed(layers: nn.Sequential) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layers[2])
    return layers


def compiled(layers: nn.Sequential) -> nn.Module:
    wrapped: Any = torch.compile(layers, backend="eager")
    return wrapped


def compiled_in_place(layers: nn.Sequential) -> nn.Module:
    layers.compile(backend="eager")
    return layers


HABITS: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "in_train_mode": lambda layers: layers,
    "with_hooks": hooked,
    "with_old_weight_norm": weight_normed,
    "listed_layers": Listed,
    "switched_method": Switched,
    "input_in_place": InPlace,
    "compiled": compiled,
    "compiled_in_place": compiled_in_place,
}


@pytest.mark.parametrize("name", helpers.params(HABITS))
def test_network_of_any_habit_is_served_like_its_plain_twin(name: str) -> None:
    plain: Any = helpers.make_network("mlp_tanh").layers
    expected = fe.explain(copy.deepcopy(plain), TARGET, X0, max_steps=3)
    network = HABITS[name](copy.deepcopy(plain)).train()
    before = helpers.snapshot(network)
    helpers.assert_close(fe.explain(network, TARGET, X0, max_steps=3), expected, rtol=1e-9)
    helpers.assert_untouched(before, network)
    apply, params = fe.functionalize(network)
    assert not torch.equal(apply({n: 0.5 * p for n, p in params.items()}, X0), apply(params, X0))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "requires_grad": lambda t: t.clone().requires_grad_(),
    "parameter": nn.Parameter,
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    "expanded": lambda t: (t[..., :1] if t.ndim > 1 else t.new_tensor([1 / len(t)])).expand(t.shape),
}


@pytest.mark.parametrize("name", helpers.params(LAYOUTS))
def test_tensors_of_any_layout_are_served_like_their_plain_twins(name: str) -> None:
    network, target, x0 = helpers.make_network("mlp_tanh"), LAYOUTS[name](TARGET), LAYOUTS[name](X0)
    plain = [t.detach().contiguous().clone() for t in (target, x0)]
    with torch.no_grad():
        solution = fe.explain(network, target, x0, mask=MASK.mT.contiguous().mT, max_steps=3)
    helpers.assert_same(solution, fe.explain(network, *plain, mask=MASK, max_steps=3))
    assert target.grad is None
    assert x0.grad is None


@pytest.mark.parametrize("order", [*itertools.permutations(["freeze", "box", "cast"])], ids="-".join)
def test_order_of_freeze_box_and_cast_does_not_matter(order: tuple[str, ...]) -> None:
    transforms = {"freeze": fe.freeze, "box": fe.box(-4.0, 4.0), "cast": fe.cast(dtype=torch.float32)}
    x0 = torch.where(MASK, X0, X0 + 100.0)
    problem = fe.problem(helpers.make_network("mlp_tanh"), TARGET, x0, mask=MASK)
    solution = fe.solve(fe.pipe(problem, *(transforms[name] for name in order)), max_steps=3)
    assert torch.equal(solution.x[~MASK], x0.float()[~MASK])
    assert bool((solution.x[MASK].abs() <= 4.0).all())
    twin = fe.pipe(problem, fe.cast(dtype=torch.float32), fe.freeze, fe.box(-4.0, 4.0))
    helpers.assert_same(solution, fe.solve(twin, max_steps=3))


def test_problem_keeps_nothing_of_its_caller() -> None:
    apply, params = fe.functionalize(helpers.make_network("mlp_tanh"))
    problem = fe.problem((apply, params), TARGET, X0)
    before = problem.objective(X0, problem.args)
    for tensor in params.values():
        tensor.zero_()
    helpers.assert_same(problem.objective(X0, problem.args), before)


def test_optimizer_in_place_does_not_reach_the_problem() -> None:
    problem = helpers.make_problem()
    before = helpers.clone_args(problem.args)
    fe.solve(problem, (lambda z: (), lambda grads, state, z: (z.zero_(), state)), max_steps=2)
    helpers.assert_same(problem.args, before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gets_about_as_far(dtype: str) -> None:
    problem = helpers.make_problem(dtype=torch.float32)
    expected = fe.solve(problem, max_steps=20)
    solution = fe.solve(fe.cast(dtype=getattr(torch, dtype))(problem), max_steps=20)
    torch.testing.assert_close(solution.loss.float(), expected.loss, rtol=0.2, atol=1e-5)
