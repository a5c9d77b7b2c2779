"""Targets in portfolio language: zero exactly where hit, gradients, numpy twins, mapping, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.problems.criterion import Target
from tests import helpers
from tests.helpers import ASSETS, assert_gradient, make_network, make_x0

t: Any = fe.targets  # words that make no sense are tried, too
NAMES = ("EUR", "JPY", "GBP", "CHF", "SEK")
TODAY = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
WANTED = torch.tensor([0.3, 0.1, 0.2, 0.4, 0.0], dtype=torch.float64)


def off(value: Any, lower: Any = -np.inf, upper: Any = np.inf) -> Any:
    """How far a value lies outside of its bounds."""
    return np.maximum(value - upper, 0) - np.maximum(lower - value, 0)


def shifted(today: Any, asset: int, delta: float) -> Any:
    rest = np.delete(today, asset)
    return np.insert(rest * (1 - delta / rest.sum()), asset, today[asset] + delta)


# Every target, with its residual in numpy.
TARGETS: dict[str, tuple[Target, Callable[[Any], Any]]] = {
    "exact": (t.exact(WANTED), lambda w: w - WANTED.numpy()),
    "at_least": (t.at_least(1, 0.4), lambda w: off(w[1:2], lower=0.4)),
    "at_most": (t.at_most(-1, 0.05), lambda w: off(w[4:], upper=0.05)),
    "exit": (t.exit(2), lambda w: w[2:3]),
    "between": (t.between(0.15, WANTED + 0.15), lambda w: off(w, 0.15, WANTED.numpy() + 0.15)),
    "top": (t.top(0), lambda w: off(w[0] - w[1:], lower=0.002)),
    "group": (t.group([0, 2, 4], 0.7), lambda w: w[[0, 2, 4]].sum(keepdims=True) - 0.7),
    "group_bounds": (
        t.group([1, 3], at_least=0.1, at_most=0.2),
        lambda w: off(w[[1, 3]].sum(keepdims=True), 0.1, 0.2),
    ),
    "shift": (t.shift(3, 0.1, today=TODAY), lambda w: w - shifted(TODAY.numpy(), 3, 0.1)),
    "turnover": (
        t.turnover(0.1, today=TODAY),
        lambda w: off(np.abs(w - TODAY.numpy()).sum(keepdims=True) / 2, upper=0.1),
    ),
    "concentration": (t.concentration(0.25), lambda w: off((w**2).sum(keepdims=True), upper=0.25)),
    "all_of": (
        t.all_of(t.at_most(1, 0.2), t.turnover(0.2, today=TODAY), t.concentration(0.3)),
        lambda w: np.stack(
            [
                off(w[1], upper=0.2),
                off(np.abs(w - TODAY.numpy()).sum() / 2, upper=0.2),
                off((w**2).sum(), upper=0.3),
            ]
        ),
    ),
}


def allocations(count: int = 40) -> Tensor:
    """Random long-only allocations, from spread to nearly one asset."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, ASSETS, generator=generator, dtype=torch.float64)
    return torch.softmax(logits * torch.linspace(0.1, 6.0, count)[:, None], -1)


@pytest.mark.parametrize("name", helpers.params(TARGETS))
def test_residuals_equal_their_numpy_twins(name: str) -> None:
    target, twin = TARGETS[name]
    for weights in allocations():
        residual = target.residual(weights)
        np.testing.assert_allclose(residual.numpy(), twin(weights.numpy()), rtol=0, atol=1e-15)
        np.testing.assert_allclose(float(target.loss(weights)), np.mean(twin(weights.numpy()) ** 2))
    np.testing.assert_array_equal(
        target.residual(allocations()), torch.stack([target.residual(w) for w in allocations()])
    )


@pytest.mark.parametrize("name", helpers.params(TARGETS))
def test_residual_and_loss_are_zero_exactly_where_it_is_hit(name: str) -> None:
    target = TARGETS[name][0]
    # Where each ends from anywhere: projected by our own method onto what the target asks for.
    softmax = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
    problem = fe.problem(softmax, target, allocations()[3].log().view(1, 1, ASSETS))
    reached = fe.solve(problem, fe.adam(0.05), max_steps=200, atol=1e-9, keep="best").weights
    tried = [*allocations(), *allocations().lerp(reached, 0.9), reached]
    hits = 0
    for weights in tried:
        residual = target.residual(weights)
        met = bool((residual == 0).all())
        assert met == bool(target.hit(weights, atol=0.0)) == bool(target.loss(weights) == 0)
        assert bool(target.hit(weights)) == bool(residual.abs().max() <= 1e-3)  # less than the margin
        hits += bool(target.hit(weights))
    assert hits or name in ("exact", "exit")  # a softmax gives nobody a weight of zero


