"""Answers as a parquet table, written chunk by chunk; pyarrow is imported when it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from funcexplain.solutions.answer import Status
from funcexplain.solutions.labels import checked_labels
from funcexplain.solutions.solution import Solution
from funcexplain.solutions.tables import require
from funcexplain.solutions.writing import as_path, replaced

_WHERE = "to_parquet"


def write_parquet(
    path: str | os.PathLike[str],
    chunks: Iterator[Solution],
    none: Solution,
    dims: Sequence[str],
    shape: Sequence[int],
    windows: bool,
    assets: Sequence[str] | None,
) -> None:
    """Write chunks as row groups of one file; ``none`` is one without rows, whose columns are theirs."""
    arrow = require(_WHERE, "pyarrow", "parquet")
    parquet = require(_WHERE, "pyarrow.parquet", "parquet")
    file_path, window = as_path(_WHERE, path), none.x.shape[1:]
    names = checked_labels(_WHERE, window, assets=assets).get("asset")

    def table(chunk: Solution, begun: int) -> Any:
        columns = _columns(chunk, names)
        if windows:
            flat = arrow.array(chunk.to_numpy()["x"].reshape(-1))
            columns["x"] = arrow.FixedSizeListArray.from_arrays(flat, window.numel())
        index = _index(dims, shape, np.arange(begun, begun + len(chunk.num_steps)))
        if taken := sorted(index.keys() & columns.keys()):
            raise ValueError(
                f"{_WHERE}: row dimensions must not be named like columns, got {taken[0]!r}; name it "
                "otherwise in fe.vmap(problem, name=...)"
            )
        columns["status"] = arrow.array(columns["status"], arrow.string())
        return arrow.table({**index, **columns})

    schema, begun = table(none, 0).schema, 0
    with replaced(_WHERE, file_path) as file, parquet.ParquetWriter(file, schema) as writer:
        for chunk in chunks:
            writer.write_table(table(chunk, begun))
            begun += len(chunk.num_steps)


def _index(dims: Sequence[str], shape: Sequence[int], rows: np.ndarray) -> dict[str, Any]:
    """Where rows lie along each dimension."""
    places = np.unravel_index(rows, tuple(shape)) if len(rows) else [rows] * len(dims)
    return dict(zip(dims, places, strict=True))


def _columns(chunk: Solution, assets: Sequence[str] | None) -> dict[str, Any]:
    """Status in words, the scalars, and a column for every weight."""
    arrays = chunk.to_numpy()
    columns: dict[str, Any] = {"status": [str(Status(int(code))) for code in arrays["status"]]}
    columns |= {name: arrays[name] for name in ("loss", "error", "num_steps")}
    models = chunk.weights.shape[1:-1].numel()
    weights = arrays["weights"].reshape(len(arrays["loss"]), models * chunk.weights.shape[-1])
    for place, column in enumerate(weights.T):
        asset, model = place % chunk.weights.shape[-1], place // chunk.weights.shape[-1]
        name = f"weight {assets[asset] if assets else asset}"
        columns[name if models == 1 else f"{name} of model {model}"] = column
    return columns
