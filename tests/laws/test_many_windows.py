"""The law: what evaluates many windows (chances, draws, noise, slopes) gives what each has alone.

Networks here treat a window by what its batch holds, read parameters in backward passes, refuse windows
or draw noise. The oracle is the network itself, called with one window at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import funcexplain as fe
from funcexplain.engine.event import Event
from funcexplain.engine.slopes import slopes_of
from tests.helpers import assert_close, params

F64, DAYS, ASSETS = torch.float64, 3, 4
AT_LEAST, TARGET = fe.targets.at_least(0, 0.6), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DAYS * ASSETS, ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.scores(x), -1)

    def scores(self, x: Tensor) -> Tensor:
        return 2.0 * self.layer(x.flatten(1))


class Branching(Scores):
    def scores(self, x: Tensor) -> Tensor:
        h = super().scores(x)
        return h if h[:, 0].sum() > 0 else -2.0 * h


class BySign(Scores):
    def scores(self, x: Tensor) -> Tensor:
        h = super().scores(x)
        return torch.where(h[:, 0].sum() > 0, h, -2.0 * h)


class Beyond(Scores):
    """Couples windows where one is large, which few are."""

    def scores(self, x: Tensor) -> Tensor:
        return torch.where(x.abs().max() > 3.5, -2.0, 1.0) * super().scores(x)


class BranchingBeyond(Scores):
    def scores(self, x: Tensor) -> Tensor:
        return super().scores(x) * (-2.0 if x.abs().max() > 3.5 else 1.0)


class ByNumpy(Scores):
    def scores(self, x: Tensor) -> Tensor:
        return super().scores(x) * (-2.0 if float(x.detach().numpy().max()) > 2.0 else 1.0)


class OpaqueBeyond(Scores):
    """Couples windows in a part that `opaque` folds, at windows that its trial does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.part = fe.opaque(lambda x: torch.where(x.abs().max() > 3.5, -2.0, 1.0) * x, 0, 0)

    def scores(self, x: Tensor) -> Tensor:
        return self.layer(self.part(x.flatten(1)))


class Checkpointed(Scores):
    def scores(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: torch.tanh(self.layer(x.flatten(1))), x, use_reentrant=False)


class ReadsInBackward(Scores):
    def scores(self, x: Tensor) -> Tensor:
        layer = self.layer

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x @ layer.weight.T

            @staticmethod
            def backward(ctx: Any, g: Tensor) -> Tensor:
                return g @ layer.weight

        return torch.tanh(Product.apply(x.flatten(1)))


class Refusing(Scores):
    def scores(self, x: Tensor) -> Tensor:
        if bool((x.abs() > 2.0).any()):
            raise ArithmeticError("no solution")
        return super().scores(x)


class Noisy(Scores):
    def scores(self, x: Tensor) -> Tensor:
        return super().scores(x) + torch.randn(len(x), ASSETS, dtype=x.dtype)


COUPLED = [Branching, BySign, Beyond, BranchingBeyond, ByNumpy, OpaqueBeyond]
PULLED = [Checkpointed, ReadsInBackward]
kinds = pytest.mark.parametrize("kind", COUPLED)


