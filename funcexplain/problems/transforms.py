"""Transforms, ``Problem -> Problem``: frozen entries, penalties, dtype and device, noise of the start.

Later transforms wrap earlier ones. A transform's data goes into ``args`` under its own name, so that
rows may vary in it. Changes of the search space are in `coordinates`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optree
import torch
from torch import Tensor

from funcexplain.networks.noise import normal
from funcexplain.problems.checks import (
    check_callable,
    check_device,
    check_dtype,
    check_name,
    check_number,
    check_scalar,
    check_scale,
    check_strength,
)
from funcexplain.problems.grid import Rule
from funcexplain.problems.law import keep_law
from funcexplain.problems.penalties import Penalty
from funcexplain.problems.problem import Args, Problem, check_problem

Transform = Callable[[Problem], Problem]


def add_data(where: str, problem: Problem, **data: Any) -> Args:
    """Add data to a problem's ``args``; raise if a name exists already."""
    known = sorted(data.keys() & problem.args.keys())
    if known:
        raise ValueError(
            f"{where}: args already hold {known} from an earlier transform or the problem itself; "
            "apply it once, or choose another name if it has an argument name"
        )
    return {**problem.args, **data}


def strength_rule(name: str) -> Rule:
    """The rule for a penalty's strength."""
    return Rule((name,), lambda factor: factor < 0, f"{name} must be >= 0, got a negative strength")


_JITTER_RULE = Rule(("jitter",), lambda scale: scale < 0, "jitter must be >= 0, got a negative scale")


def freeze(problem: Problem) -> Problem:
    """Keep entries with mask False at the reference (True = free to change), bit for bit.

    ``x = where(mask, decode(z), reference)``: the network and all penalties see the reference there.
    Commutes with `box`.

    Args:
        problem: the question; its ``mask`` and ``reference`` are used.

    Returns:
        The problem with these entries frozen.

    Raises:
        TypeError: if ``problem`` is not a Problem.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> mask = torch.tensor([[[True, False]]])
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2), mask=mask)
        >>> fe.solve(fe.freeze(p), fe.adam(lr=0.5), max_steps=1).x
        tensor([[[0.5000, 0.0000]]])
    """
    inner = check_problem("freeze", problem).decode

    def decode(z: Tensor, args: Args) -> Tensor:
        return torch.where(args["mask"], inner(z, args), args["reference"])

    return keep_law(problem, replace(problem, decode=decode))


def zero_masked(problem: Problem) -> Problem:
    """Set entries with mask False to zero (True = free to change), as deepdow's function does.

    ``x = decode(z) * mask``. deepdow documents that such entries keep the initial guess, feeds zeros
    to the network and returns the guess; here the answer holds the zeros that the network saw.

    Args:
        problem: the question; its ``mask`` is used.

    Returns:
        The problem with zeroed entries.

    Raises:
        TypeError: if ``problem`` is not a Problem.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> mask = torch.tensor([[[True, False]]])
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.ones(1, 1, 2), mask=mask)
        >>> fe.solve(fe.zero_masked(p), max_steps=0).x
        tensor([[[1., 0.]]])

    References:
        J. Krepl, deepdow 0.2.3, ``deepdow.explain.gradient_wrt_input``,
        https://github.com/jankrepl/deepdow
    """
    inner = check_problem("zero_masked", problem).decode

    def decode(z: Tensor, args: Args) -> Tensor:
        return inner(z, args) * args["mask"]

    return keep_law(problem, replace(problem, decode=decode))


def cast(*, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Transform:
    """Move a whole problem to a dtype and a device: parameters, start, target, bounds, everything.

    Args:
        dtype: floating dtype for all floating data; integers and masks keep theirs. Default: unchanged.
        device: device for all data. Default: unchanged.

    Returns:
        A transform.

    Raises:
        TypeError: if ``dtype`` is not a floating torch.dtype.
        ValueError: if ``device`` is not available.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(fe.cast(dtype=torch.float64)(p), max_steps=1).x.dtype
        torch.float64
    """
    check_dtype("cast", dtype)
    check_device("cast", device)

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    def convert_problem(problem: Problem) -> Problem:
        check_problem("cast", problem)
        args: Any = problem.args
        args = optree.tree_map(convert, args)
        return replace(problem, args=args)

    return convert_problem


def penalize(penalty: Penalty, *, strength: float | Tensor, name: str | None = None) -> Transform:
    """Add ``strength * penalty(x, reference)`` to the objective.

    Args:
        penalty: function ``(x, reference) -> scalar``; see ``fe.penalties``.
        strength: factor, a number >= 0 or a scalar tensor of the problem's dtype.
        name: name of the strength in ``args``, by which it can be mapped. Default: the penalty's name.

    Returns:
        A transform. The reported loss remains the misfit alone.

    Raises:
        TypeError: if ``penalty`` is not callable, or ``strength`` is not a number.
        ValueError: if ``strength`` is negative or not a scalar, or the name exists.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> p = fe.penalize(fe.penalties.l2, strength=0.5, name="proximity")(p)
        >>> p.objective(torch.ones(1, 1, 2), p.args)[0]         # 0.16 + 0.5 * 1
        tensor(0.6600)
    """
    check_callable("penalize", "penalty", penalty)
    key = check_name("penalize", name if name is not None else getattr(penalty, "__name__", None))
    if not isinstance(strength, Tensor):
        check_number("penalize", "strength", strength, minimum=0.0)

    def cost(x: Tensor, args: Args) -> Tensor:
        value = penalty(x, args["reference"])
        return args[key] * check_scalar("penalty", penalty, value)

    def add_penalty(problem: Problem) -> Problem:
        x0 = check_problem("penalize", problem).args["x0"]
        factor = check_strength("penalize", key, strength, x0)
        args = add_data("penalize", problem, **{key: factor})
        rules = (*problem.rules, strength_rule(key))
        return replace(problem, args=args, penalties=(*problem.penalties, cost), rules=rules)

    return add_penalty


def jitter(scale: float | Tensor) -> Transform:
    """Add normal noise to the start of the search, derived from the problem's seed.

    ``z_start = z_start + scale * noise(seed)`` in the units of the search space at this point of the
    pipe: after `standardize`, a scale of 0.1 means a tenth of a sigma. The noise is a function of
    ``args["seed"]``; torch's global generator is not used.

    Args:
        scale: standard deviation of the noise, >= 0; a number, or a tensor that broadcasts to x0.

    Returns:
        A transform; the scale is ``args["jitter"]``.

    Raises:
        TypeError: if ``scale`` is not a number or tensor.
        ValueError: if it is negative.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> x0 = torch.zeros(1, 1, 2)
        >>> p = fe.pipe(fe.problem(network, torch.tensor([0.9, 0.1]), x0, seed=1), fe.jitter(0.1))
        >>> torch.equal(fe.solve(p, max_steps=0).x, x0)
        False
    """
    if not isinstance(scale, Tensor):
        check_number("jitter", "scale", scale, minimum=0.0)

    def add_noise(problem: Problem) -> Problem:
        check_problem("jitter", problem)
        sigma = check_scale("jitter", scale, problem.args["x0"])
        inner = problem.start

        def start(args: Args) -> Tensor:
            z = inner(args)
            return z + args["jitter"] * normal(args["seed"], z.shape, z.dtype)

        args = add_data("jitter", problem, jitter=sigma)
        return replace(problem, start=start, args=args, rules=(*problem.rules, _JITTER_RULE))

    return add_noise
