"""Tied entries of a window, such as a macro series copied across assets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from funcexplain.problems.checks import as_index
from funcexplain.problems.law import keep_law
from funcexplain.problems.problem import Args, Problem, check_problem
from funcexplain.problems.transforms import Transform

_AXES = {"assets": -1, "days": -2}


def tie(dims: str | Sequence[str] = "assets", *, channels: Iterable[int] | None = None) -> Transform:
    """Tie entries along dimensions: they stay equal and are searched as one number.

    A macro series that is copied across assets is one series: ``tie("assets", channels=[2])``. The
    window has the mean along the dimensions, ``x = mean(decode(z))``, whose gradient all entries share.

    Args:
        dims: ``"assets"``, ``"days"`` or both; entries that differ only in these are tied.
        channels: numbers of the channels whose entries are tied. Default: all.

    Returns:
        A transform.

    Raises:
        TypeError: if ``channels`` are not integers.
        ValueError: for another dimension or channel, or if entries of ``x0`` or ``reference`` that would
            be tied differ.

    Example:
        >>> import torch, funcexplain as fe
        >>> layers = torch.nn.Flatten(), torch.nn.Linear(4, 2), torch.nn.Softmax(-1)
        >>> network = torch.nn.Sequential(*layers)
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(2, 1, 2))
        >>> x = fe.solve(fe.tie("assets", channels=[1])(p), max_steps=50).x
        >>> bool(x[1, 0, 0] == x[1, 0, 1]), bool(x[0, 0, 0] == x[0, 0, 1])
        (True, False)
    """
    names = [dims] if isinstance(dims, str) else list(dims)
    if not names or any(name not in _AXES for name in names):
        raise ValueError(f"tie: dims must be names among {list(_AXES)}, got {dims!r}")
    axes = [_AXES[name] for name in names]
    numbers = None if channels is None else [as_index(number) for number in channels]
    if numbers is not None and None in numbers:
        raise TypeError(f"tie: channels must be integers, got {channels!r}")

    def average(x: Tensor) -> Tensor:
        first = x
        for axis in axes:
            first = first.narrow(axis, 0, 1)
        # Exact where all entries are equal.
        tied = (first + (x - first).mean(axes, keepdim=True)).expand_as(x)
        if numbers is None:
            return tied
        chosen = torch.zeros(x.shape[-3], dtype=torch.bool, device=x.device)
        chosen[numbers] = True
        return torch.where(chosen[:, None, None], tied, x)

    def transform(problem: Problem) -> Problem:
        check_problem("tie", problem)
        count = problem.args["x0"].shape[-3]
        if numbers is not None and not all(-count <= number < count for number in numbers):
            raise ValueError(f"tie: channels must be among {count}, 0 to {count - 1}, got {channels!r}")
        for name in ("x0", "reference"):
            window = problem.args[name]
            # Rounding of copies is tolerated.
            if not torch.allclose(average(window), window, rtol=1e-5, atol=1e-8):
                raise ValueError(
                    f"tie: entries of {name} that are tied must be equal along {' and '.join(names)}, "
                    "got different ones; choose the channels that are copies, as in channels=[2]"
                )
        inner = problem.decode

        def decode(z: Tensor, args: Args) -> Tensor:
            return average(inner(z, args))

        return keep_law(problem, replace(problem, decode=decode))

    return transform
