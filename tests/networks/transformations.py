"""Transformations of torch.func, each with what ordinary autograd computes for it in a loop.

``TRANSFORMATIONS`` maps a name to ``(levels, transformed, expected)``: both take a function of tensors
and arguments with that many leading dimensions, and their results must agree.
"""

from collections.abc import Callable, Iterable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vjp, vmap

Fn = Callable[..., Any]
SIZE = 3


def outputs(fn: Fn) -> Callable[..., tuple[Tensor, ...]]:
    """The same function with a flat tuple of outputs."""

    def flat(value: Any) -> tuple[Tensor, ...]:
        return (value,) if isinstance(value, Tensor) else sum((flat(part) for part in value), ())

    return lambda *args: flat(fn(*args))


def real_outputs(fn: Fn) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *args: tuple(out for out in outputs(fn)(*args) if out.is_floating_point())


def loss(fn: Fn) -> Callable[..., Tensor]:
    """A scalar to which every output and entry contributes in its own way."""

    def scalar(*args: Tensor) -> Tensor:
        total = torch.zeros((), dtype=args[0].dtype)
        for out in real_outputs(fn)(*args):
            factors = torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view(out.shape)
            total = total + (factors * out.square()).sum() + out.sum()
        return total

    return scalar


def ordinary_grad(fn: Fn) -> Fn:
    def wrapped(*args: Tensor) -> tuple[Tensor, ...]:
        leaves = [arg.detach().requires_grad_() for arg in args]
        grads = torch.autograd.grad(fn(*leaves), leaves, allow_unused=True)
        return tuple(torch.zeros_like(a) if g is None else g for a, g in zip(args, grads, strict=True))

    return wrapped


def ordinary_jacobian(fn: Fn) -> Fn:
    return lambda *args: torch.autograd.functional.jacobian(real_outputs(fn), args)


def loop(fn: Fn) -> Fn:
    """What vmap should be."""

    def wrapped(*args: Tensor) -> Any:
        results = [fn(*row) for row in zip(*args, strict=True)]
        return optree.tree_map(lambda *leaves: torch.stack(leaves), *results)

    return wrapped


def all_arguments(transform: Fn, fn: Fn) -> Fn:
    return lambda *args: transform(fn, argnums=tuple(range(len(args))))(*args)


def pull_one(fn: Fn) -> Fn:
    """A cotangent that is the same for all rows."""

    def wrapped(*args: Tensor) -> Any:
        outs, pull = vjp(real_outputs(fn), *args)  # type: ignore[misc]  # no aux
        return pull(tuple(torch.ones_like(out) for out in outs))

    return wrapped


def pull_all(fn: Fn) -> Fn:
    """A Jacobian by a backward pass, of all directions, after the transforms of the function."""

    def wrapped(*args: Tensor) -> Any:
        leaves = [arg.detach().requires_grad_() for arg in args]

        def pull(out: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
            found = torch.autograd.grad(out, leaves, direction, retain_graph=True, allow_unused=True)
            return tuple(
                torch.zeros_like(a) if g is None else g for a, g in zip(leaves, found, strict=True)
            )

        def jacobian(out: Tensor) -> tuple[Tensor, ...]:
            directions = torch.eye(out.numel(), dtype=out.dtype).view(-1, *out.shape)
            return tuple(g.unflatten(0, out.shape) for g in vmap(pull, (None, 0))(out, directions))

        return tuple(jacobian(out) for out in fn(*leaves))

    return wrapped


TRANSFORMATIONS: dict[str, tuple[int, Callable[[Fn], Fn], Callable[[Fn], Fn]]] = {
    "grad": (
        0,
        lambda f: all_arguments(grad, loss(f)),
        lambda f: ordinary_grad(loss(f)),
    ),
    "jacrev": (
        0,
        lambda f: all_arguments(jacrev, real_outputs(f)),
        ordinary_jacobian,
    ),
    "vmap": (
        1,
        lambda f: vmap(outputs(f)),
        lambda f: loop(outputs(f)),
    ),
    "vmap_grad": (
        1,
        lambda f: vmap(all_arguments(grad, loss(f))),
        lambda f: loop(ordinary_grad(loss(f))),
    ),
    "vmap_vjp": (
        1,
        lambda f: vmap(pull_one(f)),
        lambda f: loop(ordinary_grad(lambda *args: sum(out.sum() for out in real_outputs(f)(*args)))),
    ),
    "grad_vmap": (
        1,
        lambda f: all_arguments(grad, lambda *args: vmap(loss(f))(*args).sum()),
        lambda f: loop(ordinary_grad(loss(f))),
    ),
    "vmap_jacrev": (
        1,
        lambda f: vmap(all_arguments(jacrev, real_outputs(f))),
        lambda f: loop(ordinary_jacobian(f)),
    ),
    "jacrev_vmap": (
        1,
        lambda f: all_arguments(jacrev, vmap(real_outputs(f))),
        lambda f: ordinary_jacobian(loop(outputs(f))),
    ),
    "vmap_then_pull": (
        1,
        lambda f: pull_all(vmap(real_outputs(f))),
        lambda f: ordinary_jacobian(loop(outputs(f))),
    ),
    "vmap_vmap_grad": (
        2,
        lambda f: vmap(vmap(all_arguments(grad, loss(f))), in_dims=1),
        lambda f: lambda *args: loop(loop(ordinary_grad(loss(f))))(*[a.transpose(0, 1) for a in args]),
    ),
    "vmap_grad_vmap": (
        2,
        lambda f: vmap(all_arguments(grad, lambda *args: vmap(loss(f))(*args).sum())),
        lambda f: loop(loop(ordinary_grad(loss(f)))),
    ),
}


def over_transformations(names: Iterable[str]) -> Any:
    """Parametrize over names, transformations and dtypes: each name with half of the transformations.

    Every other name has the other half; a few cases are in float32.
    """
    return pytest.mark.parametrize(
        ("name", "transformation", "dtype"),
        [
            pytest.param(name, transformation, dtype, id=f"{name}-{transformation}-{dtype}")
            for turn, name in enumerate(names)
            for place, transformation in enumerate(TRANSFORMATIONS)
            for dtype in (torch.float64, torch.float32)
            if (turn + place) % 2 == 0 and (dtype is torch.float64 or turn % 5 == place % 5)
        ],
    )


def draw(shapes: Any, levels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Standard normal arguments with leading dimensions."""
    generator = torch.Generator().manual_seed(4)
    return [
        torch.randn((SIZE,) * levels + tuple(shape), generator=generator, dtype=torch.float64).to(dtype)
        for shape in shapes
    ]
