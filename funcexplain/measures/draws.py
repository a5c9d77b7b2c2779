"""Summaries of the draws of `sample`, compared with the law of all markets.

Markets at which the target holds are compared with ordinary ones, drawn from the scenario's own law
without calling the network: day by day (`bands`), in total (`moves`), and by the shocks and returns that
distinguish them (`drivers`). Every number depends only on the draws, not their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.networks.noise import fold_in, normal
from funcexplain.problems.checks import check_count, check_positive
from funcexplain.problems.grid import map_rows
from funcexplain.problems.law import check_law, free_shocks
from funcexplain.problems.problem import Problem, check_question
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_SAMPLES = 2000
"""Ordinary markets that draws are compared with."""

_CHUNK = 256  # paths at a time, for the cache
_STREAM = 20  # of the question's noise: another one than the draws'


class Bands(NamedTuple):
    """Quantiles of every asset's path.

    Attributes:
        levels: the ``Q`` levels, ascending.
        given: of the draws, cumulative log returns ``(Q, D, A)``.
        ordinary: of all markets, ``(Q, D, A)``.
        first: the first day that shocks reach; paths are zero on the day before it.
    """

    levels: Tensor
    given: Tensor
    ordinary: Tensor
    first: int


class Moves(NamedTuple):
    """Every asset's cumulative move over the shocked days, float64, ``(A,)`` each.

    Attributes:
        mean: mean log return of the draws.
        sigmas: by how much it differs from the mean of all markets, in their standard deviations.
        falls: share of the draws in which the asset falls.
        ordinary_falls: share of all markets in which it falls.
    """

    mean: Tensor
    sigmas: Tensor
    falls: Tensor
    ordinary_falls: Tensor


class Drivers(NamedTuple):
    """Which days and assets the target depends on, float64, ``(D, A)`` each; zero where frozen.

    Attributes:
        shift: mean of the shocks ``z`` of the draws; in all markets it is zero, with unit variance.
        correlation: rank correlation between each day's return of each asset and the target:
            ``P(r > s) - P(r < s)`` for the return ``r`` of a draw and ``s`` of an ordinary market. 1 if
            all draws are higher, 0 if the return does not matter, -1 if all are lower.
    """

    shift: Tensor
    correlation: Tensor


class Markets(NamedTuple):
    """Daily log returns of the draws of a question, and of ordinary markets, float64.

    Attributes:
        given: of the draws, ``(N, D, A)``.
        ordinary: of ordinary markets, ``(S, D, A)``.
        shift: mean shocks of the draws, ``(D, A)``, zero where frozen.
        first: the first day that shocks reach.
    """

    given: Tensor
    ordinary: Tensor
    shift: Tensor
    first: int

    def paths(self, returns: Tensor) -> Tensor:
        """Cumulative log returns, zero on the day before the first shocked one."""
        return cumulative(returns, self.first)

    def total(self, returns: Tensor) -> Tensor:
        """Cumulative moves over the shocked days, ``(N, A)``."""
        return returns[:, self.first :].sum(1)

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of ordinary moves, ``(A,)``; one for an asset that does not move."""
        spread = self.total(self.ordinary).std(0)
        return torch.where(spread > 0, spread, 1.0)


