"""Attribution: the change of weights between two windows, split over channels, days and assets."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from funcexplain.engine.forward import Along, weights_of
from funcexplain.measures import shapley
from funcexplain.measures.integrated import NODES, Path, Paths, integrate
from funcexplain.networks.network import deferred_interrupts, raise_pending, warn_of_noise
from funcexplain.problems.checks import check_count, check_like, check_number, check_positive
from funcexplain.problems.grid import aligned, mapped_dims, take_rows
from funcexplain.problems.groups import number_groups
from funcexplain.problems.problem import Args, Problem, check_search
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution

# Numbers that the parts of a batch of rows may have.
_NUMBERS = 2**22
# Windows whose weights are computed at a time.
_WINDOWS = 1024


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """The change of every weight, split into parts that add up to it.

    Attributes:
        values: parts, with the problem's rows in front: ``(A, C, L, A)`` by the entries of a window
            (the first dimension is the weight that changes), or ``(A, G)`` by groups.
        change: weights at the end minus those at the start, ``(A,)``.
        error: largest distance of the sum of a weight's parts from its change, for each row.
        standard_error: of sampled parts, ``(A, G)``, else None.
    """

    values: Tensor
    change: Tensor
    error: Tensor
    standard_error: Tensor | None = None

    def __repr__(self) -> str:
        worst = float(self.error.max())
        return f"Attribution(values={tuple(self.values.shape)}, error={worst:.1e})"


def attribute(
    problem: Problem,
    start: Tensor | None = None,
    end: Tensor | Solution | None = None,
    *,
    path: Literal["x", "z"] = "x",
    method: Literal["gradients", "shapley"] = "gradients",
    groups: str | Tensor | None = None,
    tolerance: float = 1e-3,
    max_nodes: int = 4096,
    draws: int = 256,
    seed: int = 0,
) -> Attribution:
    """Split the change of every weight between two windows over channels, days and assets.

    By integrated gradients: ``part[k, i] = integral of (dw_k / dx_i) dx_i`` along a path from ``start``
    to ``end``, by Gauss-Legendre quadrature, whose panels are bisected until the parts add up. Or by
    Shapley values of groups: the average, over all orders in which groups move from ``start`` to
    ``end``, of the change that a group adds. These need no gradients, and suit networks with many kinks
    or jumps. Parts of entries that do not move are exactly zero.

    Args:
        problem: the question, or a grid, whose rows are independent. Only the network and the search
            space matter.
        start: window, ``(C, L, A)``, or one for each row. Default: the reference.
        end: as ``start``, or an answer of the problem.
        path: ``"x"``: along the straight line between the windows. ``"z"``: between their search points,
            so that the search space allows each window on the path, such as the windows of possible
            markets; `"shapley"` then moves groups of the search point.
        method: ``"gradients"`` or ``"shapley"``.
        groups: ``"entries"`` (the default for gradients), ``"assets"`` (the default for Shapley
            values), ``"days"`` (or ``"periods"``), ``"channels"``, or integers >= 0 that number each
            entry's group. With ``path="z"``, Shapley values group the search point.
        tolerance: of the error, as a fraction of the largest change of a weight, or of 0.1 % of the
            largest weight if that is more.
        max_nodes: maximum number of Jacobians per row; ``error`` shows whether they were enough.
        draws: number of random orders where more than 12 groups move; with fewer, all are evaluated.
        seed: seed of these orders, >= 0.

    Returns:
        The parts, the change, and the distance of their sum from it.

    Raises:
        TypeError: for another type or dtype.
        ValueError: for a window of another shape or with values that are not finite, unknown settings,
            a grid without rows, or, with ``path="z"``, a window outside the search space.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> parts = fe.attribute(p, end=torch.tensor([[[1.0, -1.0]]]))
        >>> parts.change, parts.values.sum((1, 2, 3))
        (tensor([ 0.3808, -0.3808]), tensor([ 0.3808, -0.3808]))

    References:
        M. Sundararajan, A. Taly, Q. Yan (2017), Axiomatic Attribution for Deep Networks,
        https://arxiv.org/abs/1703.01365; L. S. Shapley (1953), A Value for n-Person Games,
        https://doi.org/10.1515/9781400881970-018
    """
    check_search("attribute", problem)
    for name, value, known in (("path", path, ("x", "z")), ("method", method, ("gradients", "shapley"))):
        if value not in known:
            raise ValueError(f"attribute: {name} must be one of {list(known)}, got {value!r}")
    tolerance = check_number("attribute", "tolerance", tolerance, minimum=0.0, strict=True)
    check_positive("attribute", "max_nodes", max_nodes)
    if check_positive("attribute", "draws", draws) < 2:
        raise ValueError("attribute: draws must be at least 2, for a standard error, got 1")
    check_count("attribute", "seed", seed)
    if 0 in problem.shape:
        raise ValueError(f"attribute: expected at least one row, got a grid of {problem.shape}")
    if end is None:
        raise TypeError("attribute: end must be a window or an answer of the problem, got none")
    windows = [_windows(problem, name, value) for name, value in (("start", start), ("end", end))]
    warn_of_noise("attribute", problem.apply)
    exact = method == "shapley"
    chosen = ("assets" if exact else "entries") if groups is None else groups
    with deferred_interrupts(), torch.no_grad():
        points = windows if path == "x" else _search_points(problem, windows, end)
        like = points[0][0] if exact else windows[0][0]
        _check_ends(problem, windows)
        meaning = "the search point" if exact and path == "z" else "the window"
        numbers = number_groups("attribute", chosen, like, meaning)
        if exact:
            if numbers is None:
                numbers = torch.arange(like.numel(), device=like.device).view(like.shape)
            values, change, deviation = _by_shapley(problem, path, points, numbers, draws, seed)
        else:
            values, change = _by_gradients(problem, path, windows, points, tolerance, max_nodes)
            deviation = None
            if numbers is not None:
                summed = values.new_zeros(*values.shape[:2], int(numbers.max()) + 1)
                values = summed.index_add(-1, numbers.flatten(), values)
    values = values.to(windows[0].dtype)
    error = (values.sum(-1, dtype=torch.float64) - change).abs().amax(-1)
    if unknown := int(error.isnan().sum()):
        warnings.warn(
            f"attribute: the network raises, or has no weights, between start and end of {unknown} of "
            f"{len(error)} rows; their parts are NaN",
            stacklevel=2,
        )
    own = _weights_like(problem).shape
    parts = like.shape if numbers is None else values.shape[-1:]

    def shaped(found: Tensor, *inner: int) -> Tensor:
        return found.to(values.dtype).reshape(*problem.shape, *own, *inner)

    return Attribution(
        shaped(values, *parts),
        shaped(change),
        error.to(values.dtype).reshape(problem.shape),
        None if deviation is None else shaped(deviation, *parts),
    )


def _windows(problem: Problem, name: str, value: Any) -> Tensor:
    """The windows of all rows, ``(R, C, L, A)``."""
    x0 = problem.args["x0"]
    window = x0.shape[-3:]
    shape = (*problem.shape, *window)
    if value is None:
        value = aligned(problem.dims, problem.args, "reference")
    elif isinstance(value, Solution):
        check_answer("attribute", value, problem)
        value = check_like("attribute", name, value.x, x0, "x0")
    else:
        value = check_like("attribute", name, value, x0, "x0")
        if value.shape not in (window, shape):
            rows = f", or {tuple(shape)}, one for each row" if problem.dims else ""
            raise ValueError(
                f"attribute: {name} must have shape {tuple(window)}, that of x0{rows}, got "
                f"{tuple(value.shape)}"
            )
    return value.expand(shape).reshape(-1, *window)


def _check_ends(problem: Problem, windows: list[Tensor]) -> None:
    """Raise the error of the network at an end of a row, with a note that names it."""
    rows = torch.arange(len(windows[0]), device=windows[0].device)
    for name, each in zip(("start", "end"), windows, strict=True):
        weights = weights_of(problem, each, *_take(problem, rows), skip_errors=True)
        for number in weights.flatten(1).isnan().any(1).nonzero()[:, 0].tolist():
            index = tuple(map(int, np.unravel_index(number, problem.shape)))
            row = problem[index] if index else problem
            try:
                row.evaluate(each[number], row.args)
            except Exception as error:
                error.add_note(f"attribute: at {name}" + f" of row {index}" * bool(index))
                raise


def _weights_like(problem: Problem) -> Tensor:
    """A tensor of the shape of one row's weights."""
    row = problem[(0,) * len(problem.dims)] if problem.dims else problem
    return row.criterion.weights_like(row.args["target"])


