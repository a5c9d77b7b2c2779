"""A row's step for a batch of rows: on the network's own sample dimension, or by ``vmap``.

A network maps ``(n_samples, C, L, A)`` to ``(n_samples, A)``. If its samples are independent, rows can
share that dimension, and the network runs as it was written, without the cost of mapping every
operation. `engine.trial` tests both ways. That costs as much as dozens of steps, so the result is kept
for the same network, parameters, functions and shapes; rows are still checked when they end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import optree
import torch
from torch import Tensor

from funcexplain.engine.compiled import Origin, defaults, tensors_of
from funcexplain.engine.execution import Rows
from funcexplain.networks.network import Network
from funcexplain.problems.grid import map_rows, mapped_dims, varying_dims
from funcexplain.problems.losses import ROWWISE
from funcexplain.problems.problem import Args, Problem, identity
from funcexplain.solvers.gradient import Scored, where_finite, with_bound_network
from funcexplain.solvers.state import (
    Evaluate,
    Init,
    Iterate,
    Method,
    Objective,
    State,
    Step,
    Stopping,
)
from funcexplain.solvers.step import begin, bind, take

# Trials that a network keeps the results of.
_MAXIMUM_KEPT = 8
Score = Callable[[Tensor, Args], Scored]


class Batched(NamedTuple):
    """The functions of a step for a batch of rows.

    Attributes:
        init: ``args -> state``.
        step: ``(state, args) -> (state, info)``.
        step_in_place: the same; it may overwrite the method's part of the given state.
        decode: ``(z, args) -> x``.
        weights: ``(x, args) -> weights``.
        score: ``(z, args) -> (value, (loss, weights))``, forward only.
        evaluate: ``(z, args) -> Evaluation``.
        jacobian: whether its slopes are Jacobians.
        origin: the parts of these functions.
    """

    init: Init
    step: Step
    step_in_place: Step
    decode: Callable[[Tensor, Args], Tensor]
    weights: Callable[[Tensor, Args], Tensor]
    score: Objective
    evaluate: Evaluate
    jacobian: bool
    origin: Origin


class Choice(NamedTuple):
    """How rows are solved, and why not in a batch."""

    way: Literal["samples", "vmap", "alone"]
    reason: str = ""


class Known(NamedTuple):
    """Knowledge about rows of a kind.

    Attributes:
        kept: the first evaluated point of a row, for its dtypes.
        choice: how rows share a batch.
        row_bytes: bytes that a step writes per row, once measured.
        params: references to the parameters.
    """

    kept: Iterate
    choice: Choice
    row_bytes: list[float]
    params: list[weakref.ref[Tensor]]


def trial_key(grid: Problem, method: Method, stopping: Stopping, how: Rows) -> Any:
    """The key of a trial, without the network and its parameters; None if it cannot be hashed."""
    entries = []
    for name, value in grid.args.items():
        along = len(varying_dims(grid.dims, name))
        for leaf in tensors_of(value):
            version = leaf._version if name == "params" and not leaf.is_inference() else 0
            entries.append((name, along > 0, leaf.shape[along:], leaf.dtype, leaf.device, version))
    functions = (grid.loss, grid.start, grid.decode, grid.nearby, grid.project)
    settings = (method, stopping, how, defaults(grid.args["x0"].device))
    key = (functions, grid.penalties, grid.costs, grid.criterion, settings, tuple(entries))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def recall(grid: Problem, key: Any) -> Known | None:
    """The result of an earlier trial, if there is one."""
    if key is None or not isinstance(grid.apply, Network):
        return None
    known = grid.apply.tried.get(key)
    params = tensors_of(grid.args["params"])
    same = known and all(ref() is leaf for ref, leaf in zip(known.params, params, strict=True))
    return known if same else None


def remember(grid: Problem, key: Any, kept: Iterate, choice: Choice) -> Known:
    """The result of a trial; kept for the next search where rows can share a batch."""
    params = [weakref.ref(leaf) for leaf in tensors_of(grid.args["params"])]
    tried = Known(kept, choice, [], params)
    if key is not None and choice.way != "alone" and isinstance(grid.apply, Network):
        known = grid.apply.tried
        known[key] = tried
        while len(known) > _MAXIMUM_KEPT:
            known.pop(next(iter(known)))
    return tried


def row_of(grid: Problem, number: int) -> Problem:
    """One row of a grid, by its number in row-major order."""
    return grid[tuple(map(int, np.unravel_index(number, grid.shape)))]


def spread(total: int, count: int, device: torch.device) -> Tensor:
    """Up to ``count`` places, spread evenly."""
    count = min(total, count)
    return torch.linspace(0, total - 1, count, dtype=torch.float64, device=device).long()


def make_batched(
    grid: Problem, method: Method, stopping: Stopping, kept: Iterate, *, samples: bool
) -> Batched:
    """Make the step of a batch of rows, on the network's sample dimension or by ``vmap``.

    One forward pass and one plain backward pass serve all rows. Rows are independent, so the result
    equals the mapped gradient, at half the cost.

    Args:
        grid: the rows' problem.
        method: the search method.
        stopping: when a search ends.
        kept: the first evaluated point of a row, for its dtypes.
        samples: whether rows share the network's sample dimension.
    """
    bound, dims = bind(method, grid, stopping), mapped_dims(grid.dims, grid.args)
    score = _batched_score(grid, dims, samples)
    objective = _batched_objective(grid, dims, score)
    evaluate = bound.backward(objective)
    if dims["params"] is None:
        evaluate = with_bound_network(grid, evaluate)
        objective = with_bound_network(grid, objective)
    advance = map_rows(bound.advance, 0, dims, 0)
    init = map_rows(partial(begin, bound), dims)

    def begin_all(args: Args) -> State:
        state = init(args)
        # Of the dtypes that the evaluations will have, which may be other than the window's.
        pairs = zip(state.kept[1:], kept[1:], strict=True)
        first = Iterate(state.kept.z, *(ours.to(theirs.dtype) for ours, theirs in pairs))
        state = state._replace(kept=first)
        # What rows share gets a place for each, in which a step can write.
        settled: Any = optree.tree_map(torch.Tensor.contiguous, state)
        return settled

    functions = (grid.apply, grid.loss, grid.decode, grid.nearby, grid.project)
    parts = (*functions, grid.penalties, grid.costs, grid.criterion)
    layout = (samples, tuple(sorted(dims.items())))
    return Batched(
        init=begin_all,
        step=partial(take, bound, evaluate, advance),
        step_in_place=partial(take, bound, evaluate, bound.advance_in_place or advance),
        decode=_decode_rows(grid, dims),
        weights=lambda x, args: score(x, args)[1][1],
        score=objective,
        evaluate=evaluate,
        jacobian=bound.jacobian,
        origin=Origin(parts, method, bound.stopping, layout),
    )


def _batched_score(grid: Problem, dims: dict[str, int | None], samples: bool) -> Score:
    """From windows to ``(value, (loss, weights))``, one of each per row."""
    if not samples:
        return map_rows(grid.evaluate, 0, dims)
    network = cast(Network, grid.apply)
    # Without mapping, a step of few rows takes a tenth less.
    rowwise = grid.loss in ROWWISE and not grid.penalties
    score: Callable[..., Scored]
    score = partial(_score_rows, grid) if rowwise else map_rows(grid.score, 0, 0, dims)
    return lambda x, args: score(network.samples(args["params"], x), x, args)


def _score_rows(grid: Problem, weights: Tensor, x: Tensor, args: Args) -> Scored:
    """`Problem.score` of rows, of which one was tried alone."""
    del x
    loss = grid.loss(*grid.criterion.compare(weights, args["target"]))
    return loss, (loss, weights)


def _decode_rows(grid: Problem, dims: dict[str, int | None]) -> Callable[[Tensor, Args], Tensor]:
    """From search points to windows."""
    return identity if grid.decode is identity else map_rows(grid.decode, 0, dims)


def _batched_objective(grid: Problem, dims: dict[str, int | None], score: Score) -> Objective:
    """From search points to ``(value, (loss, weights))``, one of each per row."""
    windows = _decode_rows(grid, dims) if grid.nearby is None else map_rows(grid.windows, 0, dims)
    costs = [map_rows(cost, 0, dims) for cost in grid.costs]
    target_ndim = grid.args["target"].ndim - len(varying_dims(grid.dims, "target"))

    def objective(z: Tensor, args: Args) -> Scored:
        target = args["target"]
        if dims["target"] is None:
            target = target.expand(len(z), *[-1] * target_ndim)
        weights_like = grid.criterion.weights_like(target)
        value, aux = where_finite(windows(z, args), weights_like, lambda x: score(x, args), rows=1)
        return sum((cost(z, args) for cost in costs), start=value), aux

    return objective
