"""Pictures of an answer in a notebook: ``fe.plot(solution, problem).weights()``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from funcexplain.problems.problem import Problem
from funcexplain.reports import plots
from funcexplain.reports.details import select_row, sigma_of
from funcexplain.reports.inputs import complete_labels
from funcexplain.solutions.indexing import best_rows
from funcexplain.solutions.labels import check_labels
from funcexplain.solutions.matching import check_answer
from funcexplain.solutions.solution import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Plots:
    """The pictures of one answer, each a method that draws on ``ax`` or on a new figure."""

    def __init__(self, solution: Solution, row: Any, labels: Any) -> None:
        self._solution, self._row, self._labels = solution, row, labels

    def weights(self, ax: Axes | None = None) -> Axes:
        """The weights today, the target's and those reached."""
        row = self._row
        return plots.plot_weights(row.today, row.target, row.weights, assets=self._labels.weights, ax=ax)

    def changes(self, ax: Axes | None = None) -> Axes:
        """The change of every entry of the window."""
        row, labels = self._row, self._labels
        names = {"assets": labels.assets, "channels": labels.channels, "dates": labels.dates}
        return plots.plot_changes(row.x, row.reference, scale=row.sigma, unit=row.unit, **names, ax=ax)

    def cumulative(self, ax: Axes | None = None) -> Axes:
        """The share of the squared change that each asset contributes."""
        row, assets = self._row, self._labels.assets
        return plots.plot_cumulative(row.x, row.reference, scale=row.sigma, assets=assets, ax=ax)

    def history(self, ax: Axes | None = None) -> Axes:
        """The loss at each step of the search."""
        return plots.plot_history(self._solution.history, ax=ax)

    def __repr__(self) -> str:
        return "Plots with the methods weights(), changes(), cumulative() and history()"


def plot(
    solution: Solution,
    problem: Problem,
    *,
    assets: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    dates: Iterable[object] | None = None,
    scale: float | Tensor | None = None,
) -> Plots:
    """Pictures of an answer, as methods: ``weights``, ``changes``, ``cumulative``, ``history``.

    Args:
        solution: the result of `solve`; for a grid, the best row is drawn: hits first, then the lowest
            loss.
        problem: the question or grid that it answers.
        assets: ``A`` names. Default: those of the problem.
        channels: ``C`` names.
        dates: ``L`` days of the window.
        scale: one sigma. Default: that of `standardize`, or one.

    Returns:
        An object whose methods return matplotlib axes.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: if the problem has other rows, or labels do not fit.
        ImportError: matplotlib is not installed.

    Example:
        >>> import torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2), assets=["A", "B"])
        >>> fe.plot(fe.solve(p), p).weights().get_xlabel()
        'weight in the portfolio, %'
    """
    problem = check_answer("plot", solution, problem)
    window, assets = solution.sample.x.shape[-3:], assets or problem.assets
    labels = check_labels("plot", window, assets=assets, channels=channels, dates=dates)
    if solution.dims:
        number = int(best_rows(solution.loss, solution.hit, range(len(solution.dims)), []))
        index = tuple(map(int, np.unravel_index(number, solution.shape)))
        solution, problem = solution[index], problem[index]
    row = select_row(solution, problem, *sigma_of(problem, None, scale))
    return Plots(solution, row, complete_labels(labels, solution, problem))
