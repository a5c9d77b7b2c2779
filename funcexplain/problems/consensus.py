"""One question to several models: `consensus` asks for a window at which all of them hold the target.

Weights of several models, here, or under several noises, in `smoothing`, are computed in one call if
that equals single calls (`choose_way`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import optree
import torch
from torch import Tensor

from funcexplain.networks.network import SEED, Apply, bound, deferred_interrupts, slope
from funcexplain.networks.rounding import agree, coarsest_eps
from funcexplain.problems.grid import varying_dims
from funcexplain.problems.problem import Loss, Problem, check_problem


def consensus(problem: Problem | Sequence[Problem]) -> Problem:
    """Search for one window at which all models of an ensemble reach the target.

    The dimension along which ``params`` vary becomes part of the question: the loss is the mean of the
    models' losses, a solution's weights are those of all models, ``(M, A)``, and it is a hit if every
    model's weights are within ``atol``.

    Args:
        problem: a grid mapped over ``params``, or a question whose params come from `stack`. A
            ``target`` that varies along the models' dimension gives each model its own target; no other
            entry may vary along it. Or a list of questions about networks of any architectures, as from
            `problem`, with one start, reference and mask; transforms are applied to the result.

    Returns:
        The problem without that dimension. Its ``target`` has shape ``(M, A)``: map over targets first,
        or stack targets of this shape.

    Raises:
        TypeError: if ``problem`` is not a Problem, or list of them.
        ValueError: if params are not stacked, another entry varies along their dimension, or the network
            reads its parameters in the backward pass (activation checkpointing); if questions of a list
            differ in more than network and target.

    Example:
        >>> import torch, funcexplain as fe
        >>> def make():
        ...     return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2))
        >>> models = [make(), make()]
        >>> p = fe.problem(models[0], torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> ensemble = fe.vmap(p, params=fe.stack(models)[1])
        >>> fe.solve(fe.consensus(ensemble), max_steps=5).weights.shape
        torch.Size([2, 2])
        >>> other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> q = fe.problem(other, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(fe.consensus([p, q]), max_steps=5).weights.shape
        torch.Size([2, 2])
    """
    if isinstance(problem, list | tuple):
        return _join(problem)
    problem = check_problem("consensus", problem)
    along = varying_dims(problem.dims, "params")
    if len(along) > 1:
        raise ValueError("consensus: params must vary along one row dimension, got several")
    target, dims, target_varies = problem.args["target"], problem.dims, False
    if along:
        (dim,) = along
        varying = dims[dim].varying
        if varying - {"params", "target"}:
            raise ValueError(
                f"consensus: only target may vary together with params, got {sorted(varying)}; all "
                "models share one window and its data"
            )
        size = dims[dim].size
        target_dims = varying_dims(dims, "target")
        target_varies = dim in target_dims
        if target_varies:
            target = target.movedim(target_dims.index(dim), -1 - problem.criterion.ndim)
        dims = dims[:dim] + dims[dim + 1 :]
    else:
        leaves = [p for p in optree.tree_leaves(problem.args["params"]) if isinstance(p, Tensor)]
        leading = {p.shape[:1] for p in leaves}
        if len(leading) != 1 or leading == {()}:
            raise ValueError(
                "consensus: params must be stacked, one set per model, got those of one network; map "
                "first: fe.vmap(problem, params=fe.stack(models)[1])"
            )
        (size,) = leading.pop()
    if size == 0:
        raise ValueError("consensus: expected at least one model, got an empty stack")
    if not target_varies:
        target = torch.stack([target] * size, dim=-1 - problem.criterion.ndim)
    args = {**problem.args, "target": target.contiguous()}
    apply = _call_models(problem.apply, args["params"], size, first_window(problem))
    return replace(problem, apply=apply, loss=mean_loss(problem.loss), args=args, dims=dims)


def _join(problems: Sequence[Any]) -> Problem:
    """One question to the networks of several, each called on its own."""
    for index, problem in enumerate(problems):
        if not isinstance(problem, Problem) or problem.dims:
            got = type(problem).__name__ if not isinstance(problem, Problem) else "a grid of rows"
            raise TypeError(
                f"consensus: problem[{index}] must be one question, as from fe.problem, got {got}"
            )
    if not problems:
        raise ValueError("consensus: expected at least one model, got an empty list")
    first, own = problems[0], {"apply", "args", "leverage"}
    settings = [field.name for field in fields(Problem) if field.name not in own]
    for index, other in enumerate(problems):
        differing = [name for name in settings if getattr(other, name) != getattr(first, name)]
        differing += sorted(other.args.keys() ^ first.args.keys())
        for name in other.args.keys() & first.args.keys() - {"params"}:
            one, two = other.args[name], first.args[name]
            like = (one.shape, one.dtype, one.device) == (two.shape, two.dtype, two.device)
            if not like or (name != "target" and not torch.equal(one, two)):
                differing.append(name)
        if differing:
            raise ValueError(
                "consensus: problems must differ in network and target alone, got others in "
                f"{', '.join(differing)} (problem[{index}]); apply transforms to the result"
            )
    applies, models = [p.apply for p in problems], [p.args["params"] for p in problems]
    if any(isinstance(model, dict) and SEED in model for model in models):
        raise ValueError(
            "consensus: networks of a list must be in eval mode, got one with dropout in training mode"
        )

    def joined(params: Any, x: Tensor) -> Tensor:
        return torch.stack([apply(own, x) for apply, own in zip(applies, params, strict=True)])

    target = torch.stack([p.args["target"] for p in problems], dim=-1 - first.criterion.ndim)
    args = {**first.args, "params": models, "target": target}
    alone = zip(applies, models, strict=True)
    apply = choose_way("consensus", [joined], models, first_window(first), alone)
    return replace(first, apply=apply, loss=mean_loss(first.loss), args=args)


def first_window(problem: Problem) -> Tensor:
    """The start window of a problem's first row."""
    x0: Tensor = problem.args["x0"]
    return x0.reshape(-1, *x0.shape[-3:])[0]


def mean_loss(loss: Loss) -> Loss:
    """The mean of the losses of several weights."""

    def mean(measured: Tensor, nearest: Tensor) -> Tensor:
        return torch.func.vmap(loss)(measured, nearest).mean()

    return mean


def _call_models(apply: Apply, params: Any, size: int, x: Tensor) -> Apply:
    """A function ``(params, x) -> (M, A)``: models mapped, or called in turn where mapping is wrong."""

    def mapped(params: Any, x: Tensor) -> Tensor:
        # All models share the question's dropout seed.
        seeded = isinstance(params, dict) and SEED in params
        dims = {name: None if name == SEED else 0 for name in params} if seeded else 0
        return torch.func.vmap(apply, in_dims=(dims, None))(params, x)

    def looped(params: Any, x: Tensor) -> Tensor:
        return torch.stack([apply(model, x) for model in split(params)])

    def split(params: Any) -> list[Any]:
        shared = params.get(SEED) if isinstance(params, dict) else None
        return [
            optree.tree_map(lambda t: t if t is shared else t[index], params)  # noqa: B023
            for index in range(size)
        ]

    alone = [(apply, model) for model in split(params)]
    return choose_way("consensus", [mapped, looped], params, x, alone)


def choose_way(
    where: str,
    candidates: Sequence[Apply],
    params: Any,
    x: Tensor,
    alone: Iterable[tuple[Apply, Any]],
) -> Apply:
    """The first function of several whose weights and gradient are those of each model alone.

    Args:
        where: the caller, for the error.
        candidates: functions ``(params, x) -> (M, A)``; the last one where the network fails at ``x``.
        params: parameters of all models.
        x: a window.
        alone: each model, ``(apply, params)``.

    Raises:
        ValueError: if there is none.
    """
    try:
        weights, slopes = zip(*(_weights_and_slope(apply, own, x) for apply, own in alone), strict=True)
    except Exception:
        return candidates[-1]  # the search meets the error again
    expected = (torch.stack(weights), torch.stack(slopes).sum(0))
    for candidate in candidates:
        with suppress(Exception):
            found = _weights_and_slope(candidate, params, x)
            if all(agree(*pair, coarsest_eps(params)) for pair in zip(found, expected, strict=True)):
                return candidate
    raise ValueError(
        f"{where}: the network's backward pass must use the parameters of its forward pass, got one "
        "that reads them from the module, which can hold one model at a time; solve each model, as in "
        "fe.vmap(problem, params=fe.stack(models)[1])"
    )


def _weights_and_slope(apply: Apply, params: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A network's weights at a window, and the gradient of the sum of their sines."""
    z = x.detach().clone().requires_grad_()
    with bound(apply, params), deferred_interrupts(), torch.enable_grad():
        weights = apply(params, z)
        return weights.detach(), slope(weights, z, weights.cos())
