"""Transforms that change the search space: units, any change of variables, bounds.

`standardize` and `reparametrize` put a new variable in front: ``x = decode(inner(z))``. `box` bends the
window itself, behind all such maps, so that its bounds are those of ``x`` in whatever units is
searched; being one with slope one in the middle, it leaves those units alone. `clip` leaves the search
space as it is and projects after every update.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from funcexplain.problems.checks import check_datum, check_like, check_number, check_shape
from funcexplain.problems.grid import aligned
from funcexplain.problems.problem import Args, Map, Problem, check_problem, identity, lifted
from funcexplain.problems.transforms import Transform, with_data


def standardize(mean: float | Tensor, std: float | Tensor) -> Transform:
    """Search in units of sigma: ``z = (x - mean) / std``, ``x = mean + std * z``.

    An optimizer's ``lr`` is in units of what is searched. Daily returns are about 0.01 and an ``lr`` of
    0.1 throws them about; in units of each channel's standard deviation it is a sensible step.

    Args:
        mean: number, or tensor that broadcasts to x0, such as ``(C, 1, 1)``.
        std: likewise, positive.

    Returns:
        A transform; its data are ``args["mean"]`` and ``args["std"]``.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if a std is not positive, a shape does not fit, or the names are taken.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(fe.standardize(0.0, 0.02)(p), fe.adam(lr=0.1), max_steps=1).x
        tensor([[[ 0.0020, -0.0020]]])
    """
    if not isinstance(std, Tensor):
        check_number("standardize", "std", std, minimum=0.0, strict=True)

    def encode(x: Tensor, args: Args) -> Tensor:
        return (x - args["mean"]) / args["std"]

    def decode(z: Tensor, args: Args) -> Tensor:
        return args["mean"] + args["std"] * z

    def standardized(problem: Problem) -> Problem:
        x0 = check_problem("standardize", problem).args["x0"]
        center = check_datum("standardize", "mean", mean, x0)
        sigma = check_datum("standardize", "std", std, x0)
        if bool((sigma <= 0).any()):
            raise ValueError(
                f"standardize: std must be > 0, got a least value of {sigma.min():g}; "
                "a constant channel has no sigma, freeze it instead"
            )
        args = with_data("standardize", problem, mean=center, std=sigma)
        return _change_variables(replace(problem, args=args), encode, decode)

    return standardized


def reparametrize(encode: Callable[..., Tensor], decode: Callable[..., Tensor]) -> Transform:
    """Search over another variable: ``x = decode(z)``, ``z = encode(x)``.

    Args:
        encode: from a window to the search space, ``encode(x)`` or ``encode(x, args)``.
        decode: from the search space to a window, ``decode(z)`` or ``decode(z, args)``; its inverse on
            the windows that can be reached. The shape of ``z`` is free. Tensors that the functions
            capture are not cast and cannot be mapped; what is read from ``args`` can.

    Returns:
        A transform.

    Raises:
        TypeError: if one of them cannot be called, or changes the dtype.
        ValueError: if they take x0 to something that is not finite or has another shape.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.ones(1, 1, 2))
        >>> positive = fe.reparametrize(torch.log, torch.exp)(p)
        >>> bool((fe.solve(positive, max_steps=50).x > 0).all())
        True
    """
    inward, outward = _with_args("encode", encode), _with_args("decode", decode)

    def reparametrized(problem: Problem) -> Problem:
        changed = _change_variables(check_problem("reparametrize", problem), inward, outward)
        if 0 in problem.shape:
            return changed  # a grid of no rows has none to try it on
        args = changed[(0,) * len(problem.dims)].args
        x0 = args["x0"]
        z = check_like("reparametrize", "what encode returns", changed.start(args), x0, "x0")
        x = check_like("reparametrize", "what decode returns", changed.decode(z, args), x0, "x0")
        check_shape("reparametrize", "what decode returns", x, x0.shape, "that of x0")
        return changed

    return reparametrized


def box(lower: float | Tensor, upper: float | Tensor) -> Transform:
    """Keep free entries strictly bounded by a change of variables, ``lower <= x <= upper``.

    ``x = m + h * tanh((u - m) / h)`` with middle ``m = (lower + upper) / 2`` and half width ``h``, where
    ``u`` is what would be ``x`` without the box: slope one in the middle, flat at the bounds. A start
    that lies on a bound, or near one of a very wide box, moves away slowly: a box should be tight, and
    `clip` serves better where only one side matters. Entries with mask False (not free to change) are
    left alone, so that `box` commutes with `freeze` and `zero_masked`.

    Args:
        lower: number, or tensor that broadcasts to x0, in units of x.
        upper: likewise; nowhere below ``lower``.

    Returns:
        A transform; its data are ``args["lower"]`` and ``args["upper"]``.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if lower > upper, a free entry of x0 lies outside, or bounds were set before.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(fe.box(-0.5, 0.5)(p), fe.adam(lr=1.0), max_steps=50).x
        tensor([[[ 0.5000, -0.5000]]])
    """
    _refuse_crossed("box", lower, upper)

    def boxed(problem: Problem) -> Problem:
        bounds = _bounds("box", problem, lower, upper, infinite=False)
        inner_decode, inner_encode, inner_start = problem.decode, problem.encode, problem.start

        def decode(z: Tensor, args: Args) -> Tensor:
            u = inner_decode(z, args)
            middle, half = _middle_and_half(args)
            # Rounding may step over a bound by one unit in the last place; the clamp takes it back.
            inside = (middle + half * ((u - middle) / half).tanh()).clamp(args["lower"], args["upper"])
            return torch.where(args["mask"], inside, u)

        def encode(x: Tensor, args: Args) -> Tensor:
            middle, half = _middle_and_half(args)
            edge = 1.0 - torch.finfo(x.dtype).eps  # tanh maps no finite number to one
            u = middle + half * ((x - middle) / half).clamp(-edge, edge).atanh()
            return inner_encode(torch.where(args["mask"], u, x), args)

        def start(args: Args) -> Tensor:
            return encode(inner_decode(inner_start(args), args), args)

        return replace(problem, args=bounds, decode=decode, encode=encode, start=start)

    return boxed


def clip(lower: float | Tensor, upper: float | Tensor) -> Transform:
    """Keep free entries bounded by projection: after every update x is clamped to its bounds.

    Entries with mask False (not free to change) are left alone. Unlike `box` it can rest on a bound, and
    bounds may be infinite, where there is none.

    Args:
        lower: number, or tensor that broadcasts to x0, in units of x; ``-inf`` for no bound.
        upper: likewise, ``inf`` for no bound; nowhere below ``lower``.

    Returns:
        A transform; its data are ``args["lower"]`` and ``args["upper"]``.

    Raises:
        TypeError: for another type or dtype.
        ValueError: if lower > upper, a free entry of x0 lies outside, or bounds were set before.

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
    _refuse_crossed("clip", lower, upper)

    def clamped(x: Tensor, args: Args) -> Tensor:
        return torch.where(args["mask"], x.clamp(args["lower"], args["upper"]), x)

    def clipped(problem: Problem) -> Problem:
        bounds = _bounds("clip", problem, lower, upper, infinite=True)
        earlier, inner_start = problem.project, problem.start
        inner_decode, clamp = problem.decode, _lifted(clamped, problem.encode, problem.decode)

        def decode(z: Tensor, args: Args) -> Tensor:
            # In other units a projected point may step over its bound by rounding. It is taken back,
            # and its gradient passes as if it had not been there: else it could never leave.
            x = inner_decode(z, args)
            return clamped(x, args).detach() + (x - x.detach())

        def project(z: Tensor, args: Args) -> Tensor:
            return clamp(earlier(z, args), args)

        def start(args: Args) -> Tensor:
            return clamp(inner_start(args), args)

        return replace(problem, args=bounds, decode=decode, project=project, start=start)

    return clipped


