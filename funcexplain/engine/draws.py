"""Draws of markets at which the target holds, from the law of the search point given the target.

Chains start at the last level of subset simulation. Their moves alternate: in all directions, and
across the mean of the level alone, where most directions hardly matter to the target. They run,
twice as long each time, until they mix.

References:
    A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Bürkner (2021), Rank-Normalization, Folding,
    and Localization: An Improved R-hat, https://doi.org/10.1214/20-BA1221
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from funcexplain.engine.estimators import pilot, points_of_a_level
from funcexplain.engine.event import Event, check_event, forwards_only
from funcexplain.engine.solve import answer
from funcexplain.engine.subset import Chains, Level, adapt, climb, complete, move
from funcexplain.networks.network import deferred_interrupts, raise_repeated, warn_of_noise
from funcexplain.networks.noise import fold_in
from funcexplain.problems.checks import check_positive
from funcexplain.problems.problem import Problem, check_question
from funcexplain.solutions.draws import Draws, Mixing
from funcexplain.solutions.solution import Solution, Status

# Chains mix well enough where R-hat is at most this, and the effective sample this share of the draws.
_RHAT, _EFFECTIVE = 1.1, 0.5
_FIRST_MOVES = 4
_PASSES = 10  # at most: 2**10 times the first moves


def sample(
    problem: Problem,
    num_draws: int,
    *,
    atol: float = 1e-3,
    num_samples: int = 40_000,
    num_chains: int = 32,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Draws:
    """Draw markets at which the target holds, from the law of ``z`` given a hit.

    The draws are equally weighted. Their mean estimates the mean over all markets that reach the target,
    under the model of the scenario.

    Args:
        problem: one question, made by ``fe.scenarios.scenario`` or ``fe.scenarios.ahead``.
        num_draws: number of draws, at least one for each chain.
        atol: the target is hit where ``max |weights - target| <= atol``.
        num_samples: approximate number of windows evaluated: half of them to reach the target, the
            others until chains mix.
        num_chains: number of Markov chains.
        seed: seed of the draws, with ``args["seed"]``.
        chunk_size: as for `probability`.

    Returns:
        A solution with the row dimension ``draw``; all draws hit. Check ``mixing.rhat`` and
        ``mixing.effective_sample_size`` before you trust the draws. `evaluate` and `report` accept it
        with the question. After Ctrl-C, the hits so far, the last one INTERRUPTED.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the search point has no law, for a grid, fewer draws than chains, a target that
            fixes a weight with ``atol=0``, or one that is not met within ``num_samples``.
        KeyboardInterrupt: after Ctrl-C before the first hits.

    Example:
        >>> import torch, funcexplain as fe
        >>> base, cov = torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1)).double()
        >>> p = fe.problem(network, fe.targets.at_least(0, 0.99), base[None])
        >>> window, path = lambda r: r[None], lambda x, r: x[0]    # the network sees the returns
        >>> p = fe.scenarios.scenario(base, cov, features=window, inverse=path)(p)
        >>> draws = fe.sample(p, 100)
        >>> bool(draws.hit.all()), bool((draws.z[:, 0, 0] - draws.z[:, 0, 1] > 4.4).all())
        (True, True)

    References:
        S.-K. Au, J. L. Beck (2001), Estimation of Small Failure Probabilities in High Dimensions by
        Subset Simulation, https://doi.org/10.1016/S0266-8920(01)00019-4
    """
    atol = check_event("sample", problem, atol, seed, chunk_size)
    check_question("sample", problem)
    num_draws = check_positive("sample", "num_draws", num_draws)
    num_samples = check_positive("sample", "num_samples", num_samples)
    num_chains = check_positive("sample", "num_chains", num_chains)
    if num_draws < num_chains:
        raise ValueError(
            f"sample: num_draws must be at least num_chains, one draw for each chain, got {num_draws} "
            f"for {num_chains}; pass fewer num_chains"
        )
    warn_of_noise("sample", problem.apply)
    raise_repeated()
    event, key = Event(problem, atol, chunk_size), fold_in(problem.args["seed"], seed)
    with deferred_interrupts() as hold, forwards_only(problem):
        level = _last_level(event, atol, num_samples // 2, key)
        points, mixing = _mix(event, level, num_draws, num_chains, num_samples, fold_in(key, 6))
        return answer(hold, solution_of(event, points, atol, mixing))  # type: ignore[return-value]


class _Kept(NamedTuple):
    """The record of one pass: the chains' points and errors, ``(T, C, ...)``, and how many moved."""

    points: Tensor
    errors: Tensor
    acceptance: float


def _last_level(event: Event, atol: float, budget: int, seed: Tensor) -> Level:
    """The level at which the target holds."""
    _, share, _ = complete(event, pilot(event, atol, budget, seed))
    count = points_of_a_level(max(1, budget - event.num_forwards), share)
    search = climb(
        event.like, atol, count, fold_in(seed, 3), lambda level: event.num_forwards > 2 * budget
    )
    level = complete(event, search)
    if level.threshold > atol or not len(level.points):
        raise ValueError(
            f"sample: problem must have a target that is met within num_samples, got none of "
            f"{event.num_forwards} markets that meets it; fe.probability gives an upper bound"
        )
    return level


