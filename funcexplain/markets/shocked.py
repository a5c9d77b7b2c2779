"""The search over the shocks of a model of returns, shared by scenarios of the past and ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from funcexplain.markets.models import Data, Model, normal
from funcexplain.problems.checks import check_callable, check_like, check_shape
from funcexplain.problems.coordinates import reparametrize
from funcexplain.problems.grid import varying_dims
from funcexplain.problems.problem import Args, Problem, identity
from funcexplain.problems.transforms import add_data

Features = Callable[[Tensor], Tensor]
Inverse = Callable[[Tensor, Tensor], Tensor]


def search_shocks(
    where: str,
    problem: Problem,
    base: Tensor,
    model: Model,
    data: Data,
    compute: Features,
    inverse: Inverse,
) -> Problem:
    """The problem, searched over the shocks of a model to a base path; all data come from ``args``."""
    to_shocks, to_returns = model.encode, model.decode  # not the model, which holds its history

    def encode(x: Tensor, args: Args) -> Tensor:
        path = args["returns"]
        z = to_shocks(inverse(x, path), path, args)
        # Exactly zero at the reference, where an inverse rounds.
        return torch.where((x == args["reference"]).all(), 0.0, z)

    def returns(z: Tensor, args: Args) -> Tensor:
        return to_returns(z, args["returns"], args)

    def decode(z: Tensor, args: Args) -> Tensor:
        return compute(returns(z, args))

    args = add_data(where, problem, returns=base, **data)
    _check_base(where, problem, base, compute)
    changed = reparametrize(encode, decode)(replace(problem, args=args))
    if problem.project is not identity:  # the window is clamped
        return replace(changed, normal=problem.decode, altered_by="clip", returns=returns)
    return replace(changed, normal=changed.decode, altered_by="", returns=returns)


def check_model(where: str, given: Tensor | Model, returns: Tensor) -> Model:
    """A model of the assets, in the dtype of their returns; a covariance means a normal one."""
    if not isinstance(given, Model | Tensor):
        name = "model" if where == "ahead" else "cov"
        raise TypeError(
            f"{where}: {name} must be a covariance or a model of fe.models, such as "
            f"fe.models.normal(cov), got {type(given).__name__}"
        )
    cov = given.cov if isinstance(given, Model) else given
    cov = check_like(where, "cov", cov, returns, "returns")
    meaning = "one row and column for each asset of returns"
    check_shape(where, "cov", cov, 2 * returns.shape[1:], meaning)
    return given if isinstance(given, Model) else normal(cov)


def check_history(where: str, model: Model, known: Tensor) -> None:
    """Raise unless a model that has a history was estimated up to the last known day."""
    if model.history is None:
        return
    last = model.history[max(len(model.history) - len(known), 0) :]
    if len(last) != len(known) or bool(differs(last, known).any()):
        raise ValueError(
            f"{where}: the history of the model {model.name} must end with the {len(known)} known "
            "returns of the window, got another one; make it of the returns up to the last known day"
        )


def check_functions(where: str, features: Features | None, inverse: Inverse | None) -> None:
    """Raise unless both functions are given, or neither."""
    if (features is None) != (inverse is None):
        raise TypeError(
            f"{where}: features and inverse must be given together, got one of them; inverse=lambda "
            "window, returns: returns starts the search at the returns themselves"
        )
    if features is not None:
        check_callable(where, "features", features)
        check_callable(where, "inverse", inverse)


def differs(found: Tensor, expected: Tensor) -> Tensor:
    """Where values differ by more than rounding, relative to the size of each channel."""
    if expected.numel() == 0:
        return torch.zeros_like(expected, dtype=torch.bool)
    # Half of the digits: tolerates rounding, but not another day.
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().amax((-2, -1), keepdim=True)
    return (found - expected).abs() > tolerance


def _check_base(where: str, problem: Problem, returns: Tensor, compute: Features) -> None:
    """Raise unless the returns belong to the reference, and the search space is that of windows."""
    if varying_dims(problem.dims, "reference"):
        raise ValueError(
            f"{where}: problem must have one reference, got a grid mapped over several; apply {where} "
            "first, then map: fe.vmap(problem, x0=..., reference=..., returns=...)"
        )
    reference = problem.args["reference"]
    found = check_like(where, "features(returns)", compute(returns), reference, "x0")
    check_shape(where, "features(returns)", found, reference.shape, "that of x0")
    wrong = differs(found, reference)
    if bool(wrong.any()):
        index = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{where}: returns must be those behind the reference window, but {int(wrong.sum())} of "
            f"{wrong.numel()} features differ, the first at {index}: {found[index]:g}, expected "
            f"{reference[index]:g}; base_returns(prices, last_day, lookback, span) returns them, and "
            "features=... computes other channels"
        )
    if 0 in problem.shape:
        return
    row = problem[(0,) * len(problem.dims)]
    if not torch.equal(row.encode(reference, row.args), reference):
        raise ValueError(
            f"{where}: problem must be searched over windows, got one with a transformed search space; "
            f"leave standardize out, since {where} has its own units, and apply box and other "
            "transforms after it"
        )
