"""Measures of an answer, row by row: validity, distance, plausibility and stability.

The measures are pure functions of one row, in `validity`, `proximity`, `plausibility` and `stability`;
here they are mapped over the rows of a grid, chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.forward import weights_of
from funcexplain.measures import proximity, stability, validity
from funcexplain.measures.market import WORST, Market, measure_dated
from funcexplain.measures.metrics import DESCRIPTIONS, Metrics
from funcexplain.measures.paths import paths_of
from funcexplain.measures.rarity import log10_chance
from funcexplain.measures.stability import NOISES, under_noise
from funcexplain.networks.network import SEED, deferred_interrupts, raise_pending
from funcexplain.problems.checks import (
    check_count,
    check_datum,
    check_memory,
    check_number,
    check_positive,
    check_tensor,
)
from funcexplain.problems.grid import mapped_dims, row_numbers, take_rows, varying_dims
from funcexplain.problems.problem import Args, Problem
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution

Measured = dict[str, Tensor]


_STARTS = {"x0", "seed", "jitter", "place"}  # what varies between starts of one question


class _Settings(NamedTuple):
    """Checked arguments of `evaluate`."""

    problem: Problem
    market: Market | None
    scale: Tensor | None
    tolerance: float
    nearest: int
    noise: float
    seeds: Tensor
    models: Any
    atol: float


def evaluate(
    solution: Solution,
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
    """Measure an answer, row by row: validity, distance, plausibility and stability.

    ``metrics.descriptions`` describes every measure; the function that computes it has the formula.
    Measures without data are left out: those in sigmas without a history, a ``scale`` or `standardize`,
    those that need a history, and those over starts.

    Args:
        solution: the result of `solve`.
        problem: the question or grid that it answers.
        history: of the market (`Solution.history` holds losses): features of every day,
            ``(C, days, A)``, with the channels of the windows; the first channel must hold returns. A
            row whose reference is one of its windows sees only the days up to that window.
        scale: one sigma, a number or a tensor that broadcasts to x, such as ``(C, 1, 1)``. Default: the
            standard deviation of each channel of the history, else the ``std`` of `standardize`.
        tolerance: minimum change, in sigmas, that counts; without sigmas, any change counts.
        along: names of the dimensions of starts, for diversity, spread and agreement. Default: those
            along which only ``x0``, ``seed`` or ``jitter`` vary.
        models: parameters of other models, stacked as by `stack`, evaluated at each answer.
        atol: under noise and for other models the target is hit where
            ``max |weights - target| <= atol``.
        noise: standard deviation, in sigmas, of the noise added to free entries. ``held_0.1``,
            ``today_moves_0.1`` and the like have their own noise, in a scenario that of the path.
        draws: number of noisy windows per row; 0 for none. If the network raises at one, it is a miss.
        seed: seed of the noise; torch's global generator is not used.
        nearest: number of nearest windows to average over.
        top: number of largest changes to compare between starts.
        chunk_size: number of rows measured at a time; the measures do not depend on it.

    Returns:
        The measures: a mapping from names to tensors of the rows' shape.

    Raises:
        TypeError: if an argument has the wrong type, or solution and problem differ in dtype or device.
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
    problem = check_answer("evaluate", solution, problem)
    if 0 in problem.shape:
        raise ValueError(f"evaluate: expected at least one row, got a grid of {problem.shape}")
    x0 = problem.args["x0"]
    first = check_count("evaluate", "seed", seed) * check_count("evaluate", "draws", draws)
    if first + draws >= 1 << 63:
        raise ValueError(f"evaluate: seed must be below 2**63 / draws, got {seed} and {draws} draws")
    if models is not None:
        stability.check_models("evaluate", problem, models)
    chunk_size = check_positive("evaluate", "chunk_size", chunk_size)
    num_bytes = 8 * int(draws) * min(math.prod(problem.shape), chunk_size)
    check_memory("evaluate", "draws", draws, num_bytes, x0.device)
    settings = _Settings(
        problem=problem,
        market=None if history is None else _checked_market(history, x0),
        scale=None if scale is None else _checked_scale(scale, x0),
        tolerance=check_number("evaluate", "tolerance", tolerance, minimum=0.0),
        nearest=check_positive("evaluate", "nearest", nearest),
        noise=check_number("evaluate", "noise", noise, minimum=0.0),
        seeds=first + torch.arange(draws, device=x0.device),
        models=models,
        atol=check_number("evaluate", "atol", atol, minimum=0.0),
    )
    check_positive("evaluate", "top", top)
    dims = _dims_of_starts(problem, along)
    values = {"hit": solution.hit}
    with deferred_interrupts(), torch.no_grad():
        total = math.prod(problem.shape)
        for rows in torch.arange(total, device=x0.device).split(chunk_size):
            raise_pending()
            for name, value in _measure_rows(settings, solution.flat(rows), rows).items():
                # Copied: the measures of a chunk may be views of larger tensors.
                values.setdefault(name, value.new_empty(total))[rows] = value
        values = {name: value.reshape(problem.shape) for name, value in values.items()}
        if dims and _in_sigmas(settings):
            top = min(top, x0.shape[-3:].numel())
            values |= _measure_starts(settings, solution, dims, top, chunk_size)
    worst = {name.removeprefix(WORST): v for name, v in values.items() if name.startswith(WORST)}
    measures = {name: values[name] for name in DESCRIPTIONS if name in values}
    return Metrics(measures, solution.dims, worst)