def _take(problem: Problem, rows: Tensor, *, params: bool = True) -> tuple[Args, Along]:
    """The data of rows, and where they lead with these."""
    args = {name: value for name, value in problem.args.items() if params or name != "params"}
    return take_rows(problem.dims, args, rows), mapped_dims(problem.dims, args)


def _take_from(problem: Problem, batch: Tensor, places: Tensor) -> tuple[Args, Along]:
    """The data of rows by their places in a batch of rows."""
    return _take(problem, batch[places])


def _search_points(problem: Problem, windows: list[Tensor], end: Any) -> list[Tensor]:
    """The search points of the windows at both ends; raises for windows that have none."""
    args, along = _take(problem, torch.arange(len(windows[0]), device=windows[0].device), params=False)
    points = [torch.func.vmap(problem.encode, (0, along))(each, args) for each in windows]
    if isinstance(end, Solution):
        points[1] = end.z.reshape(points[0].shape)
    for name, given, point in zip(("start", "end"), windows, points, strict=True):
        found = torch.func.vmap(problem.decode, (0, along))(point, args)
        scale = given.abs().amax((-2, -1), keepdim=True)
        # Half of the digits, as an inverse rounds.
        wrong = (found - given).abs() > torch.finfo(given.dtype).eps ** 0.5 * scale
        if bool((wrong | ~found.isfinite()).any()):
            raise ValueError(
                f"attribute: {name} must be a window of the search space with path='z', but "
                f"{int(wrong.sum())} of its entries differ from those of the nearest one; path='x' "
                "accepts any window"
            )
    return points


