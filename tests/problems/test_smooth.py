"""Laws of `smooth` and `robust`: answers about a network under noise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.markets.features import features
from tests.helpers import assert_close

METHODS = [fe.adam(lr=0.05), fe.levenberg_marquardt()]
AT_LEAST = fe.targets.at_least(0, 0.5)
WRONG: Any = "0.1"


def make_network(seed: int = 0, *, linear: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts: list[Any] = (
            [nn.Linear(24, 4)] if linear else [nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 4)]
        )
        parts[-1].weight.data *= 2.0  # any target can be reached
        end = [] if linear else [nn.Softmax(-1)]
        return nn.Sequential(nn.Flatten(), *parts, *end).double()


TARGET = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def windows(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 2, 3, 4, generator=generator, dtype=torch.float64)


def make_problem(target: Any = AT_LEAST, seed: int = 0, **settings: Any) -> fe.Problem:
    return fe.problem(make_network(seed), target, windows(), **settings)


def make_scenario() -> fe.Problem:
    generator = torch.Generator().manual_seed(0)
    returns = 0.01 * torch.randn(13, 4, generator=generator, dtype=torch.float64)
    x0 = features(returns, span=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(x0.numel(), 4)
        linear.weight.data *= 20.0
    network = nn.Sequential(nn.Flatten(), linear, nn.Softmax(-1)).double()
    problem = fe.problem(network, AT_LEAST, x0)
    cov = 1e-4 * torch.eye(4, dtype=torch.float64)
    return fe.scenarios.scenario(returns, cov)(problem)


def share_held(problem: fe.Problem, z: Tensor, scale: float, atol: float = 2e-3) -> float:
    """The share of fresh noises of a search point under which the network holds the target."""
    generator = torch.Generator().manual_seed(123)
    held = []
    for _ in range(60):
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        x = problem.decode(z + scale * noise, problem.args)
        weights = problem.objective(x, problem.args)[1]
        held.append(float(problem.criterion.error(weights, problem.args["target"])) <= atol)
    return sum(held) / len(held)


@pytest.mark.parametrize("method", METHODS, ids=["adam", "lm"])
def test_the_mean_of_a_linear_network_over_pairs_is_its_own(method: Any) -> None:
    plain = fe.problem(make_network(linear=True), TARGET, windows())
    one, two = (fe.solve(p, method, max_steps=5) for p in (plain, fe.smooth(scale=0.3)(plain)))
    assert_close((one.x, one.weights, one.loss), (two.x, two.weights, two.loss))


@pytest.mark.parametrize(
    "call",
    [
        lambda p: fe.solve(p, fe.adam(lr=0.05), max_steps=5),
        lambda p: fe.solve(p, fe.levenberg_marquardt(), atol=1e-3),
        fe.closest,
    ],
    ids=["adam", "lm", "closest"],
)
@pytest.mark.parametrize("make", [make_problem, make_scenario], ids=["windows", "scenario"])
def test_noise_of_size_zero_changes_nothing(
    make: Callable[[], fe.Problem], call: Callable[[fe.Problem], fe.Solution]
) -> None:
    plain = make()
    one, two = call(plain), call(fe.smooth(scale=0.0, draws=4)(plain))
    assert_close((one.x, one.z, one.weights), (two.x, two.z, two.weights), rtol=1e-6, atol=1e-6)
    assert one.status == two.status


@pytest.mark.parametrize("make", [make_problem, make_scenario], ids=["windows", "scenario"])
def test_weights_are_the_mean_over_the_noise_of_the_search_point(make: Callable[[], fe.Problem]) -> None:
    plain = make()
    problem = fe.smooth(scale=0.4, draws=6, seed=3)(plain)
    solution = fe.closest(problem)
    assert solution.hit
    noise = problem.args["noise"]
    assert_close(noise[::2], -noise[1::2])
    points = solution.z + 0.4 * noise
    each = [plain.objective(plain.decode(z, plain.args), plain.args)[1] for z in points]
    assert_close(solution.weights, torch.stack(each).mean(0))
    assert_close(solution.x, plain.decode(solution.z, plain.args))
    # The network's own weights, without noise, are those of the plain problem.
    own = [p.objective(solution.x, p.args)[1] for p in (problem, plain)]
    assert_close(*own)


def test_the_law_of_the_search_point_stays() -> None:
    problem = fe.smooth(scale=0.1)(make_scenario())
    assert problem.law == "normal"
    assert fe.freeze(problem).law == "normal"
    assert fe.scenarios.returns_of(fe.closest(problem), problem).isfinite().all()


@pytest.mark.parametrize("how", ["closest", "adam"])
@pytest.mark.parametrize(
    "transform",
    [fe.smooth(scale=0.2, draws=4), fe.robust(noise=0.2, draws=4)],
    ids=["smooth", "robust"],
)
def test_rows_are_as_alone_in_chunks_of_any_size(transform: Any, how: str) -> None:
    grid = fe.vmap(transform(make_problem()), x0=windows(3, seed=4))

    def call(p: fe.Problem, **settings: Any) -> tuple[Tensor, ...]:
        if how == "closest":
            found = fe.closest(p, max_steps=20, refinements=3, **settings)
        else:
            found = fe.solve(p, fe.adam(lr=0.05), max_steps=4, **settings)
        return found.x, found.z, found.weights, found.loss

    together = call(grid)
    assert_close(call(grid, chunk_size=2), together, rtol=1e-9, atol=1e-9)
    for row in range(3):
        assert_close(call(grid[row]), tuple(t[row] for t in together), rtol=1e-9, atol=1e-9)


def test_scales_and_noises_can_be_mapped() -> None:
    problem = fe.smooth(scale=0.1, draws=4)(make_problem())
    scales = torch.tensor([0.0, 0.3], dtype=torch.float64)
    found = fe.closest(fe.vmap(problem, smoothing=scales))
    assert_close(found.x[0], fe.closest(make_problem()).x, rtol=1e-6, atol=1e-6)
    alone = fe.closest(fe.smooth(scale=0.3, draws=4)(make_problem()))
    assert_close(found.x[1], alone.x, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="smoothing must be >= 0"):
        fe.vmap(problem, smoothing=-scales)


@pytest.mark.parametrize("first", [True, False], ids=["smooth first", "smooth last"])
def test_what_is_frozen_or_bounded_is_so_under_noise(first: bool) -> None:
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0] = False
    transforms = [fe.freeze, fe.clip(-1.5, 1.5)]
    problem = fe.problem(make_network(), AT_LEAST, windows().clamp(-1.0, 1.0), mask=mask)
    smooth = fe.smooth(scale=0.5, draws=4)
    problem = fe.pipe(problem, *([smooth, *transforms] if first else [*transforms, smooth]))
    solution = fe.closest(problem)
    seen = problem.windows(solution.z, problem.args)
    assert seen.shape == (5, 2, 3, 4)
    assert torch.equal(seen[:, 0], problem.args["reference"][0].expand(5, 3, 4))
    assert bool((seen[:, 1].abs() <= 1.5).all())
    assert torch.equal(solution.x, seen[0])


def test_later_units_do_not_change_the_noise() -> None:
    smooth = fe.smooth(scale=0.2, draws=4)
    before = fe.pipe(make_problem(), smooth, fe.standardize(0.0, 2.0))
    z = before.start(before.args)
    plain = smooth(make_problem())
    assert_close(before.windows(z, before.args), plain.windows(plain.start(plain.args), plain.args))


def test_the_dtype_follows_the_problem() -> None:
    problem = fe.pipe(make_problem(), fe.smooth(scale=0.2, draws=4), fe.cast(dtype=torch.float32))
    assert fe.solve(problem, max_steps=3).weights.dtype == torch.float32


def test_robust_answers_hold_under_fresh_noise() -> None:
    plain = make_problem()
    robust = fe.robust(noise=0.25, draws=20, level=0.9)(plain)
    answer = fe.closest(robust)
    assert answer.hit
    assert answer.weights.shape == (20, 4)
    held = answer.weights[:, 0] >= 0.5 - 1e-3
    assert held.double().mean() >= 0.9
    assert share_held(plain, fe.closest(plain).z, 0.25) < 0.7
    assert share_held(plain, answer.z, 0.25) > 0.85


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_robust_answers_hold_for_several_models(noise: float) -> None:
    networks = [make_network(seed) for seed in range(2)]
    plain = make_problem(fe.targets.at_least(0, 0.35))
    robust = fe.robust(models=fe.stack(networks)[1], noise=noise, draws=2, level=1.0)(plain)
    answer = fe.solve(robust, fe.levenberg_marquardt(), max_steps=100, atol=1e-3)
    assert answer.hit
    assert answer.weights.shape == (4 if noise else 2, 4)
    for network in networks:
        assert float(network(answer.x[None])[0, 0].detach()) >= 0.35 - 5e-3


def test_the_error_is_the_quantile_of_the_errors() -> None:
    problem = fe.robust(noise=0.5, draws=10, level=0.75)(make_problem(TARGET))
    solution = fe.solve(problem, fe.adam(), max_steps=2)
    errors = (solution.weights - TARGET).abs().amax(-1)
    assert_close(solution.error, errors.sort().values[7])  # 8 of 10


def test_targets_of_robust_rows_can_be_mapped_before() -> None:
    targets = fe.one_hot_targets(4, dtype=torch.float64)
    grid = fe.vmap(make_problem(targets[0]), target=targets)
    problem = fe.robust(noise=0.1, draws=4)(grid)
    assert fe.solve(problem, max_steps=2).weights.shape == (4, 4, 4)


def test_a_network_that_reads_its_batch_is_called_for_each_window() -> None:
    class ByBatch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x - x.mean(0, keepdim=True) if len(x) > 1 else x)

    problem = fe.smooth(scale=0.3, draws=4)(fe.problem(ByBatch(), TARGET, windows()))
    expected = fe.smooth(scale=0.3, draws=4)(make_problem(TARGET))
    one, two = (fe.solve(p, fe.adam(), max_steps=3) for p in (problem, expected))
    assert_close((one.x, one.weights), (two.x, two.weights))


def test_nothing_of_the_callers_changes() -> None:
    network = make_network()
    before, state = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    fe.closest(fe.smooth(scale=0.3)(fe.problem(network, AT_LEAST, windows())))
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_gradients_are_checked_under_noise() -> None:
    assert fe.check_gradient(fe.smooth(scale=0.3, draws=4)(make_problem())).ok


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fe.smooth(scale=-0.1), ValueError, "scale must be finite and >= 0"),
        (lambda: fe.smooth(scale=WRONG), TypeError, "scale must be a number"),
        (lambda: fe.smooth(scale=0.1, draws=3), ValueError, "draws must be even.*pass 4"),
        (lambda: fe.smooth(scale=0.1, draws=0), ValueError, "draws must be"),
        (lambda: fe.smooth(scale=0.1, seed=-1), ValueError, "seed must be"),
        (lambda: fe.smooth(scale=0.1)(WRONG), TypeError, "smooth: problem must be a Problem"),
        (
            lambda: fe.pipe(make_problem(), *[fe.smooth(scale=0.1)] * 2),
            ValueError,
            "already hold",
        ),
        (lambda: fe.robust(level=0.0, noise=0.1), ValueError, "level must be"),
        (lambda: fe.robust(level=1.1, noise=0.1), ValueError, r"level must be a share in \(0, 1\]"),
        (lambda: fe.robust()(make_problem()), ValueError, "expected models, noise > 0 or both"),
        (lambda: fe.robust(models={})(make_problem()), TypeError, "params must have the structure"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "call", [fe.prune, lambda solution, p: fe.closest(p, norm="l1")], ids=["prune", "l1"]
)
def test_what_holds_entries_refuses_noise(call: Callable[..., Any]) -> None:
    problem = fe.smooth(scale=0.1)(make_problem())
    found = fe.solve(problem, max_steps=1)
    with pytest.raises(ValueError, match="must be without noise"):
        call(found, problem)