def _measure_rows(settings: _Settings, solution: Solution, rows: Tensor) -> Measured:
    """All measures of single rows, each ``(B,)``."""
    problem, x, weights = settings.problem, solution.x, solution.weights
    args, in_dims = take_rows(problem.dims, problem.args, rows), mapped_dims(problem.dims, problem.args)
    market, ends, dated = settings.market, list[int](), dict[str, Tensor]()
    paths = paths_of(problem, x, args, solution.z)
    if market is not None:
        dates = market.dates(problem, args, paths.free)
        ends = [end for end, _ in dates]
        market.ends |= dict(zip(rows.tolist(), ends, strict=True))
        dated = {"mad": torch.stack([market.past(end).mad for end in ends])}
    sigma = _sigma(settings, args, ends)

    # The reference of all rows is one window if nothing that the network sees varies.
    shared = all(in_dims[name] is None for name in ("reference", "params", "seed"))
    references = args["reference"].expand(1 if shared else len(x), *x.shape[1:])
    today = weights_of(problem, references, args, in_dims).expand_as(weights)

    def measure_row(
        x: Tensor, weights: Tensor, today: Tensor, sigma: Tensor, dated: Measured, args: Args
    ) -> Measured:
        measured = _validity(problem, weights, today, args["target"])
        return measured | _proximity(settings, x.double() - args["reference"].double(), sigma, **dated)

    row_dims = (0, 0, 0, 0 if sigma.ndim > 3 else None, 0, in_dims)
    values = torch.func.vmap(measure_row, in_dims=row_dims)(x, weights, today, sigma, dated, args)
    if market is not None:
        values |= measure_dated(market, x, paths, dates, settings.scale, settings.nearest)
    if paths.shocks is not None:
        known = paths.shocks.isfinite()
        chance = log10_chance(torch.where(known, paths.shocks, 0.0))
        values["log10_chance"] = torch.where(known.flatten(1).all(1), chance, torch.nan)
    errors = _errors(problem)
    if len(settings.seeds) and _in_sigmas(settings):
        noisy = stability.errors_under_noise(errors, x, args, settings.noise * sigma, settings.seeds)
        values["noise_error"] = noisy.mean(0)
        # NaN counts as a miss, also where the network raises.
        values["invalidation"] = 1.0 - (noisy <= settings.atol).double().mean(0)
    if len(settings.seeds) and (problem.law or _in_sigmas(settings)):
        values |= _under_noise(settings, solution, rows, args, sigma)
    if settings.models is not None:
        others = stability.errors_of_models(errors, x, args, settings.models)
        values["ensemble_error"] = others.mean(0)
        values["ensemble_hit"] = (others <= settings.atol).double().mean(0)
    return values


