"""From one question to a grid of rows: ``vmap`` adds a dimension.

    problem                                     one question
    starts = vmap(problem, x0=starts)           rows (S,)
    grid = vmap(starts, target=targets)         rows (T, S), the outer product, outermost first

Nothing is computed or copied: `args` hold the stacks, and `solve` takes rows from them, one chunk at a
time.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from typing import Any, overload

import optree
import torch
from torch import Tensor

from funcexplain.networks.verify import verify
from funcexplain.problems.checks import check_is_plain, check_is_tensor
from funcexplain.problems.criterion import EXACT, GOALS, Target
from funcexplain.problems.encoding import check_loss, encode_targets
from funcexplain.problems.grid import RowDim, check_rules, varying_dims
from funcexplain.problems.problem import Problem, check_problem
from funcexplain.problems.transforms import Transform


@overload
def vmap(problem: Problem, /, *, name: str | None = None, **stacks: Any) -> Problem: ...
@overload
def vmap(*, name: str | None = None, **stacks: Any) -> Transform: ...
def vmap(
    problem: Problem | None = None, /, *, name: str | None = None, **stacks: Any
) -> Problem | Transform:
    """Repeat a question for every row of stacks: over starts, targets, masks, seeds, models, ...

    Without a problem it is a transform: ``pipe(problem, freeze, vmap(x0=starts))``.

    Args:
        problem: the question, or a grid, which becomes the inner part of a larger grid.
        name: name of the new dimension, as used by `Solution.isel` and `Solution.best`. Default: the
            first mapped name, with a number appended if another dimension already has that name.
        stacks: by the names of ``problem.args`` (``x0``, ``target``, ``reference``, ``mask``, ``seed``,
            ``params``, ``inputs`` as a dict of stacks, and what transforms added, such as ``lower``, or
            a penalty's strength by its name): a stack with one value per row, with the entry's shape,
            dtype and device after the first dimension. ``params`` are stacked tensor by tensor (see
            `stack`); targets in portfolio language are a list. All stacks of one call are mapped
            together, row by row. Non-finite rows are allowed: they end as NONFINITE and do not affect
            others. A start outside its bounds begins on the bound.

    Returns:
        The grid, with one copy of the rows of ``problem`` for each value of the stacks; the new
        dimension is the outermost. Default entries do not follow others: with only ``x0`` mapped,
        penalties measure from the one ``reference``. Without ``problem``: a transform.

    Raises:
        TypeError: if a stack is not a tensor, or has another dtype or device.
        ValueError: for a name that ``args`` do not have (they are listed), no stack at all, stacks of
            different sizes, a shape that does not fit, or the name of another dimension; for a row that
            is invalid as a single value (lower > upper, a std <= 0, a negative strength); if the network
            with these ``params`` does not hold the weights of the models that they come from.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> grid = fe.vmap(fe.vmap(p, x0=torch.randn(3, 1, 1, 2)), target=fe.one_hot_targets(2))
        >>> fe.solve(grid, max_steps=5).x.shape
        torch.Size([2, 3, 1, 1, 2])
        >>> fe.pipe(p, fe.freeze, fe.vmap(x0=torch.randn(3, 1, 1, 2))).shape
        (3,)
    """
    if problem is not None:
        check_problem("vmap", problem)
    if not stacks:
        raise ValueError(
            "vmap: expected at least one stack, as in fe.vmap(problem, x0=starts), got none"
        )
    if problem is None:

        def mapped(problem: Problem) -> Problem:
            return vmap(check_problem("vmap", problem), name=name, **stacks)

        return mapped
    if "inputs" in stacks and "inputs" not in problem.args:
        name, stacks = name or _free_name("inputs", {dim.name for dim in problem.dims}), {**stacks}
        stacks["params"] = _stack_inputs(problem, stacks.pop("inputs"), stacks)
    problem, stacks = _encode_stack(problem, stacks)
    names = {dim.name for dim in problem.dims}
    if name is not None and (not isinstance(name, str) or not name.isidentifier()):
        raise TypeError(f"vmap: name must be an identifier, got {name!r}")
    if name in names:
        raise ValueError(f"vmap: name must differ from those of other row dimensions, got {name!r}")
    copies = {entry: _copy_stack(problem, entry, stack) for entry, stack in stacks.items()}
    if "params" in stacks:
        x0 = problem.args["x0"]
        verify(problem.apply, stacks["params"], x0.reshape(-1, *x0.shape[-3:])[0], stacked=True)
    sizes = {entry: len(next(iter(optree.tree_leaves(stack)))) for entry, stack in copies.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"vmap: stacks of one call must have one leading size, got {sizes}; nest two calls for all "
            "combinations"
        )
    size = next(iter(sizes.values()))
    dim = RowDim(name or _free_name(next(iter(stacks)), names), size, frozenset(stacks))
    grid = replace(problem, args={**problem.args, **copies}, dims=(dim, *problem.dims))
    check_rules("vmap", grid.rules, grid.dims, grid.args)
    return grid


def _encode_stack(problem: Problem, stacks: dict[str, Any]) -> tuple[Problem, dict[str, Any]]:
    """Encode a list of targets, and switch the problem to the criterion of the new targets."""
    target: Any = stacks.get("target")
    criterion = problem.criterion
    varying = {n for n in ("params", "reference") if n in stacks or varying_dims(problem.dims, n)}
    is_list = isinstance(target, list | tuple) and any(isinstance(t, Target) for t in target)
    from_today = (
        criterion.from_today
        if target is None
        else is_list and any(isinstance(t, Target) and t.from_today for t in target)
    )
    if varying and from_today:
        raise ValueError(
            "vmap: a target measured from today's weights must have one reference and one network, got "
            f"stacks of {sorted(varying)}; give each row its own, as in "
            "target=[fe.targets.turnover(0.1, today=weights) for weights in ...]"
        )
    if is_list:
        if varying_dims(problem.dims, "target"):
            raise ValueError("vmap: target must be mapped once by a list of targets, got a second list")
        row = problem[(0,) * len(problem.dims)]
        target, criterion = encode_targets(
            "vmap", target, problem.apply, row.args, problem.outputs or problem.assets, problem.leverage
        )
        check_loss("vmap", problem.loss, criterion, target)
        like = target[0]
    elif isinstance(target, Tensor) and criterion.ndim == GOALS.ndim and target.ndim == EXACT.ndim + 1:
        like, criterion = criterion.weights_like(problem.args["target"]), EXACT
    else:
        return problem, stacks
    problem = replace(problem, criterion=criterion, args={**problem.args, "target": like})
    return problem, {**stacks, "target": target}


def _stack_inputs(problem: Problem, inputs: Any, stacks: dict[str, Any]) -> Any:
    """Stacked parameters of a network whose given inputs vary, and nothing else of it."""
    params = problem.args["params"]
    nested = isinstance(params, dict) and params.keys() == {"params", "inputs"}
    own = params["inputs"] if nested else params
    prefix = "" if nested else "inputs."
    known = [name.removeprefix(prefix) for name in own if name.startswith(prefix)]
    if not isinstance(inputs, dict) or not inputs or not all(name in known for name in inputs):
        raise ValueError(
            f"vmap: inputs must be a dict of stacks of the network's given inputs {known}, got "
            f"{list(inputs) if isinstance(inputs, dict) else type(inputs).__name__}; "
            "fe.problem(..., inputs={...}) gives them"
        )
    if "params" in stacks:
        raise ValueError("vmap: inputs and params must be mapped in separate calls, got both")
    for name, stack in inputs.items():
        check_is_tensor("vmap", f"inputs[{name!r}]", stack)
    size = len(next(iter(inputs.values())))
    stacked: Any = optree.tree_map(lambda leaf: leaf.expand(size, *leaf.shape), params)
    (stacked["inputs"] if nested else stacked).update({f"{prefix}{n}": s for n, s in inputs.items()})
    return stacked


def _free_name(wanted: str, names: set[str]) -> str:
    number, name = 1, wanted
    while name in names:
        number += 1
        name = f"{wanted}_{number}"
    return name


def _copy_stack(problem: Problem, entry: str, stack: Any) -> Any:
    """A checked copy of a stack; its tensors have one more leading dimension than the entry's."""
    if entry not in problem.args:
        similar = get_close_matches(entry, problem.args, n=1)
        hint = f"; did you mean {similar[0]!r}?" if similar else ""
        raise ValueError(f"vmap: args hold {sorted(problem.args)}, got a stack for {entry!r}{hint}")
    current, tree = optree.tree_flatten(problem.args[entry])
    leaves, other = optree.tree_flatten(stack)
    if other != tree:
        if entry != "params":
            check_is_tensor("vmap", entry, stack)
        raise TypeError(
            "vmap: params must have the structure of the problem's params, as from fe.stack(models)[1], "
            f"expected {tree}, got {other}"
        )
    if not leaves:
        raise ValueError(
            f"vmap: {entry} must hold tensors to map over, got none; the network has no {entry}"
        )
    paths = [".".join(map(str, path)) for path in optree.treespec_paths(tree)]
    names = [f"{entry}[{path!r}]" if path else entry for path in paths]
    copies = [_copy_leaf(*pair) for pair in zip(names, leaves, current, strict=True)]
    if len({len(leaf) for leaf in copies}) > 1:
        raise ValueError(
            f"vmap: all tensors of {entry} must have one leading size, got "
            f"{sorted({len(leaf) for leaf in copies})}"
        )
    return optree.tree_unflatten(tree, copies)


def _copy_leaf(name: str, leaf: Any, current: Any) -> Tensor:
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
