"""Laws of `agreement`, of a `consensus` of several kinds, and of noise under which answers hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.measures.agreement import Agreement
from funcexplain.networks.noise import normal
from tests.helpers import assert_close
from tests.problems.test_smooth import (
    AT_LEAST,
    WRONG,
    make_network,
    make_problem,
    make_scenario,
    windows,
)

NETWORKS = [make_network(seed) for seed in range(2)]


class Wide(torch.nn.Module):
    """A network of another kind."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x.mean((1, 2)), -1)


def test_each_network_is_measured_as_by_its_own_question() -> None:
    problem = make_problem()
    answer = fe.closest(problem)
    found = fe.agreement(answer, problem, [*NETWORKS, Wide()])
    assert found.held.tolist()[0]
    assert float(found.share) == float(found.held.double().mean())
    stacked = fe.agreement(answer, problem, fe.stack(NETWORKS)[1])
    assert_close(found.gap_closed[:2], stacked.gap_closed)
    for network, error, closed in zip([*NETWORKS, Wide()], found.error, found.gap_closed, strict=True):
        before, now = (float(network(x[None])[0, 0].detach()) for x in (problem.args["x0"], answer.x))
        gap, left = max(0.0, 0.5 - before), max(0.0, 0.5 - now)
        assert float(error) == pytest.approx(left, abs=1e-12)
        assert float(closed) == pytest.approx(1.0 - left / gap, rel=1e-9)


def test_rows_agree_as_alone_and_a_consensus_can_be_asked_about() -> None:
    grid = fe.vmap(make_problem(), x0=windows(3, seed=4))
    answer = fe.solve(grid, fe.levenberg_marquardt(), max_steps=20, atol=1e-3)
    found = fe.agreement(answer, grid, NETWORKS)
    assert found.held.shape == (2, 3)
    for row in range(3):
        alone = fe.agreement(answer[row], grid[row], NETWORKS)
        assert_close(alone.gap_closed, found.gap_closed[:, row])
    together = fe.consensus([make_problem(seed=seed) for seed in range(2)])
    answer = fe.solve(together, fe.levenberg_marquardt(), max_steps=50, atol=1e-3)
    assert answer.hit
    assert fe.agreement(answer, together, NETWORKS).held.all()


def test_a_consensus_of_a_list_is_one_of_a_stack() -> None:
    stack = fe.consensus(fe.vmap(make_problem(), params=fe.stack(NETWORKS)[1]))
    listed = fe.consensus([make_problem(seed=seed) for seed in range(2)])
    one, two = (fe.solve(p, fe.adam(lr=0.05), max_steps=5) for p in (stack, listed))
    assert_close((one.x, one.weights, one.loss), (two.x, two.weights, two.loss))


def test_a_consensus_of_several_kinds_composes() -> None:
    kinds = [fe.problem(network, AT_LEAST, windows()) for network in (NETWORKS[0], Wide())]
    problem = fe.pipe(fe.consensus(kinds), fe.cast(dtype=torch.float32), fe.smooth(scale=0.1, draws=2))
    grid = fe.vmap(problem, x0=windows(2, seed=5).float())
    answer = fe.solve(grid, fe.levenberg_marquardt(), max_steps=50, atol=1e-3)
    assert answer.weights.shape == (2, 2, 4)
    assert answer.hit.all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fe.consensus([]), ValueError, "expected at least one model"),
        (lambda: fe.consensus([make_problem(), WRONG]), TypeError, r"problem\[1\] must be one question"),
        (
            lambda: fe.consensus([make_problem(), fe.vmap(make_problem(), x0=windows(2))]),
            TypeError,
            "a grid of rows",
        ),
        (
            lambda: fe.consensus([make_problem(), fe.problem(NETWORKS[1], AT_LEAST, windows(seed=9))]),
            ValueError,
            "differ in network and target alone",
        ),
        (
            lambda: fe.consensus([make_problem(), fe.standardize(0.0, 1.0)(make_problem())]),
            ValueError,
            "apply transforms to the result",
        ),
        (lambda: agree([]), ValueError, "expected at least one model"),
        (lambda: agree([3]), TypeError, r"models\[0\] must be"),
        (lambda: agree([torch.nn.Linear(2, 2)]), TypeError, "one dtype"),
        (lambda: agree({}), TypeError, "agreement: models must be parameters"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def agree(models: Any) -> Agreement:
    problem = make_problem()
    return fe.agreement(fe.solve(problem, max_steps=1), problem, models)


@pytest.mark.parametrize("make", [make_problem, make_scenario], ids=["windows", "scenario"])
def test_noise_is_of_the_path_in_a_scenario_and_of_the_window_elsewhere(
    make: Callable[[], fe.Problem],
) -> None:
    problem = make()
    answer = fe.closest(problem)
    scale = None if problem.law else 1.0
    metrics = fe.evaluate(answer, problem, scale=scale, draws=6, seed=2)
    start = problem.encode(problem.args["reference"], problem.args)
    today = problem.objective(problem.args["reference"], problem.args)[1]
    for size in (0.05, 0.1, 0.25):
        held, moves = [], []
        for seed in range(12, 18):
            noise = size * normal(torch.tensor(seed), start.shape, torch.float64)
            then, now = (
                problem.objective(problem.decode(z + noise, problem.args), problem.args)[1]
                for z in (start, answer.z)
            )
            held.append(float(now[0]) >= 0.5 - 1e-3)
            moves.append(float((then - today).abs().max()))
        assert float(metrics[f"held_{size}"]) == pytest.approx(sum(held) / 6)
        assert float(metrics[f"today_moves_{size}"]) == pytest.approx(sum(moves) / 6)


def test_robust_answers_are_measured_to_hold_more_often() -> None:
    plain = make_problem()
    robust = fe.robust(noise=0.25, draws=10)(plain)
    shares = []
    for problem in (plain, robust):
        answer = fe.closest(problem)
        weights = plain.objective(answer.x, plain.args)[1]
        own = fe.solve(plain, max_steps=0)
        own = type(own)(**{**vars(own), "x": answer.x, "z": answer.z, "weights": weights})
        shares.append(float(fe.evaluate(own, plain, scale=1.0, draws=32)["held_0.25"]))
    assert shares[1] > max(0.8, shares[0] + 0.2)