@pytest.mark.parametrize("name", helpers.params(TARGETS))
def test_gradients_equal_central_differences(name: str) -> None:
    target = TARGETS[name][0]
    for weights in allocations()[10:20]:
        grads = torch.func.grad(target.loss)(weights)
        assert_gradient(target.loss, weights, grads)


@pytest.mark.parametrize("name", helpers.params(TARGETS))
def test_a_problem_has_the_loss_and_the_error_of_its_target(name: str) -> None:
    target = TARGETS[name][0]
    problem = fe.problem(make_network("mlp_tanh"), target, make_x0(), assets=NAMES)
    solution = fe.solve(problem, fe.adam(0.02), max_steps=5)
    torch.testing.assert_close(solution.loss, target.loss(solution.weights))
    torch.testing.assert_close(solution.error, target.residual(solution.weights).abs().max())
    assert fe.check_gradient(problem, rtol=1e-5).ok
    assert solution.message.endswith(f"It is missed by {float(solution.error):.3g}.") or solution.hit


@pytest.mark.parametrize(
    ("method", "atol"),
    [(fe.adam(0.02), 1e-3), (fe.levenberg_marquardt(), 0.05), (fe.adam(0.02), 2.0)],
)
def test_a_hit_of_top_is_really_the_largest(method: Any, atol: float) -> None:
    starts = torch.stack([make_x0(), make_x0(seed=3)])
    goals = [t.top(0), t.top(3), t.top(4, margin=0.1)]
    problem = fe.problem(make_network("mlp_tanh"), t.top(0), starts[0])
    grid = fe.vmap(fe.vmap(problem, x0=starts), target=goals)
    for found in (
        fe.solve(grid, method, max_steps=60, atol=atol),
        fe.closest(grid, method, max_steps=60, refinements=10, atol=atol),
    ):
        assert found.hit.all()
        for k, target in zip((0, 3, 4), range(3), strict=True):
            for weights in found.weights[target]:
                rest = torch.cat([weights[:k], weights[k + 1 :]])
                assert (weights[k] > rest).all()
                assert goals[target].hit(weights, atol=atol)
    tie = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)
    assert not t.top(0).hit(tie, atol=atol)
    assert not t.top(0).hit(torch.stack([tie, tie.flip(0)]), atol=atol).any()


def test_targets_are_mapped_like_anything_else() -> None:
    network, x0 = make_network("mlp_tanh"), make_x0()
    problem = fe.problem(network, t.top("EUR"), x0, assets=NAMES)
    kinds = (lambda k: t.at_least(k, 0.5), t.top, lambda k: t.shift(NAMES[k], 0.05))
    for make, chunk_size in zip(kinds, (None, 2, 3), strict=True):
        targets = [make(k) for k in range(ASSETS)]
        starts = fe.vmap(problem, x0=torch.stack([x0, x0 + 0.1]))
        grid = fe.solve(fe.vmap(starts, target=targets), max_steps=4, atol=1e-3, chunk_size=chunk_size)
        assert grid.shape == (ASSETS, 2)
        for k, target in enumerate(targets):
            alone = fe.problem(network, target, x0, assets=NAMES)
            assert_close_answers(grid[k, 0], fe.solve(alone, max_steps=4, atol=1e-3))


def test_an_allocation_in_words_is_the_tensor_itself() -> None:
    network, x0 = make_network("mlp_tanh"), make_x0()
    plain = fe.problem(network, WANTED, x0, loss=fe.losses.kl)
    worded = fe.problem(network, t.exact(WANTED), x0, loss=fe.losses.kl)
    helpers.assert_same(fe.solve(plain, max_steps=3), fe.solve(worded, max_steps=3))
    goal = fe.problem(network, t.top(0), x0)
    mapped = fe.vmap(goal, target=torch.stack([WANTED, TODAY]))  # goals give way to allocations
    expected = fe.solve(fe.problem(network, WANTED, x0), max_steps=3)
    assert_close_answers(fe.solve(mapped, max_steps=3)[0], expected)


