"""The sparsest answer: return changed entries to the reference while the target stays hit."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from funcexplain.engine.forward import weights_of
from funcexplain.engine.reweighting import interrupted, map_points, reweight
from funcexplain.networks.network import deferred_interrupts, raise_pending
from funcexplain.problems.checks import check_number
from funcexplain.problems.grid import RowDim, aligned, by_model, mapped_dims, take_rows
from funcexplain.problems.problem import Args, Problem, check_search, identity
from funcexplain.problems.smoothing import check_without_noise
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.gradient import where_rows

_BATCH_SIZE = 1024  # windows that are made at once
_STEPS = 20  # of each round in which values move


def prune(solution: Solution, problem: Problem, *, atol: float = 1e-3) -> Solution:
    """Return changed entries of an answer to the reference, while the target stays hit.

    A search moves every entry that has a gradient, though few may matter. Pruning starts from the
    answer: it tries every changed entry alone, and returns as many as possible together, smallest error
    first (half of them, then a quarter, if all are too many), until none can be returned. It then
    repeats this from a nearby hit with few changes and other values (iteratively reweighted least
    squares), and keeps the result with fewer changed entries. The remaining set is minimal, but a greedy
    search cannot promise the smallest. Pruning works on the window itself, so it raises if
    `reparametrize` or a scenario ties entries together.

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
        TypeError: for another type, or if dtypes or devices differ.
        ValueError: if the rows, windows or weights of both differ, ``atol`` is negative, or entries are
            tied together.
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
    check_without_noise("prune", problem)
    _check_untied(problem, solution)
    names, lead = ("x", "weights", "loss", "error"), len(problem.shape)
    answers = {name: getattr(solution, name).clone() for name in names}
    flat = {name: t.reshape(-1, *t.shape[lead:]) for name, t in answers.items()}
    numbers = torch.arange(math.prod(problem.shape), device=solution.x.device)
    with deferred_interrupts(), torch.no_grad():
        # The rows of one model at a time, so that they share its parameters.
        for dims, args, rows in by_model(problem.dims, problem.args, numbers, 1):
            if not len(rows):
                continue
            listed = _list_rows(replace(problem, dims=dims, args=args), rows)
            own = torch.arange(len(rows), device=rows.device)
            hits = (_errors(listed, flat["x"][rows], own, atol) <= atol).nonzero()
            hits = hits[:, 0]
            if len(hits):
                answer = [flat[name][rows[hits]] for name in names]
                pruned = _prune_rows(_list_rows(listed, hits), answer, atol)
                for name, values in zip(names, pruned, strict=True):
                    flat[name][rows[hits]] = values
    fields = {name: flat[name].view_as(answers[name]) for name in names}
    x = z = fields["x"]
    if problem.decode is not identity:
        moved = (x != solution.x).flatten(lead).any(-1)
        z = where_rows(moved, map_points(problem.encode, problem, x), solution.z)
    return replace(solution, **fields, z=z)


def _check_untied(problem: Problem, solution: Solution) -> None:
    """Raise if a window with half of its entries returned is not one of the search space."""
    if problem.decode is identity or 0 in problem.shape:
        return
    x, lead = solution.x, len(problem.shape)
    names = ("mask", "reference", "lower", "upper")
    args = problem.args
    data = {name: aligned(problem.dims, args, name, ndim=3) for name in names if name in args}
    numbers = torch.arange(x[(0,) * lead].numel(), device=x.device).view(x.shape[lead:])
    others = (numbers * math.sqrt(2.0)) % 1.0 < 0.5  # without a period
    window = torch.where(others & _returnable(data), data["reference"], x)

    def again(x: Tensor, args: Args) -> Tensor:
        return problem.decode(problem.encode(x, args), args)

    error = (map_points(again, problem, window) - window).abs()
    tolerance = torch.finfo(x.dtype).eps ** 0.5 * (1.0 + window.abs())
    if bool((error > tolerance).any()):
        raise ValueError(
            "prune: problem must be searched entry by entry, got one whose entries are tied together, "
            'as by a scenario or reparametrize; closest(problem, norm="l1") finds few changes of what '
            "is searched, such as shocks"
        )


def _list_rows(problem: Problem, rows: Tensor) -> Problem:
    """These rows of a grid, by number, as a grid of one dimension."""
    args = take_rows(problem.dims, problem.args, rows)
    along = mapped_dims(problem.dims, args)
    varying = frozenset(name for name, dim in along.items() if dim == 0)
    return replace(problem, dims=(RowDim("row", len(rows), varying),), args=args)