def _change_variables(problem: Problem, encode: Map, decode: Map) -> Problem:
    """Search over ``z`` where ``decode(z)`` is the variable that was searched before."""
    still = problem.project is identity
    return replace(
        problem,
        encode=lambda x, args: encode(problem.encode(x, args), args),
        decode=lambda z, args: problem.decode(decode(z, args), args),
        start=lambda args: encode(problem.start(args), args),
        project=identity if still else _lifted(problem.project, encode, decode),
        costs=lifted(problem.costs, decode),
    )


def _lifted(move: Map, encode: Map, decode: Map) -> Map:
    """A projection of decoded points as one of encoded points; exactly nothing where nothing moves."""

    def lifted(z: Tensor, args: Args) -> Tensor:
        point = decode(z, args)
        moved = move(point, args)
        return torch.where((moved == point).all(), z, encode(moved, args))

    return lifted


def _bounds(
    where: str, problem: Problem, lower: float | Tensor, upper: float | Tensor, *, infinite: bool
) -> Args:
    args = check_problem(where, problem).args
    least = check_datum(where, "lower", lower, args["x0"], infinite=infinite)
    most = check_datum(where, "upper", upper, args["x0"], infinite=infinite)
    _refuse_crossed(where, least, most)
    x0, mask = (aligned(problem.dims, args, name) for name in ("x0", "mask"))
    outside = ((x0 < least) | (x0 > most)) & mask
    if bool(outside.any()):
        index = tuple(outside.nonzero()[0].tolist())
        raise ValueError(
            f"{where}: x0 must lie within the bounds wherever mask is True, got {int(outside.sum())} "
            f"entries outside, the first at {index}: {x0.expand(outside.shape)[index]:g}; clamp x0 or "
            "widen the bounds"
        )
    return with_data(where, problem, lower=least, upper=most)


def _refuse_crossed(where: str, lower: Any, upper: Any) -> None:
    """Refuse bounds of which the lower lies above the upper, as soon as both are known."""
    if isinstance(lower, int | float | Tensor) and isinstance(upper, int | float | Tensor):
        crossed = torch.as_tensor(lower > upper)
        if bool(crossed.any()):
            count = int(crossed.sum())
            raise ValueError(f"{where}: lower must be <= upper, got lower > upper in {count} places")


def _middle_and_half(args: Args) -> tuple[Tensor, Tensor]:
    lower, upper = args["lower"], args["upper"]
    half = 0.5 * (upper - lower)
    # Where both bounds are equal any width will do: the clamp leaves one value.
    return 0.5 * (lower + upper), torch.where(half > 0, half, torch.ones_like(half))


def _with_args(name: str, function: Any) -> Map:
    """``function(point, args)``, whether the caller's takes ``args`` or not."""
    if not callable(function):
        raise TypeError(f"reparametrize: {name} must be callable, got {type(function).__name__}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # torch's built-in functions have no signature; they take the point
        parameters = []
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) >= 2:
        return function
    return lambda point, args: function(point)
