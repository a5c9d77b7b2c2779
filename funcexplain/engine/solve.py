"""From a question to its answer: `solve`, and `explain`, which asks and answers in one call.

A step evaluates first and then moves. `solve` therefore takes one more step than updates: the last one
evaluates the answer, so that weights and loss belong to it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from funcexplain.engine.alone import FailsAtStartError, solve_alone
from funcexplain.engine.compiled import Compile
from funcexplain.engine.execution import Execution, Rows
from funcexplain.engine.progress import Callback, CallbackError, FirstRow, Guarded
from funcexplain.engine.rows import solve_rows
from funcexplain.networks.network import (
    Apply,
    Hold,
    deferred_interrupts,
    raise_repeated,
    warn_of_noise,
)
from funcexplain.problems import losses
from funcexplain.problems.checks import check_count, check_memory, check_positive
from funcexplain.problems.criterion import Target
from funcexplain.problems.mapping import vmap
from funcexplain.problems.problem import Loss, Problem, check_search, problem
from funcexplain.problems.transforms import freeze
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solvers.check import check_gradient
from funcexplain.solvers.optimizers import as_method
from funcexplain.solvers.state import DEFAULT_RTOL, Keep, Method, Stopping
from funcexplain.solvers.step import check_stopping


def solve(
    problem: Problem,
    method: Any = None,
    *,
    max_steps: int = 100,
    atol: float = 0.0,
    keep: Keep = "last",
    patience: int | None = None,
    rtol: float = DEFAULT_RTOL,
    history: bool | int = True,
    callback: Callback | None = None,
    check: bool = False,
    chunk_size: int | None = None,
    rows: Rows = "auto",
    compile: Compile = "auto",
) -> Solution:
    """Answer a question, or a grid of them: search until the network holds the target.

    The network is evaluated once per step, and once more at the end. Rows of a grid are solved in
    batches, each as if it were alone; see `vmap`.

    Args:
        problem: the question or grid.
        method: an optimizer, any ``(init, update)`` pair (see `as_optimizer`), `levenberg_marquardt`, or
            a `Method` of your own; default ``adam()``.
        max_steps: maximum number of updates per row, >= 0.
        atol: the target is hit where ``max |weights - target| <= atol``; the search ends there. With
            penalties (`penalize`, `sparsify`) the search continues until the value no longer falls, or
            ``max_steps``, and returns the hit of lowest value, or without a hit the point of lowest
            value.
        keep: the answer is the ``"last"`` evaluated point, or the ``"best"`` one in value. A hit is
            always kept, a non-finite point never.
        patience: also ends a search as STALLED when the best value has not improved by a factor of
            ``rtol`` for this many steps. ``None`` waits indefinitely.
        rtol: relative improvement that resets the patience. Needs a ``patience``.
        history: whether to keep losses; an int k keeps those of every k-th step.
        callback: ``callback(state, info)`` after every step (after every call of compiled steps);
            its return value is ignored. See `progress` for one that shows how far the search is.
        check: first compare the gradient of the first row with a central difference (`check_gradient`,
            one direction), and warn if they differ by more than 5 %.
        chunk_size: number of rows of a grid solved at a time. ``None`` chooses from the memory that a
            row needs and the cache, and logs the choice to ``funcexplain``. Answers do not depend on it.
            If memory runs out, it is halved.
        rows: how rows of a grid share a call of the network: by ``"vmap"``, or as its ``"samples"``,
            which is faster. Both raise if rows in a batch differ from the same rows alone.
            ``"auto"`` uses samples, else vmap, else solves rows one at a time, with a warning.
        compile: whether to compile steps to machine code, once for each chunk size. That takes seconds
            to tens of seconds (less if torch's cache has the code) and makes steps several times faster.
            ``"auto"`` compiles a grid whose search would take more than a minute. What cannot be
            compiled runs uncompiled, and the logger ``funcexplain`` reports why.

    Returns:
        The solution; its ``status`` reports how each search ended, also for numerical trouble. After
        Ctrl-C, it holds the results so far, and unfinished rows are INTERRUPTED (or the last row, if all
        have ended).

    Raises:
        KeyboardInterrupt: if a search was interrupted less than a second ago, so that Ctrl-C ends a loop
            of searches; or after Ctrl-C if there are no rows to return.
        Exception: what the network raises at a start window, with a note that names the row. At a later
            window its error is in ``solution.exceptions``, and the row ends as FAILED.
        TypeError: for an argument that is not a problem, method, number or function.
        ValueError: for a negative ``max_steps``, ``atol`` or ``rtol``, a ``patience``, ``chunk_size`` or
            ``history`` below one, an ``rtol`` without ``patience``, or an unknown ``keep``; for
            ``rows="samples"`` or ``"vmap"`` where rows in a batch differ from rows alone; if the history
            of a grid does not fit memory.
        RuntimeError: inside ``torch.inference_mode`` or a torch.func transform.

    Warns:
        UserWarning: if rows are solved one at a time, with the reason; if the network draws random
            numbers in eval mode; if no gradient reaches the input; or if ``check`` finds a wrong one.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> fe.solve(p, fe.adam(lr=0.1), atol=1e-3)
        Solution(status=HIT, loss=..., num_steps=..., x=(1, 1, 2) torch.float32)
        >>> fe.solve(fe.vmap(p, target=fe.one_hot_targets(2)), atol=0.1)
        Solution(rows=(target=2), status=(HIT 2), x=(1, 1, 2) torch.float32)
    """
    check_search("solve", problem)
    if atol is None:
        raise TypeError("solve: atol must be a number >= 0, such as 1e-3, got NoneType")
    stopping = check_stopping("solve", atol, keep, patience, rtol)
    method = as_method("solve", method)
    execution = _check_execution(max_steps, history, chunk_size, rows, compile, callback)
    warn_of_noise("solve", problem.apply)
    if check and 0 not in problem.shape:
        _warn_of_gradient(problem)
    # One question is compiled as a grid of one row.
    as_grid = not problem.dims and compile is True
    if as_grid:
        problem = vmap(problem, seed=problem.args["seed"][None])
        execution = execution._replace(callback=callback and FirstRow(callback))
    if problem.dims and (every := execution.history_every):
        remedy = "; pass history=False, history=k for every k-th loss, or fewer max_steps"
        check_history("solve", problem, -(-max_steps // every), remedy)
    solution = search(problem, method, stopping, execution)
    stuck = (solution.num_steps == 0) & (solution.status == Status.STALLED)
    if stuck.numel() and stuck.all() and problem.args["mask"].any():
        warnings.warn(
            "solve: no gradient reaches the input, so x stays as it is; fe.check_gradient(problem) "
            "shows whether the network ignores its input or something in it has no gradient",
            stacklevel=2,
        )
    return solution[0] if as_grid else solution


def search(problem: Problem, method: Method, stopping: Stopping, execution: Execution) -> Solution:
    """Answer one question, or a grid; all settings are checked already."""
    if execution.callback is not None:
        execution = execution._replace(callback=Guarded(execution.callback))
    raise_repeated()
    solver = solve_rows if problem.dims else solve_alone
    try:
        with deferred_interrupts() as hold, torch.no_grad():
            return answer(hold, solver(problem, method, stopping, execution))
    except CallbackError as failure:
        error = cast(Exception, failure.__cause__)
    except FailsAtStartError as failure:
        error = cast(Exception, failure.__cause__)
        index = np.unravel_index(failure.args[0], problem.shape)
        error.add_note(f"solve: at the start window of row {tuple(map(int, index))}")
    raise error  # outside of the handlers, where its wrapper would become its context: an endless chain


def check_history(where: str, problem: Problem, count: int, remedy: str) -> None:
    """Raise if the losses of a grid, ``count`` for each row, do not fit memory."""
    rows, x0 = math.prod(problem.shape), problem.args["x0"]
    num_bytes = rows * count * x0.element_size()
    check_memory(where, "history", f"{count} losses of {rows} rows", num_bytes, x0.device, remedy)


def answer(hold: Hold, solution: Solution) -> Solution:
    """The solution after a possible Ctrl-C, with the statuses of `mark_interrupted`."""
    if not hold.stops():
        return solution
    codes = mark_interrupted(hold, solution.codes)
    return replace(solution, status=codes if solution.dims else Status(int(codes)))


def mark_interrupted(hold: Hold, codes: Tensor) -> Tensor:
    """Statuses of rows after a possible Ctrl-C: if all rows have ended, the last one is INTERRUPTED."""
    if not hold.stops():
        return codes
    codes, hold.answered = codes.clone(), codes.numel() > 0
    if hold.answered and not (codes == Status.INTERRUPTED).any():
        codes.view(-1)[-1] = int(Status.INTERRUPTED)
    return codes


def _check_execution(
    max_steps: Any, history: Any, chunk_size: Any, rows: Any, compile: Any, callback: Any
) -> Execution:
    """Raise unless the settings of a search are valid."""
    check_count("solve", "max_steps", max_steps)
    every = int(history if isinstance(history, bool) else check_positive("solve", "history", history))
    if not isinstance(compile, bool) and not (isinstance(compile, str) and compile == "auto"):
        raise ValueError(f"solve: compile must be True, False or 'auto', got {compile!r}")
    if not any(isinstance(rows, str) and rows == way for way in ("auto", "vmap", "samples")):
        raise ValueError(f"solve: rows must be 'auto', 'vmap' or 'samples', got {rows!r}")
    if chunk_size is not None:
        chunk_size = check_positive("solve", "chunk_size", chunk_size)
    if callback is not None and not callable(callback):
        raise TypeError(f"solve: callback must be callable, got {type(callback).__name__}")
    return Execution(max_steps, every, chunk_size, rows, compile, callback=callback)


def _warn_of_gradient(problem: Problem) -> None:
    """Warn where the gradient of the first row is wrong."""
    row = problem[(0,) * len(problem.dims)] if problem.dims else problem
    found = check_gradient(row, rtol=0.05, num_directions=1)
    if not found.ok:
        warnings.warn(f"solve: {found!r}", stacklevel=3)


def explain(
    network: nn.Module | tuple[Apply, Any],
    target: Tensor | Target,
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
    assets: Sequence[str] | None = None,
) -> Solution:
    """Ask and answer in one call: what would the market have to look like for this portfolio?

    The same as `problem`, then `freeze` if there is a mask, then `solve`. ``lr`` is in the units of x:
    for channels as small as daily returns, use a small ``lr`` or `standardize`.

    Args:
        network: module from ``(n_samples, C, L, A)`` to weights ``(n_samples, A)``, or a pair
            ``(apply, params)`` for one window.
        target: allocation to reach, shape ``(A,)``, or a target of ``fe.targets``.
        x0: window where the search starts, shape ``(C, L, A)``.
        loss: misfit ``(weights, target) -> scalar``.
        mask: bool, shape ``(C, L, A)``; True = free to change, False stays at the reference.
        reference: window that frozen entries keep. Default: ``x0``.
        method: an optimizer; default ``adam()``.
        max_steps: maximum number of updates.
        atol: the search ends where ``max |weights - target| <= atol``.
        keep: ``"last"`` or ``"best"`` evaluated point.
        callback: ``callback(state, info)`` after every step.
        assets: names of the ``A`` assets, for targets that use names.

    Returns:
        The solution.

    Raises:
        TypeError, ValueError: as `problem` and `solve` do.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> solution = fe.explain(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2), atol=1e-3)
        >>> solution.status.sentence
        'The target is hit: nothing misses it by more than atol.'
    """
    question = problem(network, target, x0, loss=loss, mask=mask, reference=reference, assets=assets)
    if mask is not None:
        question = freeze(question)
    return solve(question, method, max_steps=max_steps, atol=atol, keep=keep, callback=callback)
