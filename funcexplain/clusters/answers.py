"""The answers of a run, read from its files on demand."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import optree
import torch
from torch import Tensor

from funcexplain.clusters.folder import Failures, Folder, open_folder
from funcexplain.clusters.manifest import Acceptance, Manifest
from funcexplain.problems.grid import RowDim, row_numbers
from funcexplain.solutions.indexing import best_dims, drops_dim, expand_index
from funcexplain.solutions.labels import check_labels
from funcexplain.solutions.solution import FIELDS, Solution, unflatten, with_search_point, without_copies
from funcexplain.solutions.status import HITS, Status
from funcexplain.solutions.tables import columns_of, index_columns, write_parquet

_CACHE_BYTES = 32 << 20  # recently read chunks


class Failure(NamedTuple):
    """Rows that failed together.

    Attributes:
        rows: row numbers in row-major order.
        error: the error of the last attempt.
    """

    rows: range
    error: str


class ChunkedSolution(Solution):
    """A `Solution` whose fields are in the files of a run.

    It has the interface of a `Solution`. Selecting rows (an index, `isel`, `best`, `flat`, iteration)
    reads only their chunks and returns a `Solution` in memory; `fe.evaluate` works chunk by chunk. A
    field, such as ``solution.x``, is read for all rows at every access: for large grids, use `chunks`,
    or only scalar fields. ``solution[...]`` loads everything. Missing rows are NaN and INTERRUPTED, rows
    of failed chunks NaN and FAILED.
    """

    def __init__(self, folder: Folder, failures: Failures) -> None:
        manifest = folder.manifest
        values = {"_folder": folder, "_manifest": manifest, "_errors": failures, "_cache": {}}
        vars(self).update(values, dims=manifest.dims)  # the class is frozen

    _folder: Folder
    _manifest: Manifest
    _errors: Failures
    _cache: dict[int, dict[str, Tensor]]

    def __getattr__(self, name: str) -> Any:
        if name == "z" and name not in self._manifest.fields:
            name = "x"  # of a search over windows
        if name.startswith("_") or name not in self._manifest.fields:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return self._all_rows(name)[name]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the row dimensions."""
        return self._manifest.shape

    @property
    def exceptions(self) -> Mapping[int, str]:
        """Errors of the network in single rows, by row number; reads the headers of all files."""
        return {
            row: error
            for number in range(self._manifest.chunks)
            for row, error in self._folder.exceptions(number).items()
        }

    @property
    def accepted(self) -> tuple[Acceptance, ...]:
        """Differences with which the run was continued; see ``accept`` of `solve`."""
        return self._manifest.accepted

    @property
    def failures(self) -> list[Failure]:
        """Failed chunks with their errors; another call of `solve` retries them."""
        return [Failure(self._manifest.span(n), error) for n, error in sorted(self._errors.items())]

    def chunks(self) -> Iterator[Solution]:
        """Iterate over all rows, file by file, in row-major order.

        Yields:
            Solutions of one dimension, ``row``.
        """
        for number, tensors in self._chunks(*self._manifest.fields):
            first, found = self._manifest.span(number).start, self._folder.exceptions(number)
            exceptions = {row - first: error for row, error in found.items()}
            yield Solution(**with_search_point(tensors), dims=("row",), exceptions=exceptions)

    def flat(self, rows: Tensor) -> Solution:  # type: ignore[override]  # returns rows in memory
        """Select rows by their numbers in row-major order; reads only their chunks.

        Args:
            rows: row numbers, int64, ``(B,)``.

        Returns:
            The solution of these rows, with one dimension ``row``.

        Raises:
            IndexError: if a row does not exist.
        """
        rows, manifest = rows.cpu(), self._manifest
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < manifest.rows:
            raise IndexError(f"solution: rows must be within 0 ... {manifest.rows - 1}")
        tensors = {
            name: torch.empty(len(rows), *trailing, dtype=getattr(torch, code), device="cpu")
            for name, (code, trailing) in manifest.fields.items()
        }
        owner = rows // manifest.chunk_size
        order = owner.argsort(stable=True)
        exceptions: dict[int, str] = {}
        owners, counts = owner[order].unique_consecutive(return_counts=True)
        for number, places in zip(owners.tolist(), order.split(counts.tolist()), strict=True):
            chunk = self._read(number)
            within = rows[places] - manifest.span(number).start
            for name, tensor in tensors.items():
                tensor[places] = chunk[name][within]
            if bool(_may_have_raised(chunk["status"][within]).any()):
                errors = self._folder.exceptions(number)
                pairs = zip(places.tolist(), rows[places].tolist(), strict=True)
                exceptions |= {place: errors[row] for place, row in pairs if row in errors}
        return Solution(
            **with_search_point(tensors), dims=("row",), exceptions=dict(sorted(exceptions.items()))
        )

    def __getitem__(self, index: Any) -> Solution:  # type: ignore[override]
        items = expand_index(index, self.dims)
        items += [slice(None)] * (len(self.dims) - len(items))
        rows, names = torch.zeros((), dtype=torch.int64, device="cpu"), []
        for name, size, item in zip(self.dims, self.shape, items, strict=True):
            one = drops_dim(item)
            own = torch.arange(size, device="cpu")[item]
            rows = (rows if one else rows[..., None]) * size + own
            names += [] if one else [name]
        return self._pick(rows, tuple(names))

    def best(self, *dims: str | int, by: Tensor | None = None) -> Solution:  # type: ignore[override]
        """Select the best row along dimensions, as `Solution.best`; reads ranks chunk by chunk."""
        _, kept = best_dims(dims, self.dims, self.shape, by)
        grid = [RowDim(n, size, frozenset()) for n, size in zip(self.dims, self.shape, strict=True)]
        shape = [self.shape[place] for place in kept]
        best = _Best.empty(math.prod(shape))
        for number, part in self._chunks("status") if by is not None else self._chunks("loss", "status"):
            span = self._manifest.span(number)
            rank = part["loss"] if by is None else by.flatten()[span.start : span.stop]
            rows = torch.arange(span.start, span.stop, device="cpu")
            best.update(row_numbers(grid, kept, rows), rows, part["status"], rank)
        return self._pick(best.row.reshape(shape), tuple(self.dims[place] for place in kept))

    def to_parquet(
        self,
        path: str | os.PathLike[str],
        *,
        windows: bool = False,
        assets: Sequence[str] | None = None,
    ) -> None:
        """Write a table with one line per row, chunk by chunk; replaces an existing file atomically.

        Args:
            path: the file, such as ``"answers.parquet"``.
            windows: whether to include x, as a list of its entries in row-major order.
            assets: ``A`` names for the columns of the weights. Default: numbers.

        Raises:
            ImportError: if pyarrow is not installed.
            ValueError: if there are not ``A`` names, or a row dimension is named like a column.
            OSError: if it cannot be written.
        """
        where, window = "to_parquet", self._manifest.fields["x"][1]
        weights = self._manifest.fields["weights"][1]
        names = check_labels(where, (0, 0, weights[-1]), assets=assets).get("asset")
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
        empty = block(self.flat(torch.arange(0, device="cpu")), 0)
        write_parquet(where, path, empty, map(block, self.chunks(), spans))

    def __repr__(self) -> str:
        manifest, counts = self._manifest, Counter[int]()
        for number in range(manifest.chunks):
            try:
                counts.update(self._folder.counts(number))
            except (OSError, ValueError):
                counts[int(self._missing_status(number))] += len(manifest.span(number))
        status = ", ".join(f"{Status(code)} {count}" for code, count in sorted(counts.items()))
        rows = ", ".join(f"{name}={size}" for name, size in zip(self.dims, self.shape, strict=True))
        code, window = manifest.fields["x"]
        names = dict.fromkeys(name for record in self.accepted for name in record.changes)
        accepted = f", accepted=({', '.join(names)})" if names else ""
        return (
            f"ChunkedSolution(rows=({rows}), chunks={manifest.chunks}, status=({status}), "
            f"x={window} torch.{code}{accepted})"
        )

    def _tensors(self) -> dict[str, Tensor]:
        # In one pass, so that a run in progress cannot add answers between two fields.
        found = self._all_rows(*self._manifest.fields)
        return {name: found.get(name, found["x"]) for name in FIELDS}

    def _all_rows(self, *names: str) -> dict[str, Tensor]:
        """Read fields of all rows."""
        parts = [part for _, part in self._chunks(*names)]
        parts = parts or [self._manifest.unanswered(0, Status.FAILED, names)]
        whole = {name: torch.cat([part[name] for part in parts]) for name in names}
        return {name: tensor.reshape(*self.shape, *tensor.shape[1:]) for name, tensor in whole.items()}

    def _chunks(self, *names: str) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Fields of every chunk, with its number."""
        for number in range(self._manifest.chunks):
            yield number, self._fields(number, names)

    def _fields(self, number: int, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Fields of a chunk; without a file, rows that are FAILED or INTERRUPTED."""
        try:
            return self._folder.read(number, names)
        except FileNotFoundError:
            rows = len(self._manifest.span(number))
            return self._manifest.unanswered(rows, self._missing_status(number), names)

    def _missing_status(self, number: int) -> Status:
        """Status of the rows of a chunk without a file."""
        return Status.FAILED if number in self._errors else Status.INTERRUPTED

    def _read(self, number: int) -> dict[str, Tensor]:
        """Read a chunk through a cache, since rows are often read in order."""
        if number not in self._cache:
            tensors = self._fields(number, tuple(self._manifest.fields))
            if bool((tensors["status"] == Status.INTERRUPTED).all()):
                return tensors  # may still be answered
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            while self._cache and size * (1 + len(self._cache)) > _CACHE_BYTES:
                del self._cache[next(iter(self._cache))]
            self._cache[number] = tensors
        return self._cache[number]

    def _pick(self, rows: Tensor, names: tuple[str, ...]) -> Solution:
        """The solution of some rows, in the shape of ``rows``."""
        found = self.flat(rows.flatten())
        if not names:
            return found[0]
        tensors = without_copies(found._tensors())
        tensors = {n: t.reshape(*rows.shape, *t.shape[1:]) for n, t in tensors.items()}
        return Solution(**with_search_point(tensors), dims=names, exceptions=found.exceptions)