def _mix(
    event: Event, level: Level, num_draws: int, num_chains: int, budget: int, seed: Tensor
) -> tuple[Tensor, Mixing]:
    """Points of chains that were moved on until they mix, ``(num_draws, n)``."""
    length = -(-num_draws // num_chains)
    spread = torch.linspace(0, len(level.points) - 1, num_draws).round().long()
    known, moves = level.points[spread], 0
    spread = torch.linspace(0, len(level.points) - 1, num_chains).round().long()
    chains = Chains(level.points[spread], level.errors[spread], level.threshold, level.size)
    mean = level.points.mean(0)
    direction = mean / mean.norm().clamp(min=torch.finfo(mean.dtype).tiny)
    mixing = Mixing(math.nan, math.nan, math.nan, 0, event.num_forwards, num_chains)
    across = 1.0
    try:
        for number in range(_PASSES):
            moves = _FIRST_MOVES * 2**number
            cost = 2 * moves * length * num_chains
            if number and event.num_forwards + cost > budget:
                break
            kept, chains, across = _pass(
                event, chains, across, direction, length, moves, fold_in(seed, number), adapts=not number
            )
            known = kept.points.flatten(0, 1)[:num_draws]
            quantities = _quantities(event, kept, direction)
            rhat, effective = split_rhat(quantities), effective_size(quantities)
            mixing = Mixing(
                kept.acceptance, effective * num_draws / (length * num_chains), rhat, 2 * moves,
                event.num_forwards, num_chains,
            )  # fmt: skip
            if rhat <= _RHAT and mixing.effective_sample_size >= _EFFECTIVE * num_draws:
                break
    except KeyboardInterrupt:
        pass  # the answer says so
    return known, mixing


def _pass(
    event: Event,
    chains: Chains,
    across: float,
    direction: Tensor,
    length: int,
    moves: int,
    seed: Tensor,
    *,
    adapts: bool,
) -> tuple[_Kept, Chains, float]:
    """Move chains, and keep a point of each after every ``moves`` pairs of moves."""
    points, errors, accepted, step = [], [], 0.0, 0
    for _ in range(length):
        for _ in range(moves):
            step += 1
            chains = complete(event, move(chains, fold_in(seed, 2 * step)))
            accepted += chains.acceptance
            along = (adapt(chains, step) if adapts else chains).size
            chains = chains._replace(size=across)
            chains = complete(event, move(chains, fold_in(seed, 2 * step + 1), fixed=direction))
            accepted += chains.acceptance
            across = (adapt(chains, step) if adapts else chains).size
            chains = chains._replace(size=along)
        points.append(chains.points)
        errors.append(chains.errors)
    return _Kept(torch.stack(points), torch.stack(errors), accepted / (2 * step)), chains, across


def _quantities(event: Event, kept: _Kept, direction: Tensor) -> Tensor:
    """Summary quantities of kept points, ``(T, C, Q)``, float64."""
    points = kept.points.double()
    z = event.search_points(kept.points.flatten(0, 1)).double()
    columns = [points.square().sum(-1), points @ direction.double(), kept.errors.double()]
    assets = z.mean(1).view(*points.shape[:2], -1)
    return torch.cat([torch.stack(columns, -1), assets], -1)


def split_rhat(quantities: Tensor) -> float:
    """Split R-hat of the quantity that mixes worst; NaN for fewer than four draws of a chain.

    Args:
        quantities: of every draw and chain, ``(T, C, Q)``.
    """
    half = len(quantities) // 2
    if half < 2:
        return math.nan
    split = torch.cat([quantities[:half], quantities[half : 2 * half]], 1)
    within, between = split.var(0).mean(0), split.mean(0).var(0)
    known = within > 0
    ratios = (half - 1) / half + between[known] / within[known]
    return float(ratios.max().sqrt()) if len(ratios) else 1.0


def effective_size(quantities: Tensor) -> float:
    """Effective number of draws for the quantity that mixes worst, from autocorrelations of all chains.

    Args:
        quantities: of every draw and chain, ``(T, C, Q)``.
    """
    length, count = quantities.shape[:2]
    centered = quantities - quantities.mean((0, 1))
    variance = centered.square().mean((0, 1))
    known = variance > 0
    centered, variance = centered[..., known], variance[known]
    if not len(variance):
        return float(length * count)
    total, going = torch.ones_like(variance), torch.ones_like(variance, dtype=torch.bool)
    for lag in range(1, length):
        correlation = (centered[lag:] * centered[:-lag]).mean((0, 1)) / variance
        going = going & (correlation > 0.05)  # Geyer's sequence ends where noise begins
        total = total + torch.where(going, 2.0 * (1.0 - lag / length) * correlation, 0.0)
    return float((length * count / total).min())


def solution_of(event: Event, points: Tensor, atol: float, mixing: Mixing) -> Solution:
    """The solution of some points."""
    problem, z = event.problem, event.search_points(points)
    target, criterion = problem.args["target"], problem.criterion
    parts = [event.windows(part) for part in z.split(event.chunk_size)]
    weights = torch.cat([event.weights(part) for part in parts])
    windows = torch.cat(parts if problem.nearby is None else [part[:, 0] for part in parts])
    error = torch.func.vmap(lambda w: criterion.error(w, target, atol=atol))(weights)
    loss = torch.func.vmap(lambda w: problem.loss(*criterion.compare(w, target)))(weights)
    num_steps = torch.full((len(z),), mixing.moves, device=z.device)
    codes = torch.where(error <= atol, int(Status.HIT), int(Status.MAX_STEPS))
    error = torch.func.vmap(lambda w: criterion.error(w, target))(weights)
    fields = (windows, weights, loss, loss.new_zeros(len(z), 0), num_steps, codes, error)
    return replace(Draws(*fields, dims=("draw",), z=z), mixing=mixing)
