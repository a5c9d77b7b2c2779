"""Laws of rows on a network's own sample dimension: the answers of ``vmap``, or a refusal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.engine import rows as rows_module
from funcexplain.engine.batching import Known
from funcexplain.engine.trial import try_rows, why_not_samples
from funcexplain.solvers.state import Stopping
from tests.grids import F64, gentle, mixed, models, targets, without_nan, x0s
from tests.helpers import (
    ASSETS,
    NETWORKS,
    RECURRENT,
    SHAPE,
    SIZE,
    TRANSFORMS,
    assert_close,
    assert_same,
    assert_untouched,
    make_network,
    make_problem,
    params,
    snapshot,
)

INDEPENDENT = [name for name in NETWORKS if name not in RECURRENT]
LOOPS = "the network loops over its samples, which vmap does not"
OTHERS = "a window's weights depend on the other windows of its batch"


def assert_answers_are_those_of_vmap(
    grid: fe.Problem, method: Callable[[], fe.Optimizer] = gentle, rtol: float = 1e-12, **settings: Any
) -> fe.Solution:
    found = fe.solve(grid, method(), rows="samples", **settings)
    expected = fe.solve(grid, method(), rows="vmap", **settings)
    assert_close(without_nan(found), without_nan(expected), rtol=rtol, atol=0.01 * rtol)
    return found


def reason(network: nn.Module, x0: Tensor) -> str | None:
    """Why rows that all start at one window cannot lie on the sample dimension of a network."""
    return tried(fe.vmap(make_problem(network, x0=x0), target=targets(4)))


def tried(grid: fe.Problem) -> str | None:
    rows = torch.arange(grid.shape[0])
    return why_not_samples(grid, try_rows(grid, gentle(), Stopping(), rows))


# --- the answers are those of vmap ----------------------------------------------------------------


@pytest.mark.parametrize("name", params(INDEPENDENT))
def test_the_answers_are_those_of_vmap_for_every_network(name: str) -> None:
    network = make_network(name)
    before = snapshot(network)
    grid = mixed(fe.freeze(make_problem(network)))
    assert_answers_are_those_of_vmap(grid, max_steps=8, chunk_size=3)
    assert_untouched(before, network)


@pytest.mark.parametrize("transform", params(TRANSFORMS))
def test_the_answers_are_those_of_vmap_for_every_transform(transform: str) -> None:
    grid = mixed(TRANSFORMS[transform](make_problem("conv_batch_norm")))
    assert_answers_are_those_of_vmap(
        grid, lambda: fe.adam(lr=0.05), 1e-10, max_steps=8, keep="best", chunk_size=4
    )


def test_rows_that_end_at_different_steps_end_alike() -> None:
    grid = fe.vmap(make_problem(), x0=x0s(14), target=targets(14))
    found = assert_answers_are_those_of_vmap(
        grid,
        lambda: fe.sgd(lr=20.0, momentum=0.9),
        1e-9,
        max_steps=30,
        atol=0.05,
        patience=8,
        chunk_size=4,
    )
    assert len(found.num_steps.unique()) > 4


def test_a_row_that_is_not_finite_touches_no_other() -> None:
    starts = x0s(6)
    starts[2] = math.nan
    grid = fe.vmap(make_problem("attention"), x0=starts, target=targets(6))
    found = assert_answers_are_those_of_vmap(grid, max_steps=5)
    assert found[2].status is fe.Status.NONFINITE
    assert found.loss.isfinite().sum() == 5


def test_single_precision_agrees() -> None:
    grid = mixed(make_problem("conv_instance_norm", torch.float32))
    found = fe.solve(grid, gentle(), max_steps=20, rows="samples")
    expected = fe.solve(grid, gentle(), max_steps=20, rows="vmap")
    assert found.x.dtype is torch.float32
    assert_close((found.x, found.history), (expected.x, expected.history), rtol=1e-5, atol=1e-5)


def test_models_with_enough_rows_lie_there_one_by_one() -> None:
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(64)), params=models(2))
    assert_answers_are_those_of_vmap(grid, max_steps=3)
    with pytest.raises(ValueError, match="each row has its own parameters"):
        fe.solve(grid[:, :63], max_steps=1, rows="samples")


# --- or they are refused --------------------------------------------------------------------------


class Head(nn.Module):
    """A linear head after what a test does to its batch."""

    def __init__(self, before: Callable[[Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        self.before, self.head = before, nn.Linear(SIZE, ASSETS, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.before(x)).flatten(1))


def make_head(before: Callable[[Tensor], Tensor], bias: bool = True) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        return Head(before, bias).double()


def one_at_a_time(x: Tensor) -> Tensor:
    if len(x) > 1:
        raise ZeroDivisionError("one window at a time")
    return x


DEPENDENT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "batch_mean": (lambda x: x - 0.5 * x.mean(0, keepdim=True), OTHERS),
    "batch_size": (lambda x: x / len(x), OTHERS),
    "place": (lambda x: x + torch.arange(len(x)).view(-1, 1, 1, 1), OTHERS),
    "neighbour": (lambda x: x + 0.1 * x.roll(1, 0), OTHERS),
    "random": (lambda x: x + torch.rand_like(x), OTHERS),
    "one_at_a_time": (
        one_at_a_time,
        "the network does not accept a batch of windows (one window at a time)",
    ),
    "loop": (lambda x: torch.stack([torch.sin(one) for one in x]), LOOPS),
}


@pytest.mark.parametrize("name", params(DEPENDENT))
@pytest.mark.filterwarnings("ignore:solve. the network draws random numbers")
def test_samples_that_are_not_independent_are_refused(name: str) -> None:
    before, why = DEPENDENT[name]
    grid = fe.vmap(make_problem(make_head(before)), x0=x0s(4))
    message = f"solve: rows='samples' needs independent samples, but {why}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        fe.solve(grid, max_steps=1, rows="samples")


@pytest.mark.parametrize("name", params(RECURRENT))
def test_networks_that_loop_over_samples_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=LOOPS):
        fe.solve(mixed(make_problem(name)), max_steps=1, rows="samples")


def test_statistics_of_the_batch_are_refused() -> None:
    norm = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), make_network("mlp_tanh")).double()
    assert reason(norm, x0s(1)[0]) == OTHERS


def test_what_is_no_batch_is_refused() -> None:
    apply, p = fe.functionalize(make_network("mlp_tanh"))
    thinned = fe.functionalize(make_network("mlp_tanh"), train=True)
    for problem, why in [
        (make_problem((lambda p, x: apply(p, x), p)), "the network is a function of one window"),
        (
            make_problem(thinned),
            "each row has its own dropout noise",
        ),
    ]:
        with pytest.raises(ValueError, match=f"rows='samples' needs independent samples, but {why}"):
            fe.solve(fe.vmap(problem, x0=x0s(3)), max_steps=1, rows="samples")
    ensemble = fe.vmap(make_problem(), params=models(3), x0=x0s(3))
    with pytest.raises(ValueError, match="but each row has its own parameters"):
        fe.solve(ensemble, max_steps=1, rows="samples")


# Rows may begin at one and the same window (only targets differ), and that may be all zeros.
@pytest.mark.parametrize(
    ("before", "bias"),
    [
        (lambda x: x - x.mean(0, keepdim=True), True),
        (lambda x: x - x.mean(0, keepdim=True), False),
        (lambda x: x - x.nanmean(0, keepdim=True), True),
        (lambda x: x + 0.1 * x.roll(1, 0).nan_to_num(), True),
    ],
    ids=["mean", "mean_without_bias", "mean_of_the_finite", "finite_neighbour"],
)
@pytest.mark.parametrize("start", ["zeros", "noise"])
def test_windows_of_zeros_hide_no_dependence(
    before: Callable[[Tensor], Tensor], bias: bool, start: str
) -> None:
    # Windows that are all equal would hide a dependence, and so would weights of NaN.
    x0 = torch.zeros(SHAPE, dtype=F64) if start == "zeros" else x0s(1)[0]
    assert reason(make_head(before, bias), x0) is not None


# --- the trial leaves no trace --------------------------------------------------------------------


@pytest.mark.parametrize("name", params([*NETWORKS, *DEPENDENT]))
def test_the_trial_leaves_the_generator_and_the_network_alone(name: str) -> None:
    network = make_network(name) if name in NETWORKS else make_head(DEPENDENT[name][0])
    problem = make_problem(network)
    before = snapshot(network)
    given = {key: tensor.clone() for key, tensor in problem.args["params"].items()}
    found = tried(fe.vmap(problem, x0=x0s(3)))
    assert (found is None) == (name in INDEPENDENT)
    assert_untouched(before, network)
    assert_same(problem.args["params"], given)


# --- the choice -----------------------------------------------------------------------------------


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every search, whether its rows share the sample dimension."""
    choices, inner = list[bool](), rows_module._try

    def recorded(*args: Any) -> Known:
        known = inner(*args)
        choices.append(known.choice.way == "samples")
        return known

    monkeypatch.setattr(rows_module, "_try", recorded)
    return choices


