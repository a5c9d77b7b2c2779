"""The answers of a run, read from its files when they are asked for, and never all at once unasked."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import optree
import torch
from torch import Tensor

from funcexplain.clusters.folder import Failures, Folder, opened
from funcexplain.clusters.manifest import Manifest
from funcexplain.problems.grid import RowDim, row_numbers
from funcexplain.solutions.indexing import best_dims, drops_dim, expand_index
from funcexplain.solutions.labels import check_labels
from funcexplain.solutions.solution import Solution
from funcexplain.solutions.status import Status
from funcexplain.solutions.tables import columns_of, index_columns, write_parquet

_REMEMBERED = 32 << 20  # bytes of chunks that were read last


class Failure(NamedTuple):
    """Rows that failed together.

    Attributes:
        rows: their numbers in row-major order.
        error: what was raised in the last attempt.
    """

    rows: range
    error: str


class ChunkedSolution(Solution):
    """A `Solution` whose fields lie in the files of a run.

    It is asked like any other. What picks rows (an index, `isel`, `best`, `flat`, iterating) reads only
    the chunks that hold them and returns a `Solution` in memory; `fe.evaluate` works chunk by chunk. A
    field, such as ``solution.x``, is read for all rows, each time it is asked for: of very many rows,
    take `chunks`, or the scalars. ``solution[...]`` is all of it in memory. Rows that are not there yet
    are NaN and INTERRUPTED, those of chunks that failed NaN and FAILED.
    """

    def __init__(self, folder: Folder, failures: Failures) -> None:
        manifest = folder.manifest
        values = {"_folder": folder, "_manifest": manifest, "_errors": failures, "_read_last": {}}
        for name, value in {**values, "dims": manifest.dims}.items():
            object.__setattr__(self, name, value)

    _folder: Folder
    _manifest: Manifest
    _errors: Failures
    _read_last: dict[int, dict[str, Tensor]]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._manifest.fields:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return self._whole(name)[name]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the row dimensions."""
        return self._manifest.shape

    @property
    def failures(self) -> list[Failure]:
        """Chunks that failed, with their errors; a second call of `solve` tries them again."""
        failed = {number: self._errors[number] for number in sorted(self._errors)}
        return [Failure(self._manifest.span(number), error) for number, error in failed.items()]

    def chunks(self) -> Iterator[Solution]:
        """All rows, file by file, in row-major order.

        Yields:
            Solutions of one dimension, ``row``.
        """
        for _, tensors in self._parts(*self._manifest.fields):
            yield Solution(**cast(Any, tensors), dims=("row",))

    def flat(self, rows: Tensor) -> Solution:  # type: ignore[override]  # rows that are read lie in memory
        """Pick rows by their numbers in row-major order; reads the chunks that hold them.

        Args:
            rows: numbers, int64, ``(B,)``.

        Returns:
            The solution of these rows, with one dimension ``row``.

        Raises:
            IndexError: if there is no such row.
        """
        rows, manifest = rows.cpu(), self._manifest
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < manifest.rows:
            raise IndexError(f"solution: rows must be within 0 ... {manifest.rows - 1}")
        tensors = {
            name: torch.empty(len(rows), *trailing, dtype=getattr(torch, code))
            for name, (code, trailing) in manifest.fields.items()
        }
        owner = rows // manifest.chunk_size
        order = owner.argsort(stable=True)
        owners, counts = owner[order].unique_consecutive(return_counts=True)
        for number, places in zip(owners.tolist(), order.split(counts.tolist()), strict=True):
            chunk = self._read(number)
            within = rows[places] - manifest.span(number).start
            for name, tensor in tensors.items():
                tensor[places] = chunk[name][within]
        return Solution(**cast(Any, tensors), dims=("row",))

    def __getitem__(self, index: Any) -> Solution:  # type: ignore[override]
        items = expand_index(index, self.dims)
        items += [slice(None)] * (len(self.dims) - len(items))
        rows, names = torch.zeros((), dtype=torch.int64), []
        for name, size, item in zip(self.dims, self.shape, items, strict=True):
            one = drops_dim(item)
            own = torch.arange(size)[item]
            rows = (rows if one else rows[..., None]) * size + own
            names += [] if one else [name]
        return self._shaped(rows, tuple(names))

    def best(self, *dims: str | int, by: Tensor | None = None) -> Solution:  # type: ignore[override]
        """Pick the best row along dimensions, as `Solution.best`; ranks are read chunk by chunk."""
        _, kept = best_dims(dims, self.dims, self.shape, by)
        grid = [RowDim(n, size, frozenset()) for n, size in zip(self.dims, self.shape, strict=True)]
        shape = [self.shape[place] for place in kept]
        best = _Best.of_none(math.prod(shape))
        for number, part in self._parts("status") if by is not None else self._parts("loss", "status"):
            span = self._manifest.span(number)
            rank = part["loss"] if by is None else by.flatten()[span.start : span.stop]
            rows = torch.arange(span.start, span.stop)
            best.update(row_numbers(grid, kept, rows), rows, part["status"], rank)
        return self._shaped(best.row.reshape(shape), tuple(self.dims[place] for place in kept))

    def to_parquet(
        self,
        path: str | os.PathLike[str],
        *,
        windows: bool = False,
        assets: Sequence[str] | None = None,
    ) -> None:
        """Write a table with one line per row, chunk by chunk; an earlier file stays until it is whole.

        Args:
            path: the file, such as ``"answers.parquet"``.
            windows: whether x is written, too, as a list of its numbers in row-major order.
            assets: ``A`` names for the columns of the weights. Default: numbers.

        Raises:
            ImportError: pyarrow is not installed.
            ValueError: if ``assets`` are too many or too few, or a row dimension is named like a column.
            OSError: where it cannot be written.
        """
        where, window = "to_parquet", self._manifest.fields["x"][1]
        names = check_labels(where, window, assets=assets).get("asset")
        own = math.prod(window)

        def block(chunk: Solution, begun: int) -> dict[str, np.ndarray]:
            arrays = chunk.to_numpy()
            index = index_columns(self.dims, self.shape, begun + np.arange(len(arrays["loss"])))
            columns = columns_of(arrays, names)
            columns |= {"x": arrays["x"].reshape(-1, own)} if windows else {}
            if clash := sorted(index.keys() & columns.keys()):
                raise ValueError(
                    f"{where}: row dimensions must not be named like columns, got {clash[0]!r}; rename "
                    "it with fe.vmap(problem, name=...)"
                )
            return index | columns

        spans = (self._manifest.span(number).start for number in range(self._manifest.chunks))
        empty = block(self.flat(torch.arange(0)), 0)
        write_parquet(where, path, empty, map(block, self.chunks(), spans))

    def __repr__(self) -> str:
        manifest, counts = self._manifest, Counter[int]()
        for number in range(manifest.chunks):
            try:
                counts.update(self._folder.counts(number))
            except (OSError, ValueError):
                counts[int(self._without(number))] += len(manifest.span(number))
        told = ", ".join(f"{Status(code)} {count}" for code, count in sorted(counts.items()))
        rows = ", ".join(f"{name}={size}" for name, size in zip(self.dims, self.shape, strict=True))
        code, window = manifest.fields["x"]
        return (
            f"ChunkedSolution(rows=({rows}), chunks={manifest.chunks}, status=({told}), "
            f"x={window} torch.{code})"
        )

    def _tensors(self) -> dict[str, Tensor]:
        # In one pass: a run that goes on must not answer between one field and the next.
        return self._whole(*self._manifest.fields)

    def _whole(self, *names: str) -> dict[str, Tensor]:
        """Fields of all rows."""
        parts = [part for _, part in self._parts(*names)]
        parts = parts or [self._manifest.unanswered(0, Status.FAILED, names)]
        whole = {name: torch.cat([part[name] for part in parts]) for name in names}
        return {name: tensor.reshape(*self.shape, *tensor.shape[1:]) for name, tensor in whole.items()}

    def _parts(self, *names: str) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Fields of every chunk, by its number."""
        for number in range(self._manifest.chunks):
            yield number, self._fields(number, names)

    def _fields(self, number: int, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Fields of a chunk; of one that is not there they say so."""
        try:
            return self._folder.read(number, names)
        except FileNotFoundError:
            rows = len(self._manifest.span(number))
            return self._manifest.unanswered(rows, self._without(number), names)

    def _without(self, number: int) -> Status:
        """How the rows of a chunk ended that has no file."""
        return Status.FAILED if number in self._errors else Status.INTERRUPTED

    def _read(self, number: int) -> dict[str, Tensor]:
        """A chunk, which may be asked for again soon, as rows are often asked for in order."""
        if number not in self._read_last:
            tensors = self._fields(number, tuple(self._manifest.fields))
            if bool((tensors["status"] == Status.INTERRUPTED).all()):
                return tensors  # it may come yet
            size = sum(tensor.nbytes for tensor in tensors.values())
            while self._read_last and size * (1 + len(self._read_last)) > _REMEMBERED:
                del self._read_last[next(iter(self._read_last))]
            self._read_last[number] = tensors
        return self._read_last[number]

    def _shaped(self, rows: Tensor, names: tuple[str, ...]) -> Solution:
        """The solution of some rows, in the shape of their numbers."""
        found = self.flat(rows.flatten())
        if not names:
            return found[0]
        tensors = {n: t.reshape(*rows.shape, *t.shape[1:]) for n, t in found._tensors().items()}
        return Solution(**cast(Any, tensors), dims=names)


