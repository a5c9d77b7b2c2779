"""Random questions, whose answers are compared with the caller's own network at the windows they hold.

By hand, any number of them: ``python -m tests.laws.random_questions 1500``; then, for one, its seed.
"""

from __future__ import annotations

import itertools
import random
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import funcexplain as fe
from tests.grids import masks, targets, x0s
from tests.helpers import ASSETS, LOSSES, NETWORKS, SHAPE, make_network, make_x0

Goal = Callable[[Tensor], tuple[Tensor, Tensor]]
NAMES = [*NETWORKS, *["mlp_tanh"] * len(NETWORKS)]  # half of the questions go to a fast one


class Wanted(NamedTuple):
    """A target, and by hand what it measures of weights and the nearest values that it allows."""

    target: Any
    compare: Goal


class Question(NamedTuple):
    """A grid or a single question, how it is solved, and what is known of it.

    Attributes:
        network: the caller's, in eval mode.
        wanted: the target of a row, by its place among the targets.
        mask: which entries are free; None if all are.
    """

    problem: fe.Problem
    settings: dict[str, Any]
    network: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    wanted: list[Wanted]
    mask: Tensor | None


@cache
def functions(name: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A network in eval mode, and its pure function."""
    network = make_network(name, dtype).eval()
    return network, fe.functionalize(network)


def allocation(weights: Tensor) -> Wanted:
    return Wanted(weights, lambda w: (w, weights))


def goals(draw: random.Random, count: int) -> list[Wanted]:
    """Targets of one kind, other than allocations."""

    def at_least(asset: int, share: float) -> Wanted:
        return Wanted(
            fe.targets.at_least(asset, share), lambda w: (w[[asset]], w[[asset]].clamp(min=share))
        )

    def at_most(asset: int, share: float) -> Wanted:
        return Wanted(
            fe.targets.at_most(asset, share), lambda w: (w[[asset]], w[[asset]].clamp(max=share))
        )

    def between(asset: int, share: float) -> Wanted:
        return Wanted(fe.targets.between(0.05, share), lambda w: (w, w.clamp(0.05, share)))

    def concentration(asset: int, share: float) -> Wanted:
        def compare(w: Tensor) -> tuple[Tensor, Tensor]:
            measured = w.square().sum()[None]
            return measured, measured.clamp(max=share)

        return Wanted(fe.targets.concentration(share), compare)

    kinds: list[Any] = [at_least, at_most, between, concentration]
    make: Any = draw.choice(kinds)
    return [make(draw.randrange(ASSETS), draw.uniform(0.25, 0.6)) for _ in range(count)]


def draw_method(draw: random.Random) -> Any:
    kinds: list[Any] = [
        lambda: fe.adam(lr=draw.choice([0.01, 0.1, 1.0])),
        lambda: fe.sgd(lr=draw.choice([0.5, 20.0]), momentum=draw.choice([0.0, 0.9])),
        fe.levenberg_marquardt,
    ]
    return draw.choice(kinds)()


def make_question(seed: int) -> Question:
    """A question that a seed decides."""
    draw = random.Random(seed)
    dtype = draw.choice([torch.float32, torch.float64])
    network, functional = functions(draw.choice(NAMES), dtype)
    loss, count = LOSSES[draw.choice(list(LOSSES))], draw.choice([1, 1, 2])
    wanted = [allocation(row) for row in targets(count, dtype, seed)]
    if draw.random() < 0.4:
        loss, wanted = fe.losses.mse, goals(draw, count)
    x0, mask = make_x0(dtype, seed).clamp(-3.9, 3.9), masks(1)[0] if draw.random() < 0.4 else None
    problem = fe.problem(functional, wanted[0].target, x0, loss=loss, mask=mask)
    if mask is not None:
        problem = fe.freeze(problem)
    if draw.random() < 0.3:
        problem = draw.choice([fe.box, fe.clip])(-4.0, 4.0)(problem)
    method, stack = draw_method(draw), [each.target for each in wanted]
    if count > 1:
        problem = fe.vmap(problem, target=torch.stack(stack) if isinstance(stack[0], Tensor) else stack)
    if draw.random() < 0.3:
        problem = fe.vmap(problem, x0=x0s(draw.choice([1, 3]), dtype, seed))
    settings = {
        "method": method,
        "max_steps": draw.randint(0, 4),
        "atol": draw.choice([0.0, 0.01, 0.1, 0.3]),
        "keep": draw.choice(["last", "best"]),
        "chunk_size": draw.choice([None, 1, 2]),
        "history": draw.choice([True, False, 2]),
    }
    return Question(problem, settings, network, loss, wanted, mask)


def assert_answered(seed: int) -> None:
    """Solve a question and check every row by hand."""
    problem, settings, network, loss, wanted, mask = make_question(seed)
    found = fe.solve(problem, **settings)
    names = [dim.name for dim in problem.dims]
    assert (found.shape, found.x.dtype) == (problem.shape, problem.args["x0"].dtype)
    for index in itertools.product(*map(range, problem.shape)):
        row = found[index] if index else found
        which = index[names.index("target")] if "target" in names else 0
        assert_row(row, settings, network, loss, wanted[which].compare)
        if mask is not None:
            start = problem[index].args["reference"] if index else problem.args["reference"]
            assert torch.equal(row.x[~mask], start[~mask])


def assert_row(
    row: fe.Solution, settings: dict[str, Any], network: nn.Module, loss: Any, compare: Goal
) -> None:
    """What an answer says holds of the network, called plainly."""
    eps, steps, atol = torch.finfo(row.x.dtype).eps, int(row.num_steps), settings["atol"]
    close: dict[str, Any] = {"rtol": 1e4 * eps, "atol": 1e3 * eps}
    with torch.no_grad():
        weights = network(row.x[None])[0]
        measured, nearest = compare(weights)
        error = float((measured - nearest).abs().max())
    torch.testing.assert_close(row.weights, weights, **close)
    torch.testing.assert_close(row.loss, loss(measured, nearest), **close)
    assert abs(float(row.error) - error) <= 1e3 * eps
    assert row.status in (fe.Status.HIT, fe.Status.MAX_STEPS, fe.Status.STALLED)
    if row.status is fe.Status.HIT:
        assert error <= atol + 1e3 * eps
    else:
        assert settings["keep"] == "best" or error >= atol - 1e3 * eps
    assert steps <= settings["max_steps"]
    assert row.status is not fe.Status.MAX_STEPS or steps == settings["max_steps"]
    every = int(settings["history"])
    assert int(row.history.isfinite().sum()) == (-(-steps // every) if every else 0)
    assert row.x.shape == SHAPE


if __name__ == "__main__":
    torch.set_num_threads(1)
    total, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    failures = 0
    for seed in range(first, first + total):
        try:
            with warnings.catch_warnings(action="ignore"):
                assert_answered(seed)
        except Exception as error:
            failures += 1
            print(f"seed {seed}: {error!r}", flush=True)
    print(f"{total} questions from seed {first}, {failures} failures")
