"""Laws of `make_step`, `run` and `solve`."""

from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.solvers.state import Keep
from tests.helpers import (
    OPTIMIZERS,
    TRANSFORMS,
    assert_close,
    assert_gradient,
    assert_same,
    make_network,
    make_problem,
    make_target,
    make_x0,
    params,
)

every_optimizer = pytest.mark.parametrize("optimizer", params(OPTIMIZERS))
every_transform = pytest.mark.parametrize("transform", params(TRANSFORMS))


class Counted:
    """A network that counts its forward passes."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.calls = 0
        self.inner, self.params = fe.functionalize(network)

    def __call__(self, p: dict[str, Tensor], x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(p, x)


@every_optimizer
@every_transform
def test_weights_and_loss_belong_to_x(optimizer: str, transform: str) -> None:
    problem = TRANSFORMS[transform](make_problem())
    for keep in ("last", "best"):
        solution = fe.solve(problem, OPTIMIZERS[optimizer](), max_steps=7, keep=keep)
        _, (loss, weights) = problem.evaluate(solution.x, problem.args)
        assert_close((solution.loss, solution.weights), (loss, weights))
        assert solution.num_steps == len(solution.history) == 7


def test_mapped_run_goes_through_parameters_of_models() -> None:
    networks = [make_network("mlp_tanh") for _ in range(3)]
    for network in networks:
        torch.nn.init.normal_(network.get_parameter("layers.2.weight"), std=0.3)
    _, stacked = fe.stack(networks)
    problem = make_problem(network=fe.functionalize(networks[0]))
    init, step = fe.make_step(problem, fe.adam(lr=0.05))

    def search(p: dict[str, Tensor]) -> Tensor:
        return fe.run(init, step, {**problem.args, "params": p}, num_steps=10)[0].z

    expected = torch.stack(
        [fe.solve(make_problem(network=n), fe.adam(lr=0.05), max_steps=10).x for n in networks]
    )
    assert_close(torch.func.vmap(search)(stacked), expected, rtol=1e-9, atol=1e-11)


@every_optimizer
def test_run_is_differentiable_through_every_step(optimizer: str) -> None:
    """Derivative of the last loss by the target, frozen entries (zero gradients) included."""
    problem = fe.freeze(make_problem())
    init, step = fe.make_step(problem, OPTIMIZERS[optimizer]())

    def last_loss(target: Tensor) -> Tensor:
        return fe.run(init, step, {**problem.args, "target": target}, num_steps=4)[1].loss[-1]

    target = make_target()
    assert_gradient(last_loss, target, torch.func.grad(last_loss)(target))


def test_run_of_no_steps_is_the_start() -> None:
    problem = make_problem()
    init, step = fe.make_step(problem)
    state, info = fe.run(init, step, problem.args, num_steps=0)
    assert_same(state, init(problem.args))
    assert all(field.shape == (0,) for field in info)


@pytest.mark.parametrize("max_steps", [0, 1, 7])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_one_forward_pass_a_step_and_one_at_the_end(max_steps: int, keep: Keep) -> None:
    counted = Counted(make_network("mlp_tanh"))
    problem = make_problem(network=(counted, counted.params))
    fe.solve(fe.freeze(problem), max_steps=max_steps, keep=keep)
    assert counted.calls == max_steps + 1


def test_no_forward_pass_after_a_hit() -> None:
    counted = Counted(make_network("mlp_tanh"))
    solution = fe.solve(make_problem(network=(counted, counted.params)), max_steps=500, atol=1e-2)
    assert solution.status is fe.Status.HIT
    assert 0 < solution.num_steps < 500
    assert counted.calls == solution.num_steps + 1 == len(solution.history) + 1
    assert (solution.weights - make_target()).abs().max() <= 1e-2


def test_a_search_that_hits_walks_the_same_path_until_there() -> None:
    short = fe.solve(make_problem(), max_steps=500, atol=1e-2)
    long = fe.solve(make_problem(), max_steps=int(short.num_steps))
    assert_same((short.x, short.weights, short.history), (long.x, long.weights, long.history))
    assert long.status is fe.Status.MAX_STEPS


def test_a_start_that_hits_is_the_answer() -> None:
    problem = make_problem()
    _, weights = problem.objective(make_x0(), problem.args)
    solution = fe.solve(make_problem(target=weights), max_steps=5)
    assert solution.status is fe.Status.HIT
    assert solution.num_steps == 0
    assert solution.history.shape == (0,)
    assert_same(solution.x, make_x0())


def test_the_last_point_can_hit() -> None:
    hit = fe.solve(make_problem(), max_steps=500, atol=1e-2)
    exact = fe.solve(make_problem(), max_steps=int(hit.num_steps), atol=1e-2)
    assert exact.status is fe.Status.HIT
    assert_same(exact, hit)


def test_keep_best_is_the_least_value_that_was_evaluated() -> None:
    wild = fe.adam(lr=5.0)
    best = fe.solve(make_problem(), wild, max_steps=60, keep="best")
    last = fe.solve(make_problem(), wild, max_steps=60)
    evaluated = torch.cat([last.history, last.loss[None]])
    assert_same(best.loss, evaluated.min())
    assert_same(best.history, last.history)
    assert best.loss < last.loss


def test_a_hit_is_kept_although_an_earlier_value_was_less() -> None:
    # The penalty is so strong that the start is best in value, and the search is not driven by it.
    def against(x: Tensor, reference: Tensor) -> Tensor:
        return (x - reference).detach().abs().amax()

    problem = fe.penalize(against, strength=100.0)(make_problem())
    solution = fe.solve(problem, max_steps=500, atol=1e-2, keep="best")
    assert solution.status is fe.Status.HIT
    assert (solution.weights - make_target()).abs().max() <= 1e-2


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_search_that_turns_non_finite_ends_with_the_last_finite_x(keep: Keep) -> None:
    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.log(x.flatten()[:5])  # finite until an entry crosses zero

    problem = make_problem(network=(apply, {}), x0=make_x0().abs() + 1.0, target=-make_target() * 20)
    walk = fe.sgd(lr=0.3)
    solution = fe.solve(problem, walk, max_steps=500, keep=keep)
    assert solution.status is fe.Status.NONFINITE
    assert "finite" in solution.status.sentence
    assert 0 < solution.num_steps < 500
    assert solution.x.isfinite().all()
    assert solution.weights.isfinite().all()
    assert_close(solution.weights, apply({}, solution.x))
    assert solution.history.isfinite().all()
    assert len(solution.history) == solution.num_steps


def test_a_problem_that_is_not_finite_at_its_start_keeps_x0() -> None:
    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.log(x.flatten()[:5])

    solution = fe.solve(make_problem(network=(apply, {}), x0=-make_x0().abs() - 1.0), max_steps=5)
    assert solution.status is fe.Status.NONFINITE
    assert solution.num_steps == 0
    assert_same(solution.x, -make_x0().abs() - 1.0)


def test_a_non_finite_gradient_keeps_the_finite_point_before_it() -> None:
    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return x.flatten()[:5].clamp_min(0).sqrt()  # infinite slope at zero

    solution = fe.solve(make_problem(network=(apply, {}), x0=torch.zeros_like(make_x0())), max_steps=5)
    assert solution.status is fe.Status.NONFINITE
    assert solution.loss.isfinite()


def test_an_update_that_overflows_is_not_an_answer() -> None:
    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.tanh(x.flatten()[:5])  # finite at infinity

    problem = make_problem(network=(apply, {}), dtype=torch.float32, target=make_target(torch.float32))
    solution = fe.solve(problem, fe.sgd(lr=3e38), max_steps=50)
    assert solution.x.isfinite().all()


def test_the_callback_sees_every_step() -> None:
    seen: list[tuple[int, float, float]] = []

    def callback(state: fe.State, info: fe.Info) -> None:
        seen.append((int(state.num_steps), float(info.loss), float(info.error)))

    solution = fe.solve(make_problem(), max_steps=5, callback=callback)
    assert [steps for steps, _, _ in seen] == [1, 2, 3, 4, 5]
    assert [loss for _, loss, _ in seen] == solution.history.tolist()


def test_explain_is_problem_freeze_and_solve() -> None:
    network = make_network("mlp_tanh")
    settings: dict[str, Any] = {"max_steps": 9, "atol": 1e-3, "keep": "best"}
    mask = make_problem().args["mask"]
    one_call = fe.explain(
        network, make_target(), make_x0(), loss=fe.losses.kl, mask=mask, method=fe.sgd(), **settings
    )
    problem = fe.problem(network, make_target(), make_x0(), loss=fe.losses.kl, mask=mask)
    assert_same(one_call, fe.solve(fe.freeze(problem), fe.sgd(), **settings))


def test_a_nan_row_does_not_touch_its_neighbours() -> None:
    problem = make_problem()
    init, step = fe.make_step(problem, atol=0.0)

    def search(x0: Tensor) -> Tensor:
        return fe.run(init, step, {**problem.args, "x0": x0}, num_steps=10)[0].kept.z

    x0s = torch.stack([make_x0(), torch.full_like(make_x0(), torch.nan), make_x0(seed=5)])
    rows = torch.func.vmap(search)(x0s)
    assert_close(rows[[0, 2]], torch.stack([search(x0s[0]), search(x0s[2])]), rtol=1e-9, atol=1e-12)


def test_what_cannot_be_answered_inside_a_transform_says_so() -> None:
    network, target = make_network("mlp_tanh"), make_target()

    def answer(x0: Tensor) -> Tensor:
        return fe.explain(network, target, x0, max_steps=2).loss

    for transformed in (torch.func.vmap(answer), torch.func.grad(lambda xs: answer(xs[0]))):
        with pytest.raises(
            RuntimeError, match=r"problem: x0 must be a plain tensor.*map or differentiate"
        ):
            transformed(make_x0()[None])


def test_inference_mode_is_refused_and_its_tensors_are_taken() -> None:
    network, problem = make_network("mlp_tanh"), make_problem()
    expected = fe.explain(network, make_target(), make_x0(), max_steps=3)
    with torch.inference_mode():
        target, x0 = make_target(), make_x0()
        for call in (lambda: fe.explain(network, target, x0), lambda: fe.solve(problem)):
            with pytest.raises(RuntimeError, match=r"needs gradients, got torch\.inference_mode"):
                call()
    assert_same(fe.explain(network, target, x0, max_steps=3), expected)


def test_a_solve_under_no_grad_is_the_same() -> None:
    with torch.no_grad():
        inside = fe.solve(make_problem(), max_steps=5)
    assert_same(inside, fe.solve(make_problem(), max_steps=5))
