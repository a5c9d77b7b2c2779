"""Transforms that change the search space: units, any change of variables, bounds.

`standardize` and `reparametrize` replace the search variable: ``x = decode(inner(z))``. `box` maps the
window itself, after all such maps, so that its bounds are in the units of ``x``; its slope of one in the
middle preserves the units of the search. `clip` keeps the search space and projects after every update.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from funcexplain.problems import checks
from funcexplain.problems.grid import Rule, aligned
from funcexplain.problems.law import drop_law
from funcexplain.problems.problem import Args, Map, Problem, check_problem, decode_costs, identity
from funcexplain.problems.transforms import Transform, add_data

# How far inside of its bounds a search in a `box` begins, as a fraction of the width.
_BOX_MARGIN = 0.005


_STD_RULE = Rule(("std",), lambda std: std <= 0, "std must be > 0, got a std <= 0")
_ORDER_RULE = Rule(("lower", "upper"), torch.gt, "lower must be <= upper, got lower > upper")


def standardize(mean: float | Tensor, std: float | Tensor) -> Transform:
    """Search in units of sigma: ``z = (x - mean) / std``, ``x = mean + std * z``.

    An optimizer's ``lr`` is in the units of the search variable. For daily returns of about 0.01, an
    ``lr`` of 0.1 is far too large; in units of each channel's standard deviation it is sensible.

    Args:
        mean: number, or tensor that broadcasts to x0, such as ``(C, 1, 1)``.
        std: as ``mean``, positive.

    Returns:
        A transform; its data are ``args["mean"]`` and ``args["std"]``.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if a std is not positive, a shape does not fit, or the names exist.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(fe.standardize(0.0, 0.02)(p), fe.adam(lr=0.1), max_steps=1).x
        tensor([[[ 0.0020, -0.0020]]])
    """
    if not isinstance(std, Tensor):
        checks.check_number("standardize", "std", std, minimum=0.0, strict=True)

    def encode(x: Tensor, args: Args) -> Tensor:
        return (x - args["mean"]) / args["std"]

    def decode(z: Tensor, args: Args) -> Tensor:
        return args["mean"] + args["std"] * z

    def change_units(problem: Problem) -> Problem:
        x0 = check_problem("standardize", problem).args["x0"]
        center = checks.check_datum("standardize", "mean", mean, x0)
        sigma = checks.check_datum("standardize", "std", std, x0)
        if bool((sigma <= 0).any()):
            raise ValueError(
                f"standardize: std must be > 0, got a minimum of {sigma.min():g}; "
                "freeze a constant channel instead"
            )
        args = add_data("standardize", problem, mean=center, std=sigma)
        rules = (*problem.rules, _STD_RULE)
        changed = change_variables(replace(problem, args=args, rules=rules), encode, decode)
        return drop_law(problem, changed, "standardize")

    return change_units


def reparametrize(encode: Callable[..., Tensor], decode: Callable[..., Tensor]) -> Transform:
    """Search over another variable: ``x = decode(z)``, ``z = encode(x)``.

    Args:
        encode: from a window to the search space, ``encode(x)`` or ``encode(x, args)``.
        decode: from the search space to a window, ``decode(z)`` or ``decode(z, args)``; the inverse of
            ``encode`` on feasible windows. ``z`` may have any shape. Tensors captured by the functions
            are neither cast nor mapped; entries of ``args`` are.

    Returns:
        A transform.

    Raises:
        TypeError: if one of them is not callable, or changes the dtype.
        ValueError: if they map x0 to a tensor that is not finite or has another shape.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.ones(1, 1, 2))
        >>> positive = fe.reparametrize(torch.log, torch.exp)(p)
        >>> bool((fe.solve(positive, max_steps=50).x > 0).all())
        True
    """
    encode_args, decode_args = _accept_args("encode", encode), _accept_args("decode", decode)

    def change_variable(problem: Problem) -> Problem:
        changed = change_variables(check_problem("reparametrize", problem), encode_args, decode_args)
        changed = drop_law(problem, changed, "reparametrize")
        if 0 in problem.shape:
            return changed  # no row to try it on
        args = changed[(0,) * len(problem.dims)].args
        x0 = args["x0"]
        z = checks.check_like("reparametrize", "the output of encode", changed.start(args), x0, "x0")
        x = checks.check_like("reparametrize", "the output of decode", changed.decode(z, args), x0, "x0")
        checks.check_shape("reparametrize", "the output of decode", x, x0.shape, "that of x0")
        return changed

    return change_variable


def box(lower: float | Tensor, upper: float | Tensor) -> Transform:
    """Keep free entries strictly bounded by a change of variables, ``lower <= x <= upper``.

    ``x = m + h * tanh((u - m) / h)`` with middle ``m = (lower + upper) / 2``, half width ``h``, and
    ``u`` the window without the box: slope one in the middle, flat at the bounds. Since a search could
    not leave a bound, a start is moved at least a hundredth of ``h`` inside, where the slope is 0.02. In
    a very wide box that is a large change, and progress there is slow: use tight boxes, or `clip` if
    only one side matters. Entries with mask False (not free to change) are ignored, so that `box`
    commutes with `freeze` and `zero_masked`.

    Args:
        lower: number, or tensor that broadcasts to x0, in units of x.
        upper: as ``lower``; not below ``lower`` anywhere.

    Returns:
        A transform; its data are ``args["lower"]`` and ``args["upper"]``.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if lower > upper, a free entry of x0 is outside, or the problem has bounds.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(fe.box(-0.5, 0.5)(p), fe.adam(lr=1.0), max_steps=50).x
        tensor([[[ 0.5000, -0.5000]]])
    """
    _check_order("box", lower, upper)

    def add_box(problem: Problem) -> Problem:
        bounded = _bounded("box", problem, lower, upper, infinite=False)
        inner_decode, inner_encode, inner_start = problem.decode, problem.encode, problem.start

        def decode(z: Tensor, args: Args) -> Tensor:
            u = inner_decode(z, args)
            middle, half = _middle_and_half(args)
            # Rounding may exceed a bound by one unit in the last place.
            inside = (middle + half * ((u - middle) / half).tanh()).clamp(args["lower"], args["upper"])
            return torch.where(args["mask"], inside, u)

        def encode(x: Tensor, args: Args) -> Tensor:
            middle, half = _middle_and_half(args)
            edge = 1.0 - torch.finfo(x.dtype).eps  # atanh(1) is infinite
            u = middle + half * ((x - middle) / half).clamp(-edge, edge).atanh()
            return inner_encode(torch.where(args["mask"], u, x), args)

        def start(args: Args) -> Tensor:
            x = inner_decode(inner_start(args), args)
            margin = _BOX_MARGIN * (args["upper"] - args["lower"])
            inside = x.clamp(args["lower"] + margin, args["upper"] - margin)
            return encode(torch.where(args["mask"] & (args["upper"] > args["lower"]), inside, x), args)

        return drop_law(problem, replace(bounded, decode=decode, encode=encode, start=start), "box")

    return add_box


def clip(lower: float | Tensor, upper: float | Tensor) -> Transform:
    """Keep free entries bounded by projection: after every update x is clamped to its bounds.

    Entries with mask False (not free to change) are ignored. Unlike with `box`, entries can reach a
    bound, and bounds may be infinite.

    Args:
        lower: number, or tensor that broadcasts to x0, in units of x; ``-inf`` for no bound.
        upper: as ``lower``, ``inf`` for no bound; not below ``lower`` anywhere.

    Returns:
        A transform; its data are ``args["lower"]`` and ``args["upper"]``.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if lower > upper, a free entry of x0 is outside, or the problem has bounds.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(fe.clip(-0.5, 0.5)(p), fe.adam(lr=0.3), max_steps=3).x
        tensor([[[ 0.5000, -0.5000]]])

    References:
        D. P. Bertsekas (1976), On the Goldstein-Levitin-Polyak Gradient Projection Method,
        https://doi.org/10.1109/TAC.1976.1101194
    """
    _check_order("clip", lower, upper)

    def clamp_free(x: Tensor, args: Args) -> Tensor:
        return torch.where(args["mask"], x.clamp(args["lower"], args["upper"]), x)

    def add_clip(problem: Problem) -> Problem:
        bounded = _bounded("clip", problem, lower, upper, infinite=True)
        inner_project, inner_start = problem.project, problem.start
        inner_decode = problem.decode
        clamp = _lift_projection(clamp_free, problem.encode, problem.decode)

        def decode(z: Tensor, args: Args) -> Tensor:
            # In other units, rounding may move a projected point over its bound. Only the value is
            # clamped: with a gradient of zero, an entry could never leave its bound.
            x = inner_decode(z, args)
            return clamp_free(x, args).detach() + (x - x.detach())

        def project(z: Tensor, args: Args) -> Tensor:
            return clamp(inner_project(z, args), args)

        def start(args: Args) -> Tensor:
            return clamp(inner_start(args), args)

        return drop_law(problem, replace(bounded, decode=decode, project=project, start=start), "clip")

    return add_clip


def change_variables(problem: Problem, encode: Map, decode: Map) -> Problem:
    """Search over ``z``, where ``decode(z)`` is the search variable so far."""
    unconstrained, nearby = problem.project is identity, problem.nearby

    def nearby_encoded(z: Tensor, args: Args) -> Tensor:
        assert nearby is not None
        points = nearby(decode(z, args), args)
        return torch.cat([z[None], torch.func.vmap(lambda point: encode(point, args))(points[1:])])

    return replace(
        problem,
        nearby=None if nearby is None else nearby_encoded,
        encode=lambda x, args: encode(problem.encode(x, args), args),
        decode=lambda z, args: problem.decode(decode(z, args), args),
        start=lambda args: encode(problem.start(args), args),
        project=identity if unconstrained else _lift_projection(problem.project, encode, decode),
        costs=decode_costs(problem.costs, decode),
    )


def _lift_projection(project: Map, encode: Map, decode: Map) -> Map:
    """A projection of decoded points as one of encoded points; feasible points stay bit-equal."""

    def project_encoded(z: Tensor, args: Args) -> Tensor:
        point = decode(z, args)
        projected = project(point, args)
        return torch.where((projected == point).all(), z, encode(projected, args))

    return project_encoded


def _bounded(
    where: str, problem: Problem, lower: float | Tensor, upper: float | Tensor, *, infinite: bool
) -> Problem:
    """The problem with bounds among its data."""
    args = check_problem(where, problem).args
    low = checks.check_datum(where, "lower", lower, args["x0"], infinite=infinite)
    high = checks.check_datum(where, "upper", upper, args["x0"], infinite=infinite)
    _check_order(where, low, high)
    x0, mask = (aligned(problem.dims, args, name) for name in ("x0", "mask"))
    outside = ((x0 < low) | (x0 > high)) & mask
    if bool(outside.any()):
        index = tuple(outside.nonzero()[0].tolist())
        raise ValueError(
            f"{where}: x0 must be within the bounds wherever mask is True, got {int(outside.sum())} "
            f"entries outside, the first at {index}: {x0.expand(outside.shape)[index]:g}; clamp x0 or "
            "widen the bounds"
        )
    args = add_data(where, problem, lower=low, upper=high)
    return replace(problem, args=args, rules=(*problem.rules, _ORDER_RULE))


def _check_order(where: str, lower: Any, upper: Any) -> None:
    """Raise if a lower bound is above an upper bound; bounds of other types are checked later."""
    if isinstance(lower, int | float | Tensor) and isinstance(upper, int | float | Tensor):
        crossed = lower > upper
        count = int(crossed.sum() if isinstance(crossed, Tensor) else crossed)
        if count:
            raise ValueError(f"{where}: lower must be <= upper, got lower > upper in {count} entries")


def _middle_and_half(args: Args) -> tuple[Tensor, Tensor]:
    lower, upper = args["lower"], args["upper"]
    half = 0.5 * (upper - lower)
    # Where both bounds are equal, the clamp decides and any width will do.
    return 0.5 * (lower + upper), torch.where(half > 0, half, torch.ones_like(half))


def _accept_args(name: str, function: Any) -> Map:
    """The function as ``function(point, args)``; the caller's may take only the point."""
    checks.check_callable("reparametrize", name, function)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # torch's built-in functions have no signature
        parameters = []
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) >= 2:
        return function
    return lambda point, args: function(point)
