"""Rule (see `prepare`) for cvxpylayers: exact allocators for known programs, `opaque` for others.

A layer of cvxpylayers calls a convex solver outside of torch: torch.func cannot run it, its result is
only as exact as the solver's tolerance, and rows are solved one at a time. The four programs that
portfolio networks usually end in are recognized by their text and solved exactly, in batches, by
`convex`. Any other program keeps its solver and works under torch.func through `opaque`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from funcexplain.networks.opaque import Opaque

Allocate = Callable[..., Tensor]


def exact_or_opaque(layer: nn.Module) -> nn.Module:
    """Replace a ``CvxpyLayer`` by a module that works under torch.func."""
    context: Any = getattr(layer, "ctx", None)
    if not hasattr(context, "problem") or not hasattr(context, "parameters"):
        raise TypeError(
            f"network: {type(layer).__name__} must store its convex program, got a layer "
            "without one; use cvxpylayers 1.0 or newer, or fe.functionalize(network, rules=())"
        )
    allocate = _recognize(context.problem, context.parameters)
    return _OpaqueLayer(layer) if allocate is None else ExactLayer(allocate)


class ExactLayer(nn.Module):
    """An exact allocator with the interface of a layer of cvxpylayers."""

    def __init__(self, allocate: Allocate) -> None:
        super().__init__()
        self.allocate = allocate

    def forward(self, *parameters: Tensor, solver_args: Any = None) -> tuple[Tensor]:
        """Solve the programs exactly."""
        del solver_args  # exact: there is no tolerance
        return (self.allocate(*parameters),)


class _OpaqueLayer(nn.Module):
    """A layer of cvxpylayers behind `opaque`: mapped rows join the layer's own batch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # In a tuple: its buffers are constants of the program, not parameters of the network.
        self.layers = (layer,)

    def forward(self, *parameters: Tensor, solver_args: Any = None) -> tuple[Tensor, ...]:
        (layer,) = self.layers
        context: Any = layer.ctx
        settings = {} if solver_args is None else {"solver_args": solver_args}

        def solve(*parameters: Tensor) -> tuple[Tensor, ...]:
            return tuple(layer(*parameters, **settings))

        batched = [p.ndim > s.ndim for p, s in zip(parameters, context.parameters, strict=True)]
        dims = tuple(0 if b else None for b in batched)
        out_batch = 0 if any(batched) else None
        return Opaque(solve, dims, out_batch, trial=False)(*parameters)


def _recognize(problem: Any, parameters: list[Any]) -> Allocate | None:
    """The exact allocator of a program, or ``None`` for a program of another form."""
    variables, last = problem.variables(), problem.constraints[-1] if problem.constraints else None
    if len(variables) != 1 or variables[0].ndim != 1 or last is None or len(last.args) != 2:
        return None
    bound = last.args[1]
    if not (bound.is_constant() and bound.is_scalar()):
        return None
    cap, text = float(bound.value), _text(problem, parameters)
    for known, symbols, allocate in _known_programs(variables[0].size, cap):
        if [p.shape for p in symbols] == [p.shape for p in parameters] and _text(known, symbols) == text:
            return allocate
    return None


def _text(problem: Any, parameters: list[Any]) -> str:
    """A program's text with its symbols numbered, so that equal programs have equal texts."""
    text = str(problem)
    for kind, symbols in (("parameter", parameters), ("variable", problem.variables())):
        for index, symbol in enumerate(symbols):
            text = re.sub(rf"\b{re.escape(symbol.name())}\b", f"{kind}[{index}]", text)
    return text


def _known_programs(num_assets: int, cap: float) -> Iterator[tuple[Any, list[Any], Allocate]]:
    """The known programs, as this version of cvxpy prints them, with their allocators."""
    import cvxpy as cp

    from funcexplain.networks.convex import capped_softmax, markowitz, risk_budgeting, sparsemax

    w = cp.Variable(num_assets)
    vector, root = cp.Parameter(num_assets), cp.Parameter((num_assets, num_assets))
    positive = cp.Parameter(num_assets, nonneg=True)
    strength = cp.Parameter(nonneg=True)
    invested, long_only, capped = cp.sum(w) == 1, w >= 0, w <= cap

    utility = vector @ w - cp.sum_squares(root @ w) - strength * cp.norm(w) ** 2
    yield (
        cp.Problem(cp.Maximize(utility), [invested, long_only, capped]),
        [vector, root, strength],
        lambda rets, root, alpha: markowitz(rets, root, torch.ones_like(alpha), alpha, cap),
    )
    distance = cp.sum_squares(vector - w)
    yield (
        cp.Problem(cp.Minimize(distance), [invested, long_only, capped]),
        [vector],
        lambda x: sparsemax(x, cap),
    )
    free_energy = -vector @ w - cp.sum(cp.entr(w))
    yield (
        cp.Problem(cp.Minimize(free_energy), [invested, capped]),
        [vector],
        lambda x: capped_softmax(x, cap),
    )
    barrier = 0.5 * cp.sum_squares(root @ w) - positive @ cp.log(w)
    yield (
        cp.Problem(cp.Minimize(barrier), [invested, long_only, capped]),
        [root, positive],
        lambda root, budgets: risk_budgeting(root, budgets, cap),
    )