def test_a_trial_is_remembered_for_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    trials, inner = list[tuple[int, ...]](), rows_module.try_rows

    def counted(grid: fe.Problem, *args: Any) -> Any:
        trials.append(grid.shape)
        return inner(grid, *args)

    monkeypatch.setattr(rows_module, "try_rows", counted)
    problem = make_problem()
    first = fe.solve(fe.vmap(problem, x0=x0s(17)), gentle(), max_steps=2)
    again = fe.solve(fe.vmap(problem, x0=x0s(17)), gentle(), max_steps=2)
    assert_same((again.x, again.weights, again.loss), (first.x, first.weights, first.loss))
    fe.solve(fe.vmap(problem, x0=x0s(20)), gentle(), max_steps=2)  # other rows of the kind
    assert len(trials) == 1
    others = [
        fe.vmap(problem, target=problem.args["target"].expand(17, -1)),  # what varies
        fe.vmap(replace(problem, loss=fe.losses.kl), x0=x0s(17)),
        fe.vmap(fe.cast(dtype=torch.float32)(problem), x0=x0s(17).float()),
        fe.vmap(replace(problem, args=deepcopy(problem.args)), x0=x0s(17)),  # other parameters
        fe.vmap(make_problem(), x0=x0s(17)),  # another network
    ]
    for number, grid in enumerate(others, start=2):
        fe.solve(grid, gentle(), max_steps=2)
        assert len(trials) == number
    next(iter(problem.args["params"].values())).mul_(1.0)
    fe.solve(fe.vmap(problem, x0=x0s(17)), gentle(), max_steps=2)
    assert len(trials) == len(others) + 2