def _prune_rows(problem: Problem, answer: list[Tensor], atol: float) -> tuple[Tensor, ...]:
    """Windows, weights, losses and errors of rows that hit, with few changes."""
    fixed = _return_entries(problem, answer[0], atol)
    moved = _return_entries(problem, _move_values(problem, answer, atol), atol)
    reference = problem.args["reference"]
    fewer = (moved != reference).flatten(1).sum(1) < (fixed != reference).flatten(1).sum(1)
    x = where_rows(fewer, moved, fixed)
    rows = torch.arange(len(x), device=x.device)
    losses, weights = zip(
        *(problem[row].evaluate(window, problem[row].args)[1] for row, window in enumerate(x)),
        strict=True,
    )
    return x, torch.stack(weights), torch.stack(losses), _errors(problem, x, rows, None)


def _move_values(problem: Problem, answer: list[Tensor], atol: float) -> Tensor:
    """Windows that hit with few changes, of other values; what cannot be returned stays."""
    x, weights, loss, error = answer
    bounded = "lower" in problem.args

    def clamp(z: Tensor, args: Args) -> Tensor:
        return torch.where(args["mask"], z.clamp(args["lower"], args["upper"]), z)

    windows = replace(
        problem,
        args={
            **problem.args,
            "reference": torch.where(_returnable(problem.args), problem.args["reference"], x),
        },
        dims=tuple(dim._replace(varying=dim.varying | {"reference"}) for dim in problem.dims),
        decode=identity,
        encode=identity,
        project=clamp if bounded else identity,
    )
    num_steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    status = torch.full_like(num_steps, int(Status.HIT))
    history = loss.new_zeros(len(x), 0)
    found = Solution(x, weights, loss, history, num_steps, status, error, dims=("row",), z=x)
    found = reweight(windows, found, atol, _STEPS, None, few=True)
    if interrupted(found):
        raise KeyboardInterrupt
    return found.x


def _return_entries(problem: Problem, x: Tensor, atol: float) -> Tensor:
    """Windows with entries returned to the reference until none can be, of rows that hit."""
    now, count = x.flatten(1), len(x)
    reference = problem.args["reference"].expand_as(x).flatten(1)
    may = _returnable(problem.args).expand_as(x).flatten(1)

    def errors(rows: Tensor, returned: Tensor) -> Tensor:
        windows = torch.where(returned, reference[rows], now[rows])
        return _errors(problem, windows.view(-1, *x.shape[1:]), rows, atol)

    going = torch.arange(count, device=x.device)
    while len(going):
        raise_pending()
        changed = (now[going] != reference[going]) & may[going]
        alone = torch.full_like(now[going], torch.inf)
        for part in changed.nonzero().split(_BATCH_SIZE):
            single = torch.zeros(len(part), now.shape[1], dtype=torch.bool, device=x.device)
            single.scatter_(1, part[:, 1:], True)
            alone[part[:, 0], part[:, 1]] = errors(going[part[:, 0]], single)
        rank, number = alone.argsort(1).argsort(1), (alone <= atol).sum(1)
        # By rounding, a window may hit in a batch and miss alone: then it stays as it is.
        undecided = number.nonzero()[:, 0]
        while len(undecided):
            returned = rank[undecided] < number[undecided, None]
            missed = ~(errors(going[undecided], returned) <= atol)
            number[undecided[missed]] //= 2
            undecided = undecided[missed & (number[undecided] > 0)]
        returned = rank < number[:, None]
        now = now.index_copy(0, going, torch.where(returned, reference[going], now[going]))
        going = going[number > 0]
    return now.view_as(x)


def _returnable(args: Args) -> Tensor:
    """Which entries may have the value that they have in the reference."""
    reference, may = args["reference"], args["mask"]
    if "lower" in args:
        may = may & (reference >= args["lower"]) & (reference <= args["upper"])
    return may


def _errors(problem: Problem, windows: Tensor, rows: Tensor, atol: float | None) -> Tensor:
    """How far each of several windows is from the target of its row."""
    args = take_rows(problem.dims, problem.args, rows)
    dims = mapped_dims(problem.dims, args)
    weights = weights_of(problem, windows, args, dims, skip_errors=True)
    error = partial(problem.criterion.error, atol=atol)
    return torch.func.vmap(error, (0, dims["target"]))(weights, args["target"])