def make(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().to(F64)


def draw(count: int, seed: int = 3) -> Tensor:
    """Windows, one of them large; the first three are not."""
    windows = torch.randn(
        count, 1, DAYS, ASSETS, dtype=F64, generator=torch.Generator().manual_seed(seed)
    )
    windows = windows.clamp(-1.9, 1.9)
    windows[count // 2 + 1, 0, 0, 0] = 4.0
    return windows


def alone(network: nn.Module, windows: Tensor) -> Tensor:
    return torch.stack([network(x[None])[0] for x in windows])


def scenario(network: nn.Module, target: Any = AT_LEAST) -> fe.Problem:
    """A question whose window is its path."""
    path, cov = torch.zeros(DAYS, ASSETS, dtype=F64), torch.eye(ASSETS, dtype=F64)
    move = fe.scenarios.scenario(path, cov, features=lambda r: r[None], inverse=lambda x, r: x[0])
    return move(fe.problem(network, target, path[None]))


def question(network: Any, target: Any = TARGET) -> fe.Problem:
    return fe.problem(network, target, draw(5)[0])


@kinds
def test_errors_of_points_are_those_of_each_alone(kind: Callable[[], nn.Module]) -> None:
    network = make(kind)
    event, points = Event(scenario(network), 1e-3, chunk_size=8), draw(24).flatten(1)
    expected = (0.6 - alone(network, draw(24))[:, 0]).clamp(min=0.0)
    assert_close(event(points), expected.detach(), rtol=1e-9)


@pytest.mark.parametrize("kind", [Branching, Beyond])
def test_draws_hit_by_the_network_alone(kind: Callable[[], nn.Module]) -> None:
    network = make(kind)
    draws = fe.sample(scenario(network), 32, num_samples=500, num_chains=16)
    weights = alone(network, draws.x).detach()
    assert_close(draws.weights, weights, rtol=1e-9)
    assert bool((weights[:, 0] >= 0.599).all())


@kinds
def test_smoothed_weights_are_the_mean_of_calls_alone(kind: Callable[[], nn.Module]) -> None:
    network = make(kind)
    problem = fe.smooth(scale=1.2, draws=8)(question(network))
    noise = 1.2 * problem.args["noise"]
    x = problem.args["x0"]
    for _ in range(3):
        x = x.detach().requires_grad_()
        loss = (alone(network, x + noise).mean(0) - TARGET).square().mean()
        x = x - torch.autograd.grad(loss, x)[0]
    found = fe.solve(problem, fe.sgd(lr=1.0), max_steps=3)
    assert_close(found.x, x.detach(), rtol=1e-9)
    assert_close(found.weights, alone(network, x + noise).mean(0).detach(), rtol=1e-9)


def jacobians(network: nn.Module, windows: Tensor) -> Tensor:
    slopes = [torch.autograd.functional.jacobian(lambda x: network(x[None])[0], x) for x in windows]
    return torch.stack(slopes).flatten(2)


@pytest.mark.parametrize("kind", [*COUPLED, *PULLED])
def test_slopes_are_those_of_each_window_alone(kind: Callable[[], nn.Module]) -> None:
    network, windows = make(kind), draw(9)
    problem = question(network)
    assert_close(slopes_of(problem, windows, problem.args), jacobians(network, windows), rtol=1e-9)


@pytest.mark.parametrize("kind", PULLED)
def test_backward_passes_see_the_parameters_of_their_model(kind: Callable[[], nn.Module]) -> None:
    models = [make(kind, seed) for seed in range(2)]
    stacked = fe.stack(models)[1]
    end, measure = draw(5)[1], lambda w: w[:2].sum()
    grid = fe.vmap(question(models[0]), params=stacked)
    parts = fe.attribute(grid, end=end, max_nodes=16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "solve: .* rows are solved one at a time")
        reached = fe.reach(grid, 1.0, measure=measure, starts=2, max_steps=4)
        for index, model in enumerate(models):
            own = question(model)
            assert_close(parts.values[index], fe.attribute(own, end=end, max_nodes=16).values, rtol=1e-9)
            expected = fe.reach(own, 1.0, measure=measure, starts=2, max_steps=4)
            assert_close(tuple(end[index] for end in reached), tuple(expected), rtol=1e-9)


def test_a_network_that_refuses_windows_leaves_the_other_estimates() -> None:
    problem = scenario(make(Refusing))
    for method in ("monte_carlo", "importance"):
        found = fe.probability(problem, num_samples=200, method=method)
        assert found.status is fe.Status.NONFINITE
        assert "windows the network failed, first by ArithmeticError: no solution." in found.reason
    reached = fe.reach(problem, 4.0, starts=3, max_steps=2)  # random starts are outside
    assert bool((reached.lower <= reached.upper).all())


def test_an_attribution_names_or_marks_what_the_network_refuses() -> None:
    starts = draw(5)[:2]
    grid = fe.vmap(question(make(Refusing)), x0=starts)
    with pytest.raises(ArithmeticError, match="no solution") as caught:
        fe.attribute(grid, start=starts, end=torch.stack([starts[0], 9.0 * starts[1]]))
    assert caught.value.__notes__ == ["attribute: at end of row (1,)"]

    class RefusingBetween(Scores):
        def scores(self, x: Tensor) -> Tensor:
            if bool((x[:, 0, 0, 0].abs() < 0.3).any()):
                raise ArithmeticError("no solution")
            return super().scores(x)

    starts[:, 0, 0, 0] = 1.0
    ends = starts.clone()
    ends[1, 0, 0, 0] = -1.0
    ends[0, 0, 1, 1] += 0.5
    grid = fe.vmap(question(make(RefusingBetween)), x0=starts)
    with pytest.warns(UserWarning, match="between start and end of 1 of 2 rows"):
        parts = fe.attribute(grid, start=starts, end=ends)
    assert parts.error.isnan().tolist() == [False, True]
    assert_close(parts.values[0], fe.attribute(grid[0], start=starts[0], end=ends[0]).values)


CALLS: dict[str, Callable[[fe.Problem], Any]] = {
    "probability": lambda p: fe.probability(p, num_samples=20, method="monte_carlo"),
    "sample": lambda p: fe.sample(p, 4, num_samples=200, num_chains=4),
    "reach": lambda p: fe.reach(p, 1.0, starts=1, max_steps=0),
    "attribute": lambda p: fe.attribute(p, end=draw(5)[0], max_nodes=8),
    "solve": lambda p: fe.solve(fe.smooth(scale=0.1, draws=2)(p), max_steps=1),
}


@pytest.mark.filterwarnings("ignore:solve. .* rows are solved one at a time")
@pytest.mark.parametrize("name", params(CALLS))
def test_noise_in_eval_mode_is_named(name: str) -> None:
    problem = scenario(make(Noisy), fe.targets.at_least(0, 0.3))
    with pytest.warns(UserWarning, match=f"{name}: the network draws random numbers in eval mode"):
        CALLS[name](problem)


@pytest.mark.filterwarnings("ignore:solve. .* rows are solved one at a time")
@pytest.mark.parametrize("kind", [Branching, BySign])
def test_few_rows_for_which_a_batch_decides_are_found(kind: Callable[[], nn.Module]) -> None:
    """All batches decide by the many; 2 of 40 rows alone decide otherwise."""
    network, starts = make(kind), draw(40)
    layer: Any = network.layer
    with torch.no_grad():
        layer.bias[0] += 4.0
        layer.weight.mul_(0.2)
    starts[[17, 27]] -= 40.0 * layer.weight[0].detach().view(1, DAYS, ASSETS).sign()
    grid = fe.vmap(question(network), x0=starts)
    found = fe.solve(grid, fe.sgd(lr=0.1), max_steps=2)
    assert_close(found.weights, alone(network, found.x).detach(), rtol=1e-9)
    expected = fe.solve(grid[17], fe.sgd(lr=0.1), max_steps=2)
    assert_close(found[17].x, expected.x, rtol=1e-9)