class _Best(NamedTuple):
    """The best row of each group so far, its rank, and whether it hit."""

    row: Tensor
    loss: Tensor
    hit: Tensor

    @classmethod
    def of_none(cls, groups: int) -> _Best:
        """Before the first row: worse than any, as a row that is not finite comes before none."""
        worst = torch.full((groups,), torch.inf, dtype=torch.float64)
        return cls(torch.full((groups,), -1), worst, torch.zeros(groups, dtype=torch.bool))

    def update(self, group: Tensor, rows: Tensor, status: Tensor, rank: Tensor) -> None:
        """Take more rows into account; among equals the first stays."""
        hit, loss = status == Status.HIT, rank.double().nan_to_num(nan=torch.inf)
        # Sorted by group, hits before others, then by loss: the first of each group stands for it.
        order = loss.argsort(stable=True)
        for key in ((~hit).to(torch.int8), group):
            order = order[key[order].argsort(stable=True)]
        group, rows, hit, loss = (t[order] for t in (group, rows, hit, loss))
        first = torch.ones(len(group), dtype=torch.bool)
        first[1:] = group[1:] != group[:-1]
        group, rows, hit, loss = (t[first] for t in (group, rows, hit, loss))
        old_hit, old_loss = self.hit[group], self.loss[group]
        better = (self.row[group] < 0) | (hit & ~old_hit) | ((hit == old_hit) & (loss < old_loss))
        for kept, new in zip(self, (rows, loss, hit), strict=True):
            kept[group[better]] = new[better]


