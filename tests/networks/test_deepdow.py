"""deepdow's networks and layers under torch.func: alone, mapped, as ensembles, with right gradients."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.grids import assert_rows_equal_alone, targets, x0s
from tests.helpers import (
    ASSETS,
    CHANNELS,
    LOOKBACK,
    assert_close,
    assert_same,
    make_target,
    make_x0,
    params,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    layers = pytest.importorskip("deepdow.layers", reason="deepdow is not installed")
    nets = pytest.importorskip("deepdow.nn", reason="deepdow is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Scored(nn.Module):
    """Scores of a dense layer, turned into weights by an allocator of deepdow."""

    def __init__(self, allocate: nn.Module) -> None:
        super().__init__()
        self.score = nn.Linear(CHANNELS * LOOKBACK * ASSETS, ASSETS)
        self.allocate = allocate

    def forward(self, x: Tensor) -> Tensor:
        return self.allocate(torch.tanh(self.score(x.flatten(1))))


class Budgeted(nn.Module):
    """Risk budgets from a dense layer, a covariance from the first channel."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = nn.Linear(CHANNELS * LOOKBACK * ASSETS, ASSETS)
        self.covariance = layers.CovarianceMatrix(sqrt=False)
        self.allocate = layers.NumericalRiskBudgeting(ASSETS, max_weight=0.5)

    def forward(self, x: Tensor) -> Tensor:
        budgets = torch.softmax(self.budget(x.flatten(1)), -1)
        return self.allocate(self.covariance(x[:, 0]), budgets)


class Covarying(nn.Module):
    """An allocator that is given a covariance of the first channel."""

    def __init__(self, allocate: nn.Module) -> None:
        super().__init__()
        self.covariance = layers.CovarianceMatrix(sqrt=False)
        self.allocate = allocate

    def forward(self, x: Tensor) -> Tensor:
        return self.allocate(self.covariance(x[:, 0]))


class Warped(nn.Module):
    """Time warped by a transformation that the network computes."""

    def __init__(self) -> None:
        super().__init__()
        self.warp, self.head = layers.Warp(), nn.Linear(CHANNELS * LOOKBACK * ASSETS, ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        times = torch.tanh(x[:, 0].mean(-1)) * 0.5
        return torch.softmax(self.head(self.warp(x, times).flatten(1)), -1)


class Zoomed(nn.Module):
    """The last days zoomed in on, by a scale that the network computes."""

    def __init__(self) -> None:
        super().__init__()
        self.zoom, self.head = layers.Zoom(), nn.Linear(CHANNELS * LOOKBACK * ASSETS, ASSETS)

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + 0.2 * torch.tanh(x[:, 0].mean((1, 2)))
        return torch.softmax(self.head(self.zoom(x, scale).flatten(1)), -1)


class Unknown(nn.Module):
    """A convex program that no exact allocator knows: the nearest point of a ball."""

    def __init__(self) -> None:
        super().__init__()
        import cvxpy as cp
        from cvxpylayers.torch import CvxpyLayer

        x, w = cp.Parameter(ASSETS), cp.Variable(ASSETS)
        ball = cp.norm(w - 1 / ASSETS) <= 0.3
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x - w)), [cp.sum(w) == 1, ball])
        self.score = nn.Linear(CHANNELS * LOOKBACK * ASSETS, ASSETS)
        self.layer = CvxpyLayer(problem, [x], [w])

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.tanh(self.score(x.flatten(1)))
        return self.layer(scores, solver_args={"eps": 1e-11, "max_iters": 100_000})[0]


SMOOTH: dict[str, Callable[[], nn.Module]] = {
    "DummyNet": lambda: nets.DummyNet(CHANNELS),
    "LinearNet": lambda: nets.LinearNet(CHANNELS, LOOKBACK, ASSETS),
    "KeynesNet_RNN": lambda: nets.KeynesNet(CHANNELS, hidden_size=8, transform_type="RNN"),
    "KeynesNet_Conv": lambda: nets.KeynesNet(CHANNELS, hidden_size=8, transform_type="Conv"),
    "BachelierNet": lambda: nets.BachelierNet(CHANNELS, ASSETS, hidden_size=8, max_weight=0.6),
    "sparsemax": lambda: Scored(layers.SparsemaxAllocator(ASSETS, max_weight=0.5, temperature=1)),
    "softmax_capped": lambda: Scored(layers.SoftmaxAllocator(1, "variational", ASSETS, max_weight=0.3)),
    "risk_budgeting": Budgeted,
    "analytical_markowitz": lambda: Covarying(layers.AnalyticalMarkowitz()),
    "nco": lambda: Covarying(layers.NCO(2, n_init=1, random_state=2)),
    "resample": lambda: Covarying(layers.Resample(layers.AnalyticalMarkowitz(), random_state=1)),
    "warp": Warped,
    "zoom": Zoomed,
}
BLIND = {"MinimalNet": lambda: nets.MinimalNet(ASSETS), "ThorpNet": lambda: nets.ThorpNet(ASSETS)}
DTYPES = [torch.float32, torch.float64]


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(name))
        return {**SMOOTH, **BLIND, "unknown": Unknown}[name]().to(dtype)


