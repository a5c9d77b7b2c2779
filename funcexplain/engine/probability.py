"""How likely a target is, under the law of the search point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor

from funcexplain.engine.estimators import METHODS, Estimate
from funcexplain.engine.event import Event, check_event, forwards_only
from funcexplain.engine.solve import mark_interrupted
from funcexplain.networks.network import SEED, Hold, deferred_interrupts, raise_repeated, warn_of_noise
from funcexplain.networks.noise import fold_in
from funcexplain.problems.checks import check_positive
from funcexplain.problems.problem import Problem
from funcexplain.solutions.probability import Probability
from funcexplain.solutions.solution import Status

Method = Literal["auto", "subset", "importance", "monte_carlo"]
_TOGETHER = 1024  # points in a round of the searches of several rows, if there are as many


def probability(
    problem: Problem,
    *,
    method: Method = "auto",
    num_samples: int = 20_000,
    atol: float = 1e-3,
    seed: int = 0,
    chunk_size: int | None = None,
) -> Probability:
    """Estimate the probability of every row's target: the chance that ``error <= atol``.

    The search point ``z`` of a scenario is standard normal, so probabilities of ``z`` are those of
    markets under the scenario's model. The network is called without gradients. A row's estimate depends
    only on its own data, in a grid of any size.

    Args:
        problem: the question or grid, made by ``fe.scenarios.scenario`` or ``fe.scenarios.ahead``.
            Penalties have no effect. After `smooth` and `robust`, the network is evaluated under noise.
        method: ``"subset"``: subset simulation, a product of chances of a tenth each; its error grows
            with ``|log p|`` only. ``"importance"``: draws around the closest points that a search finds;
            precise where it finds all regions that matter, and it needs a gradient. ``"monte_carlo"``:
            plain draws. ``"auto"``: plain draws or levels, by a pilot; ``reason`` gives why.
        num_samples: approximate number of windows evaluated per row; up to a third more if a pilot
            misjudged the number of levels.
        atol: the target is hit where ``max |weights - target| <= atol``; zero for exact bounds.
        seed: seed of the draws, with ``args["seed"]`` of the row: ``fe.vmap(problem, seed=...)`` repeats
            the estimate. Rows with the same seed share random numbers.
        chunk_size: number of windows in one call of the network. Default: 256.

    Returns:
        The probabilities. After Ctrl-C, the estimates so far, INTERRUPTED.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the search point has no law, for an unknown method, or a target that fixes a
            weight with ``atol=0``, whose probability is zero.

    Example:
        >>> import torch, funcexplain as fe
        >>> base, cov = torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1)).double()
        >>> p = fe.problem(network, fe.targets.at_least(0, 0.9), base[None])
        >>> window, path = lambda r: r[None], lambda x, r: x[0]    # the network sees the returns
        >>> p = fe.scenarios.scenario(base, cov, features=window, inverse=path)(p)
        >>> found = fe.probability(p, atol=0.0)     # w_0 >= 0.9 where z_0 - z_1 >= log(9)
        >>> bool(found.lower < 0.0601 < found.upper)
        True

    References:
        S.-K. Au, J. L. Beck (2001), Estimation of Small Failure Probabilities in High Dimensions by
        Subset Simulation, https://doi.org/10.1016/S0266-8920(01)00019-4
    """
    atol = check_event("probability", problem, atol, seed, chunk_size)
    num_samples = check_positive("probability", "num_samples", num_samples)
    if method not in METHODS:
        raise ValueError(f"probability: method must be one of {list(METHODS)}, got {method!r}")
    warn_of_noise("probability", problem.apply)
    raise_repeated()
    runs = [_Run(method, index) for index in itertools.product(*map(range, problem.shape))]
    with deferred_interrupts() as hold:
        with suppress(KeyboardInterrupt):
            for group in _by_network(problem, runs):
                _run_together(problem, group, atol, num_samples, seed, chunk_size)
        return _collect(problem, hold, [_outcome(run, method) for run in runs])


class _Run:
    """The estimator of one row, and its current estimate.

    Attributes:
        index: of the row.
        known: the estimate so far.
        event: the row's target, once the search has begun.
        points: whose errors the search waits for.
        over: whether the search is over.
    """

    points: Tensor

    def __init__(self, method: str, index: tuple[int, ...]) -> None:
        self.index, self.known = index, Estimate(method=method)
        self.event: Event | None = None
        self.over = False

    def begin(self, event: Event, atol: float, num_samples: int, seed: Tensor) -> None:
        """Begin the search."""
        self.event = event
        method = self.known.method
        self._search = METHODS[method](event, atol, num_samples, seed, self._report)
        self.points = next(self._search)

    def send(self, errors: Tensor) -> None:
        """Give the search the errors that it waits for."""
        assert self.event is not None
        self.event.count(errors)
        try:
            self.points = self._search.send(errors)
        except StopIteration:
            self.over = True

    def targets(self) -> Tensor:
        """The row's target, for each of the points."""
        assert self.event is not None
        return self.event.targets(self.points)

    def _report(self, known: Estimate) -> None:
        self.known = known


