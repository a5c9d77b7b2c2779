"""Laws of the exact allocators: derivatives, transforms, symmetries, and twins of cvxpylayers."""

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from funcexplain.networks import convex
from tests.helpers import assert_close, params
from tests.networks.convex_catalogue import ALLOCATORS, ASSETS, CAP, allocate, draw, every, loss, make


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_derivatives_equal_central_differences(name: str) -> None:
    arguments = make(name, 400)
    direction = [draw(*a.shape, seed=90 + i) * a.abs() for i, a in enumerate(arguments)]
    leaves = [tensor.clone().requires_grad_() for tensor in arguments]

    def at(time: float, *, slope: bool = False) -> Tensor:
        moved = [leaf + time * d for leaf, d in zip(leaves, direction, strict=True)]
        values = loss(name, *moved)
        if not slope:
            return values.detach()
        grads = torch.autograd.grad(values.sum(), leaves, create_graph=True)
        return sum(
            (g * d).flatten(1).sum(-1) if g.ndim > 1 else g * d
            for g, d in zip(grads, direction, strict=True)
        )  # type: ignore[return-value]

    def difference(values: Callable[[float], Tensor]) -> Tensor:
        """Central, of fourth order."""
        step = 2e-4
        inner, outer = values(step) - values(-step), values(2 * step) - values(-2 * step)
        return (8.0 * inner - outer) / (12.0 * step)

    slopes = at(0.0, slope=True)
    errors = (slopes.detach() - difference(at)).abs() / (1.0 + slopes.detach().abs())
    # One program in some hundred has a weight that meets its bound within the step: a kink, no error.
    assert float(errors.median()) < 1e-11
    assert float(errors.quantile(0.95)) < 1e-8

    leaf_slopes = torch.autograd.grad(slopes.sum(), leaves, allow_unused=True)
    curvature = torch.zeros(400, dtype=torch.float64)
    for g, d in zip(leaf_slopes, direction, strict=True):
        if g is not None:
            curvature += (g * d).flatten(1).sum(-1) if g.ndim > 1 else g * d
    expected = difference(lambda time: at(time, slope=True).detach())
    errors = (curvature - expected).abs() / (1.0 + curvature.abs())
    assert float(errors.median()) < 1e-10
    assert float(errors.quantile(0.95)) < 1e-7


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_third_derivatives_equal_central_differences_of_second(name: str) -> None:
    arguments = make(name, seed=5)
    scores = 1 if name == "risk_budgeting" else 0
    along = draw(ASSETS, seed=7) * 0.01

    def curve(time: Tensor) -> Tensor:
        moved = list(arguments)
        moved[scores] = moved[scores] + time * along
        return loss(name, *moved)

    second = grad(grad(curve))
    zero, step = torch.tensor(0.0, dtype=torch.float64), 1e-3
    expected = (second(zero + step) - second(zero - step)) / (2 * step)
    torch.testing.assert_close(grad(second)(zero), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_a_batch_a_map_and_a_loop_agree(name: str) -> None:
    arguments = make(name, 3, 4)
    function = allocate(name)
    batch = function(*arguments)
    assert batch.shape == (3, 4, ASSETS)
    flat = function(*(a.reshape(12, *a.shape[2:]) for a in arguments))
    assert_close(flat.view_as(batch), batch)
    assert_close(vmap(vmap(function))(*arguments), batch)
    assert_close(vmap(function, in_dims=1, out_dims=1)(*arguments), batch)
    loop = [function(*(a[i, j] for a in arguments)) for i in range(3) for j in range(4)]
    assert_close(torch.stack(loop).view_as(batch), batch)
    assert function(*(a[:0] for a in arguments)).shape == (0, 4, ASSETS)


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_transforms_agree(name: str) -> None:
    arguments, which = make(name, 5), every(name)
    scalar = partial(loss, name)
    leaves = [a.clone().requires_grad_() for a in arguments]
    plain = torch.autograd.grad(scalar(*leaves).sum(), leaves)
    assert_close(vmap(grad(scalar, argnums=which))(*arguments), plain, rtol=1e-9, atol=1e-12)
    one = [a[0] for a in arguments]
    assert_close(grad(scalar, argnums=which)(*one), tuple(g[0] for g in plain), rtol=1e-9, atol=1e-12)
    reverse = jacrev(allocate(name), argnums=which)
    assert_close(jacfwd(allocate(name), argnums=which)(*one), reverse(*one), rtol=1e-9, atol=1e-12)
    mapped = vmap(jacrev(allocate(name), argnums=which))(*arguments)
    assert_close(tuple(j[0] for j in mapped), reverse(*one), rtol=1e-9, atol=1e-12)
    twice = vmap(hessian(scalar))(*arguments)
    for outer, inner in ((jacrev, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd)):
        assert_close(vmap(outer(inner(scalar)))(*arguments), twice, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_one_argument_may_be_mapped_alone(name: str) -> None:
    arguments, others = make(name), make(name, 3, seed=20)
    for index in every(name):
        dims = tuple(0 if i == index else None for i in every(name))
        mixed = [others[i] if i == index else a for i, a in enumerate(arguments)]
        expected = torch.stack(
            [
                allocate(name)(*(a[row] if i == index else a for i, a in enumerate(mixed)))
                for row in range(3)
            ]
        )
        assert_close(vmap(allocate(name), in_dims=dims)(*mixed), expected)
        if name in ("markowitz", "risk_budgeting"):  # leading dimensions broadcast
            assert_close(allocate(name)(*mixed), expected)


ROWS = 12
SEEDS = st.integers(min_value=0, max_value=10**6)
LAWS = settings(max_examples=8, deadline=None, derandomize=True)


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_weights_are_feasible_and_follow_a_permutation(name: str) -> None:
    @LAWS
    @given(seed=SEEDS, num_assets=st.integers(2, 9), slack=st.floats(1.01, 5.0))
    def law(seed: int, num_assets: int, slack: float) -> None:
        arguments, cap = make(name, ROWS, num_assets=num_assets, seed=seed), slack / num_assets
        weights = allocate(name, cap)(*arguments)
        assert float(weights.min()) >= 0.0
        assert float(weights.max()) <= cap + 1e-15
        assert_close(weights.sum(-1), torch.ones(ROWS, dtype=torch.float64), rtol=0.0, atol=1e-14)
        order = torch.randperm(num_assets, generator=torch.Generator().manual_seed(seed))
        shuffled = [
            (a[..., order, :] if dims == 2 else a)[..., order] if dims else a
            for a, dims in zip(arguments, ALLOCATORS[name].dims, strict=True)
        ]
        assert_close(allocate(name, cap)(*shuffled), weights[..., order], rtol=0.0, atol=1e-10)

    law()


@LAWS
@given(seed=SEEDS, shift=st.integers(-64, 64), exponent=st.integers(-10, 10))
def test_shifts_and_scales_that_change_nothing(seed: int, shift: int, exponent: int) -> None:
    (x,) = make("sparsemax", ROWS, seed=seed)
    for function in (convex.sparsemax, convex.capped_softmax):
        assert_close(function(x + shift, CAP), function(x, CAP), rtol=0.0, atol=1e-13)
    scale = 2.0**exponent
    returns, root, gamma, alpha = make("markowitz", ROWS, seed=seed)
    weights = convex.markowitz(returns, root, gamma, alpha, CAP)
    turned = torch.linalg.qr(root).Q @ root  # the covariance is all that counts
    for changed in (
        convex.markowitz(returns + shift, root, gamma, alpha, CAP),
        convex.markowitz(scale * returns, root * scale**0.5, gamma, -scale * alpha, CAP),
        convex.markowitz(returns, root * gamma[:, None, None], torch.ones(ROWS).double(), alpha, CAP),
        convex.markowitz(returns, turned, -gamma, alpha, CAP),
    ):
        assert_close(changed, weights, rtol=0.0, atol=1e-10)
    root, budgets = make("risk_budgeting", ROWS, seed=seed)
    weights = convex.risk_budgeting(root, budgets, CAP)
    assert_close(
        convex.risk_budgeting(scale * root, scale**2 * budgets, CAP), weights, rtol=0.0, atol=1e-10
    )


def test_without_a_bound_the_known_formulas_hold() -> None:
    x = 3.0 * draw(50, ASSETS, seed=1)
    assert_close(convex.capped_softmax(x), torch.softmax(x, -1))
    assert_close(convex.capped_softmax(x, 7.0), torch.softmax(x, -1))
    returns, root, _, _ = make("markowitz", 50)
    ones, zeros = torch.ones(50, dtype=torch.float64), torch.zeros(50, ASSETS, ASSETS).double()
    # With a ridge alone, Markowitz projects the returns.
    assert_close(
        convex.markowitz(returns, zeros, ones, ones, CAP), convex.sparsemax(returns / 2, CAP), atol=1e-13
    )
    # Without a bound the contributions to the risk are the budgets, up to a common multiplier.
    budgets = make("risk_budgeting", 50)[1]
    weights = convex.risk_budgeting(root, budgets)
    excess = weights * (root.mT @ (root @ weights[..., None]))[..., 0] - budgets
    assert_close(excess, excess.sum(-1, keepdim=True) * weights, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("name", params(ALLOCATORS))
def test_values_and_gradients_equal_those_of_cvxpylayers(name: str) -> None:
    layers = pytest.importorskip("deepdow.layers")
    twins = {
        "sparsemax": lambda: layers.SparsemaxAllocator(ASSETS, max_weight=CAP).layer,
        "capped_softmax": lambda: layers.SoftmaxAllocator(1, "variational", ASSETS, CAP).layer,
        "markowitz": lambda: layers.NumericalMarkowitz(ASSETS, CAP).cvxpylayer,
        "risk_budgeting": lambda: layers.NumericalRiskBudgeting(ASSETS, CAP).cvxpylayer,
    }
    arguments = make(name, 4)
    if name == "markowitz":  # deepdow's layer multiplies gamma in before its solver
        returns, root, gamma, alpha = arguments
        arguments = [returns, root * gamma[:, None, None], alpha]

    def ours(*arguments: Tensor) -> Tensor:
        if name == "markowitz":
            returns, root, alpha = arguments
            return convex.markowitz(returns, root, torch.ones_like(alpha), alpha, CAP)
        return allocate(name)(*arguments)

    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = twins[name]()
        tight = {"eps": 1e-10, "max_iters": 200000, "mode": "dense"}
        for function in (lambda *a: twin(*a, solver_args=tight)[0], ours):
            leaves = [a.clone().requires_grad_() for a in arguments]
            weights = function(*leaves)
            results.append(
                (weights.detach(), *torch.autograd.grad((weights + 0.3).pow(3).sum(), leaves))
            )
    for theirs, exact in zip(*results, strict=True):
        assert_close(exact, theirs, rtol=1e-6, atol=1e-6)
