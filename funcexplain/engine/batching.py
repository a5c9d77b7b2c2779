"""A row's step for a batch of rows: on the network's own sample dimension, or by ``vmap``.

A network maps ``(n_samples, C, L, A)`` to ``(n_samples, A)``. If its samples are independent, rows can
share that dimension, and the network runs as it was written, without the cost of mapping every
operation. Neither that, nor that ``vmap`` maps a network and its backward pass correctly, is assumed: a
few rows are held against each one alone (see `trial`), and where no way is right, rows are solved alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from funcexplain.engine.execution import Rows
from funcexplain.engine.trial import Trial, why_not_samples
from funcexplain.networks.memory import is_out_of_memory
from funcexplain.networks.network import Network
from funcexplain.problems.grid import mapped_dims, varying_dims
from funcexplain.problems.problem import Args, Problem
from funcexplain.solvers.gradient import Scored, where_finite, with_bound_network
from funcexplain.solvers.state import (
    Evaluate,
    Evaluation,
    Init,
    Method,
    Objective,
    State,
    Step,
    Stopping,
)
from funcexplain.solvers.step import begin, bind, take

Score = Callable[[Tensor, Args], Scored]


class Batched(NamedTuple):
    """The functions of a step for a batch of rows; equal keys mean equal functions.

    Attributes:
        init: ``args -> state``.
        step: ``(state, args) -> (state, info)``.
        decode: ``(z, args) -> x``.
        weights: ``(x, args) -> weights``.
        evaluate: ``(z, args) -> Evaluation``.
        key: what the functions are made of.
    """

    init: Init
    step: Step
    decode: Callable[[Tensor, Args], Tensor]
    weights: Callable[[Tensor, Args], Tensor]
    evaluate: Evaluate
    key: tuple[Any, ...]


class Choice(NamedTuple):
    """How rows are solved, and why not in a batch."""

    way: Literal["samples", "vmap", "alone"]
    reason: str = ""


def choose_way(grid: Problem, method: Method, stopping: Stopping, trial: Trial, how: Rows) -> Choice:
    """Choose how rows share a batch: the fastest way that computes what they compute alone.

    Args:
        grid: the rows' problem.
        method: what searches.
        stopping: when a search ends.
        trial: some of the rows, alone.
        how: ``"vmap"``, ``"samples"``, or ``"auto"``.

    Raises:
        ValueError: for ``"vmap"`` or ``"samples"`` where that is not right; it gives the reason.
    """
    reason = None
    if how != "vmap":
        reason = why_not_samples(grid, trial) or _why_not(
            make_batched(grid, method, stopping, trial, samples=True), trial
        )
        if reason is None:
            return Choice("samples")
        if how == "samples":
            raise ValueError(f"solve: rows='samples' needs independent samples, but {reason}")
    reason = _why_not(make_batched(grid, method, stopping, trial, samples=False), trial)
    if reason is None:
        return Choice("vmap")
    if how == "vmap":
        raise ValueError(f"solve: rows='vmap' needs what torch.func.vmap can map, but {reason}")
    return Choice("alone", reason)


def make_batched(
    grid: Problem, method: Method, stopping: Stopping, trial: Trial, *, samples: bool
) -> Batched:
    """Make the step of a batch of rows, on the network's sample dimension or by ``vmap``.

    The network runs forward for all rows and is differentiated by one plain backward pass. Rows are
    independent, so that gives the same numbers as mapping the gradient, at half the cost.
    """
    bound, dims = bind(method, grid, stopping), mapped_dims(grid.dims, grid.args)
    score = _batched_score(grid, dims, samples)
    evaluate = bound.backward(_batched_objective(grid, dims, score))
    if dims["params"] is None:
        evaluate = with_bound_network(grid, evaluate)
    advance = torch.func.vmap(bound.advance, in_dims=(0, dims, 0))
    init = torch.func.vmap(partial(begin, bound), in_dims=(dims,))

    def begin_all(args: Args) -> State:
        state = init(args)
        # Of the dtypes that the evaluations will have, which may be other than the window's.
        pairs = zip(state.kept[1:], trial.kept[1:], strict=True)
        kept = (state.kept.z, *(ours.to(theirs.dtype) for ours, theirs in pairs))
        return state._replace(kept=type(state.kept)(*kept))

    functions = (grid.apply, grid.loss, grid.decode, grid.project, grid.penalties, grid.costs)
    kinds = (_method_key(method), bound.stopping, samples, tuple(sorted(dims.items())))
    return Batched(
        init=begin_all,
        step=partial(take, bound, evaluate, advance),
        decode=torch.func.vmap(grid.decode, in_dims=(0, dims)),
        weights=lambda x, args: score(x, args)[1][1],
        evaluate=evaluate,
        key=(functions, grid.criterion, *kinds),
    )


def _why_not(batched: Batched, trial: Trial) -> str | None:
    """Why a batch does not compute what rows compute alone, or None if it does."""
    if not trial.points:
        return None
    with warnings.catch_warnings(record=True) as caught:  # which may be errors, but not the network's
        warnings.simplefilter("always")
        reason = _differs(batched, trial)
        try:
            if reason is None:
                batched.step(batched.init(trial.args), trial.args)
        except Exception as error:
            reason = None if is_out_of_memory(error) else f"the method cannot be mapped ({_line(error)})"
    for warning in caught if reason is None else ():
        warnings.warn(warning.message, warning.category, stacklevel=6)
    return reason


def _differs(batched: Batched, trial: Trial) -> str | None:
    """Why evaluations in a batch are not those of rows alone."""
    largest = [
        max(float(alone[field].nan_to_num().abs().max()) for _, alone in trial.points)
        for field in range(len(Evaluation._fields))
    ]
    for z, alone in trial.points:
        try:
            together = batched.evaluate(z, trial.args)
        except Exception as error:
            return None if is_out_of_memory(error) else f"the network cannot be mapped ({_line(error)})"
        for name, ours, theirs, size in zip(Evaluation._fields, together, alone, largest, strict=True):
            if not trial.agree(ours, theirs, size):
                part = "gradient" if name == "slopes" else name
                return f"a row's {part} differs in a batch from what it is alone"
    return None


def _line(error: Exception) -> str:
    """The beginning of an error's message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _method_key(method: Method) -> object:
    """What tells methods apart: themselves; one that cannot be hashed equals no other."""
    try:
        hash(method)
    except TypeError:
        return object()
    return method


