"""The `Solution`: an answer that converts, saves and reports itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import optree
import torch
from torch import Tensor

from funcexplain.problems.problem import Problem
from funcexplain.reports.report import write_report
from funcexplain.reports.summary import summary
from funcexplain.solutions.answer import Answer
from funcexplain.solutions.answer import Status as Status
from funcexplain.solutions.archive import write_archive
from funcexplain.solutions.labels import checked_labels
from funcexplain.solutions.tables import to_dataset, to_frame

if TYPE_CHECKING:
    import pandas
    import xarray

_WORDS = {int(status): status.name for status in Status}


class Solution(Answer):
    """What `solve` found. ``weights`` and ``loss`` belong to ``x``.

    Of a grid, every field leads with the row dimensions: ``solution[i, j]`` picks rows as of a tensor,
    `isel` picks them by the names of dimensions, `best` picks the best along some, and iterating goes
    along the first. An optree node: its leaves are the seven fields, as tensors. Fields and rows are
    those of an `Answer`.
    """

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Convert to arrays by the names of the fields; ``status`` holds codes of `Status`.

        Returns:
            A dict for ``numpy.savez`` and the like. Half precision becomes single, which numpy has.
        """
        wide = {torch.bfloat16: torch.float32, torch.float16: torch.float32}
        return {
            name: tensor.detach().to("cpu", wide.get(tensor.dtype, tensor.dtype)).numpy()
            for name, tensor in self._tensors().items()
        }

    def to_pandas(self, *, assets: Sequence[str] | None = None) -> pandas.DataFrame:
        """Make a table with one line per row: status, the row's scalars, and its weights.

        Args:
            assets: ``A`` names for the columns of the weights. Default: numbers.

        Returns:
            A ``pandas.DataFrame`` indexed by the row dimensions; `to_xarray` has the windows, too.

        Raises:
            ImportError: pandas is not installed.
            ValueError: if ``assets`` are too many or too few.
        """
        labels = checked_labels("to_pandas", self.x.shape[-3:], assets=assets)
        return to_frame("to_pandas", self.to_numpy(), self.dims, labels, _WORDS)

    def to_xarray(
        self,
        *,
        assets: Sequence[str] | None = None,
        channels: Sequence[str] | None = None,
        dates: Iterable[object] | None = None,
    ) -> xarray.Dataset:
        """Make a dataset of all fields, with the row dimensions, ``channel``, ``day`` and ``asset``.

        Args:
            assets: ``A`` names.
            channels: ``C`` names.
            dates: ``L`` days.

        Returns:
            An ``xarray.Dataset``. Half precision becomes single, which numpy has.

        Raises:
            ImportError: xarray is not installed.
            ValueError: for labels that do not fit, or a row dimension called like one of the fields'.
        """
        labels = checked_labels(
            "to_xarray", self.x.shape[-3:], assets=assets, channels=channels, dates=dates
        )
        return to_dataset("to_xarray", self.to_numpy(), self.dims, labels, _WORDS)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        assets: Sequence[str] | None = None,
        channels: Sequence[str] | None = None,
        dates: Iterable[object] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the answer to one file, which `load` reads; an earlier file stays until it is complete.

        Args:
            path: the file, such as ``"answer.safetensors"``.
            assets: ``A`` names, kept with it, as all that follow; see `describe`.
            channels: ``C`` names.
            dates: ``L`` days of the window.
            settings: how the answer was found: text, numbers, bools, None, lists and dicts of these.

        Raises:
            TypeError: for a path that is none, labels or settings of another kind, or another dtype.
            ValueError: for labels that do not fit x, or settings that are not finite.
            OSError: where the file cannot be written.
        """
        if settings is not None and not isinstance(settings, Mapping):
            raise TypeError(f"save: settings must be a dict, got {type(settings).__name__}")
        labels = checked_labels("save", self.x.shape[-3:], assets=assets, channels=channels, dates=dates)
        notes = {"dims": list(self.dims), "labels": labels, "settings": dict(settings or {})}
        write_archive("save", path, self._tensors(), notes)

    def report(
        self,
        path: str | os.PathLike[str],
        problem: Problem,
        *,
        history: Tensor | None = None,
        assets: Sequence[str] | None = None,
        channels: Sequence[str] | None = None,
        dates: Iterable[object] | None = None,
        scale: float | Tensor | None = None,
        prices: tuple[Tensor, Tensor] | Callable[[tuple[int, ...]], Any] | None = None,
        models: Any = None,
        title: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the answer for readers: one HTML file with pictures inside, which needs no network.

        It holds the question in a sentence, a verdict (hit or how near, how unusual, how stable), the
        pictures of `plots`, the largest changes, every measure of `evaluate` with what it means, and
        settings, seeds and versions. Of a grid it sums up all rows and shows the best ones in detail.
        The same arguments make the same file. An earlier file stays until the new one is complete.

        Args:
            path: the file, such as ``"report.html"``.
            problem: the question or grid that this answers.
            history: features of every day, ``(C, days, A)``, which tell how unusual the answer is; as in
                `evaluate`, like ``scale`` and ``models``.
            assets: ``A`` names. Default: those of the problem.
            channels: ``C`` names.
            dates: ``L`` days of the window.
            scale: one sigma.
            prices: positive prices, actual ``(days, A)`` and in the scenario ``(*rows, days, A)``; see
                ``fe.scenarios.prices_of``. Of very many rows, a function that takes the index of one and
                returns its pair, or None; it is called for the rows that are shown.
            models: parameters of other models, asked at each answer.
            title: headline.
            settings: how the answer was found, by name.

        Returns:
            The path.

        Raises:
            TypeError: for a path that is none, or an argument of another type.
            ValueError: if the problem's rows are others, or labels, prices or history do not fit.
            ImportError: matplotlib is not installed.
            OSError: where the file cannot be written.

        Example:
            >>> import pathlib, tempfile, torch, funcexplain as fe
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
            >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
            >>> path = fe.solve(p).report(pathlib.Path(tempfile.mkdtemp(), "report.html"), p, scale=1.0)
            >>> path.read_text()[:15]
            '<!DOCTYPE html>'
        """
        shown = {"history": history, "scale": scale, "models": models, "title": title}
        shown |= {"assets": assets, "channels": channels, "dates": dates}
        return write_report("report", self, path, problem, prices=prices, settings=settings, **shown)

    def _repr_html_(self) -> str:
        return summary(self)


def _flatten(solution: Any) -> tuple[list[Tensor], tuple[str, ...], tuple[str, ...]]:
    tensors = solution._tensors()
    return list(tensors.values()), solution.dims, tuple(tensors)


def _unflatten(dims: Any, leaves: Any) -> Any:
    x, weights, loss, history, num_steps, status, error = leaves
    # A mapped tree may hold anything at its leaves; only a code is a status again.
    coded = isinstance(status, Tensor) and status.ndim == 0 and status.dtype is torch.int64
    if coded and int(status) in list(Status):
        status = Status(int(status))
    return Solution(x, weights, loss, history, num_steps, status, error, dims)


optree.register_pytree_node(
    cast(Any, Solution), _flatten, _unflatten, namespace=optree.registry.__GLOBAL_NAMESPACE
)