def _may_have_raised(status: Tensor) -> Tensor:
    """Which rows may have an exception."""
    return (status == Status.FAILED) | (status == Status.NONFINITE)


class _Best(NamedTuple):
    """The best row of each group so far, its rank, and whether it is a hit."""

    row: Tensor
    loss: Tensor
    hit: Tensor

    @classmethod
    def empty(cls, groups: int) -> _Best:
        """Start with a rank worse than any row; a row that is not finite still replaces it."""
        row = torch.full((groups,), -1, device="cpu")
        return cls(row, row.new_full((groups,), torch.inf, dtype=torch.float64), row > 0)

    def update(self, group: Tensor, rows: Tensor, status: Tensor, rank: Tensor) -> None:
        """Add rows; ties keep the first row."""
        hit, loss = torch.isin(status, status.new_tensor(HITS)), rank.double().nan_to_num(nan=torch.inf)
        # Sort by group, hits first, then loss: the first row of each group is its best.
        order = loss.argsort(stable=True)
        for key in ((~hit).to(torch.int8), group):
            order = order[key[order].argsort(stable=True)]
        group, rows, hit, loss = (t[order] for t in (group, rows, hit, loss))
        first = torch.ones_like(group, dtype=torch.bool)
        first[1:] = group[1:] != group[:-1]
        group, rows, hit, loss = (t[first] for t in (group, rows, hit, loss))
        old_hit, old_loss = self.hit[group], self.loss[group]
        better = (self.row[group] < 0) | (hit & ~old_hit) | ((hit == old_hit) & (loss < old_loss))
        for kept, new in zip(self, (rows, loss, hit), strict=True):
            kept[group[better]] = new[better]


def open(directory: str | os.PathLike[str]) -> ChunkedSolution:  # noqa: A001  (used as clusters.open)
    """Open the answers of a run, finished or not.

    Args:
        directory: the directory given to `solve`.

    Returns:
        The solution, which reads its chunks on demand.

    Raises:
        TypeError: if ``directory`` is not a path.
        ValueError: if its manifest is damaged or has a later format.
        OSError: if its manifest cannot be read.

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
    folder = open_folder("clusters.open", directory)
    return ChunkedSolution(folder, folder.failures())


def _flatten(solution: Any) -> Any:
    return optree.tree_flatten_one_level(solution[...])[:3]


# As a pytree, it is a solution in memory.
optree.register_pytree_node(
    cast(Any, ChunkedSolution), _flatten, unflatten, namespace=optree.registry.__GLOBAL_NAMESPACE
)
