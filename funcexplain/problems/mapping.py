"""One question becomes a grid of rows: ``vmap`` adds a dimension, ``consensus`` folds one away.

    problem                                     one question
    starts = vmap(problem, x0=starts)           rows (S,)
    grid = vmap(starts, target=targets)         rows (T, S), the outer product, outermost first

Nothing is computed and nothing is multiplied out: `args` hold the stacks, and `solve` takes rows from
them chunk after chunk.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optree
import torch
from torch import Tensor

from funcexplain.networks.functional import SEED
from funcexplain.problems.checks import check_is_plain, check_is_tensor
from funcexplain.problems.criterion import EXACT, GOALS, Target
from funcexplain.problems.encoding import check_loss, encode_targets
from funcexplain.problems.grid import RowDim, varying_dims
from funcexplain.problems.problem import Problem, check_problem


def vmap(problem: Problem, /, *, name: str | None = None, **stacks: Any) -> Problem:
    """Ask a question once for every row of stacks: over starts, targets, masks, seeds, models, ...

    Args:
        problem: the question, or a grid that becomes the inner part of a larger one.
        name: name of the new dimension, which `Solution.isel` and `Solution.best` take. Default: the
            first mapped name, with a number behind it where a dimension already has that name.
        stacks: by the names of ``problem.args`` (``x0``, ``target``, ``reference``, ``mask``, ``seed``,
            ``params``, and what transforms brought, such as ``lower``, or a penalty's strength by its
            name): a stack with one value per row in its first dimension, of the shape, dtype and device
            of the entry behind it. ``params`` are stacked tensor by tensor (see `stack`); targets in the
            language of portfolios are a list of them. All stacks of one call go together, row by row.
            Rows that are not finite are taken: they end NONFINITE without touching others. A start
            outside of bounds begins on the bound.

    Returns:
        The grid: its rows are those of ``problem`` for each value of the stacks, the new dimension
        outermost. Entries that the problem has by default do not follow others: with ``x0`` alone
        mapped, penalties measure from the one ``reference``.

    Raises:
        TypeError: if a stack is no tensor, or of another dtype or device.
        ValueError: for a name that ``args`` do not hold (they are listed), no stack at all, stacks of
            different sizes, a shape that does not fit, or a dimension's name that is taken.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> grid = fe.vmap(fe.vmap(p, x0=torch.randn(3, 1, 1, 2)), target=fe.one_hot_targets(2))
        >>> fe.solve(grid, max_steps=5).x.shape
        torch.Size([2, 3, 1, 1, 2])
    """
    check_problem("vmap", problem)
    problem, stacks = _with_targets(problem, stacks)
    if not stacks:
        raise ValueError(
            "vmap: expected at least one stack, as in fe.vmap(problem, x0=starts), got none"
        )
    taken = {dim.name for dim in problem.dims}
    if name is not None and (not isinstance(name, str) or not name.isidentifier()):
        raise TypeError(f"vmap: name must be an identifier, got {name!r}")
    if name in taken:
        raise ValueError(f"vmap: name must be that of no other row dimension, got {name!r}")
    copies = {entry: _checked(problem, entry, stack) for entry, stack in stacks.items()}
    sizes = {entry: len(next(iter(optree.tree_leaves(stack)))) for entry, stack in copies.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"vmap: stacks of one call must have one leading size, got {sizes}; nest two calls for all "
            "combinations"
        )
    size = next(iter(sizes.values()))
    dim = RowDim(name or _free_name(next(iter(stacks)), taken), size, frozenset(stacks))
    return replace(problem, args={**problem.args, **copies}, dims=(dim, *problem.dims))


def consensus(problem: Problem) -> Problem:
    """Ask for one window at which all models of an ensemble hold the target at once.

    The dimension along which ``params`` vary is folded into the question: the loss is the mean of the
    models' losses, the weights of a solution are those of all models, ``(M, A)``, and it is a hit where
    every model's are within ``atol``.

    Args:
        problem: a grid mapped over ``params``; or a question whose params are those of `stack`. A
            ``target`` that varies along the models' dimension gives each model its own; all other
            entries must not.

    Returns:
        The problem without that dimension. Its ``target`` has the shape ``(M, A)``: map over targets
        first, or stack targets of this shape.

    Raises:
        TypeError: if ``problem`` is no Problem.
        ValueError: if params are not stacked, or another entry varies along their dimension.

    Example:
        >>> import torch, funcexplain as fe
        >>> def make():
        ...     return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2))
        >>> models = [make(), make()]
        >>> p = fe.problem(models[0], torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> ensemble = fe.vmap(p, params=fe.stack(models)[1])
        >>> fe.solve(fe.consensus(ensemble), max_steps=5).weights.shape
        torch.Size([2, 2])
    """
    check_problem("consensus", problem)
    along = varying_dims(problem.dims, "params")
    if len(along) > 1:
        raise ValueError("consensus: params must vary along one row dimension, got several")
    target, dims, own_targets = problem.args["target"], problem.dims, False
    if along:
        (place,) = along
        varying = dims[place].varying
        if varying - {"params", "target"}:
            raise ValueError(
                f"consensus: only target may vary together with params, got {sorted(varying)}; all "
                "models share one window and its data"
            )
        size = dims[place].size
        of_target = varying_dims(dims, "target")
        own_targets = place in of_target
        if own_targets:
            target = target.movedim(of_target.index(place), -1 - problem.criterion.ndim)
        dims = dims[:place] + dims[place + 1 :]
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
    if not own_targets:
        behind = -1 - problem.criterion.ndim
        target = torch.stack([target] * size, dim=behind)
    apply, loss = problem.apply, problem.loss

    def of_all(params: Any, x: Tensor) -> Tensor:
        # The seed of dropout is that of the question: all models are thinned alike.
        thinned = isinstance(params, dict) and SEED in params
        dims = {name: None if name == SEED else 0 for name in params} if thinned else 0
        return torch.func.vmap(apply, in_dims=(dims, None))(params, x)

    def mean_loss(measured: Tensor, nearest: Tensor) -> Tensor:
        return torch.func.vmap(loss)(measured, nearest).mean()

    args = {**problem.args, "target": target.contiguous()}
    return replace(problem, apply=of_all, loss=mean_loss, args=args, dims=dims)


def _with_targets(problem: Problem, stacks: dict[str, Any]) -> tuple[Problem, dict[str, Any]]:
    """State targets that are given as a list, and let the problem compare with what is given."""
    target: Any = stacks.get("target")
    criterion = problem.criterion
    moving = {n for n in ("params", "reference") if n in stacks or varying_dims(problem.dims, n)}
    in_words = isinstance(target, list | tuple) and any(isinstance(t, Target) for t in target)
    from_today = (
        criterion.from_today
        if target is None
        else in_words and any(isinstance(t, Target) and t.from_today for t in target)
    )
    if moving and from_today:
        raise ValueError(
            "vmap: a target that is measured from today's weights must go with one reference and one "
            f"network, got stacks of {sorted(moving)}; give each row its own, as in "
            "target=[fe.targets.turnover(0.1, today=weights) for weights in ...]"
        )
    if in_words:
        if varying_dims(problem.dims, "target"):
            raise ValueError("vmap: a list of targets maps over target once, got a second time")
        row = problem[(0,) * len(problem.dims)] if problem.dims else problem
        target, criterion = encode_targets("vmap", target, problem.apply, row.args, problem.assets)
        check_loss("vmap", problem.loss, criterion)
        like = target[0]
    elif isinstance(target, Tensor) and criterion.ndim == GOALS.ndim and target.ndim == EXACT.ndim + 1:
        like, criterion = criterion.weights_like(problem.args["target"]), EXACT
    else:
        return problem, stacks
    stated_problem = replace(problem, criterion=criterion, args={**problem.args, "target": like})
    return stated_problem, {**stacks, "target": target}


def _free_name(wanted: str, taken: set[str]) -> str:
    number, name = 1, wanted
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def _checked(problem: Problem, entry: str, stack: Any) -> Any:
    """A copy of a stack whose tensors have one more leading dimension than those of the entry."""
    if entry not in problem.args:
        raise ValueError(f"vmap: args hold {sorted(problem.args)}, got a stack for {entry!r}")
    current, tree = optree.tree_flatten(problem.args[entry])
    leaves, other = optree.tree_flatten(stack)
    if other != tree:
        if entry != "params":
            check_is_tensor("vmap", entry, stack)
        raise TypeError(
            "vmap: params must be those of the problem's network, stacked tensor by tensor as "
            f"fe.stack(models)[1] does, got another structure ({other}, expected {tree})"
        )
    if not leaves:
        raise ValueError(
            f"vmap: {entry} must hold tensors to map over, got none; the network has no such"
        )
    paths = [".".join(map(str, path)) for path in optree.treespec_paths(tree)]
    named = [f"{entry}[{path!r}]" if path else entry for path in paths]
    copies = [_stacked(*pair) for pair in zip(named, leaves, current, strict=True)]
    if len({len(leaf) for leaf in copies}) > 1:
        raise ValueError(
            f"vmap: all tensors of {entry} must have one leading size, got "
            f"{sorted({len(leaf) for leaf in copies})}"
        )
    return optree.tree_unflatten(tree, copies)


def _stacked(name: str, leaf: Any, current: Any) -> Tensor:
    check_is_tensor("vmap", name, leaf)
    check_is_plain("vmap", name, leaf)
    check_is_tensor("vmap", f"the problem's own {name}", current)
    integers = not (leaf.is_floating_point() or leaf.is_complex() or leaf.dtype is torch.bool)
    if current.dtype is torch.int64 and integers:
        leaf = leaf.long()
    if (leaf.dtype, leaf.device) != (current.dtype, current.device):
        raise TypeError(
            f"vmap: {name} must be a stack of the problem's dtype and device ({current.dtype}, "
            f"{current.device}), got {leaf.dtype}, {leaf.device}; convert it first"
        )
    if leaf.ndim != current.ndim + 1 or leaf.shape[1:] != current.shape:
        expected = ", ".join(("rows", *map(str, current.shape)))
        raise ValueError(
            f"vmap: {name} must have shape ({expected}), one value of shape {tuple(current.shape)} for "
            f"each row, got {tuple(leaf.shape)}"
        )
    return leaf.detach().clone(memory_format=torch.contiguous_format)