def open(directory: str | os.PathLike[str]) -> ChunkedSolution:  # noqa: A001  (of its module)
    """Open the answers of a run, finished or not.

    Args:
        directory: what `solve` was given.

    Returns:
        The solution, which reads its chunks when it is asked for rows.

    Raises:
        TypeError: for a path that is none.
        ValueError: if its manifest is damaged or of a later version.
        OSError: if there is none that can be read.

    Example:
        >>> import tempfile, funcexplain as fe
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from funcexplain.clusters.example import build
        >>> folder = tempfile.mkdtemp()
        >>> with ThreadPoolExecutor(1) as pool:
        ...     run = fe.clusters.solve(build, executor=pool, directory=folder, atol=0.1, max_steps=50)
        >>> fe.clusters.open(folder).best().status
        <Status.HIT: 0>
    """
    folder = opened("clusters.open", directory)
    return ChunkedSolution(folder, folder.failures())


def _flatten(solution: Any) -> Any:
    return optree.tree_flatten_one_level(solution[...])[:3]


def _unflatten(dims: Any, leaves: Any) -> Any:
    values: list[Any] = [*leaves, dims]
    return Solution(*values)


# Mapped as a tree, it becomes a solution in memory.
optree.register_pytree_node(
    cast(Any, ChunkedSolution), _flatten, _unflatten, namespace=optree.registry.__GLOBAL_NAMESPACE
)
