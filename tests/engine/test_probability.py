"""How likely a target is: known chances, honest intervals, laws of rows and seeds, draws, trouble."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.engine.estimators import METHODS, Estimate
from funcexplain.engine.subset import complete
from funcexplain.networks.noise import fold_in
from tests.helpers import assert_same, assert_untouched, snapshot
from tests.markets.market import ASSETS, F64, LOOKBACKS, base, covariance, network, question

P: Any = fe  # wrong types are the point of some calls
Score = Callable[[Tensor], Tensor]


def event(score: Score, size: int, target: Any, **settings: Any) -> fe.Problem:
    """The weight of the first asset is a function of ``size`` standard normal shocks."""
    assets = 1 if size == 1 else 2
    path = torch.zeros(size // assets, assets, dtype=F64)

    def apply(params: Any, x: Tensor) -> Tensor:
        return torch.cat([score(x.flatten())[None], x.new_zeros(assets - 1)])

    problem = fe.problem((apply, {}), target, path[None], leverage=math.inf, **settings)
    cov = torch.eye(assets, dtype=F64)
    return fe.scenarios.scenario(path, cov, features=lambda r: r[None], inverse=lambda x, r: x[0])(
        problem
    )


def half_space(size: int, beta: float) -> fe.Problem:
    """A linear network; the chance is ``Phi(-beta)``."""
    return event(lambda z: z.sum() / size**0.5, size, fe.targets.at_least(0, beta))


def repeated(problem: fe.Problem, count: int) -> fe.Problem:
    return fe.vmap(problem, seed=torch.arange(count))


def agrees(found: fe.Probability, chance: float, errors: float = 3.0) -> Tensor:
    return (found.estimate - chance).abs() <= errors * found.standard_error


class Toy:
    """A half-space without a network, for statistics over many seeds."""

    def __init__(self, size: int, beta: float) -> None:
        self.like, self.beta, self.num_forwards = torch.zeros(size, dtype=F64), beta, 0

    def __call__(self, points: Tensor) -> Tensor:
        self.num_forwards += len(points)
        return (self.beta - points.sum(1) / points.shape[1] ** 0.5).clamp(min=0.0)


def estimates(method: str, size: int, chance: float, budget: int, seeds: int) -> list[Estimate]:
    """The last estimate of every seed."""
    found = []
    for seed in range(seeds):
        toy: Any = Toy(size, -stats.norm.ppf(chance))
        known: list[Estimate] = []
        complete(toy, METHODS[method](toy, 0.0, budget, torch.tensor(seed), known.append))
        assert toy.num_forwards <= 1.35 * budget + 200
        found.append(known[-1])
    return found


def deviations(found: list[Estimate], chance: float) -> Tensor:
    """In standard errors, of the logarithm."""
    p, error = (torch.tensor([each[field] for each in found], dtype=F64) for field in (0, 1))
    return (p / chance).log() / (error / p).square().log1p().sqrt()


@pytest.mark.parametrize(("size", "seeds"), [(1, 8), (300, 3)])
@pytest.mark.parametrize("chance", [1e-1, 1e-3, 1e-7])
def test_half_spaces_have_the_known_chance(size: int, seeds: int, chance: float) -> None:
    found = estimates("subset", size, chance, 3000, seeds)
    assert all(each.status is fe.Status.HIT for each in found)
    away = deviations(found, chance)
    assert (away.abs() <= 3.0).all()
    assert away.mean().abs() <= 3.5 / seeds**0.5


@pytest.mark.parametrize(("method", "chance"), [("monte_carlo", 0.01), ("subset", 1e-3), ("auto", 1e-2)])
def test_intervals_cover(method: str, chance: float) -> None:
    found = estimates(method, 4, chance, 1000, 30)
    covered = sum(each.lower <= chance <= each.upper for each in found)
    assert stats.binom.cdf(covered, 30, 0.95) > 0.01
    p, error = (torch.tensor([each[field] for each in found], dtype=F64) for field in (0, 1))
    assert 0.7 < (p.std() / p.mean()) / (error / p).mean() < 1.4


@pytest.mark.parametrize("method", ["auto", "subset", "importance", "monte_carlo"])
def test_every_method_estimates_the_chance(method: str) -> None:
    chance = 0.02 if method == "monte_carlo" else 1e-4
    found = P.probability(
        half_space(10, -stats.norm.ppf(chance)), method=method, atol=0.0, num_samples=4000
    )
    assert agrees(found, chance)
    assert found.lower <= chance <= found.upper
    assert found.status is fe.Status.HIT
    assert found.num_forwards <= 1.35 * 4000
    assert found.method == ("subset" if method == "auto" else method)
    hits = (1 - found.estimate) * (found.estimate / found.standard_error).square()
    torch.testing.assert_close(found.effective_sample_size, hits)
    torch.testing.assert_close(found.beta, -torch.special.ndtri(found.estimate))
    torch.testing.assert_close(found.log10, found.estimate.log10())


def four_branches(z: Tensor) -> Tensor:
    """The series system of Waarts (2000), rotated into its axes; it fails where this is positive."""
    along, across = z[0], z[1]
    bent = along.abs() - 3.0 - 0.2 * across.square()
    return torch.maximum(bent, across.abs() - 3.5)


# One-dimensional quadrature of 2 Phi(-3 - d**2 / 5) phi(d) for |d| < 3.5, and 2 Phi(-3.5).
FOUR_BRANCHES = 0.0022227950661944


@pytest.mark.parametrize("method", ["subset", "importance", "monte_carlo"])
def test_all_regions_count(method: str) -> None:
    two_sided = event(lambda z: z[0].abs(), 2, fe.targets.at_least(0, 3.0))
    branches = event(four_branches, 2, fe.targets.at_least(0, 0.0))
    settings: Any = {"method": method, "atol": 0.0, "num_samples": 5000}
    assert agrees(fe.probability(two_sided, **settings), 2 * stats.norm.sf(3.0))
    if method != "importance":  # which sees the regions that its searches find
        assert agrees(fe.probability(branches, **settings), FOUR_BRANCHES)


def test_openturns_agrees() -> None:
    ot = pytest.importorskip("openturns")
    formula = "max(abs(a) - 3 - 0.2 * b^2, abs(b) - 3.5)"
    function = ot.SymbolicFunction(["a", "b"], [formula])
    output = ot.CompositeRandomVector(function, ot.RandomVector(ot.Normal(2)))
    ot.RandomGenerator.SetSeed(0)
    algorithm = ot.SubsetSampling(ot.ThresholdEvent(output, ot.Greater(), 0.0))
    algorithm.setMaximumOuterSampling(2000)
    algorithm.run()
    theirs = algorithm.getResult()
    ours = fe.probability(event(four_branches, 2, fe.targets.at_least(0, 0.0)), atol=0.0)
    error = math.hypot(float(ours.standard_error), theirs.getStandardDeviation())
    assert abs(float(ours.estimate) - theirs.getProbabilityEstimate()) <= 3.0 * error


def test_an_allocation_is_met_within_atol() -> None:
    problem = event(lambda z: z[0], 2, torch.tensor([2.0, 0.0], dtype=F64))
    found = fe.probability(problem, method="subset", atol=0.01, num_samples=5000)
    assert agrees(found, stats.norm.cdf(2.01) - stats.norm.cdf(1.99))
    with pytest.raises(ValueError, match=r"atol must be > 0 .*probability.*zero.*at_least"):
        fe.probability(problem, atol=0.0)


def markets() -> fe.Problem:
    """A small network on the windows of a market, with some days fixed."""
    days = base(LOOKBACKS[0])
    free = torch.zeros(len(days), ASSETS, dtype=torch.bool)
    free[-3:, 1:] = True
    window = question(LOOKBACKS[0]).args["x0"]
    target = fe.targets.at_least(1, 0.5)
    problem = fe.problem(network(LOOKBACKS[0]), target, window)
    return fe.scenarios.scenario(days, covariance(), free=free)(problem)


def goals(*levels: float) -> fe.Problem:
    """Questions of rising ambition."""
    return fe.vmap(markets(), target=[fe.targets.at_least(1, level) for level in levels], name="goal")


def weights_drawn() -> Tensor:
    """The second asset's weight at plain draws."""
    problem = goals(0.5)[0]
    z = torch.randn(2000, *problem.args["returns"].shape, dtype=F64)
    windows = torch.func.vmap(problem.decode, (0, None))(z, problem.args)
    return network(LOOKBACKS[0])(windows)[:, 1].detach()