def _line(problem: Problem, path: str, points: list[Tensor], batch: Tensor) -> Path:
    """Windows and their derivatives along straight lines, in the window or in the search point."""
    start, change = points[0][batch], (points[1] - points[0])[batch]

    def windows(times: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        moves = change[rows]
        times = times.to(moves).view(-1, *[1] * (moves.ndim - 1))
        here = start[rows] + times * moves
        if path == "x":
            return here, moves
        args, along = _take(problem, batch[rows], params=False)

        def move(z: Tensor, dz: Tensor, args: Args) -> tuple[Tensor, Tensor]:
            x, dx = torch.func.jvp(lambda z: problem.decode(z, args), (z,), (dz,))[:2]
            return x, dx

        return torch.func.vmap(move, (0, 0, along))(here, moves, args)

    return windows


def _by_gradients(
    problem: Problem,
    path: str,
    windows: list[Tensor],
    points: list[Tensor],
    tolerance: float,
    max_nodes: int,
) -> tuple[Tensor, Tensor]:
    """Parts ``(R, K, N)`` and changes ``(R, K)``."""
    rows = torch.arange(len(windows[0]), device=windows[0].device)
    size = _weights_like(problem).numel() * windows[0][0].numel()
    found = []
    for batch in rows.split(max(1, _NUMBERS // size)):
        line = _line(problem, path, points, batch)
        paths = Paths(problem, line, partial(_take_from, problem, batch))
        ends = [each[batch] for each in windows]
        if path == "z":  # the decoded points, to the bit
            ends = [line(rows.new_full((len(batch),), t), rows[: len(batch)])[0] for t in (0, 1)]
        before, after = (paths.weights(each, rows[: len(batch)]) for each in ends)
        parts = integrate(paths, before, after, tolerance, max(max_nodes, NODES))
        found.append((parts, after - before))
    parts, change = (torch.cat(each) for each in zip(*found, strict=True))
    return parts, change


def _by_shapley(
    problem: Problem, path: str, points: list[Tensor], numbers: Tensor, draws: int, seed: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Parts ``(R, K, G)``, changes ``(R, K)``, and standard errors if parts were sampled."""
    total, found, sampled = int(numbers.max()) + 1, [], False
    for number, (start, end) in enumerate(zip(*points, strict=True)):
        moved = numbers[start != end].unique()
        place = torch.zeros(total, dtype=torch.int64, device=start.device)
        place[moved] = torch.arange(len(moved), device=start.device)
        worth = _worth(problem, path, number, (start, end), place[numbers])
        all_or_none = torch.tensor([[False], [True]], device=start.device)
        none, every = worth(all_or_none.expand(2, max(1, len(moved))))
        parts = none.new_zeros(len(none), total)
        deviation = torch.zeros_like(parts)
        if len(moved) > shapley.EXACT_GROUPS:
            sampled = True
            estimates = shapley.sampled(worth, len(moved), draws, seed, start.device)
            parts[:, moved], deviation[:, moved] = estimates
        elif len(moved):
            parts[:, moved] = shapley.exact(worth, len(moved), start.device)
        found.append((parts, every - none, deviation))
    parts, change, deviation = (torch.stack(each) for each in zip(*found, strict=True))
    return parts, change, deviation if sampled else None


def _worth(
    problem: Problem, path: str, row: int, ends: tuple[Tensor, Tensor], place: Tensor
) -> shapley.Worth:
    """From coalitions, whose members are at the end already, to the weights of one row."""
    start, end = ends

    def worth(coalitions: Tensor) -> Tensor:
        found = []
        for members in coalitions.split(_WINDOWS):
            raise_pending()
            windows = torch.where(members[:, place], end, start)
            rows = torch.full((len(members),), row, device=start.device)
            if path == "z":
                needed, dims = _take(problem, rows, params=False)
                windows = torch.func.vmap(problem.decode, (0, dims))(windows, needed)
            weights = weights_of(problem, windows, *_take(problem, rows), skip_errors=True)
            found.append(weights.flatten(1).double())
        return torch.cat(found)

    return worth
