"""From a question to its answer: `solve`, and `explain`, which asks and answers in one call.

A step evaluates first and moves then. `solve` therefore takes one step more than it moves: the last one
evaluates the point that the answer holds, so that its weights and loss belong to it.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from funcexplain.engine.chunks import say
from funcexplain.engine.compiled import Compile
from funcexplain.engine.interrupts import deferred_interrupts
from funcexplain.engine.plain import make_plain_step
from funcexplain.engine.progress import Callback, FirstRow, Meter
from funcexplain.engine.rows import Settings, solve_rows
from funcexplain.engine.samples import Rows
from funcexplain.networks.functional import Apply, bound
from funcexplain.problems import losses
from funcexplain.problems.checks import check_count, check_positive
from funcexplain.problems.mapping import vmap
from funcexplain.problems.problem import Loss, Problem, check_problem, problem
from funcexplain.problems.transforms import freeze
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.check import check_gradient
from funcexplain.solvers.gauss_newton import LevenbergMarquardt, make_damped_parts
from funcexplain.solvers.loop import iterate
from funcexplain.solvers.state import Info, Init, Keep, Rules, State, Step
from funcexplain.solvers.step import check_search, make_parts


def solve(
    problem: Problem,
    method: Any = None,
    *,
    max_steps: int = 100,
    atol: float = 0.0,
    keep: Keep = "last",
    patience: int | None = None,
    rtol: float = 1e-3,
    history: bool | int = True,
    chunk_size: int | None = None,
    rows: Rows = "auto",
    compile: Compile = "auto",
    callback: Callback | None = None,
    check: bool = False,
) -> Solution:
    """Answer a question, or a grid of them: search until the network holds the target.

    The network is evaluated once a step, and once more at the end. Rows of a grid are solved in
    batches, each as if it were alone; see `vmap`.

    Args:
        problem: the question or grid.
        method: an optimizer, any ``(init, update)`` pair (see `as_optimizer`), or
            `levenberg_marquardt`; default ``adam()``.
        max_steps: most updates of a row, >= 0.
        atol: the target is hit where ``max |weights - target| <= atol``; the search ends there.
        keep: the answer is the ``"last"`` evaluated point, or the ``"best"`` one in value. A hit is
            always kept, and a point that is not finite never.
        patience: a search ends as STALLED, too, after so many steps in a row in which the least value
            so far did not fall by ``rtol`` of itself. ``None`` waits for ever.
        rtol: relative fall that counts.
        history: whether losses are kept; an int k keeps those of every k-th step.
        chunk_size: rows of a grid that are in work at once. ``None`` chooses from the memory that a
            row needs and the cache, and tells the logger ``funcexplain``. Answers do not depend on it.
            Where memory runs out it is halved.
        rows: how rows of a grid share a call of the network: by ``"vmap"``, or as its ``"samples"``,
            which is faster and refused where they are not independent. ``"auto"`` takes samples where
            that is exact and the network does not loop over them.
        compile: whether steps are compiled to machine code, once for each chunk size. That takes seconds
            to tens of seconds (less where torch's cache knows the code) and makes steps several times
            faster. ``"auto"`` compiles a grid whose search would take minutes. What cannot be compiled
            goes on as it is, and the logger ``funcexplain`` says why.
        callback: ``callback(state, info)`` after every step (after every call of compiled steps);
            what it returns is ignored. See `progress` for one that shows how far the search is.
        check: compare the gradient with a central difference first (`check_gradient`, one direction,
            of the first row), and warn where they differ by more than 5 %.

    Returns:
        The solution; its ``status`` says how each search ended. Numerical trouble is a status, too. So
        is Ctrl-C: what was found until then is returned, and unfinished rows are INTERRUPTED.

    Raises:
        TypeError: for something that is no problem, optimizer, number or function.
        ValueError: for a negative ``max_steps``, ``atol`` or ``rtol``, a ``patience``, ``chunk_size`` or
            ``history`` below one, or an unknown ``keep``.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(p, fe.adam(lr=0.1), atol=1e-3)
        Solution(status=HIT, loss=..., num_steps=..., x=(1, 1, 2) torch.float32)
        >>> fe.solve(fe.vmap(p, target=fe.one_hot_targets(2)), atol=0.1)
        Solution(rows=(target=2), status=(HIT 2), x=(1, 1, 2) torch.float32)
    """
    check_problem("solve", problem)
    rules = Rules(atol, keep, patience, rtol)
    if atol is None:
        raise TypeError("solve: atol must be a number >= 0, got NoneType")
    method = check_search("solve", method, rules)
    check_count("solve", "max_steps", max_steps)
    every = history if isinstance(history, bool) else check_positive("solve", "history", history)
    if not isinstance(compile, bool) and compile != "auto":
        raise ValueError(f"solve: compile must be True, False or 'auto', got {compile!r}")
    if rows not in ("auto", "vmap", "samples"):
        raise ValueError(f"solve: rows must be 'auto', 'vmap' or 'samples', got {rows!r}")
    if chunk_size is not None:
        chunk_size = check_positive("solve", "chunk_size", chunk_size)
    if callback is not None and not callable(callback):
        raise TypeError(f"solve: callback must be callable, got {type(callback).__name__}")
    if check and 0 not in problem.shape:
        row = problem[(0,) * len(problem.dims)] if problem.dims else problem
        found = check_gradient(row, rtol=0.05, num_directions=1)
        if not found.ok:
            warnings.warn(f"solve: {found!r}", stacklevel=2)
    alone = not problem.dims
    if alone and (compile is True or isinstance(method, LevenbergMarquardt)):
        problem = vmap(problem, seed=problem.args["seed"][None])
        callback = None if callback is None else FirstRow(callback)
    with torch.no_grad(), deferred_interrupts():
        if problem.dims or isinstance(method, LevenbergMarquardt):
            settings = Settings(max_steps, int(every), chunk_size, rows, compile, callback)
            if isinstance(method, LevenbergMarquardt):
                solution = solve_rows(
                    problem, make_damped_parts(problem, method, rules), rules, settings
                )
            else:
                solution = solve_rows(problem, make_parts(problem, method, rules), rules, settings)
        else:
            with bound(problem.apply, problem.args["params"]) as apply:
                question = replace(problem, apply=apply)
                parts = make_parts(question, method, rules)
                step = make_plain_step(parts, rules)
                solution = _solve_one(question, parts.init, step, max_steps, int(every), callback)
        stuck = (solution.num_steps == 0) & (solution.status == Status.STALLED)
        if stuck.numel() and stuck.all() and problem.args["mask"].any():
            warnings.warn(
                "solve: no gradient reaches the input, so x stays as it is; fe.check_gradient(problem) "
                "tells whether the network ignores its input or something in it has no gradient",
                stacklevel=2,
            )
    return solution[0] if alone and solution.dims else solution


def _solve_one(
    problem: Problem,
    init: Init,
    step: Step,
    max_steps: int,
    history_every: int,
    callback: Callback | None,
) -> Solution:
    """Answer one question."""
    args, losses_before, meter = problem.args, list[Tensor](), Meter(callback, 1)
    meter.begin(chunk_size=1)
    latest = init(args)

    def ends(state: State, info: Info) -> bool:
        nonlocal latest
        latest = state
        losses_before.append(info.loss)
        if callback is not None:
            callback(state, info)
        return int(state.status) != Status.MAX_STEPS

    code = None
    try:
        state = iterate(step, latest, args, max_steps, ends)
        taken = state.num_steps
        if not state.done:
            state, _ = step(state, args)
    except torch.linalg.LinAlgError:  # a factorization that fails is numerical trouble, too
        state, taken, code = latest, latest.num_steps, Status.NONFINITE
    except KeyboardInterrupt:
        state, taken, code = latest, latest.num_steps, Status.INTERRUPTED
        say(f"interrupted after {int(taken)} steps", urgent=True)
    status = Status(int(state.status)) if code is None else code
    if status is not Status.INTERRUPTED:
        meter.add(1, int(status is Status.HIT))
    meter.end()
    told = losses_before[: int(taken) : history_every] if history_every else []
    return Solution(
        x=problem.decode(state.kept.z, args),
        weights=state.kept.weights,
        loss=state.kept.loss,
        history=torch.stack(told) if told else args["x0"].new_zeros(0),
        num_steps=taken,
        status=status,
        error=problem.criterion.error(state.kept.weights, args["target"]),
    )


def explain(
    network: nn.Module | tuple[Apply, Any],
    target: Tensor,
    x0: Tensor,
    *,
    loss: Loss = losses.mse,
    mask: Tensor | None = None,
    reference: Tensor | None = None,
    method: Any = None,
    max_steps: int = 100,
    atol: float = 0.0,
    keep: Keep = "last",
    callback: Callback | None = None,
) -> Solution:
    """Ask and answer in one call: what would the market have to look like for this portfolio?

    The same as `problem`, then `freeze` where a mask is given, then `solve`. The search is in units of
    x: where channels are as small as daily returns, ``lr`` must be, too, or see `standardize`.

    Args:
        network: module from ``(n_samples, C, L, A)`` to weights ``(n_samples, A)``, or a pair
            ``(apply, params)`` for one window.
        target: allocation to reach, shape ``(A,)``.
        x0: window where the search starts, shape ``(C, L, A)``.
        loss: misfit ``(weights, target) -> scalar``.
        mask: bool, shape ``(C, L, A)``; True = free to change, False stays at the reference.
        reference: window that frozen entries keep. Default: ``x0``.
        method: an optimizer; default ``adam()``.
        max_steps: most updates to take.
        atol: the search ends where ``max |weights - target| <= atol``.
        keep: ``"last"`` or ``"best"`` evaluated point.
        callback: ``callback(state, info)`` after every step.

    Returns:
        The solution.

    Raises:
        TypeError, ValueError: as `problem` and `solve` do.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> solution = fe.explain(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2), atol=1e-3)
        >>> solution.status.sentence
        'The target is hit: every weight is within atol of it.'
    """
    question = problem(network, target, x0, loss=loss, mask=mask, reference=reference)
    if mask is not None:
        question = freeze(question)
    return solve(question, method, max_steps=max_steps, atol=atol, keep=keep, callback=callback)
