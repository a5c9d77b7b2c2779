"""The sparsest answer: return changed entries to the reference while the target stays hit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from funcexplain.engine.forward import weights_of
from funcexplain.networks.network import deferred_interrupts, raise_pending
from funcexplain.problems.checks import check_number
from funcexplain.problems.problem import Args, Problem, check_search
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution

_BATCH_SIZE = 256  # windows in one call of the network


def prune(solution: Solution, problem: Problem, *, atol: float = 1e-3) -> Solution:
    """Return changed entries of an answer to the reference, while the target stays hit.

    A search moves every entry that has a gradient, though few may matter. Pruning goes back from the
    answer: it tries every changed entry alone, and returns those that can be spared together, smallest
    error first (half of them, then half of those, where all are too many), until none can be returned.
    The remaining set is minimal, though not the smallest of all, which no greedy search can promise.
    Pruning works on the window itself: where `reparametrize` ties entries together, the pruned window
    no longer keeps that tie.

    Args:
        solution: what `solve` found; rows that do not hit within ``atol`` are unchanged.
        problem: the question or grid that it answers. Only entries with mask True whose reference is
            within the bounds (if there are any) are returned.
        atol: the target is hit where the largest ``|weights - target|`` (of goals, ``|residual|``) is
            at most this.

    Returns:
        The solution with ``x``, ``weights`` and ``loss`` of the pruned windows; its ``history``,
        ``num_steps`` and ``status`` are those of the search.

    Raises:
        TypeError: if one of them has another type, or their dtypes or devices differ.
        ValueError: if the rows, windows or weights of both differ, or ``atol`` is negative.
        KeyboardInterrupt: after Ctrl-C.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.6, 0.4]), torch.zeros(1, 1, 2))
        >>> solution = fe.solve(p, fe.sgd(lr=1.0), max_steps=200, atol=1e-3)
        >>> solution.x.count_nonzero(), fe.prune(solution, p, atol=0.06).x.count_nonzero()
        (tensor(2), tensor(1))

    References:
        S. Wachter, B. Mittelstadt, C. Russell (2017), Counterfactual Explanations without Opening the
        Black Box, on why few changes matter, https://arxiv.org/abs/1711.00399
    """
    check_search("prune", problem)
    if isinstance(solution, Solution) and solution.shape != problem.shape:
        raise ValueError(
            f"prune: solution must have the rows of the problem {problem.shape}, got {solution.shape}"
        )
    check_answer("prune", solution, problem)
    atol = check_number("prune", "atol", atol, minimum=0.0)
    x, weights, loss, error = (
        t.clone() for t in (solution.x, solution.weights, solution.loss, solution.error)
    )
    with deferred_interrupts(), torch.no_grad():
        for row in product(*map(range, problem.shape)):
            question = problem[row] if row else problem
            pruned = _prune_row(question, x[row], atol)
            if pruned is not None:
                x[row] = pruned
                _, (loss[row], weights[row]) = question.evaluate(pruned, question.args)
                error[row] = question.criterion.error(weights[row], question.args["target"])
    return replace(solution, x=x, weights=weights, loss=loss, error=error)


def _prune_row(question: Problem, x: Tensor, atol: float) -> Tensor | None:
    """The window of one row with as few changes as possible, or None where it does not hit."""
    reference, may = question.args["reference"].flatten(), _returnable(question.args)
    errors = partial(_errors, question)
    if not errors(x[None]) <= atol:
        return None
    now = x.flatten()
    while True:
        raise_pending()
        changed = ((now != reference) & may).nonzero()[:, 0]
        parts = [changed[:, None][i : i + _BATCH_SIZE] for i in range(0, len(changed), _BATCH_SIZE)]
        errors_alone = [errors(_with_reference(now, reference, part, x)) for part in parts]
        alone = torch.cat([x.new_zeros(0), *errors_alone])
        spare = changed[alone.argsort()][: int((alone <= atol).sum())]
        count = len(spare)
        # By rounding, a window may hit in a batch and miss alone: then it stays as it is.
        while count and not errors(_with_reference(now, reference, spare[None, :count], x)) <= atol:
            count //= 2
        if not count:
            return now.view(x.shape)
        now = _with_reference(now, reference, spare[None, :count], x).flatten()


def _returnable(args: Args) -> Tensor:
    """Which entries may have the value that they have in the reference."""
    reference, may = args["reference"], args["mask"]
    if "lower" in args:
        may = may & (reference >= args["lower"]) & (reference <= args["upper"])
    return may.flatten()


def _errors(question: Problem, windows: Tensor) -> Tensor:
    """How far each of several windows is from the target."""
    weights = weights_of(question, windows, question.args, skip_errors=True)
    return torch.func.vmap(question.criterion.error, (0, None))(weights, question.args["target"])


def _with_reference(now: Tensor, reference: Tensor, entries: Tensor, x: Tensor) -> Tensor:
    """One window per row of ``entries``, with those entries at their value in the reference."""
    windows = now.repeat(len(entries), 1)
    return windows.scatter(1, entries, reference[entries]).view(-1, *x.shape)