def test_rows_of_several_networks_and_markets_are_what_they_are_alone() -> None:
    """Points of rows with the same network fill batches together; others do not."""
    problem = goals(0.4, 0.5)
    networks = [network(LOOKBACKS[0]), network(LOOKBACKS[0])]
    with torch.no_grad():
        next(networks[1].parameters()).mul_(1.1)
    factors = torch.stack([problem.args["factor"], 0.5 * problem.args["factor"]])
    grid = fe.vmap(fe.vmap(problem, params=fe.stack(networks)[1]), factor=factors)
    found = fe.probability(grid, num_samples=60, atol=0.0)
    assert found.shape == (2, 2, 2)
    for index in ((0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 0)):
        assert_equal(found[index], fe.probability(grid[index], num_samples=60, atol=0.0))


@pytest.mark.parametrize("robust", [False, True])
def test_targets_are_judged_under_the_noise_of_the_problem(robust: bool) -> None:
    plain, scale = event(lambda z: z[0].square(), 2, fe.targets.at_least(0, 4.0)), 0.5
    transform = fe.robust(noise=scale, draws=4, level=1.0) if robust else fe.smooth(scale=scale, draws=4)
    problem = transform(plain)
    noise = scale * problem.args["noise"][:, 0, 0]
    bound = 2.0 + noise.abs().max() if robust else (4.0 - noise.square().mean()).sqrt()
    found = fe.probability(problem, atol=0.0, num_samples=1000)
    assert agrees(found, 2 * stats.norm.sf(float(bound)))
    assert_equal(found, fe.probability(problem, atol=0.0, num_samples=1000, chunk_size=64))
    draws = fe.sample(problem, 16, num_chains=8, atol=0.0, num_samples=500)
    assert draws.hit.all()
    assert (draws.z[:, 0, 0].abs() >= bound - 1e-9).all()
    assert_same(draws.x, draws.z[:, None])  # the window without noise


