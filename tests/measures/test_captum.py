"""Attributions equal those of Captum, where it is installed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from tests.helpers import ASSETS, SHAPE, make_network, make_target, make_x0

captum: Any = pytest.importorskip("captum.attr")
NAMES = ["mlp_tanh", "conv_batch_norm", "conv_no_norm"]


def compared(name: str) -> tuple[Any, fe.Problem, Tensor, Tensor]:
    network = make_network(name).eval()
    problem = fe.problem(network, make_target(), make_x0(), leverage=math.inf)
    return network, problem, make_x0(seed=3), make_x0(seed=4)


@pytest.mark.parametrize("name", NAMES)
def test_integrated_gradients_equal_captum_s(name: str) -> None:
    network, problem, start, end = compared(name)
    found = fe.attribute(problem, start, end, tolerance=1e-9)
    method = captum.IntegratedGradients(network)
    settings = {"n_steps": 150, "method": "gausslegendre"}
    for asset in range(ASSETS):
        (expected,) = method.attribute(end[None], start[None], target=asset, **settings)
        torch.testing.assert_close(found.values[asset], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("groups", ["channels", "random"])
def test_shapley_values_equal_captum_s(groups: str) -> None:
    network, problem, start, end = compared("mlp_tanh")
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(4, SHAPE, generator=generator)
    if groups == "channels":
        numbers = torch.arange(SHAPE[0])[:, None, None].repeat(1, *SHAPE[1:])
    chosen: Any = groups if groups == "channels" else numbers
    found = fe.attribute(problem, start, end, method="shapley", groups=chosen)
    method = captum.ShapleyValues(network)
    for asset in range(ASSETS):
        (expected,) = method.attribute(
            end[None], start[None], target=asset, feature_mask=numbers[None]
        ).detach()
        for group in range(int(numbers.max()) + 1):
            parts = expected[numbers == group]
            own = found.values[asset, group]
            torch.testing.assert_close(own, parts[0].double(), rtol=1e-4, atol=1e-7)  # sums in float32
