"""Laws of transforms over the catalogue: round trips, frozen entries, bounds, order, dtype, purity."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from tests.helpers import (
    TRANSFORMS,
    assert_close,
    assert_same,
    make_mask,
    make_network,
    make_problem,
    make_target,
    make_x0,
    params,
)

every_transform = pytest.mark.parametrize("name", params(TRANSFORMS))
# Two boxes make no sense, and two of these write bounds.
PAIRS = [
    pair for pair in combinations(TRANSFORMS, 2) if "none" not in pair and {*pair} != {"box", "clip"}
]
every_pair = pytest.mark.parametrize(
    ("first", "second"), [pytest.param(*p, id="-".join(p)) for p in PAIRS]
)


def feasible(problem: fe.Problem) -> Tensor:
    """A window that the problem's search space can reach."""
    return problem.decode(problem.encode(make_x0(seed=8), problem.args), problem.args)


@every_transform
def test_decode_inverts_encode_on_feasible_windows(name: str) -> None:
    problem = TRANSFORMS[name](make_problem())
    x = feasible(problem)
    assert_close(problem.decode(problem.encode(x, problem.args), problem.args), x, atol=1e-12)


@every_transform
def test_encode_inverts_decode_where_entries_are_free(name: str) -> None:
    problem = TRANSFORMS[name](make_problem())
    z = 0.5 * make_x0(seed=8)  # well within the bounds
    if name == "sparsify":
        z = torch.stack([z, -z]).clamp_min(0.0)  # rise and fall
    back = problem.encode(problem.decode(z, problem.args), problem.args)
    assert_close(back[..., make_mask()], z[..., make_mask()], rtol=1e-10)


@every_transform
def test_without_noise_the_search_starts_at_x0(name: str) -> None:
    problem = TRANSFORMS[name](make_problem())
    if name == "jitter":
        problem = replace(problem, args={**problem.args, "jitter": torch.zeros(())})
    x = problem.decode(problem.start(problem.args), problem.args)
    kept = make_mask() if name == "zero_masked" else torch.ones_like(make_mask())
    assert_close(x[kept], make_x0()[kept], atol=1e-12)


@every_transform
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(name: str, dtype: torch.dtype) -> None:
    solution = fe.solve(TRANSFORMS[name](make_problem(dtype=dtype)), max_steps=3)
    expected = torch.float64 if name == "cast" else dtype
    assert {t.dtype for t in (solution.x, solution.weights, solution.loss, solution.history)} == {
        expected
    }


@every_pair
def test_any_two_transforms_compose_in_both_orders(first: str, second: str) -> None:
    for names in ((first, second), (second, first)):
        problem = fe.pipe(make_problem(), *(TRANSFORMS[name] for name in names))
        solution = fe.solve(problem, fe.adam(lr=0.05), max_steps=8, keep="best")
        start = problem.decode(problem.start(problem.args), problem.args)
        assert solution.loss <= problem.evaluate(start, problem.args)[1][0]
        apply, args = problem.apply, problem.args
        assert_close(solution.weights, apply(args["params"], solution.x))
        if "freeze" in names and "zero_masked" not in names:
            assert_same(solution.x[~make_mask()], make_x0()[~make_mask()])
        if {"box", "clip"} & {*names}:
            assert (solution.x[make_mask()].abs() <= 4.0).all()
        x = feasible(problem)
        assert_close(problem.decode(problem.encode(x, args), args), x, atol=1e-12)


def test_freeze_and_box_commute() -> None:
    reference = make_x0(seed=11) * 10.0  # frozen entries may lie outside the box
    bounds = fe.box(-3.0, 3.0)
    answers = [
        fe.solve(fe.pipe(make_problem(reference=reference), *order), max_steps=30)
        for order in permutations([fe.freeze, bounds])
    ]
    # The search points of frozen entries differ, and count for nothing.
    assert_same(*(replace(answer, z=answer.x) for answer in answers))
    assert_same(answers[0].x[~make_mask()], reference[~make_mask()])


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_frozen_entries_are_the_reference_to_the_bit_and_everybody_sees_them(
    order: tuple[int, ...],
) -> None:
    seen: list[Tensor] = []

    def penalty(x: Tensor, reference: Tensor) -> Tensor:
        seen.append(x.detach())
        return fe.penalties.l2(x, reference)

    apply, p = fe.functionalize(make_network("mlp_tanh", torch.float32))

    def watched(p: dict[str, Tensor], x: Tensor) -> Tensor:
        seen.append(x.detach())
        return apply(p, x)

    reference = make_x0(torch.float32, seed=11)
    problem = fe.problem(
        (watched, p),
        make_target(torch.float32),
        make_x0(torch.float32),
        mask=make_mask(),
        reference=reference,
    )
    transforms = [fe.freeze, fe.standardize(0.3, 0.07), fe.penalize(penalty, strength=0.1)]
    solution = fe.solve(fe.pipe(problem, *(transforms[i] for i in order)), max_steps=10)
    assert len(seen) == 2 * 11
    for x in (*seen, solution.x):
        assert_same(x[~make_mask()], reference[~make_mask()])
    assert not torch.equal(solution.x[make_mask()], make_x0(torch.float32)[make_mask()])