@pytest.mark.parametrize("name", params(NETWORKS))
def test_auto_uses_samples_where_they_are_independent(chosen: list[bool], name: str) -> None:
    grid = mixed(make_problem(name), size=17)
    found = fe.solve(grid, gentle(), max_steps=2)
    assert_close(found, fe.solve(grid, gentle(), max_steps=2, rows="vmap"), rtol=1e-11)
    fe.solve(grid[:2], gentle(), max_steps=1)
    fe.solve(grid[:2], gentle(), max_steps=1, rows="samples" if name in INDEPENDENT else "auto")
    assert chosen == [name in INDEPENDENT, False, name in INDEPENDENT, name in INDEPENDENT]


@pytest.mark.parametrize("name", params(name for name in DEPENDENT if name != "random"))
def test_auto_refuses_nothing(chosen: list[bool], name: str) -> None:
    grid = fe.vmap(make_problem(make_head(DEPENDENT[name][0])), x0=x0s(18))
    found = fe.solve(grid, gentle(), max_steps=2)
    assert chosen == [False]
    alone = fe.solve(grid[3], gentle(), max_steps=2)
    assert_close((found[3].x, found[3].loss), (alone.x, alone.loss))


def test_auto_maps_what_is_not_a_batch(chosen: list[bool]) -> None:
    apply, p = fe.functionalize(make_network("mlp_tanh"))
    for problem in (
        make_problem((lambda p, x: apply(p, x), p)),
        make_problem(fe.functionalize(make_network("mlp_tanh"), train=True)),
    ):
        fe.solve(fe.vmap(problem, x0=x0s(18)), max_steps=1)
    fe.solve(fe.vmap(make_problem(), params=models(18), x0=x0s(18)), max_steps=1)
    assert chosen == [False] * 3


@pytest.mark.parametrize("wrong", [None, True, "sample", "SAMPLES", 0, ["vmap"]], ids=repr)
def test_other_words_are_refused(wrong: Any) -> None:
    message = f"solve: rows must be 'auto', 'vmap' or 'samples', got {wrong!r}"
    for problem in (make_problem(), fe.vmap(make_problem(), x0=x0s(2))):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            fe.solve(problem, rows=wrong)


def test_one_question_has_no_rows_to_batch() -> None:
    expected = fe.solve(make_problem(), max_steps=3)
    assert_same(fe.solve(make_problem(), max_steps=3, rows="vmap"), expected)
    assert_same(fe.solve(make_problem(), max_steps=3, rows="samples"), expected)


class Coupled(nn.Module):
    """Ordinary alone; in a batch, one window decides for the others, in some way that ``how`` names."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner = how, make_network("mlp_tanh")

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "sign of the sum":
            return torch.where(x.sum() > 0, self.inner(x), self.inner(-x))
        if self.how == "mean of many":
            return self.inner(x if len(x) < 5 else x - x.mean(0, keepdim=True))
        factor = 1 + torch.arange(len(x), dtype=x.dtype).clamp_min(2) - 2
        return self.inner(x * factor[:, None, None, None])


@pytest.mark.parametrize("how", ["sign of the sum", "mean of many", "place in the batch"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 7])
def test_few_rows_that_couple_are_solved_as_alone(how: str, dtype: torch.dtype, size: int) -> None:
    problem = make_problem(Coupled(how).to(dtype), dtype)
    grid = fe.vmap(problem, x0=x0s(size, dtype))
    found = fe.solve(grid, gentle(), max_steps=3)
    for row in range(size):
        alone = fe.solve(grid[row], gentle(), max_steps=3)
        assert_close(found[row].weights, alone.weights, rtol=1e-9 if dtype is torch.float64 else 0.05)