def _under_noise(
    settings: _Settings, solution: Solution, rows: Tensor, args: Args, sigma: Tensor
) -> Measured:
    """Whether answers survive ordinary noise, and what it does to the weights at the reference.

    ``held_S`` is the share of draws of noise of ``S`` sigmas, of the path in a scenario, under which the
    target holds within ``atol``: an estimate of ``P(target | this market plus noise)``.
    ``today_moves_S`` is the mean over the draws of the largest change of a weight at the reference. An
    answer that noise undoes is suspicious only if the same noise leaves today's weights unchanged.
    """
    problem, seeds, scale = settings.problem, settings.seeds, None if settings.problem.law else sigma
    answers = under_noise(problem, solution.z if problem.law else solution.x, args, scale, seeds)
    # The reference of several starts is one.
    seeded = isinstance(args["params"], dict) and SEED in args["params"]
    unseen = {"target", "precedents", *_STARTS} - ({"seed"} if seeded else set())
    along = [place for place, dim in enumerate(problem.dims) if dim.varying - unseen]
    numbers, group = row_numbers(problem.dims, along, rows).unique(return_inverse=True)
    first = torch.stack([(group == number).int().argmax() for number in range(len(numbers))])
    args_of = take_rows(problem.dims, problem.args, rows[first])
    points = args_of["reference"].expand(len(first), *solution.x.shape[1:])
    if problem.law:
        data = {name: value for name, value in args_of.items() if name != "params"}
        in_dims = mapped_dims(problem.dims, data) | {"reference": 0}
        data["reference"] = points
        points = torch.func.vmap(problem.encode, (0, in_dims))(points, data)
    elif sigma.ndim > 3:
        scale = sigma[first]
    today = under_noise(problem, points, args_of, scale, seeds)

    def error(weights: Tensor, target: Tensor) -> Tensor:
        return problem.criterion.error(weights, target, atol=settings.atol)

    errors = torch.func.vmap(error, (0, mapped_dims(problem.dims, args)["target"]))
    values = {}
    for size in NOISES:
        held = torch.stack([errors(weights, args["target"]) for weights in answers[size]])
        values[f"held_{size:g}"] = (held <= settings.atol).double().mean(0)
        moves = (today[size] - today[0.0]).abs().flatten(2).amax(2).double()
        values[f"today_moves_{size:g}"] = moves.nanmean(0)[group]
    return values


def _validity(problem: Problem, weights: Tensor, today: Tensor, target: Tensor) -> Measured:
    """Measures of `validity` for one row."""
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


def _proximity(
    settings: _Settings, change: Tensor, sigma: Tensor, mad: Tensor | None = None
) -> Measured:
    """Measures of `proximity` for one row."""
    in_sigmas = proximity.in_units(change, sigma)
    # Without sigmas, a tolerance has no unit.
    tolerance = settings.tolerance if _in_sigmas(settings) else 0.0
    measured = {
        "l1": proximity.l1(change),
        "l2": proximity.l2(change),
        "linf": proximity.linf(change),
        "changed_share": proximity.changed_share(in_sigmas, tolerance),
        "gini": proximity.gini(in_sigmas),
    }
    for axis in ("assets", "days", "channels"):
        measured[f"{axis}_touched"] = proximity.touched(in_sigmas, tolerance, axis)
    if _in_sigmas(settings):
        measured["rms_sigmas"] = proximity.rms(in_sigmas)
    if mad is not None:
        measured["mad_distance"] = proximity.mad_distance(change, mad)
    return measured