def _by_network(problem: Problem, runs: list[_Run]) -> Iterable[list[_Run]]:
    """Groups of rows whose networks see the same windows: those that differ in the target alone."""
    params = problem.args["params"]
    seeded = isinstance(params, dict) and SEED in params
    alike = {"target"} if seeded else {"target", "seed"}
    apart = [place for place, dim in enumerate(problem.dims) if not dim.varying <= alike]
    groups: dict[tuple[int, ...], list[_Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.index[place] for place in apart), []).append(run)
    return groups.values()


def _run_together(
    problem: Problem, runs: list[_Run], atol: float, num_samples: int, seed: int, chunk_size: int | None
) -> None:
    """Run the searches of rows whose points fill batches together."""
    event = Event(problem[runs[0].index], atol, chunk_size)
    waiting, active = iter(runs), list[_Run]()
    with forwards_only(event.problem):
        while True:
            while sum(len(run.points) for run in active) < _TOGETHER and (run := next(waiting, None)):
                row = problem[run.index]
                key = fold_in(row.args["seed"], seed)
                run.begin(event.with_target(row), atol, num_samples, key)
                active.append(run)
            if not active:
                return
            points = [run.points for run in active]
            targets = torch.cat([run.targets() for run in active])
            errors = event.errors(torch.cat(points), targets)
            for run, part in zip(active, errors.split([len(p) for p in points]), strict=True):
                run.send(part)
            active = [run for run in active if not run.over]


def _outcome(run: _Run, method: str) -> tuple[Estimate, int]:
    """The estimate of a row, with its status, and the number of forward passes."""
    known, event = run.known, run.event
    reason = known.reason or "It was asked for."
    if event is not None:
        reason += event.describe_refusal()
    known = known._replace(method=known.method or method, reason=reason)
    if not run.over:
        known = known._replace(status=Status.INTERRUPTED)
    elif event is not None and event.num_unknown:
        known = known._replace(status=Status.NONFINITE)
    return known, 0 if event is None else event.num_forwards


def _collect(problem: Problem, hold: Hold, found: list[tuple[Estimate, int]]) -> Probability:
    """The probabilities of all rows, after a possible Ctrl-C."""
    device, shape = problem.args["x0"].device, problem.shape
    estimates = [estimate for estimate, _ in found]
    length = max((len(estimate.levels) for estimate in estimates), default=0)
    padded = [(*e.levels, *[math.nan] * (length - len(e.levels))) for e in estimates]

    def field(values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(list(values), dtype=dtype, device=device)

    p, error = field(e.estimate for e in estimates), field(e.standard_error for e in estimates)
    codes = field((int(e.status) for e in estimates), torch.int64).view(shape)
    codes = mark_interrupted(hold, codes)
    return Probability(
        p.view(shape),
        error.view(shape),
        field(e.lower for e in estimates).view(shape),
        field(e.upper for e in estimates).view(shape),
        field((count for _, count in found), torch.int64).view(shape),
        ((1.0 - p) * (p / error).square()).view(shape),
        field(padded).view(*shape, length),
        codes if problem.dims else Status(int(codes)),
        tuple(e.method for e in estimates),
        tuple(e.reason for e in estimates),
        tuple(dim.name for dim in problem.dims),
    )