def assert_equal(a: fe.Probability, b: fe.Probability) -> None:
    trees: Any = (a, b)
    for ours, theirs in zip(*map(optree.tree_leaves, trees), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0.0, equal_nan=True)
    assert a.methods == b.methods


@pytest.mark.parametrize("method", ["auto", "subset", "importance", "monte_carlo"])
def test_a_row_is_what_it_is_alone(method: str) -> None:
    low, high = weights_drawn().quantile(torch.tensor([0.7, 0.99], dtype=F64)).tolist()
    searches = method == "importance"  # slowly
    grid = fe.vmap(goals(low, high), seed=torch.tensor([3] if searches else [3, 8]), name="seed")
    settings: Any = {"method": method, "num_samples": 200}
    found = fe.probability(grid, **settings)
    assert found.dims == ("seed", "goal")
    assert found.shape == grid.shape
    assert_equal(found[0, 1], fe.probability(grid[0, 1], chunk_size=7, **settings))
    if not searches:
        assert_equal(found[1, 0], fe.probability(grid[1, 0], **settings))
    assert (found[:, 0].estimate > found[:, 1].estimate).all()
    if method == "monte_carlo":
        again = fe.probability(grid, seed=1, **settings)
        assert (again.estimate != found.estimate).any()
        assert found[0, 0].estimate != found[1, 0].estimate


def test_it_falls_with_the_threshold() -> None:
    drawn = weights_drawn()
    levels = drawn.quantile(torch.tensor([0.5, 0.9, 0.99, 0.998], dtype=F64))
    found = fe.probability(goals(*levels.tolist()), num_samples=3000, atol=0.0)
    assert (found.estimate.diff() < 0).all()
    counted = (drawn >= levels[:, None]).double().mean(1)
    error = (found.standard_error.square() + counted * (1 - counted) / len(drawn)).sqrt()
    assert ((found.estimate - counted).abs() <= 3 * error).all()
    assert found.methods[0] == "monte_carlo"
    assert "often enough" in found.reasons[0]
    assert found.methods[-1] == "subset"
    assert "too rare" in found.reasons[-1]
    for row in found.levels:
        known = row[~row.isnan()]
        assert (known.diff() < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nothing_of_the_callers_changes(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4, 2), nn.Softmax(-1)).to(dtype).train()
    path = torch.zeros(2, 2, dtype=dtype)
    problem = fe.problem(module, fe.targets.at_least(0, 0.6), path[None])
    cov = torch.eye(2, dtype=dtype)
    problem = fe.scenarios.scenario(path, cov, features=lambda r: r[None], inverse=lambda x, r: x[0])(
        problem
    )
    before = snapshot(module)
    for method in ("auto", "importance"):
        found = fe.probability(problem, method=method, num_samples=300)
        assert found.estimate.dtype == F64
    draws = fe.sample(problem, 8, num_chains=4, num_samples=400)
    assert draws.x.dtype == draws.weights.dtype == dtype
    assert_untouched(before, module)