def slope_of(network: nn.Module, dtype: torch.dtype) -> tuple[Callable[[Any, Tensor], Tensor], Any]:
    apply, p = fe.functionalize(network)
    target = make_target(dtype)
    return torch.func.grad(lambda p, x: fe.losses.mse(apply(p, x), target), argnums=1), p


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", params([*SMOOTH, *BLIND]))
def test_mapped_gradient_equals_a_loop(name: str, dtype: torch.dtype) -> None:
    slope, p = slope_of(make(name, dtype), dtype)
    xs = torch.stack([make_x0(dtype, seed=seed) for seed in range(3)])
    looped = torch.stack([slope(p, x) for x in xs])
    rounding = {"rtol": 1e-3, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-9, "atol": 1e-13}
    assert looped.dtype == dtype
    assert_close(torch.func.vmap(slope, (None, 0))(p, xs), looped, **rounding)
    nested = torch.func.vmap(torch.func.vmap(slope, (None, 0)), (None, 0))(p, xs[None])
    assert_close(nested[0], looped, **rounding)


@pytest.mark.parametrize(
    "name",
    params([n for n in (*SMOOTH, *BLIND) if n not in ("analytical_markowitz", "nco", "resample")]),
)
def test_mapped_parameters_equal_a_loop(name: str) -> None:
    networks = [make(name) for _ in range(2)]
    for parameter in networks[1].parameters():
        nn.init.normal_(parameter, 0.3, 0.1)
    apply, stacked = fe.stack(networks)
    x = make_x0()
    looped = torch.stack([fe.functionalize(n)[0](fe.functionalize(n)[1], x) for n in networks])
    assert_close(torch.func.vmap(apply, (0, None))(stacked, x), looped, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", params([*SMOOTH, "ThorpNet"]))
def test_weights_are_those_of_the_network(name: str) -> None:
    network = make(name)
    apply, p = fe.functionalize(network)
    with torch.random.fork_rng(devices=[]):  # a random_state reseeds the global generator
        own = network.eval()(make_x0()[None])[0].detach()
    # The networks' own convex solver is exact to about 1e-3.
    exact = name not in ("BachelierNet", "ThorpNet", "sparsemax", "softmax_capped", "risk_budgeting")
    assert_close(apply(p, make_x0()), own, rtol=0, atol=1e-12 if exact else 5e-3)


@pytest.mark.parametrize("name", params([*SMOOTH, *BLIND]))
def test_mapped_searches_equal_searches_alone(name: str) -> None:
    problem = fe.problem(make(name), make_target(), make_x0(), loss=fe.losses.kl)
    init, step = fe.make_step(problem, fe.adam(lr=0.05))

    def search(x0: Tensor) -> Tensor:
        return fe.run(init, step, {**problem.args, "x0": x0}, num_steps=2)[0].z

    xs = torch.stack([make_x0(seed=seed) for seed in range(2)])
    alone = torch.stack([search(x) for x in xs])
    assert_close(torch.func.vmap(search)(xs), alone, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", params([*SMOOTH, *BLIND]))
@pytest.mark.filterwarnings("ignore:solve. no gradient reaches the input")
def test_rows_of_a_grid_are_those_solved_alone(name: str) -> None:
    problem = fe.problem(make(name), make_target(), make_x0(), loss=fe.losses.kl)
    grid = fe.vmap(problem, x0=x0s(3), target=targets(3))
    assert_rows_equal_alone(grid, lambda: fe.sgd(lr=0.1), max_steps=2, chunk_size=2)


def assert_a_broken_row_touches_no_other(name: str) -> None:
    starts, broken = x0s(9), x0s(9)
    broken[4] = torch.nan
    sound, hurt = (
        fe.solve(fe.vmap(fe.problem(make(name), make_target(), make_x0()), x0=x0), max_steps=2)
        for x0 in (starts, broken)
    )
    others = torch.arange(9) != 4
    assert_same(hurt[others], sound[others])
    assert hurt[4].status is fe.Status.NONFINITE


# NCO and Resample raise an error of their own for NaN, and that ends the whole batch.
@pytest.mark.parametrize("name", params(n for n in (*SMOOTH, *BLIND) if n not in ("warp", "zoom")))
@pytest.mark.filterwarnings("ignore:solve. no gradient reaches the input")
def test_a_row_that_is_not_finite_touches_no_other(name: str) -> None:
    assert_a_broken_row_touches_no_other(name)


@pytest.mark.parametrize("name", ["warp", "zoom"])
def test_a_row_that_is_not_finite_does_not_end_the_process(name: str) -> None:
    # Given NaN, torch's backward pass of grid_sample ("border" and "reflection" padding) writes wherever
    # it likes, as a rule a segmentation fault: the network must never see such a row.
    # With a GPU, torch differentiates in threads, which a fork does not have.
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    process = context.Process(target=assert_a_broken_row_touches_no_other, args=(name,))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("name", params(SMOOTH))
def test_check_gradient_passes_and_leaves_the_generator_alone(name: str) -> None:
    # Resampling draws other portfolios in another dtype.
    dtype = torch.float64 if name == "resample" else torch.float32
    network, before = make(name, dtype), torch.get_rng_state()
    problem = fe.problem(network, make_target(dtype), make_x0(dtype))
    found = fe.check_gradient(problem)
    assert found.ok, found
    assert max(slope.error for slope in found.slopes if slope.dtype is torch.float64) < 1e-6
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_a_zoom_of_deepdow_has_no_gradient_to_its_scale_without_the_rule() -> None:
    problem = fe.problem(fe.functionalize(make("zoom"), rules=()), make_target(), make_x0())
    assert not fe.check_gradient(problem).ok


@pytest.mark.parametrize("name", params(BLIND))
def test_a_network_that_ignores_its_input_keeps_x_and_says_so(name: str) -> None:
    problem = fe.problem(make(name), make_target(), make_x0())
    with pytest.warns(UserWarning, match="no gradient reaches the input"):
        solution = fe.solve(problem, max_steps=3)
    assert solution.status is fe.Status.STALLED
    assert torch.equal(solution.x, make_x0())
    assert "does not depend on the input" in fe.check_gradient(problem).verdict


@pytest.mark.filterwarnings("ignore")  # cvxpy and its solvers warn about their own future
def test_an_unknown_convex_program_keeps_its_solver() -> None:
    slope, p = slope_of(make("unknown"), torch.float64)
    xs = torch.stack([make_x0(seed=seed) for seed in range(3)])
    looped = torch.stack([slope(p, x) for x in xs])
    assert_close(torch.func.vmap(slope, (None, 0))(p, xs), looped, rtol=1e-4, atol=1e-7)
    network = make("unknown").eval()
    own = xs.clone().requires_grad_()
    for x in own:
        fe.losses.mse(network(x[None])[0], make_target()).backward()
    assert own.grad is not None
    assert_close(looped, own.grad, rtol=1e-4, atol=1e-7)
    problem = fe.problem(network, make_target(), make_x0(), loss=fe.losses.mse)
    assert (
        fe.solve(problem, fe.adam(lr=0.1), max_steps=5).loss
        < problem.evaluate(make_x0(), problem.args)[0]
    )


def test_an_exported_program_is_a_network() -> None:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(60, 8), nn.Tanh(), nn.Linear(8, ASSETS), nn.Softmax(-1)
    )
    example = torch.stack([make_x0(seed=seed) for seed in range(2)])
    dims = ({0: torch.export.Dim("n")},)
    program = torch.export.export(network.double().eval(), (example,), dynamic_shapes=dims).module()
    slope, p = slope_of(program, torch.float64)
    ours, q = slope_of(network, torch.float64)
    assert_close(slope(p, make_x0()), ours(q, make_x0()))
    assert_close(
        torch.func.vmap(slope, (None, 0))(p, example), torch.stack([ours(q, x) for x in example])
    )
    assert fe.explain(program, make_target(), make_x0(), max_steps=3).x.shape == make_x0().shape


def test_a_convex_layer_that_does_not_say_its_program_is_refused() -> None:
    layer = type("CvxpyLayer", (nn.Module,), {"__module__": "cvxpylayers.torch.cvxpylayer"})()
    network = nn.Sequential(nn.Flatten(), layer)
    with pytest.raises(TypeError, match=r"CvxpyLayer must store its convex program.*1.0 or newer"):
        fe.functionalize(network)
    fe.functionalize(network, rules=())


@pytest.mark.parametrize(
    "name", ["BachelierNet", "sparsemax", "softmax_capped", "risk_budgeting", "ThorpNet"]
)
def test_known_convex_programs_are_solved_exactly(name: str) -> None:
    from funcexplain.networks.convex_layers import ExactLayer
    from funcexplain.networks.prepare import prepare
    from funcexplain.networks.stand_ins import replacement_of

    network = make(name)
    kinds = [type(replacement_of(part)) for part in prepare(network).network.modules()]
    assert ExactLayer in kinds
    assert "CvxpyLayer" not in {kind.__name__ for kind in kinds}
    assert "CvxpyLayer" in {type(part).__name__ for part in network.modules()}