@pytest.mark.parametrize("method", [fe.adam(0.1), fe.levenberg_marquardt()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_search_in_a_box_leaves_bounds_that_it_starts_on(method: Any, dtype: torch.dtype) -> None:
    x0, mask = make_x0(dtype), make_mask()
    nudge = 1e-6 * torch.arange(x0.numel(), dtype=dtype).view_as(x0)  # on the bound, or nearly there
    for bounds in (fe.box(x0, x0 + 4.0), fe.box(x0 - nudge, x0 + 4.0), fe.box(x0 - 4.0, x0)):
        answers = []
        for order in permutations([fe.freeze, bounds]):
            problem = fe.pipe(make_problem(x0=x0, dtype=dtype), *order)
            start = problem.decode(problem.start(problem.args), problem.args)
            assert ((start - x0).abs()[mask] <= 0.0201).all()
            assert_same(start[~mask], x0[~mask])
            answers.append(fe.solve(problem, method, max_steps=30))
        assert_same(answers[0], answers[1])
        assert_same(answers[0].x[~mask], x0[~mask])
        assert ((answers[0].x - start).abs()[mask] > 0.01).any()
        assert answers[0].loss < 0.9 * answers[0].history[0]


def test_zero_masked_shows_zeros() -> None:
    solution = fe.solve(fe.zero_masked(make_problem()), max_steps=5)
    assert (solution.x[~make_mask()] == 0).all()


@pytest.mark.parametrize("bounded", [fe.box, fe.clip])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_hold_at_every_step(
    bounded: Callable[..., Callable[[fe.Problem], fe.Problem]], dtype: torch.dtype
) -> None:
    x0 = make_x0(dtype)
    lower, upper = x0 - torch.rand_like(x0) * 0.2, x0 + torch.rand_like(x0) * 0.2
    lower[0, 0, 0] = upper[0, 0, 0] = x0[0, 0, 0]  # no room at all
    lower[0, 0, 1] = x0[0, 0, 1]  # a start on its bound
    problem = fe.pipe(
        make_problem(dtype=dtype, mask=None), bounded(lower, upper), fe.standardize(0.1, 0.3)
    )
    init, step = fe.make_step(problem, fe.adam(lr=0.5))
    state = init(problem.args)
    for _ in range(30):
        state, _ = step(state, problem.args)
        x = problem.decode(state.z, problem.args)
        assert (x >= lower).all()
        assert (x <= upper).all()
    assert not torch.equal(x, x0)


def test_clip_equals_projected_gradient_by_hand() -> None:
    problem = fe.clip(-0.5, 0.5)(make_problem(x0=make_x0() * 0.1, mask=None))
    solution = fe.solve(problem, fe.sgd(lr=200.0), max_steps=10)
    apply, p = fe.functionalize(make_network("mlp_tanh"))
    grad = torch.func.grad(lambda x: fe.losses.mse(apply(p, x), make_target()))
    x = make_x0() * 0.1
    for _ in range(10):
        x = (x - 200.0 * grad(x)).clamp(-0.5, 0.5)
    assert (x.abs() == 0.5).any()
    assert_close(solution.x, x)


def test_clip_may_bound_one_side_only() -> None:
    lower = torch.full_like(make_x0(), -torch.inf)
    lower[1] = make_x0()[1] - 0.01
    problem = fe.pipe(make_problem(mask=None), fe.standardize(0.1, 0.3), fe.clip(lower, torch.inf))
    solution = fe.solve(problem, fe.adam(lr=0.5), max_steps=20)
    assert solution.x.isfinite().all()
    assert (solution.x >= lower).all()
    assert (solution.x[0] < make_x0()[0] - 0.1).any()
    with pytest.raises(ValueError, match="box: lower must be finite"):
        fe.box(lower, torch.inf)(make_problem())


def test_standardize_searches_in_units_of_sigma() -> None:
    std = torch.tensor([0.01, 5.0], dtype=torch.float64).view(2, 1, 1)
    problem = fe.standardize(0.0, std)(make_problem(mask=None))
    moved = fe.solve(problem, fe.adam(lr=0.1), max_steps=1).x - make_x0()
    # Adam's first step is lr in every entry, whatever the gradient.
    assert_close((moved / std).abs(), torch.full_like(moved, 0.1), rtol=0.05)


def test_box_keeps_the_units_of_what_is_searched() -> None:
    wide = fe.pipe(make_problem(mask=None), fe.box(-1e3, 1e3))
    free = make_problem(mask=None)
    assert_close(fe.solve(wide, max_steps=5).x, fe.solve(free, max_steps=5).x, rtol=1e-4)


def test_a_box_beside_a_change_of_units_commutes() -> None:
    transforms = [fe.box(-4.0, 4.0), fe.standardize(0.1, 0.7)]
    answers = [
        fe.solve(fe.pipe(make_problem(), *order), max_steps=20).x for order in permutations(transforms)
    ]
    assert_close(answers[0], answers[1], rtol=1e-9)


def test_reparametrize_takes_functions_with_and_without_args() -> None:
    plain = fe.reparametrize(lambda x: x / 2, lambda z: 2 * z)
    with_args = fe.reparametrize(lambda x, args: x / 2, lambda z, args: 2 * z)
    answers = [fe.solve(t(make_problem()), max_steps=5) for t in (plain, with_args)]
    assert_same(answers[0], answers[1])


def test_reparametrize_may_change_the_shape_of_the_search_space() -> None:
    def decode(z: Tensor) -> Tensor:  # one shift per channel
        return z[:, None, None].expand(2, 6, 5)

    problem = fe.reparametrize(lambda x: x.mean((1, 2)), decode)(make_problem(mask=None))
    solution = fe.solve(fe.jitter(0.1)(problem), max_steps=5)
    assert solution.x.std((1, 2)).max() < 1e-12


def test_penalize_adds_to_the_value_and_not_to_the_loss() -> None:
    strong = fe.penalize(fe.penalties.l2, strength=1e3, name="proximity")(make_problem())
    x = make_x0(seed=8)
    value, (loss, _) = strong.evaluate(x, strong.args)
    assert_close(value - loss, 1e3 * fe.penalties.l2(x, make_x0()))
    near = fe.solve(strong, max_steps=50)
    far = fe.solve(make_problem(), max_steps=50)
    assert fe.penalties.l2(near.x, make_x0()) < fe.penalties.l2(far.x, make_x0())
    assert_close(near.loss, fe.losses.mse(near.weights, make_target()))


def test_jitter_depends_on_the_seed_alone() -> None:
    def start(seed: int) -> Tensor:
        return fe.solve(fe.jitter(0.1)(make_problem(seed=seed)), max_steps=0).x

    before = torch.get_rng_state()
    assert_same(start(3), start(3))
    assert not torch.equal(start(3), start(4))
    assert torch.equal(before, torch.get_rng_state())
    assert abs(float((start(3) - make_x0()).std()) - 0.1) < 0.03


def test_cast_moves_everything_that_floats() -> None:
    problem = fe.pipe(make_problem(), fe.box(-4.0, 4.0), fe.jitter(0.1), fe.cast(dtype=torch.float32))
    tensors = [*problem.args["params"].values()]
    tensors += [value for name, value in problem.args.items() if name != "params"]
    assert {t.dtype for t in tensors} == {torch.float32, torch.bool, torch.int64}


def test_pipe_reads_from_left_to_right() -> None:
    names: list[str] = []

    def note(name: str) -> Callable[[fe.Problem], fe.Problem]:
        def transform(problem: fe.Problem) -> fe.Problem:
            names.append(name)
            return problem

        return transform

    problem = make_problem()
    assert fe.pipe(problem, note("a"), note("b")) is problem
    assert names == ["a", "b"]