def _batched_score(grid: Problem, dims: dict[str, int | None], samples: bool) -> Score:
    """From windows to ``(value, (loss, weights))``, one of each per row."""
    if not samples:
        return torch.func.vmap(grid.evaluate, in_dims=(0, dims))
    network, score = cast(Network, grid.apply), torch.func.vmap(grid.score, in_dims=(0, 0, dims))
    return lambda x, args: score(network.samples(args["params"], x), x, args)


def _batched_objective(grid: Problem, dims: dict[str, int | None], score: Score) -> Objective:
    """From search points to ``(value, (loss, weights))``, one of each per row."""
    decode = torch.func.vmap(grid.decode, in_dims=(0, dims))
    costs = [torch.func.vmap(cost, in_dims=(0, dims)) for cost in grid.costs]
    target_ndim = grid.args["target"].ndim - len(varying_dims(grid.dims, "target"))

    def objective(z: Tensor, args: Args) -> Scored:
        target = args["target"]
        if dims["target"] is None:
            target = target.expand(len(z), *[-1] * target_ndim)
        weights_like = grid.criterion.weights_like(target)
        value, aux = where_finite(decode(z, args), weights_like, lambda x: score(x, args), rows=1)
        return sum((cost(z, args) for cost in costs), start=value), aux

    return objective
