"""Edges of the exact allocators: dtypes, bad rows, vertices, modules, and what is refused."""

from typing import Any

import pytest
import torch

from funcexplain.networks import convex
from tests.helpers import assert_close, assert_same, params
from tests.networks.convex_catalogue import ALLOCATORS, ASSETS, CAP, allocate, every, make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_the_dtype_is_kept_and_the_work_is_done_in_float64(name: str, dtype: torch.dtype) -> None:
    arguments = [a.to(dtype) for a in make(name, 4)]
    weights = allocate(name)(*arguments)
    assert_same(weights, allocate(name)(*(a.double() for a in arguments)).to(dtype))
    leaves = [a.requires_grad_() for a in arguments]
    assert {g.dtype for g in torch.autograd.grad(allocate(name)(*leaves).max(), leaves)} == {dtype}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_a_row_that_is_not_finite_is_nan_and_leaves_the_others_alone(name: str, bad: float) -> None:
    for cap in (CAP, 1.0 / ASSETS):
        for index in every(name):
            arguments = make(name, 5)
            expected = allocate(name, cap)(*arguments)
            arguments[index][2] = arguments[index][2].clone().fill_(1.0)
            arguments[index][2].view(-1)[-1] = bad
            weights = allocate(name, cap)(*arguments)
            assert bool(weights[2].isnan().all())
            rows = [0, 1, 3, 4]
            assert_close(weights[rows], expected[rows])
            leaves = [a.clone().requires_grad_() for a in arguments]
            grads = torch.autograd.grad(allocate(name, cap)(*leaves)[rows].square().sum(), leaves)
            assert all(bool(g[rows].isfinite().all()) for g in grads)


def test_a_negative_budget_is_nan() -> None:
    root, budgets = make("risk_budgeting", 2)
    budgets[1, 0] = -0.1
    weights = convex.risk_budgeting(root, budgets)
    assert bool(weights[0].isfinite().all())
    assert bool(weights[1].isnan().all())


@pytest.mark.parametrize("name", ["sparsemax", "markowitz"])
def test_a_vertex_does_not_move(name: str) -> None:
    arguments = make(name, 4)
    arguments[0] = 100.0 * torch.arange(ASSETS, dtype=torch.float64).expand(4, -1)
    leaves = [a.clone().requires_grad_() for a in arguments]
    weights = allocate(name, 0.5)(*leaves)
    assert_same(
        weights.detach(), torch.tensor([0.0, 0, 0, 0, 0.5, 0.5], dtype=torch.float64).expand(4, -1)
    )
    for slope in torch.autograd.grad((weights**2).sum() + weights[:, 0].sum(), leaves):
        assert_same(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_degenerate_programs_have_finite_derivatives(name: str) -> None:
    arguments = [torch.zeros_like(a) for a in make(name, 2)]
    for cap in (CAP, 1.0 / ASSETS, 1.0):
        leaves = [a.clone().requires_grad_() for a in arguments]
        grads = torch.autograd.grad(allocate(name, cap)(*leaves).square().sum(), leaves)
        assert all(bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_nothing_of_the_callers_is_touched(name: str) -> None:
    arguments = make(name, 3)
    before = [a.clone() for a in arguments]
    allocate(name)(*arguments)
    allocate(name)(*(a.requires_grad_() for a in arguments)).sum().backward()
    assert_same([a.detach() for a in arguments], before)


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_modules_are_the_functions(name: str) -> None:
    arguments = make(name, 3)
    module = ALLOCATORS[name].module(ASSETS, max_weight=CAP)
    assert_same(module(*arguments), allocate(name)(*arguments))
    assert module.state_dict() == {}
    assert f"({ASSETS}, max_weight={CAP}" in repr(module)
    with pytest.raises(
        ValueError, match=r"must have 6 assets in its last dimension .*, got shape \(3, 5"
    ):
        module(*make(name, 3, num_assets=5))
    with pytest.raises(ValueError, match=r"max_weight must be at least 1 / 6"):
        ALLOCATORS[name].module(ASSETS, max_weight=0.1)


@pytest.mark.parametrize("name", ["sparsemax", "capped_softmax"])
def test_the_temperature_comes_once(name: str) -> None:
    (x,) = make(name, 3)
    own = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    expected = allocate(name)(x / own[:, None])
    module = ALLOCATORS[name].module(ASSETS, max_weight=CAP, temperature=None)
    assert_same(module(x, own), expected)
    assert_same(ALLOCATORS[name].module(ASSETS, max_weight=CAP, temperature=2.0)(x)[2], expected[2])
    with pytest.raises(
        ValueError, match="temperature must be given either to the constructor or to the call"
    ):
        module(x)
    with pytest.raises(
        ValueError, match="temperature must be given either to the constructor or to the call"
    ):
        ALLOCATORS[name].module(ASSETS)(x, own)


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_bad_arguments_are_refused_by_name(name: str) -> None:
    arguments, function = make(name, 3), ALLOCATORS[name].function
    with pytest.raises(
        ValueError, match=rf"{name}: max_weight must be at least 1 / 6, .* got 0.1; raise it"
    ):
        function(*arguments, max_weight=0.1)
    with pytest.raises(ValueError, match=r"max_weight must be at least 1 / 6, .* got nan"):
        function(*arguments, max_weight=float("nan"))
    wrong: Any
    for wrong in (torch.tensor(0.5), "0.5", True):
        with pytest.raises(TypeError, match=f"{name}: max_weight must be a number"):
            function(*arguments, max_weight=wrong)
    for index in every(name):
        others = list(arguments)
        with pytest.raises(
            TypeError, match=rf"{name}: \w+ must be a torch.Tensor of shape .*, got list"
        ):
            function(*others[:index], [0.5], *others[index + 1 :])
        with pytest.raises(TypeError, match=rf"{name}: \w+ must have a floating dtype, got torch.int64"):
            function(*others[:index], others[index].long(), *others[index + 1 :])
    with pytest.raises(ValueError, match=rf"{name}: \w+ must have shape .* at least one asset, got"):
        function(*(torch.zeros((0,) * dims) for dims in ALLOCATORS[name].dims))


def test_shapes_that_do_not_fit_are_refused() -> None:
    returns, root, gamma, alpha = make("markowitz", 3)
    with pytest.raises(
        ValueError, match=r"cov_sqrt must have shape \(..., 6, 6\) to match 6 assets, got"
    ):
        convex.markowitz(returns, root[..., :5], gamma, alpha)
    with pytest.raises(
        ValueError, match=r"leading dimensions of all tensors must broadcast, got \(3,\), \(2,\)"
    ):
        convex.markowitz(returns[:2], root, gamma, alpha)
    with pytest.raises(
        ValueError, match=r"cov_sqrt must have shape \(..., 5, 5\) to match 5 assets, got"
    ):
        convex.risk_budgeting(root, returns[..., :5].abs())


@pytest.mark.parametrize("module", [convex.Sparsemax, convex.CappedSoftmax])
@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_is_positive(module: Any, temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
        module(3, temperature=temperature)