def test_a_consensus_meets_goals_with_every_model() -> None:
    models = [make_network("mlp_tanh"), make_network("mlp_tanh")]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(0.9)
    problem = fe.vmap(fe.problem(models[0], t.at_least(0, 0.4), make_x0()), params=fe.stack(models)[1])
    solution = fe.solve(fe.consensus(problem), fe.adam(0.05), max_steps=300, atol=1e-3)
    assert solution.weights.shape == (2, ASSETS)
    assert solution.hit
    assert (solution.weights[:, 0] >= 0.399).all()
    with pytest.raises(ValueError, match="must not be a consensus"):
        fe.vmap(fe.consensus(problem), target=[t.top(0), t.top(1)])


def test_targets_from_today_measure_from_the_reference() -> None:
    network, x0 = make_network("mlp_tanh").eval(), make_x0()
    with torch.no_grad():
        held = network(x0[None] + 1.0)[0]
    problem = fe.problem(network, t.shift(2, 0.05), x0, reference=x0 + 1.0)
    torch.testing.assert_close(problem.args["target"][2], held[2] + 0.05)
    torch.testing.assert_close(problem.args["target"].sum(), held.sum())
    windows = torch.stack([x0, x0 + 1.0])
    stacks: Any
    for stacks in ({"reference": windows}, {"x0": windows, "reference": windows}):
        with pytest.raises(ValueError, match="give each row its own"):
            fe.vmap(problem, **stacks)
    with torch.no_grad():
        each = [t.shift(2, 0.05, today=weights) for weights in network(windows)]
    mapped = fe.vmap(problem, x0=windows, reference=windows, target=each)
    torch.testing.assert_close(mapped.args["target"][1], problem.args["target"])


softmax = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 5), torch.nn.Softmax(-1)).double()
linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 5)).double()


@pytest.mark.parametrize(
    ("target", "miss"),
    [
        (t.exact(torch.full((5,), 0.24)), "0.04"),
        (t.all_of(t.at_least(0, 0.7), t.at_least(1, 0.7)), "0.2"),
        (t.all_of(t.exit(0), t.at_least(0, 0.1)), "0.05"),
        (t.concentration(0.1), "0.1"),
        (t.all_of(t.concentration(0.21), t.at_least(0, 0.5)), "0.0"),
        (t.group([0, 1, 2, 3, 4], 0.9), "0.1"),
        (t.between(0.3, 1.0), "0.1"),
        (t.at_most(0, -0.1), "0.1"),
    ],
)
def test_what_no_allocation_can_meet_is_named_beforehand(target: Target, miss: str) -> None:
    with pytest.raises(ValueError, match=f"feasible, got .*sum to one.*error is {miss}"):
        fe.problem(softmax, target, make_x0())
    problem = fe.problem(softmax, t.top(0), make_x0())
    with pytest.raises(ValueError, match="vmap: target must be feasible"):
        fe.vmap(problem, target=[target, target])


def test_weights_of_another_sum_are_refused_unless_the_network_holds_such() -> None:
    for target in (torch.full((5,), 0.24, dtype=torch.float64), 0.5 * WANTED):
        with pytest.raises(ValueError, match=r"problem: target must be feasible.*sum to (1\.2|0\.5)"):
            fe.problem(softmax, target, make_x0())
        fe.problem(linear, target, make_x0())
    # Of a network that may go short, only what contradicts itself is out of reach.
    fe.problem(linear, t.all_of(t.at_least(0, 0.7), t.at_least(1, 0.7)), make_x0())
    with pytest.raises(ValueError, match="no weights can meet it"):
        fe.problem(linear, t.all_of(t.at_least(0, 0.7), t.at_most(0, 0.5)), make_x0())


