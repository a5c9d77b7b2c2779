"""The target of a question as an event: the distance of many points from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor

from funcexplain.engine.alone import describe
from funcexplain.engine.forward import weights_of
from funcexplain.networks.checks import is_out_of_memory
from funcexplain.networks.network import SEED, Network, bound, raise_pending, set_seed
from funcexplain.networks.rounding import agree, coarsest_eps
from funcexplain.networks.trial import reads_values
from funcexplain.problems.checks import check_count, check_number, check_positive
from funcexplain.problems.grid import map_rows
from funcexplain.problems.law import check_law, free_shocks
from funcexplain.problems.problem import Problem, check_search
from funcexplain.problems.smoothing import Nearby

# Windows in one call of the network; see `forward`.
_BATCH_SIZE = 256


class Event:
    """The errors of one question at points, which are the free entries of a search point.

    Points at which the network raises or its weights are NaN have an infinite error.

    Attributes:
        problem: the question.
        like: the zero point, ``(n,)``.
        chunk_size: points in one call of the network.
        num_forwards: number of points evaluated.
        num_unknown: number of these without a finite error.
    """

    def __init__(self, problem: Problem, atol: float, chunk_size: int | None = None) -> None:
        self.problem, self.shape = problem, problem.args["returns"].shape
        free = free_shocks(problem).expand(self.shape)
        self._places = free.flatten().nonzero()[:, 0]
        self.like = problem.args["x0"].new_zeros(len(self._places))
        self.num_forwards = self.num_unknown = 0
        self._refused: list[Tensor] = []  # the first window at which the network raises
        seen = 1 if problem.nearby is None else 1 + len(problem.args["noise"])
        self.chunk_size = max(1, (chunk_size or _BATCH_SIZE) // seen)
        self._ways: list[Callable[[Tensor], Tensor]] | None = None  # to call the network, fastest first
        self._windows = map_rows(lambda z: problem.windows(z, problem.args), 0)
        self._error = map_rows(lambda w, target: problem.criterion.error(w, target, atol=atol), 0, 0)

    def with_target(self, problem: Problem) -> Event:
        """The event of a question that differs only in the target."""
        other = copy(self)
        other.problem, other.num_forwards, other.num_unknown = problem, 0, 0
        return other

    def __call__(self, points: Tensor) -> Tensor:
        """Errors of points ``(B, n)``."""
        errors = self.errors(points, self.targets(points))
        self.count(errors)
        return errors

    def targets(self, points: Tensor) -> Tensor:
        """The target of each of several points."""
        target: Tensor = self.problem.args["target"]
        return target.expand(len(points), *target.shape)

    def errors(self, points: Tensor, targets: Tensor) -> Tensor:
        """Errors of points, each with its own target, without counting them."""
        parts = []
        for part, target in zip(
            points.split(self.chunk_size), targets.split(self.chunk_size), strict=True
        ):
            raise_pending()
            parts.append(self._error(self.weights(self.windows(self.search_points(part))), target))
        return torch.cat(parts).nan_to_num(nan=math.inf)

    def count(self, errors: Tensor) -> None:
        """Count evaluated points."""
        self.num_forwards += len(errors)
        self.num_unknown += int(errors.isinf().sum())

    def search_points(self, points: Tensor) -> Tensor:
        """Search points, zero where nothing is free."""
        whole = points.new_zeros(len(points), math.prod(self.shape))
        whole[:, self._places] = points
        return whole.view(-1, *self.shape)

    def free(self, z: Tensor) -> Tensor:
        """The free entries of search points."""
        return z.flatten(1)[:, self._places]

    def windows(self, z: Tensor) -> Tensor:
        """Windows of search points, each with those nearby after `smooth`."""
        return self._windows(z)

    def weights(self, windows: Tensor) -> Tensor:
        """The network's weights: mapped, or by its own sample dimension, where that is right."""
        if self._ways is None:
            self._ways = self._choose_ways(windows)
        if windows.isfinite().all():
            # Large windows beside it do not change the smallest, unless the network lets them.
            smallest = windows.flatten(1).abs().amax(1).argmin()[None]
            for way in self._ways:
                if (found := self._held(way, windows, smallest)) is not None:
                    return found
        return self._alone(windows)

    def _choose_ways(self, windows: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """Ways that give some windows, all together, the weights that each has alone; mapped first."""
        problem, args = self.problem, self.problem.args
        apply: Any = problem.apply
        params = set_seed(args["params"], args["seed"])
        ways: list[Callable[[Tensor], Tensor]] = [map_rows(lambda x: apply(params, x), 0)]
        finite = windows[windows.flatten(1).isfinite().all(1)]
        if not len(finite):
            return []
        if (
            isinstance(apply, Network | Nearby)
            and SEED not in params
            and not reads_values(apply, params, finite)
        ):
            ways.append(lambda xs: apply.samples(params, xs))
        some = torch.tensor([0, len(finite) // 2, len(finite) - 1], device=finite.device)
        return [way for way in ways if self._held(way, finite, some) is not None]

    def _held(self, way: Callable[[Tensor], Tensor], windows: Tensor, some: Tensor) -> Tensor | None:
        """The weights that a way gives, if those of some windows are what each of these has alone."""
        try:
            found = way(windows)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return None
        eps = coarsest_eps(self.problem.args)
        return found if agree(found[some], self._alone(windows[some]), eps) else None

    def _alone(self, windows: Tensor) -> Tensor:
        """Weights that are checked at every call; NaN where the network raises."""
        found = weights_of(self.problem, windows, self.problem.args, skip_errors=True)
        refused = found.flatten(1).isnan().all(1) & windows.flatten(1).isfinite().all(1)
        if not self._refused and refused.any():
            self._refused.append(windows[refused][0])
        return found

    def describe_refusal(self) -> str:
        """The network's error at the first market at which it raises, as a sentence."""
        if self._refused and self.num_unknown:
            try:
                self.problem.evaluate(self._refused[0], self.problem.args)
            except Exception as error:
                return f" At {self.num_unknown} windows the network failed, first by {describe(error)}."
        return ""


@contextmanager
def forwards_only(problem: Problem) -> Iterator[None]:
    """Call a question's network many times without gradients or a trace in torch's generator."""
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        bound(problem.apply, problem.args["params"]),
    ):
        yield


def check_event(where: str, problem: Any, atol: Any, seed: Any, chunk_size: Any) -> float:
    """Raise unless the probability of a target can be estimated; return ``atol``."""
    check_law(where, check_search(where, problem))
    atol = check_number(where, "atol", atol, minimum=0.0)
    check_count(where, "seed", seed)
    if chunk_size is not None:
        check_positive(where, "chunk_size", chunk_size)
    lower, upper, _ = problem.criterion.bounds(problem.args["target"])
    if atol == 0.0 and bool((lower == upper).any()):
        raise ValueError(
            f"{where}: atol must be > 0 for a target that fixes a weight, which has the probability "
            "zero, got 0; pass atol=1e-3, or a target with room, such as fe.targets.at_least(0, 0.3)"
        )
    return atol
