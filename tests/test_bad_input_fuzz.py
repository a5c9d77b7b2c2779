"""Arbitrary input gives a valid problem or a clear error, and never anything else.

A clear error is a TypeError or ValueError that begins with the public function's name and says what was
got. A warning is an error here, as everywhere in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings
from torch import Tensor

import funcexplain
from tests.helpers import ASSETS, SHAPE, make_mask, make_target, make_x0

fe: Any = funcexplain  # wrong types are the point of this file
fuzzed = settings(derandomize=True, deadline=None, max_examples=200, database=None)

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DTYPES = [*FLOATS, torch.bool, torch.uint8, torch.int64, torch.complex64, torch.complex128]
VALUES = [0.0, -0.0, 1.0, -1.0, 0.2, 1e-300, 1e300, 6e4, float("nan"), float("inf"), -float("inf")]
SHAPES = [(), (1,), (ASSETS,), (1, ASSETS), (ASSETS, 1), SHAPE, SHAPE[1:], (1, *SHAPE), (*SHAPE[:2], 1)]

numbers = st.one_of(
    st.sampled_from(VALUES),
    st.floats(),
    st.integers(-(2**62), 2**62),
    st.booleans(),
    st.floats(width=32).map(np.float32),
    st.integers(-9, 9).map(np.int64),
)
others = st.one_of(
    numbers, st.none(), st.text(max_size=3), st.just([0.2] * ASSETS), st.just(()), st.just(object())
)


def tensor(shape: tuple[int, ...], dtype: torch.dtype, values: list[float], form: str) -> Any:
    """A tensor that repeats the values over its shape, or a relative of it."""
    count = int(np.prod(shape))
    flat = torch.tensor(values, dtype=torch.float64).repeat(count // len(values) + 1)[:count]
    whole = flat if dtype.is_floating_point else flat.nan_to_num(0.0, 1.0, -1.0).clamp(0, 9)
    made = whole.reshape(shape).to(dtype)
    forms: dict[str, Callable[[], Any]] = {
        "plain": lambda: made,
        "requires_grad": lambda: made.requires_grad_(dtype.is_floating_point),
        "parameter": lambda: torch.nn.Parameter(made, requires_grad=dtype.is_floating_point),
        "strided": lambda: torch.stack([made, made], -1)[..., 0],
        "expanded": lambda: made.reshape(-1)[:1].expand(2, *shape)[0] if count else made,
        "numpy": lambda: made.to(torch.float32).numpy() if not dtype.is_complex else made.numpy(),
        "list": lambda: made.tolist(),
    }
    return forms[form]()


def tensors(shapes: st.SearchStrategy[tuple[int, ...]], values: Any = VALUES) -> st.SearchStrategy[Any]:
    return st.builds(
        tensor,
        shapes,
        st.sampled_from(DTYPES),
        st.lists(st.sampled_from(values), min_size=1, max_size=7),
        st.sampled_from(
            ["plain"] * 4 + ["requires_grad", "parameter", "strided", "expanded", "numpy", "list"]
        ),
    )


shapes = st.one_of(st.sampled_from(SHAPES), st.lists(st.integers(0, 3), max_size=4).map(tuple))
anything = st.one_of(tensors(shapes), others)


def mostly(*right: Any, wild: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One of the right values three times out of four, so that several arguments are right together."""
    return st.integers(0, 3).flatmap(lambda which: wild if which == 3 else st.sampled_from(right))


def about(right: Tensor) -> st.SearchStrategy[Any]:
    """The right tensor, mostly; else one in another dtype, with other values, or anything."""
    other = st.sampled_from(FLOATS).map(right.to) if right.is_floating_point() else st.just(~right)
    return mostly(right, wild=st.one_of(other, tensors(st.just(tuple(right.shape))), anything))


def answer(name: str, call: Callable[[], Any]) -> Any:
    """What is returned, or ``None`` after a clear error."""
    try:
        return call()
    except (TypeError, ValueError) as error:
        message = str(error)
        assert re.match(rf"{name}: \w+", message), message
        assert "got " in message, message
        return None


def mean_weights(params: Any, x: Tensor) -> Tensor:
    """A network without parameters, for every dtype."""
    del params
    return x.mean((0, 1))


def assert_valid(problem: Any) -> None:
    """A problem's data fit each other, and a search of one step ends with a status."""
    assert isinstance(problem, fe.Problem)
    x0, target = problem.args["x0"], problem.args["target"]
    assert x0.ndim == 3
    assert target.shape == x0.shape[-1:]
    assert problem.args["mask"].shape == problem.args["reference"].shape == x0.shape
    assert problem.args["mask"].dtype is torch.bool
    for value in (x0, target, problem.args["reference"]):
        assert value.dtype is x0.dtype
        assert value.dtype in FLOATS
        assert not value.requires_grad
        assert bool(value.isfinite().all())
    solution = fe.solve(problem, max_steps=1)
    assert isinstance(solution.status, fe.Status)
    assert (solution.x.shape, solution.x.dtype) == (x0.shape, x0.dtype)


@fuzzed
@given(
    target=about(make_target()),
    x0=about(make_x0()),
    mask=about(make_mask()),
    reference=about(make_x0()),
    seed=mostly(0, wild=numbers),
)
def test_any_question_is_valid_or_clearly_refused(
    target: Any, x0: Any, mask: Any, reference: Any, seed: Any
) -> None:
    def ask() -> Any:
        return fe.problem((mean_weights, {}), target, x0, mask=mask, reference=reference, seed=seed)

    problem = answer("problem", ask)
    if problem is not None:
        assert_valid(problem)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "box": lambda a, b: fe.box(a, b),
    "clip": lambda a, b: fe.clip(a, b),
    "standardize": lambda a, b: fe.standardize(a, b),
    "penalize": lambda a, b: fe.penalize(fe.penalties.l2, strength=a),
    "jitter": lambda a, b: fe.jitter(a),
}
bounds = st.one_of(tensors(st.sampled_from(SHAPES), [-9.0, 0.0, 0.5, 9.0]), anything)


@fuzzed
@given(
    name=st.sampled_from(list(TRANSFORMS)),
    first=mostly(-9.0, 0.5, wild=bounds),
    second=mostly(9.0, wild=bounds),
    dtype=st.sampled_from(FLOATS),
)
def test_any_setting_of_a_transform_is_valid_or_clearly_refused(
    name: str, first: Any, second: Any, dtype: torch.dtype
) -> None:
    problem = fe.problem((mean_weights, {}), make_target(dtype), make_x0(dtype), mask=make_mask())
    changed = answer(name, lambda: TRANSFORMS[name](first, second)(problem))
    if changed is not None:
        assert_valid(changed)


@fuzzed
@given(first=mostly(0.1, wild=others), second=mostly(0.9, wild=others), third=mostly(0.9, wild=others))
def test_any_setting_of_a_search_is_valid_or_clearly_refused(
    first: Any, second: Any, third: Any
) -> None:
    for name, make in {
        "adam": lambda: fe.adam(first, (second, third), 1e-8),
        "sgd": lambda: fe.sgd(first, second),
    }.items():
        optimizer = answer(name, make)
        assert optimizer is None or isinstance(optimizer, fe.Optimizer)
