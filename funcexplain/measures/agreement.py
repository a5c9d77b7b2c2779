"""Whether an answer is about the market or one network: do other networks hold the target there?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from funcexplain.engine.forward import weights_of
from funcexplain.measures import validity
from funcexplain.measures.stability import check_models, unstack
from funcexplain.networks.functional import functionalize
from funcexplain.networks.network import Apply, deferred_interrupts, raise_pending
from funcexplain.problems.checks import check_number, check_params
from funcexplain.problems.grid import mapped_dims, take_rows, varying_dims
from funcexplain.problems.problem import Problem
from funcexplain.problems.smoothing import Nearby
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution

_PART = 256  # rows at a time


@dataclass(frozen=True, eq=False)
class Agreement:
    """The response of other networks to an answer; the first dimension of tensors is the network.

    Attributes:
        held: whether each network holds the target, ``(M, *rows)``.
        error: its largest deviation from the target.
        gap_closed: share of the gap between its weights at the reference and the target that the answer
            closes: 1 at the target, 0 for no change, negative for a move away.
    """

    held: Tensor
    error: Tensor
    gap_closed: Tensor

    @property
    def share(self) -> Tensor:
        """Share of the networks that hold the target, ``(*rows)``."""
        return self.held.double().mean(0)


def agreement(solution: Solution, problem: Problem, models: Any, *, atol: float = 1e-3) -> Agreement:
    """Measure whether other networks also hold the target at the answers of one.

    An answer that only one of several similar networks shares is about that network, not the market.

    Args:
        solution: the result of `solve` or `closest`.
        problem: the question or grid that it answers; also a `consensus`, for networks left out of it.
        models: a list of networks of any architectures, modules or pairs ``(apply, params)``, or
            parameters of several models, stacked as by `stack`.
        atol: the target is held where ``max |weights - target| <= atol``.

    Returns:
        The measures of each network; NaN where it raises at a window.

    Raises:
        TypeError: if an argument has the wrong type, or the networks another dtype or device.
        ValueError: for no networks, or rows that differ.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, fe.targets.at_least(0, 0.6), torch.zeros(1, 1, 2))
        >>> inverted = lambda params, x: torch.softmax(-x.flatten(), -1)
        >>> others = fe.agreement(fe.closest(p), p, [network, (inverted, {})])
        >>> others.held, others.share
        (tensor([ True, False]), tensor(0.5000, dtype=torch.float64))

    References:
        E. Black, Z. Wang, M. Fredrikson, A. Datta (2021), Consistent Counterfactuals for Deep Models,
        https://arxiv.org/abs/2110.03109
    """
    check_answer("agreement", solution, problem)
    atol = check_number("agreement", "atol", atol, minimum=0.0)
    found = []
    dims = tuple(dim._replace(varying=dim.varying - {"params"}) for dim in problem.dims)
    single = _ask_one(problem)
    with deferred_interrupts(), torch.no_grad():
        for apply, params in _networks(problem, models):
            raise_pending()
            asked = replace(single, apply=apply, args={**single.args, "params": params}, dims=dims)
            found.append(_measure(solution, asked, atol))
    return Agreement(*(torch.stack(values) for values in zip(*found, strict=True)))


def _measure(solution: Solution, problem: Problem, atol: float) -> tuple[Tensor, Tensor, Tensor]:
    """Whether one network holds the target, its error, and the gap that it closes, of every row."""
    compare, parts = problem.criterion.compare, list[tuple[Tensor, ...]]()
    dims = mapped_dims(problem.dims, problem.args)

    def measure(weights: Tensor, today: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        held = problem.criterion.error(weights, target, atol=atol) <= atol
        now, before = (validity.total_variation(*compare(w.double(), target)) for w in (weights, today))
        return held, problem.criterion.error(weights, target), validity.gap_closed(now, before)

    total = math.prod(problem.shape)
    for rows in torch.arange(total, device=solution.x.device).split(_PART):
        args = take_rows(problem.dims, problem.args, rows)
        x = solution.flat(rows).x
        reference = args["reference"].expand(x.shape)
        weights, today = (weights_of(problem, w, args, dims, skip_errors=True) for w in (x, reference))
        parts.append(torch.func.vmap(measure, (0, 0, dims["target"]))(weights, today, args["target"]))
    held, error, closed = (torch.cat(part).reshape(problem.shape) for part in zip(*parts, strict=True))
    return held, error, closed


def _ask_one(problem: Problem) -> Problem:
    """The question to a single network that all models of a consensus are asked."""
    target, criterion = problem.args["target"], problem.criterion
    place = len(varying_dims(problem.dims, "target"))
    if target.ndim - place > criterion.ndim:
        first = target.select(place, 0)
        if not bool((target == first.unsqueeze(place)).all()):
            raise ValueError("agreement: problem must have one target for all models, got several")
        target = first
    args = {**problem.args, "target": target}
    return replace(problem, args=args, criterion=criterion._replace(level=1.0))


def _networks(problem: Problem, models: Any) -> list[tuple[Apply, Any]]:
    """Networks as pairs of a function and its parameters."""
    if not isinstance(models, list | tuple):
        check_models("agreement", problem, models)
        apply = problem.apply.apply if isinstance(problem.apply, Nearby) else problem.apply
        return [(apply, model) for model in unstack(models)]
    pairs = []
    for index, model in enumerate(models):
        pair = functionalize(model) if isinstance(model, nn.Module) else model
        if not (isinstance(pair, tuple) and len(pair) == 2 and callable(pair[0])):
            raise TypeError(
                f"agreement: models[{index}] must be a torch.nn.Module or a pair (apply, params), got "
                f"{type(model).__name__}"
            )
        check_params(pair[1], problem.args["x0"])
        pairs.append(pair)
    if not pairs:
        raise ValueError("agreement: expected at least one model, got none")
    return pairs