def _measure_starts(
    settings: _Settings, solution: Solution, dims: list[int], top: int, chunk_size: int
) -> Measured:
    """Measures of each row against the others along dimensions, of the rows' shape."""
    problem, shape = settings.problem, settings.problem.shape
    total = math.prod(shape)
    numbers = torch.arange(total, device=problem.args["x0"].device).reshape(shape)
    # Row numbers, one line per group: the dimensions to compare along become the last one.
    size = math.prod(shape[dim] for dim in dims)
    groups = numbers.movedim(dims, [*range(-len(dims), 0)]).reshape(-1, size)

    def measure_group(changes: Tensor) -> Measured:
        return {
            "diversity": stability.diversity(changes),
            "spread": stability.spread(changes).expand(len(changes)),
            "agreement": stability.overlap(changes, top),
        }

    values: Measured = {}
    for part in groups.split(max(1, chunk_size // groups.shape[1])):
        rows = part.flatten()
        args = take_rows(problem.dims, problem.args, rows)
        ends = [settings.market.ends[row] for row in rows.tolist()] if settings.market else []
        changes = solution.flat(rows).x.double() - args["reference"].double()
        changes = proximity.in_units(changes, _sigma(settings, args, ends))
        measured = torch.func.vmap(measure_group)(changes.reshape(*part.shape, -1))
        for name, value in measured.items():
            values.setdefault(name, value.new_empty(total))[rows] = value.flatten()
    return {name: value.reshape(shape) for name, value in values.items()}


def _errors(problem: Problem) -> stability.Errors:
    """A function for the largest deviation from the target at each of several windows."""
    compare, in_dims = problem.criterion.compare, mapped_dims(problem.dims, problem.args)

    def error(weights: Tensor, target: Tensor) -> Tensor:
        return validity.max_error(*compare(weights, target)).double()

    def errors(x: Tensor, args: Args, shared: tuple[str, ...] = ()) -> Tensor:
        along = {name: None if name in shared else dim for name, dim in in_dims.items()}
        weights = weights_of(problem, x, args, along, skip_errors=True)
        return torch.func.vmap(error, in_dims=(0, along["target"]))(weights, args["target"])

    return errors


def _in_sigmas(settings: _Settings) -> bool:
    """Whether the size of a sigma is known."""
    return settings.scale is not None or settings.market is not None or "std" in settings.problem.args


def _sigma(settings: _Settings, args: Args, ends: Sequence[int]) -> Tensor:
    """One sigma of the entries of x, leading with ``(B,)`` if it varies by row; 1 if unknown."""
    x0 = args["x0"]
    if settings.scale is not None:
        return settings.scale
    if settings.market is not None:
        return torch.stack([settings.market.past(end).sigma for end in ends])
    if "std" not in args:
        return torch.ones(1, 1, 1, dtype=torch.float64, device=x0.device)
    std = args["std"].double()
    if not varying_dims(settings.problem.dims, "std"):
        return std
    # All dimensions of a window are written out after the rows, to broadcast with windows.
    return std.reshape(len(std), *[1] * (4 - std.ndim), *std.shape[1:])


def _dims_of_starts(problem: Problem, along: str | Sequence[str] | None) -> list[int]:
    """The dimensions along which starts are compared."""
    if along is None:
        return [place for place, dim in enumerate(problem.dims) if dim.varying <= _STARTS]
    names = [dim.name for dim in problem.dims]
    wanted = [along] if isinstance(along, str) or not isinstance(along, Iterable) else list(along)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"evaluate: along must be names among {names}, got {unknown}")
    return sorted({names.index(name) for name in wanted})


def _checked_market(history: Any, x0: Tensor) -> Market:
    """A checked history."""
    days = check_tensor("evaluate", "history", history).to(x0.device)
    channels, lookback, assets = x0.shape[-3:]
    fits = days.ndim == 3 and days.shape[::2] == (channels, assets)
    if not fits or days.shape[1] <= lookback:
        raise ValueError(
            f"evaluate: history must have shape ({channels}, days, {assets}) with more than {lookback} "
            f"days, the channels and assets of x, got {tuple(days.shape)}"
        )
    return Market(days, lookback)


def _checked_scale(scale: Any, x0: Tensor) -> Tensor:
    """A checked scale in float64."""
    sigma = check_datum("evaluate", "scale", scale, x0)
    if bool((sigma <= 0).any()):
        raise ValueError(f"evaluate: scale must be > 0, got a minimum of {sigma.min():g}")
    return sigma.double()