def bands(
    draws: Solution,
    problem: Problem,
    levels: Sequence[float] = LEVELS,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> Bands:
    """Compute quantiles of every asset's path when the target holds, and in all markets.

    A path is the cumulative log return from the day before the first shocked one. Half of the draws are
    between the quantiles 0.25 and 0.75 on any one day, fewer on all days together.

    Args:
        draws: markets at which the target holds, from `sample`.
        problem: their question.
        levels: quantiles, ascending, each in [0, 1].
        num_samples: number of ordinary markets.
        seed: seed of the ordinary markets, with ``args["seed"]``.

    Returns:
        The quantiles of each day and asset.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the solution is not draws of this question, its search point has no law, or
            ``levels`` are not rising levels.

    Example:
        >>> import torch, funcexplain as fe
        >>> base, cov = torch.zeros(3, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 2)).double()
        >>> p = fe.problem(network, fe.targets.at_least(0, 0.5), base[None], leverage=float("inf"))
        >>> window, path = lambda r: r[None], lambda x, r: x[0]    # the network sees the returns
        >>> p = fe.scenarios.scenario(base, cov, features=window, inverse=path)(p)
        >>> found = fe.bands(fe.sample(p, 100), p)
        >>> found.given.shape, bool((found.given.diff(dim=0) >= 0).all())
        (torch.Size([5, 3, 2]), True)
    """
    checked = check_levels("bands", levels)
    return bands_of(read("bands", draws, problem, num_samples, seed), checked)


def moves(draws: Solution, problem: Problem, *, num_samples: int = NUM_SAMPLES, seed: int = 0) -> Moves:
    """Compute each asset's cumulative move when the target holds, and compare it with all markets.

    Args:
        draws: as in `bands`, like the other arguments.
        problem: their question.
        num_samples: number of ordinary markets.
        seed: their seed.

    Returns:
        Mean move, shift in sigmas, and shares that fall.

    Raises:
        TypeError, ValueError: as `bands`.

    Example:
        >>> import torch, funcexplain as fe
        >>> base, cov = torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1)).double()
        >>> p = fe.problem(network, fe.targets.at_least(0, 0.9), base[None])
        >>> window, path = lambda r: r[None], lambda x, r: x[0]
        >>> p = fe.scenarios.scenario(base, cov, features=window, inverse=path)(p)
        >>> found = fe.moves(fe.sample(p, 200), p)    # the first asset outperforms the second
        >>> bool(found.falls[0] < 0.2), bool(found.falls[1] > 0.8), found.sigmas.sign()
        (True, True, tensor([ 1., -1.], dtype=torch.float64))
    """
    return moves_of(read("moves", draws, problem, num_samples, seed))


def drivers(
    draws: Solution, problem: Problem, *, num_samples: int = NUM_SAMPLES, seed: int = 0
) -> Drivers:
    """Find the days and assets that the target depends on: shifted shocks, and returns of other ranks.

    Shocks are independent, and those of an asset are net of the assets before it: their shifts compare
    days. The correlations compare assets, in returns that move together.

    Args:
        draws: as in `bands`, like the other arguments.
        problem: their question.
        num_samples: number of ordinary markets.
        seed: their seed.

    Returns:
        The mean shift of the shocks, and the rank correlation of returns with the target.

    Raises:
        TypeError, ValueError: as `bands`.

    Example:
        >>> import torch, funcexplain as fe
        >>> base, cov = torch.zeros(2, 1, dtype=torch.float64), torch.eye(1, dtype=torch.float64)
        >>> last = lambda params, x: x[0, -1]    # the last day's return is the weight
        >>> p = fe.problem((last, {}), fe.targets.at_least(0, 2.0), base[None], leverage=10.0)
        >>> window, path = lambda r: r[None], lambda x, r: x[0]
        >>> p = fe.scenarios.scenario(base, cov, features=window, inverse=path)(p)
        >>> found = fe.drivers(fe.sample(p, 200), p)
        >>> found.shift.flatten() > 1.0, found.correlation.flatten() > 0.9
        (tensor([False,  True]), tensor([False,  True]))

    References:
        E. E. Cureton (1956), Rank-Biserial Correlation, Psychometrika 21,
        https://doi.org/10.1007/BF02289138
    """
    return drivers_of(read("drivers", draws, problem, num_samples, seed))


def bands_of(markets: Markets, levels: Sequence[float] = LEVELS) -> Bands:
    """`bands` of markets that were read."""
    wanted = torch.tensor(levels, dtype=torch.float64, device=markets.given.device)
    given, ordinary = (
        _quantiles(markets.paths(part), wanted) for part in (markets.given, markets.ordinary)
    )
    return Bands(wanted, given, ordinary, markets.first)


def moves_of(markets: Markets) -> Moves:
    """`moves` of markets that were read."""
    given, ordinary = (markets.total(part) for part in (markets.given, markets.ordinary))
    sigmas = (given.mean(0) - ordinary.mean(0)) / markets.sigma
    falls, before = ((moved < 0).double().mean(0) for moved in (given, ordinary))
    return Moves(given.mean(0), sigmas, falls, before)


def drivers_of(markets: Markets) -> Drivers:
    """`drivers` of markets that were read."""
    values, ordinary = (part.flatten(1).mT.contiguous() for part in (markets.given, markets.ordinary))
    ordered, count = ordinary.sort().values, ordinary.shape[1]
    below = torch.searchsorted(ordered, values)
    above = count - torch.searchsorted(ordered, values, right=True)
    correlation = (below - above).double().mean(1) / count
    return Drivers(markets.shift, correlation.view(markets.shift.shape))


def read(where: str, draws: Any, problem: Any, num_samples: int, seed: int) -> Markets:
    """The returns of draws and of ordinary markets of their question; raises for anything else."""
    check_draws(where, draws, problem)
    num_samples = check_positive(where, "num_samples", num_samples)
    check_count(where, "seed", seed)
    free = free_shocks(problem).expand(problem.args["returns"].shape)
    key = fold_in(fold_in(problem.args["seed"], seed), _STREAM)
    z = torch.where(free, normal(key, (num_samples, *free.shape), draws.z.dtype), 0.0)
    first = int(free.any(1).nonzero()[0]) if bool(free.any()) else 0
    given, ordinary = (returns_at(problem, points) for points in (draws.z, z))
    shift = torch.where(free, draws.z.double().mean(0), 0.0)
    return Markets(given, ordinary, shift, first)


def cumulative(returns: Tensor, first: int) -> Tensor:
    """Cumulative log returns of ``(N, D, A)`` daily ones, zero on the day before ``first``."""
    paths = returns.cumsum(1)
    return paths - paths[:, first - 1, None] if first else paths


def check_draws(where: str, draws: Any, problem: Any) -> None:
    """Raise unless a solution is draws of one question whose search point has a law."""
    check_law(where, check_question(where, problem))
    check_answer(where, draws, problem)
    if draws.dims != ("draw",) or len(draws.num_steps) < 2:
        got = f"{len(draws.num_steps)}" if draws.dims == ("draw",) else f"rows {draws.dims}"
        raise ValueError(f"{where}: draws must be at least two markets from fe.sample, got {got}")


def check_levels(where: str, levels: Any) -> list[float]:
    """Raise unless these are rising quantile levels."""
    try:
        given = [float(level) for level in levels]
    except (TypeError, ValueError):
        raise TypeError(f"{where}: levels must be numbers in [0, 1], got {levels!r}") from None
    inside = given and all(0.0 <= level <= 1.0 for level in given)
    if not inside or any(b <= a for a, b in pairwise(given)):
        raise ValueError(
            f"{where}: levels must be rising numbers in [0, 1], such as (0.05, 0.5, 0.95), got {given}"
        )
    return given


def returns_at(problem: Problem, z: Tensor) -> Tensor:
    """Daily log returns of search points ``(N, D, A)``, float64."""
    returns = problem.returns
    assert returns is not None
    # Parameters would be copied for every row, and no path needs them.
    data = {name: value for name, value in problem.args.items() if name != "params"}
    decode = map_rows(lambda point: returns(point, data), 0)
    return torch.cat([decode(part) for part in z.split(_CHUNK)]).double()


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    """Quantiles over the first dimension, ``(Q, ...)``, by linear interpolation; of any size."""
    ordered, place = values.sort(0).values, levels * (len(values) - 1)
    lower, part = place.floor().long(), (place - place.floor()).view(-1, *[1] * (values.ndim - 1))
    upper = (lower + 1).clamp(max=len(values) - 1)
    return torch.lerp(ordered[lower], ordered[upper], part)