def test_an_event_that_never_happens_has_an_upper_bound() -> None:
    never = event(lambda z: z[0].tanh(), 2, fe.targets.at_least(0, 1.5))
    plain = fe.probability(never, method="monte_carlo", num_samples=300)
    assert plain.estimate.isnan()
    assert float(plain.upper) == pytest.approx(3 / 300, rel=0.01)
    levels = fe.probability(never, method="subset", num_samples=400)
    assert levels.estimate.isnan()
    assert 0 < levels.upper < 0.01
    assert plain.status is levels.status is fe.Status.MAX_STEPS
    assert "upper bound" in levels.message
    flat = event(lambda z: 0.0 * z[0], 2, fe.targets.at_least(0, 1.5))
    stuck = fe.probability(flat, method="subset", num_samples=300)
    assert stuck.status is fe.Status.STALLED
    assert stuck.estimate.isnan()
    counted = fe.probability(flat, num_samples=1000)
    assert counted.method == "monte_carlo"
    assert "no way" in counted.reason
    assert 0 < counted.upper < 0.01
    for problem in (never, flat, event(lambda z: z[0] + torch.nan, 2, fe.targets.at_least(0, 0.0))):
        with pytest.raises(ValueError, match=r"sample: .* met within num_samples"):
            fe.sample(problem, 32, num_samples=200)


def test_an_event_that_always_happens() -> None:
    sure = event(lambda z: z[0], 2, fe.targets.at_least(0, -40.0))
    for method in ("auto", "subset", "importance"):
        found = fe.probability(sure, method=method, num_samples=400)
        assert float(found.estimate) == pytest.approx(1.0, abs=0.05)
        assert found.lower > 0.9
        assert found.upper == 1.0


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_networks_without_weights_in_some_markets(share: float) -> None:
    bound = stats.norm.ppf(share)

    def score(z: Tensor) -> Tensor:
        return torch.where(z[1] < bound, torch.nan, z[0])

    found = fe.probability(event(score, 2, fe.targets.at_least(0, 2.0)), num_samples=2000, atol=0.0)
    assert found.status is fe.Status.NONFINITE
    if share < 1.0:
        assert agrees(found, (1 - share) * stats.norm.sf(2.0))
    else:
        assert found.estimate.isnan()


def test_ctrl_c_returns_what_is_known() -> None:
    calls: list[None] = []
    stop = -1

    def score(z: Tensor) -> Tensor:
        calls.append(None)
        if len(calls) == stop:
            signal.raise_signal(signal.SIGINT)
        return z[0]

    grid = repeated(event(score, 2, fe.targets.at_least(0, 1.5)), 3)
    settings: Any = {"method": "monte_carlo", "num_samples": 5000}
    calls.clear()
    fe.probability(grid, **settings)
    total, stop = len(calls), 7 * len(calls) // 10  # while the second row is being counted
    calls.clear()
    found = fe.probability(grid, **settings)
    assert torch.as_tensor(found.status).tolist() == [
        fe.Status.HIT,
        fe.Status.INTERRUPTED,
        fe.Status.INTERRUPTED,
    ]
    assert len(calls) < 0.8 * total
    assert not found[0].estimate.isnan()
    assert (found.upper > 0).all()
    with pytest.raises(KeyboardInterrupt):  # of the next, so that a loop ends
        fe.probability(grid, **settings)


def test_wrong_arguments() -> None:
    problem = half_space(2, 1.0)
    plain = question(LOOKBACKS[0])
    with pytest.raises(ValueError, match=r"probability: problem must have a standard normal"):
        fe.probability(plain)
    with pytest.raises(ValueError, match=r"after box"):
        fe.probability(fe.box(-1.0, 1.0)(markets()))
    with pytest.raises(ValueError, match=r"method must be one of"):
        P.probability(problem, method="form")
    for settings in ({"num_samples": 0}, {"atol": -1.0}, {"seed": -1}, {"chunk_size": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            P.probability(problem, **settings)
    with pytest.raises(TypeError, match="problem must be a Problem"):
        P.probability(None)
    with pytest.raises(ValueError, match=r"num_draws must be at least num_chains"):
        fe.sample(problem, 8)
    with pytest.raises(ValueError, match=r"select a row, as in problem\[0\]"):
        fe.sample(repeated(problem, 2), 64)


def test_it_is_shown_and_picked_and_mapped() -> None:
    found = fe.probability(repeated(half_space(2, 1.0), 3), num_samples=300)
    assert repr(found).startswith("Probability(rows=(seed=3), estimate=0.1")
    assert repr(found[1]).startswith("Probability(0.1")
    assert found[1:].shape == (2,)
    assert found[0].message == "The probability is estimated."
    tree: Any = found
    doubled: Any = optree.tree_map(lambda t: 2 * t, tree)
    assert_same(doubled.estimate, 2 * found.estimate)
    with pytest.raises(IndexError):
        found[0, 0]
    first = repeated(half_space(2, 1.0), 3)[:0]
    assert fe.probability(first).shape == (0,)


def test_streams_differ() -> None:
    seeds = [int(fold_in(torch.tensor(s), n)) for s in range(30) for n in range(30)]
    assert len(set(seeds)) == 900
