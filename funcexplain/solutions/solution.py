"""The `Solution`: the answer to a question, or to a grid of them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import optree
import torch
from torch import Tensor

import funcexplain
from funcexplain.solutions.archive import write_archive
from funcexplain.solutions.html import element, table
from funcexplain.solutions.indexing import best_dims, best_rows, drops_dim, expand_index
from funcexplain.solutions.labels import check_labels
from funcexplain.solutions.status import HITS, Status
from funcexplain.solutions.tables import format_range, format_value, to_dataset, to_frame

if TYPE_CHECKING:
    import pandas
    import xarray

    from funcexplain.problems.problem import Problem


FIELDS = ("x", "z", "weights", "loss", "history", "num_steps", "status", "error")
"""The fields that are tensors of rows."""


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """The result of `solve`. ``weights`` and ``loss`` are evaluated at ``x``.

    For a grid, every field leads with the row dimensions: ``solution[i, j]`` picks rows as in a tensor,
    `isel` picks them by the names of dimensions, `best` picks the best along some, and iterating goes
    along the first. An optree node: its leaves are the eight fields, as tensors.

    Attributes:
        x: window at which the search ended, shape ``(C, L, A)``, in the problem's dtype.
        weights: the network's allocation at ``x``, shape ``(A,)``; for a consensus ``(M, A)``.
        loss: misfit of ``weights`` to the target, scalar.
        history: loss before each update, shape ``(num_steps,)``; in a grid, each row has ``max_steps``
            entries, NaN after its end. If only every k-th loss was kept, every k-th entry.
        num_steps: number of updates, scalar int64.
        status: how the search ended, a `Status`; in a grid an int64 tensor of codes.
        error: largest ``|weights - target|`` (for goals, ``|residual|``), scalar.
        dims: names of the row dimensions, outermost first; empty for one question.
        exceptions: errors of the network during the search, by the row's number in row-major order (one
            question is row 0).
        z: point of the search space that decodes to ``x``: the same tensor in a search over windows.
    """

    x: Tensor
    weights: Tensor
    loss: Tensor
    history: Tensor
    num_steps: Tensor
    status: Status | Tensor
    error: Tensor
    dims: tuple[str, ...] = ()
    exceptions: Mapping[int, str] = field(default_factory=dict)
    z: Tensor = field(kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the row dimensions, ``()`` for one question."""
        return tuple(self.num_steps.shape)

    @property
    def hit(self) -> Tensor:
        """Where the target is hit, a bool tensor of the rows' shape."""
        return torch.isin(self.codes, self.codes.new_tensor(HITS))

    @property
    def codes(self) -> Tensor:
        """The codes of ``status``, an int64 tensor of the rows' shape."""
        status: Any = self.status
        one = isinstance(status, Status)
        return self.num_steps.new_tensor(int(status), dtype=torch.int64) if one else status

    @property
    def message(self) -> str:
        """How the search ended and how close it came, in words; for a grid, how many rows hit.

        Example:
            >>> import torch, funcexplain as fe
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
            >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
            >>> fe.solve(p, max_steps=0).message
            'The search reached max_steps before the target was hit. It is missed by 0.4.'
        """
        if not self.dims:
            missed = "" if bool(self.hit) else f" It is missed by {float(self.error):.3g}."
            failed = "".join(f" The error: {text}." for text in self.exceptions.values())
            return f"{Status(int(self.status)).sentence}{missed}{failed}"
        total, misses = self.hit.numel(), self.error[~self.hit]
        text = f"{int(self.hit.sum())} of {total} rows hit their target."
        text = f"{text} The others miss it by {format_range(misses)}." if len(misses) else text
        if count := len(self.exceptions):
            row, error = next(iter(self.exceptions.items()))
            text += f" The network failed in {count} of {total}, first in row {row}: {error}."
        return text

    def __getitem__(self, index: Any) -> Self:
        """Pick rows by ints, slices, ``...``, or one-dimensional int or bool tensors, one for each dim.

        Args:
            index: for one dimension, or a tuple for several. Several tensors pick their outer product.

        Returns:
            The solution of these rows. With an int for every dimension it is that of one question.

        Raises:
            IndexError: if the row or dimension does not exist.
            TypeError: for anything else.
        """
        names, tensors = list(self.dims), without_copies(self._tensors())
        numbers = torch.arange(math.prod(self.shape), device="cpu").reshape(self.shape)
        for dim, item in reversed(list(enumerate(expand_index(index, self.dims)))):
            key = (*[slice(None)] * dim, item)
            tensors, numbers = {n: tensor[key] for n, tensor in tensors.items()}, numbers[key]
            if drops_dim(item):
                del names[dim]
        return self._build(tensors, tuple(names), numbers)

    def flat(self, rows: Tensor) -> Self:
        """Pick rows by their numbers in row-major order over all dimensions; one question is row 0.

        Args:
            rows: numbers, int64, ``(B,)``.

        Returns:
            The solution of these rows, with one dimension ``row``.

        Example:
            >>> import torch, funcexplain as fe
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
            >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
            >>> grid = fe.vmap(fe.vmap(p, x0=torch.zeros(3, 1, 1, 2)), target=fe.one_hot_targets(2))
            >>> fe.solve(grid, max_steps=1).flat(torch.tensor([0, 5])).shape
            (2,)
        """
        return self._take(rows, ("row",))

    def isel(self, **items: Any) -> Self:
        """Pick rows by the names of dimensions.

        Args:
            items: an int, slice or one-dimensional tensor for each named dimension.

        Returns:
            The solution of these rows.

        Raises:
            ValueError: for a name that is not a dimension.

        Example:
            >>> import torch, funcexplain as fe
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
            >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
            >>> starts = fe.vmap(p, x0=torch.zeros(3, 1, 1, 2), name="start")
            >>> grid = fe.vmap(starts, target=fe.one_hot_targets(2))
            >>> fe.solve(grid, max_steps=1).isel(start=0).shape
            (2,)
        """
        unknown = sorted(items.keys() - set(self.dims))
        if unknown:
            raise ValueError(f"isel: expected names among {self.dims}, got {unknown}")
        return self[tuple(items.get(name, slice(None)) for name in self.dims)]

    def best(self, *dims: str | int, by: Tensor | None = None) -> Self:
        """Pick the best row along dimensions: hits before all others, then the lowest loss.

        Args:
            dims: names or numbers of the dimensions to pick along. Default: all of them.
            by: values to minimize instead of the loss, of the rows' shape, such as the distance from
                today's market.

        Returns:
            The solution without these dimensions.

        Raises:
            ValueError: for an unknown dimension, one without rows, or ``by`` of another shape.

        Example:
            >>> import torch, funcexplain as fe
            >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
            >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
            >>> starts = fe.vmap(p, x0=torch.tensor([[[[0.0, 0.0]]], [[[1.0, 0.0]]]]), name="start")
            >>> fe.solve(starts, max_steps=0).best("start").x
            tensor([[[1., 0.]]])
        """
        if not self.dims and not dims:
            return self
        along, kept = best_dims(dims, self.dims, self.shape, by)
        rows = best_rows(self.loss if by is None else by, self.hit, along, kept)
        return self._take(rows, tuple(self.dims[dim] for dim in kept))

    @property
    def sample(self) -> Self:
        """The first row, with a dimension ``row``: shows the window, dtype and device of all rows."""
        return self.flat(torch.arange(min(1, math.prod(self.shape)), device="cpu"))

    def __iter__(self) -> Iterator[Self]:
        if not self.dims:
            raise TypeError("solution: expected a grid of rows to iterate over, got one question's")
        return (self[row] for row in range(self.shape[0]))

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
            A ``pandas.DataFrame`` indexed by the row dimensions; `to_xarray` also has the windows.

        Raises:
            ImportError: pandas is not installed.
            ValueError: for a wrong number of ``assets``.
        """
        labels = check_labels("to_pandas", (0, 0, self.weights.shape[-1]), assets=assets)
        return to_frame("to_pandas", self.to_numpy(), self.dims, labels.get("asset"))

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
            ValueError: for labels that do not fit, or a row dimension named like one of the fields'.
        """
        window = self.x.shape[-3:]
        labels = check_labels("to_xarray", window, assets=assets, channels=channels, dates=dates)
        return to_dataset("to_xarray", self.to_numpy(), self.dims, labels)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        assets: Sequence[str] | None = None,
        channels: Sequence[str] | None = None,
        dates: Iterable[object] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the answer to one file, which `load` reads; an existing file is replaced atomically.

        Args:
            path: the file, such as ``"answer.safetensors"``.
            assets: ``A`` names, stored like all that follow; `describe` reads them.
            channels: ``C`` names.
            dates: ``L`` days of the window.
            settings: how the answer was found: text, numbers, bools, None, lists and dicts of these.

        Raises:
            TypeError: for a path, labels, settings or dtype of the wrong type.
            ValueError: for labels that do not fit x, or settings that are not finite.
            OSError: if the file cannot be written.
        """
        if settings is not None and not isinstance(settings, Mapping):
            raise TypeError(f"save: settings must be a dict, got {type(settings).__name__}")
        labels = check_labels("save", self.x.shape[-3:], assets=assets, channels=channels, dates=dates)
        notes = {"dims": list(self.dims), "labels": labels, "settings": dict(settings or {})}
        if self.exceptions:
            notes["exceptions"] = {str(row): error for row, error in self.exceptions.items()}
        write_archive("save", path, without_copies(self._tensors()), notes)

    def report(self, path: str | os.PathLike[str], problem: Problem, **options: Any) -> Path:
        """Write the answer for readers. Deprecated: use ``fe.report(solution, problem, path)``.

        Args:
            path: the file.
            problem: the question or grid that this answers.
            options: keyword arguments of `report`.

        Returns:
            The path.
        """
        return funcexplain.report(self, problem, path, **options)

    def _summary(self) -> list[tuple[str, str]]:
        """The key numbers as pairs of a name and a text; for a grid, counts over its rows."""
        if not self.dims:
            return [
                ("status", str(Status(int(self.status)))),
                ("largest error", f"{float(self.error):.3g}"),
                ("loss", f"{float(self.loss):.3g}"),
                ("steps", str(int(self.num_steps))),
                ("window", f"{tuple(self.x.shape)} {self.x.dtype}"),
            ]
        total = math.prod(self.shape)
        sizes = " x ".join(f"{size} {name}" for name, size in zip(self.dims, self.shape, strict=True))
        counts = [(f"status {status}", str(count)) for status, count in self._status_counts()]
        rate = f"{100 * int(self.hit.sum()) / total:.1f}%" if total else "none"
        return [("rows", f"{total} ({sizes})"), *counts, ("hit rate", rate)]

    def __repr__(self) -> str:
        if not self.dims:
            names = ("status", "loss", "num_steps", "x")
            texts = {name: format_value(getattr(self, name)) for name in names}
        else:
            sizes = ", ".join(f"{name}={size}" for name, size in zip(self.dims, self.shape, strict=True))
            counts = ", ".join(f"{status} {count}" for status, count in self._status_counts())
            x = f"{tuple(self.x.shape[len(self.dims) :])} {self.x.dtype}"
            texts = {"rows": f"({sizes})", "status": f"({counts})", "x": x}
        return f"Solution({', '.join(f'{name}={text}' for name, text in texts.items())})"

    def _repr_html_(self) -> str:
        return element("div", element("p", self.message), table((), self._summary(), numbers=(1,)))

    def _status_counts(self) -> list[tuple[Status, int]]:
        """How many rows ended with each status, by code."""
        counts = Counter(self.codes.flatten().tolist())
        return [(Status(code), count) for code, count in sorted(counts.items())]

    def _tensors(self) -> dict[str, Tensor]:
        """The fields as tensors; other leaves of a mapped tree are passed through."""
        return {**{name: getattr(self, name) for name in FIELDS}, "status": self.codes}

    def _take(self, rows: Tensor, dims: tuple[str, ...]) -> Self:
        """Pick rows by a tensor of row-major numbers, one dimension of it for each of ``dims``."""
        lead, total = len(self.dims), math.prod(self.shape)
        tensors = without_copies(self._tensors())
        tensors = {n: t.reshape(total, *t.shape[lead:])[rows] for n, t in tensors.items()}
        return self._build(tensors, dims, rows)

    def _build(self, tensors: dict[str, Tensor], dims: tuple[str, ...], rows: Tensor) -> Self:
        """A solution from its fields; without dims, ``status`` is a `Status` and ``history`` is cut."""
        old = enumerate(rows.flatten().tolist() if self.exceptions else ())
        exceptions = {new: self.exceptions[row] for new, row in old if row in self.exceptions}
        if dims:
            return type(self)(**with_search_point(tensors), dims=dims, exceptions=exceptions)
        history = tensors["history"]
        single: Any = {"status": Status(int(tensors["status"])), "history": history[~history.isnan()]}
        return type(self)(**with_search_point(tensors) | single, exceptions=exceptions)


def with_search_point(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a solution with ``z``, which is ``x`` where it was left out."""
    return {"z": tensors["x"], **tensors}


def without_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fields of a solution without ``z`` if it is ``x``, as in a search over windows."""
    if tensors["z"] is tensors["x"]:
        return {name: tensor for name, tensor in tensors.items() if name != "z"}
    return tensors


def _flatten(solution: Any) -> tuple[list[Tensor], tuple[str, ...], tuple[str, ...]]:
    return list(solution._tensors().values()), solution.dims, FIELDS


def unflatten(dims: Any, leaves: Any) -> Any:
    """Make a solution of the leaves of a tree, which may hold anything."""
    x, z, weights, loss, history, num_steps, status, error = leaves
    # A mapped tree may hold anything at its leaves; only a code becomes a status again.
    coded = isinstance(status, Tensor) and status.ndim == 0 and status.dtype is torch.int64
    if coded and int(status) in list(Status):
        status = Status(int(status))
    return Solution(x, weights, loss, history, num_steps, status, error, dims, z=z)


optree.register_pytree_node(
    cast(Any, Solution), _flatten, unflatten, namespace=optree.registry.__GLOBAL_NAMESPACE
)
