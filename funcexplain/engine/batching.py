"""The parts of a row's step for a batch of rows, which lead with the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from funcexplain.networks.functional import Network
from funcexplain.problems.grid import mapped_dims, varying_dims
from funcexplain.problems.problem import Args, Problem
from funcexplain.solvers.gauss_newton import DampedParts, settle
from funcexplain.solvers.gradient import Objective, backward_value_and_grad
from funcexplain.solvers.jacobian import linearize_rows
from funcexplain.solvers.state import Info, Rules, Scored, State, Step, decide, where_finite
from funcexplain.solvers.step import Parts


class Mapped(NamedTuple):
    """The parts of a step, and ``decode``, for a batch of rows; equal keys mean equal functions."""

    init: Callable[[Args], State]
    step: Callable[[State, Args], tuple[State, Info]]
    decode: Callable[[Tensor, Args], Tensor]
    key: tuple[Any, ...]


def map_parts(
    problem: Problem, parts: Parts | DampedParts, rules: Rules, *, samples: bool = False
) -> Mapped:
    """Map the parts of a row's step over the rows of a batch.

    The network is mapped forwards, or called on its own sample dimension (``samples``), and
    differentiated by one ordinary backward pass for all rows, which gives the same numbers as mapping
    its gradient, since rows are independent, at half the cost.
    """
    dims = mapped_dims(problem.dims, problem.args)
    decode = torch.func.vmap(problem.decode, in_dims=(0, dims))
    shape = problem.args["target"].ndim - len(varying_dims(problem.dims, "target"))
    evaluate = torch.func.vmap(problem.evaluate, in_dims=(0, dims))
    costs = [torch.func.vmap(cost, in_dims=(0, dims)) for cost in problem.costs]
    score = torch.func.vmap(problem.score, in_dims=(0, 0, dims))

    def objective(z: Tensor, args: Args) -> Scored:
        target = args["target"] if dims["target"] == 0 else args["target"].expand(len(z), *[-1] * shape)
        unknown = problem.criterion.weights_like(target)

        def scored(x: Tensor) -> Scored:
            if not samples:
                return evaluate(x, args)
            return score(cast(Network, problem.apply).samples(args["params"], x), x, args)

        value, rest = where_finite(decode(z, args), unknown, scored, rows=1)
        return sum((cost(z, args) for cost in costs), start=value), rest

    step = _descend if isinstance(parts, Parts) else _damped
    return Mapped(
        init=torch.func.vmap(parts.init, in_dims=(dims,)),
        step=step(objective, parts, rules, dims),
        decode=decode,
        key=(parts.key, samples, tuple(sorted(dims.items()))),
    )


def _descend(objective: Objective, parts: Any, rules: Rules, dims: Any) -> Step:
    """The step of an optimizer: one ordinary backward pass for all rows."""
    differentiate = backward_value_and_grad(objective)
    move = torch.func.vmap(parts.move, in_dims=(0, dims, 0))

    def step(state: State, args: Args) -> tuple[State, Info]:
        evaluated = differentiate(state.z, args)
        error = parts.criterion.error(evaluated[0][1][1], args["target"], rows=1)
        return decide(rules, state, error, evaluated, move(state, args, evaluated[1]))

    return step


def _damped(objective: Objective, parts: Any, rules: Rules, dims: Any) -> Step:
    """The step of Levenberg-Marquardt: one batched reverse pass for all rows."""
    linearize = linearize_rows(objective, parts.measure)
    advance = torch.func.vmap(parts.advance, in_dims=(0, dims, 0))

    def step(state: State, args: Args) -> tuple[State, Info]:
        at = linearize(state.z, args)
        error = parts.criterion.error(at.weights, args["target"], rows=1)
        return settle(rules, state, error, at, advance(state, args, at))

    return step