def test_what_some_allocation_meets_is_not_refused() -> None:
    for target, _ in TARGETS.values():
        fe.problem(softmax, target, make_x0())
    for target in (
        t.all_of(t.at_least(0, 0.5), t.at_least(1, 0.5)),
        t.concentration(0.2),
        t.all_of(t.exit(0), t.exit(1), t.exit(2), t.exit(3)),
    ):
        fe.problem(softmax, target, make_x0())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: t.at_least(1.5, 0.1),
            TypeError,
            "at_least: asset must be a number or a name, got float",
        ),
        (lambda: t.at_least(0, "half"), TypeError, "at_least: w must be a number"),
        (lambda: t.at_most(True, 0.1), TypeError, "at_most: asset must be"),
        (lambda: t.exact([0.5, 0.5]), TypeError, "exact: weights must be a torch.Tensor"),
        (lambda: t.exact(torch.eye(2)), ValueError, r"exact: weights must have shape \(A,\)"),
        (lambda: t.between(0.5, 0.1), ValueError, "between: lower must be <= upper"),
        (lambda: t.between("a", 1.0), TypeError, "between: lower must be a number"),
        (lambda: t.between(torch.zeros(2), torch.ones(3)), ValueError, "must have one shape"),
        (lambda: t.group("EUR", 0.1), TypeError, "group: assets must be a list"),
        (lambda: t.group([], 0.1), ValueError, "one or more different assets"),
        (lambda: t.group([0, 0], 0.1), ValueError, "one or more different assets"),
        (lambda: t.group([0]), ValueError, "expected either w, or"),
        (lambda: t.group([0], 0.1, at_most=0.2), ValueError, "expected either w, or"),
        (lambda: t.group([0], at_least=0.3, at_most=0.2), ValueError, "at_least must be <= at_most"),
        (lambda: t.turnover(-0.1), ValueError, "turnover: at_most must be finite and >= 0"),
        (lambda: t.concentration(0.0), ValueError, "concentration: at_most must be finite and > 0"),
        (lambda: t.top(0, margin=0.0), ValueError, "top: margin must be finite and > 0"),
        (lambda: t.all_of(), ValueError, "expected at least one target"),
        (lambda: t.all_of(t.top(0), WANTED), TypeError, r"targets\[1\] must be a target"),
        (lambda: t.turnover(0.1).residual(WANTED), TypeError, "must be the current weights, got none"),
        (lambda: t.top("EUR").residual(WANTED), ValueError, "the assets have no names here, got 'EUR'"),
        (lambda: t.top(5).residual(WANTED), ValueError, "one of 5, 0 to 4, got 5"),
        (lambda: t.exact(WANTED).residual(WANTED[:3]), ValueError, "one weight for each of 3 assets"),
        (lambda: ask(t.top("USD")), ValueError, "one of EUR, JPY, GBP, CHF, SEK, got 'USD'"),
        (lambda: ask(t.top(0), loss=fe.losses.kl), ValueError, "got kl, which compares whole"),
        (lambda: ask(t.top(0), assets=NAMES[:3]), ValueError, "assets must be 5 different names"),
        (lambda: ask(t.top(0), assets=["A"] * 5), ValueError, "assets must be 5 different names"),
        (lambda: fe.vmap(ask(t.top(0)), target=[t.top(0), WANTED]), TypeError, r"target\[1\]"),
        (
            lambda: fe.vmap(ask(t.top(0)), target=[t.top(0), t.exit(0)]),
            ValueError,
            r"same number of values.*\[1, 4\]",
        ),
        (lambda: twice(), ValueError, "target must be mapped once by a list"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def ask(target: Any, **settings: Any) -> fe.Problem:
    return fe.problem(softmax, target, make_x0(), **{"assets": NAMES, **settings})


def twice() -> fe.Problem:
    return fe.vmap(fe.vmap(ask(t.top(0)), target=[t.top(0)]), target=[t.top(1)])


def test_a_target_reads_as_its_call() -> None:
    told = "all_of(at_least('EUR', 0.3), group([0, 2], at_most=0.5), turnover(0.1), top(1))"
    target = t.all_of(t.at_least("EUR", 0.3), t.group([0, 2], at_most=0.5), t.turnover(0.1), t.top(1))
    assert repr(target) == told
    assert repr(t.exact(torch.arange(9.0))) == "exact([0, 1, 2, 3, 4, 5, 6, 7, ...])"


def assert_close_answers(actual: fe.Solution, expected: fe.Solution) -> None:
    for name in ("x", "weights", "loss", "error"):
        helpers.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-9, atol=1e-12)
    assert int(actual.status) == int(expected.status)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_todays_weights_have_no_slope_and_small_trades_count(dtype: torch.dtype) -> None:
    today = torch.full((8,), 0.125, dtype=dtype)
    traded = today.clone()
    traded[0], traded[1] = 0.128, 0.122
    target = fe.targets.turnover(0.0)
    torch.testing.assert_close(
        target.residual(traded, today=today), (traded - today).abs().sum()[None] / 2
    )
    slope = torch.func.grad(lambda w: target.residual(w, today=today).sum())
    off = today * (1.0 + 2.0 * torch.finfo(dtype).eps)  # by rounding
    assert (slope(off) == 0.0).all()
    if dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(slope(traded)[:2], torch.tensor([0.5, -0.5], dtype=dtype))
