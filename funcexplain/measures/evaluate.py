"""Measures of an answer, row by row: does it hold, how far is it, how unusual, how stable?

The measures themselves are pure functions of one row, in `validity`, `proximity`, `plausibility` and
`stability`; here they are mapped over the rows of a grid, chunk after chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.measures import plausibility, proximity, stability, validity
from funcexplain.measures.metrics import DESCRIPTIONS, Metrics
from funcexplain.measures.plausibility import Past
from funcexplain.problems.checks import (
    check_count,
    check_datum,
    check_number,
    check_positive,
    check_tensor,
)
from funcexplain.problems.grid import mapped_dims, take, varying_dims
from funcexplain.problems.problem import Args, Problem, check_problem
from funcexplain.solutions.answer import Answer

Measured = dict[str, Tensor]


class _Asked(NamedTuple):
    """What is measured, and how; all checked."""

    problem: Problem
    past: Past | None
    scale: Tensor | None
    tolerance: float
    nearest: int
    noise: float
    seeds: Tensor
    models: Any
    atol: float


def evaluate(
    solution: Answer,
    problem: Problem,
    history: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    tolerance: float = 0.01,
    along: str | Sequence[str] | None = None,
    models: Any = None,
    atol: float = 1e-3,
    noise: float = 0.05,
    draws: int = 16,
    seed: int = 0,
    nearest: int = 5,
    top: int = 20,
    chunk_size: int = 256,
) -> Metrics:
    """Measure an answer, row by row: whether it holds, how far, how unusual and how stable it is.

    Every measure is described in ``metrics.descriptions``, and its formula stands in the function that
    computes it. What is not known is left out: measures in sigmas without a history, a ``scale`` or
    `standardize`; those against a history without one; those over starts where there are none.

    Args:
        solution: what `solve` found.
        problem: the question or grid that it answers.
        history: features of every day, ``(C, days, A)``, that windows could be cut from; the first
            channel is taken as returns.
        scale: one sigma, a number or a tensor that broadcasts to x, such as ``(C, 1, 1)``. Default: the
            standard deviation of each channel of the history, else the ``std`` of `standardize`.
        tolerance: a change counts from so many sigmas on; without sigmas, any change does.
        along: names of the dimensions of starts, over which diversity, spread and agreement are
            measured. Default: those along which only ``x0`` or ``seed`` vary.
        models: parameters of other models, stacked as by `stack`, that are asked at each answer.
        atol: under noise and for other models the target is hit where
            ``max |weights - target| <= atol``.
        noise: standard deviation in sigmas of the noise that free entries are moved by.
        draws: number of noisy windows per row; 0 for none.
        seed: seed of the noise; torch's global generator is not used.
        nearest: number of nearest windows that are averaged over.
        top: number of largest changes that are compared between starts.
        chunk_size: rows that are in work at once; the measures do not depend on it.

    Returns:
        The measures: a mapping from names to tensors of the rows' shape.

    Raises:
        TypeError: if an argument is of another type, or solution and problem differ in dtype or device.
        ValueError: for rows or windows that differ, a grid without rows, a history of another shape, not
            finite or not longer than a window, an unknown dimension, or a number out of range.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> metrics = fe.evaluate(fe.solve(p, fe.adam(lr=0.1), atol=1e-3), p, scale=1.0, draws=0)
        >>> metrics["hit"], metrics["assets_touched"]
        (tensor(True), tensor(2))
        >>> print(metrics)
        hit                 1  whether the search ended with the target hit
        max_error    0.000...  largest deviation of a weight from the target
        ...

    References:
        R. Guidotti (2022), Counterfactual Explanations and How to Find Them: Literature Review and
        Benchmarking, https://doi.org/10.1007/s10618-022-00831-6
    """
    _check_answer(solution, problem)
    x0 = problem.args["x0"]
    first = check_count("evaluate", "seed", seed) * check_count("evaluate", "draws", draws)
    if models is not None:
        stability.check_models(problem, models)
    asked = _Asked(
        problem=problem,
        past=None if history is None else _checked_past(history, x0),
        scale=None if scale is None else _checked_scale(scale, x0),
        tolerance=check_number("evaluate", "tolerance", tolerance, minimum=0.0),
        nearest=check_positive("evaluate", "nearest", nearest),
        noise=check_number("evaluate", "noise", noise, minimum=0.0),
        seeds=first + torch.arange(draws, device=x0.device),
        models=models,
        atol=check_number("evaluate", "atol", atol, minimum=0.0),
    )
    check_positive("evaluate", "chunk_size", chunk_size)
    check_positive("evaluate", "top", top)
    dims = _dims_of_starts(problem, along)
    values = {"hit": solution.hit}
    with torch.no_grad():
        total = math.prod(problem.shape)
        for rows in torch.arange(total, device=x0.device).split(chunk_size):
            for name, value in _of_rows(asked, solution.flat(rows), rows).items():
                # Copied: what a chunk measured may be a view of all that it was measured with.
                values.setdefault(name, value.new_empty(total))[rows] = value
        values = {name: value.reshape(problem.shape) for name, value in values.items()}
        if dims and _in_sigmas(asked):
            values |= _of_starts(asked, solution, dims, min(top, x0.shape[-3:].numel()), chunk_size)
    return Metrics({name: values[name] for name in DESCRIPTIONS if name in values}, solution.dims)


def _of_rows(asked: _Asked, answer: Answer, rows: Tensor) -> Measured:
    """All measures of single rows, each ``(B,)``."""
    problem, x, weights = asked.problem, answer.x, answer.weights
    args, in_dims = take(problem.dims, problem.args, rows), mapped_dims(problem.dims, problem.args)
    sigma = _sigma(asked, args)

    def of_one(x: Tensor, weights: Tensor, sigma: Tensor, args: Args) -> Measured:
        _, (_, today) = problem.evaluate(args["reference"], args)
        measured = _valid(problem, weights, today, args["target"])
        measured |= _near(asked, x.double() - args["reference"].double(), sigma)
        if asked.past is not None:
            measured |= _plausible(asked.past, x.double(), sigma, asked.nearest)
        return measured

    along = (0, 0, 0 if sigma.ndim > 3 else None, in_dims)
    values = torch.func.vmap(of_one, in_dims=along)(x, weights, sigma, args)
    errors = _errors_of(problem)
    if len(asked.seeds) and _in_sigmas(asked):
        noisy = stability.errors_under_noise(errors, x, args, asked.noise * sigma, asked.seeds)
        values["noise_error"] = noisy.mean(0)
        values["invalidation"] = 1.0 - _share_of_hits(noisy, asked.atol)
    if asked.models is not None:
        others = stability.errors_of_models(errors, x, args, asked.models)
        values["ensemble_error"] = others.mean(0)
        values["ensemble_hit"] = _share_of_hits(others, asked.atol)
    return values


def _valid(problem: Problem, weights: Tensor, today: Tensor, target: Tensor) -> Measured:
    compare = problem.criterion.compare
    measured, nearest = (side.double() for side in compare(weights, target))
    before = validity.total_variation(*(side.double() for side in compare(today, target)))
    now = validity.total_variation(measured, nearest)
    return {
        "max_error": validity.max_error(measured, nearest),
        "total_variation": now,
        "kl": validity.divergence(measured, nearest),
        "gap_closed": validity.gap_closed(now, before),
    }


def _near(asked: _Asked, change: Tensor, sigma: Tensor) -> Measured:
    in_sigmas = proximity.in_units(change, sigma)
    # Without sigmas there is no unit for a tolerance.
    tolerance = asked.tolerance if _in_sigmas(asked) else 0.0
    measured = {
        "l1": proximity.l1(change),
        "l2": proximity.l2(change),
        "linf": proximity.linf(change),
        "changed_share": proximity.changed_share(in_sigmas, tolerance),
        "gini": proximity.gini(in_sigmas),
    }
    for axis in ("assets", "days", "channels"):
        measured[f"{axis}_touched"] = proximity.touched(in_sigmas, tolerance, axis)
    if _in_sigmas(asked):
        measured["rms_sigmas"] = proximity.rms(in_sigmas)
    if asked.past is not None:
        measured["mad_distance"] = proximity.mad_distance(change, asked.past.mad)
    return measured


def _plausible(past: Past, x: Tensor, sigma: Tensor, nearest: int) -> Measured:
    daily = torch.func.vmap(plausibility.turbulence, in_dims=(0, None, None))
    days = daily(x[0], past.mean, past.whiten)
    facts = plausibility.stylized_facts(x[0])
    gaps = facts - past.facts
    return {
        "turbulence": days[-1],
        "turbulence_percentile": plausibility.percentile(days[-1], past.turbulence),
        "window_turbulence": days.mean(),
        "window_turbulence_percentile": plausibility.percentile(days.mean(), past.window_turbulence),
        "nearest_windows": plausibility.nearest_windows(x, past, sigma, nearest),
        "in_range": plausibility.in_range(x, past.lower, past.upper),
        "volatility_ratio": facts[0] / past.facts[0],
        "correlation_gap": gaps[1],
        "kurtosis_gap": gaps[2],
        "autocorrelation_gap": gaps[3],
    }


def _of_starts(
    asked: _Asked, answer: Answer, dims: Sequence[int], top: int, chunk_size: int
) -> Measured:
    """Measures of each row against the others along dimensions, of the rows' shape."""
    problem, shape = asked.problem, asked.problem.shape
    kept = [place for place in range(len(shape)) if place not in dims]
    # Numbers of the rows, a line for each group.
    numbers = (
        torch.arange(math.prod(shape), device=problem.args["x0"].device)
        .reshape(shape)
        .permute(*kept, *dims)
    )
    groups = numbers.reshape(-1, math.prod(shape[place] for place in dims))

    def of_group(changes: Tensor) -> Measured:
        return {
            "diversity": stability.apart(changes),
            "spread": stability.spread(changes).expand(len(changes)),
            "agreement": stability.agreement(changes, top),
        }

    values: Measured = {}
    for part in groups.split(max(1, chunk_size // groups.shape[1])):
        rows = part.flatten()
        args = take(problem.dims, problem.args, rows)
        changes = proximity.in_units(
            answer.flat(rows).x.double() - args["reference"].double(), _sigma(asked, args)
        )
        found = torch.func.vmap(of_group)(changes.reshape(*part.shape, -1))
        for name, value in found.items():
            values.setdefault(name, value.new_empty(math.prod(shape)))[rows] = value.flatten()
    return {name: value.reshape(shape) for name, value in values.items()}


def _errors_of(problem: Problem) -> stability.Errors:
    """Largest deviation from the target of each of several windows."""
    compare, in_dims = problem.criterion.compare, mapped_dims(problem.dims, problem.args)

    def error(x: Tensor, args: Args) -> Tensor:
        _, (_, weights) = problem.evaluate(x, args)
        return validity.max_error(*compare(weights, args["target"])).double()

    def errors(x: Tensor, args: Args, shared: tuple[str, ...] = ()) -> Tensor:
        along = {name: None if name in shared else dim for name, dim in in_dims.items()}
        return torch.func.vmap(error, in_dims=(0, along))(x, args)

    return errors


def _share_of_hits(errors: Tensor, atol: float) -> Tensor:
    """Share along the first dimension; a deviation that is NaN is no hit."""
    return (errors <= atol).double().mean(0)


def _in_sigmas(asked: _Asked) -> bool:
    """Whether it is known what a sigma is."""
    return asked.scale is not None or asked.past is not None or "std" in asked.problem.args


def _sigma(asked: _Asked, args: Args) -> Tensor:
    """One sigma of the entries of x, leading with ``(B,)`` where it varies by row; else one."""
    x0 = args["x0"]
    if asked.scale is not None:
        return asked.scale
    if asked.past is not None:
        return asked.past.sigma
    if "std" not in args:
        return torch.ones(1, 1, 1, dtype=torch.float64, device=x0.device)
    std = args["std"].double()
    if not varying_dims(asked.problem.dims, "std"):
        return std
    # Behind the rows all dimensions of a window are written out, so that it broadcasts with windows.
    return std.reshape(len(std), *[1] * (4 - std.ndim), *std.shape[1:])


def _dims_of_starts(problem: Problem, along: str | Sequence[str] | None) -> list[int]:
    """The dimensions over which starts are compared."""
    if along is None:
        return [place for place, dim in enumerate(problem.dims) if dim.varying <= {"x0", "seed"}]
    names = [dim.name for dim in problem.dims]
    wanted = [along] if isinstance(along, str) else list(along)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"evaluate: along must be names among {names}, got {unknown}")
    return sorted({names.index(name) for name in wanted})


def _check_answer(solution: Any, problem: Any) -> None:
    check_problem("evaluate", problem)
    if not isinstance(solution, Answer):
        raise TypeError(f"evaluate: solution must be a Solution, got {type(solution).__name__}")
    x0 = problem.args["x0"]
    # One row tells of all: of an answer in files, no more is read.
    some = solution.sample.x
    if solution.shape != problem.shape or some.shape[-3:] != x0.shape[-3:]:
        raise ValueError(
            f"evaluate: solution must have the rows {problem.shape} and windows "
            f"{tuple(x0.shape[-3:])} of the problem, got {solution.shape} and "
            f"{tuple(some.shape[-3:])}; pick the same rows of both"
        )
    if 0 in problem.shape:
        raise ValueError(f"evaluate: expected at least one row, got a grid of {problem.shape}")
    if (some.dtype, some.device) != (x0.dtype, x0.device):
        raise TypeError(
            f"evaluate: solution must be of the problem's dtype and device ({x0.dtype}, {x0.device}), "
            f"got {some.dtype}, {some.device}; fe.cast moves a problem"
        )


def _checked_past(history: Any, x0: Tensor) -> Past:
    days = check_tensor("evaluate", "history", history).to(x0.device)
    channels, lookback, assets = x0.shape[-3:]
    if (
        days.ndim != 3
        or (days.shape[0], days.shape[2]) != (channels, assets)
        or days.shape[1] <= lookback
    ):
        raise ValueError(
            f"evaluate: history must have shape ({channels}, days, {assets}) with more than {lookback} "
            f"days, the channels and assets of x, got {tuple(days.shape)}"
        )
    return plausibility.summarize(days, lookback)


def _checked_scale(scale: Any, x0: Tensor) -> Tensor:
    sigma = check_datum("evaluate", "scale", scale, x0)
    if bool((sigma <= 0).any()):
        raise ValueError(f"evaluate: scale must be > 0, got a least value of {sigma.min():g}")
    return sigma.double()
