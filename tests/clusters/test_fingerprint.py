"""Fingerprints: equal in every process, and different if anything changes that affects the answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.clusters.fingerprint import differences, fingerprint, hash_fingerprint
from tests.helpers import (
    LOSSES,
    NETWORKS,
    OPTIMIZERS,
    PENALTIES,
    TRANSFORMS,
    make_network,
    make_problem,
    make_target,
    make_x0,
)

ROOT = Path(__file__).parents[2]
ASSETS = ["A", "B", "C", "D", "E"]


def everything() -> dict[str, fe.Problem]:
    """Problems with every network, loss, transform and penalty of the catalogues, and with goals."""
    made = {f"network {name}": make_problem(make_network(name)) for name in NETWORKS}
    made |= {f"loss {name}": make_problem(loss=loss) for name, loss in LOSSES.items()}
    made |= {f"transform {name}": t(make_problem()) for name, t in TRANSFORMS.items()}
    made |= {
        f"penalty {name}": fe.pipe(make_problem(), fe.penalize(penalty, strength=0.1))
        for name, penalty in PENALTIES.items()
    }
    goal = fe.targets.all_of(fe.targets.at_least("A", 0.3), fe.targets.top("B"))
    made["goal"] = fe.problem(make_network("mlp_tanh"), goal, make_x0(), assets=ASSETS)
    try:
        from deepdow import nn as nets
    except ImportError:
        return made
    uniform, x0 = torch.full((5,), 0.2), torch.zeros(2, 6, 5)
    torch.manual_seed(0)
    network = nets.BachelierNet(2, 5, hidden_size=4).eval()
    return made | {"deepdow": fe.problem(network, uniform, x0)}


def describe_all(problems: dict[str, fe.Problem]) -> dict[str, dict[str, str]]:
    prints = {name: fingerprint(p, fe.adam(), {"atol": 0.0}) for name, p in problems.items()}
    methods: dict[str, Any] = {name: make() for name, make in OPTIMIZERS.items()}
    methods["levenberg_marquardt"] = fe.levenberg_marquardt()
    some = problems["transform none"]
    return prints | {f"method {name}": fingerprint(some, m, {}) for name, m in methods.items()}


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")  # of deepdow's own parts
def test_every_process_tells_the_same() -> None:
    # Used before: state that a search leaves in a network must not be described.
    problems = everything()
    for problem in problems.values():
        fe.solve(problem, max_steps=1)
    command = [sys.executable, "-W", "ignore", "-m", "tests.clusters.test_fingerprint"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == describe_all(problems)


@pytest.mark.filterwarnings("ignore")
def test_all_of_the_catalogues_differ() -> None:
    prints = describe_all(everything())
    keys = {hash_fingerprint(parts): name for name, parts in prints.items()}
    # One question and one method are in every catalogue.
    same = {"network mlp_tanh", "loss mse", "transform none", "transform cast", "method adam"}
    assert len(keys) >= len(prints) - len(same)


class Loss:
    """A loss with a setting."""

    def __init__(self, power: float) -> None:
        self.power = power

    def __call__(self, weights: Tensor, target: Tensor) -> Tensor:
        return ((weights - target).abs() ** self.power).sum()


@dataclass(slots=True)
class Slotted:
    """A loss whose setting is in a slot."""

    power: float

    def __call__(self, weights: Tensor, target: Tensor) -> Tensor:
        return ((weights - target).abs() ** self.power).sum()


class Norm(Enum):
    """A choice."""

    ONE = 1
    TWO = 2


def normed(norm: Norm) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda weights, target: (weights - target).norm(norm.value)


class Tempered(nn.Module):
    """A network with settings that are no parameters."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.inner = make_network("mlp_tanh")
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def loss_of(body: str, **known: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss in a user's module, which may change between two runs."""
    scope: dict[str, Any] = {"__name__": "mine", **known}
    exec(body, scope)
    loss = scope["loss"]
    assert callable(loss)
    return loss


def hooked(factor: float) -> nn.Module:
    network = Tempered()
    network.register_forward_pre_hook(lambda module, args: (factor * args[0],))
    return network


SQUARES = "def loss(weights, target):\n    return {0} * ((weights - target) ** 2).sum()"
CALLS = "def part(d):\n    return d ** {0}\ndef loss(weights, target):\n    return part(weights).sum()"
# What is stated with a number, which is all that changes.
STATED: dict[str, Callable[[int], dict[str, Any]]] = {
    "attribute of a loss": lambda n: {"loss": Loss(n)},
    "slot of a loss": lambda n: {"loss": Slotted(n)},
    "choice that a loss captures": lambda n: {"loss": normed(Norm(n))},
    "argument of a partial": lambda n: {"loss": partial(fe.losses.huber, delta=0.1 * n)},
    "constant in code": lambda n: {"loss": loss_of(SQUARES.format(n))},
    "constant of a module": lambda n: {"loss": loss_of(SQUARES.format("FACTOR"), FACTOR=n)},
    "function that is called": lambda n: {"loss": loss_of(CALLS.format(n))},
    "setting of a network": lambda n: {"network": Tempered(temperature=1.0 * n)},
    "array of a network": lambda n: {"network": Tempered(scale=np.full(2, n))},
    "function of a network": lambda n: {"network": Tempered(f=[torch.tanh, torch.sigmoid][n - 1])},
    "operation of a network": lambda n: {
        "network": Tempered(f=[torch.ops.aten.tanh, torch.ops.aten.relu][n - 1])
    },
    "function behind a cache": lambda n: {"network": Tempered(f=cache(loss_of(SQUARES.format(n))))},
    "hook of a network": lambda n: {"network": hooked(1.0 * n)},
    "setting of a layer": lambda n: {"network": Tempered(last=nn.Softplus(1.0 * n))},
    "numbers of the target": lambda n: {"target": make_target(seed=n)},
}


@pytest.mark.parametrize("name", STATED)
def test_what_decides_is_describe_all(name: str) -> None:
    def of(number: int) -> dict[str, str]:
        base = {"network": Tempered(), "target": make_target(), "x0": make_x0()}
        return fingerprint(fe.problem(**{**base, **STATED[name](number)}), fe.adam(), {})

    assert of(1) == of(1)
    one, other = of(1), of(2)
    assert hash_fingerprint(one) != hash_fingerprint(other)
    (part,) = [name for name in one if one[name] != other[name]]
    assert differences(one, other).startswith(part)


if __name__ == "__main__":
    print(json.dumps(describe_all(everything())))
