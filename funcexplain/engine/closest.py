"""The smallest change that still hits: finds a hit, then moves along it towards the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor

from funcexplain.engine.reweighting import approach, interrupted, reweight
from funcexplain.engine.solve import answer, check_history, solve
from funcexplain.networks.network import deferred_interrupts
from funcexplain.problems.checks import check_count, check_number, check_positive
from funcexplain.problems.groups import number_groups
from funcexplain.problems.problem import Problem, check_search
from funcexplain.problems.smoothing import check_without_noise
from funcexplain.solutions.solution import Solution
from funcexplain.solvers.gauss_newton import levenberg_marquardt
from funcexplain.solvers.optimizers import as_method
from funcexplain.solvers.sequential_quadratic import SequentialQuadratic
from funcexplain.solvers.state import BoundMethod, Method, Objective, Stopping, ValueAndGrad

Norm = Literal["l1", "l2"]


def closest(
    problem: Problem,
    method: Any = None,
    *,
    atol: float = 1e-3,
    max_steps: int = 100,
    refinements: int = 40,
    chunk_size: int | None = None,
    norm: Norm = "l2",
    groups: str | Tensor = "entries",
) -> Solution:
    """Find, for every row, a hit with as small a change from the reference as possible.

    Minimizes ``mean((z - z_r)**2)``, or a sum of absolute changes (``norm="l1"``), where
    ``max |weights - target| <= atol``, in units of the search space (sigmas after `standardize`; ``z_r``
    is the reference there). `solve` finds a hit; sequential quadratic programming then continues from
    it. A row never moves further away, but for a thousandth of the distance.

    A row ends as CLOSEST where the gradient of the Lagrangian, ``z - z_r + J'l`` with the multipliers
    ``l`` of the active bounds, is at most a hundredth of ``z - z_r``: a local minimum, as of any search,
    so several starts help. It ends as HIT if ``refinements`` run out first, or after eight without
    progress, as where the network has no such point because of kinks (ReLU).

    Args:
        problem: the question or grid. Penalties affect only the first search.
        method: method of the first search; default ``levenberg_marquardt()``.
        atol: the target is hit where ``max |weights - target| <= atol``.
        max_steps: maximum number of updates of the first search.
        refinements: maximum number of steps towards the reference, each with one Jacobian; with
            ``norm="l1"``, of each of its rounds.
        chunk_size: as for `solve`.
        norm: ``"l2"``, or ``"l1"`` for a small sum of absolute changes ``sum |z - z_r|``: few entries
            change, and the others are bit-equal to the reference.
        groups: with ``"l1"``, of what few should change: ``"entries"``, ``"assets"``, ``"days"``
            (or ``"periods"``), ``"channels"``, or integers in the shape of the search space that number
            each entry's group. Then the sum is over groups, of the Euclidean norm of each change.

    Returns:
        The solution of the first search; rows that hit have ``x``, ``weights``, ``loss`` and ``error``
        of the closest point found, and the ``status`` CLOSEST or HIT. ``num_steps`` counts all steps.
        After Ctrl-C, rows with an unfinished second search are also INTERRUPTED; they keep the closest
        hit so far.

    Raises:
        TypeError, ValueError: as `solve` does, and for an unknown ``norm`` or ``groups``.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, fe.targets.at_least(0, 0.6), torch.zeros(1, 1, 2))
        >>> fe.closest(p).weights  # within atol of 0.6
        tensor([0.5991, 0.4009])

    References:
        S. P. Han (1977), A Globally Convergent Method for Nonlinear Programming,
        https://doi.org/10.1007/BF00932858;
        S. Wachter, B. Mittelstadt, C. Russell (2017), Counterfactual Explanations without Opening the
        Black Box, on the closest possible world, https://arxiv.org/abs/1711.00399;
        I. Daubechies, R. DeVore, M. Fornasier, S. Güntürk (2010), Iteratively Reweighted Least Squares
        Minimization for Sparse Recovery, https://doi.org/10.1002/cpa.20303
    """
    check_search("closest", problem)
    refinement = check_refinement("closest", problem, atol, refinements, norm, groups)
    check_count("closest", "max_steps", max_steps)
    if chunk_size is not None:
        check_positive("closest", "chunk_size", chunk_size)
    if problem.dims:
        check_history("closest", problem, max_steps, "; pass fewer max_steps")
    first = _FirstHit(as_method("closest", levenberg_marquardt() if method is None else method))
    with deferred_interrupts() as hold:
        found = solve(problem, first, max_steps=max_steps, atol=refinement.atol, chunk_size=chunk_size)
        return answer(hold, refine(problem, found, refinement, chunk_size))


class Refinement(NamedTuple):
    """How an answer approaches the reference; see `closest`."""

    atol: float
    steps: int
    norm: Norm
    numbers: Tensor | None


def check_refinement(
    where: str, problem: Problem, atol: Any, refinements: Any, norm: Any = "l2", groups: Any = "entries"
) -> Refinement:
    """Raise unless these are settings of `closest`."""
    atol = check_number(where, "atol", atol, minimum=0.0)
    steps = check_count(where, "refinements", refinements)
    if norm not in ("l1", "l2"):
        raise ValueError(f"{where}: norm must be 'l1' or 'l2', got {norm!r}")
    if norm == "l2" and not (isinstance(groups, str) and groups == "entries"):
        raise ValueError(f"{where}: groups have an effect with norm='l1' alone; pass it, too")
    if norm == "l1":
        check_without_noise(f"{where}, norm='l1'", problem)
    if 0 in problem.shape:
        return Refinement(atol, steps, norm, None)
    row = problem[(0,) * len(problem.dims)]
    like = row.start(row.args)
    return Refinement(atol, steps, norm, number_groups(where, groups, like, "the search space"))


def refine(
    problem: Problem, found: Solution, refinement: Refinement, chunk_size: int | None = None
) -> Solution:
    """Approach the reference from the hits of a search: the second half of `closest`."""
    atol, steps, norm, numbers = refinement
    if interrupted(found) or 0 in problem.shape:
        return found
    if norm == "l2":
        return approach(problem, found, SequentialQuadratic(atol), steps, chunk_size)
    return reweight(problem, found, atol, steps, chunk_size, groups=numbers)


class _FirstHit(NamedTuple):
    """A method that penalties steer, but whose search ends at the first hit."""

    method: Method

    def bind(
        self, problem: Problem, stopping: Stopping, gradient: Callable[[Objective], ValueAndGrad]
    ) -> BoundMethod:
        """Return the functions of one row's step."""
        return self.method.bind(problem, stopping._replace(settles=False), gradient)
