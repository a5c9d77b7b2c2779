"""Answers as a parquet table, written chunk by chunk; pyarrow is imported when it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from funcexplain.solutions.answer import Status
from funcexplain.solutions.labels import checked_labels
from funcexplain.solutions.solution import Solution
from funcexplain.solutions.tables import require
from funcexplain.solutions.writing import as_path, replaced

_WHERE = "to_parquet"


def write_parquet(
    path: str | os.PathLike[str],
    chunks: Iterator[Solution],
    dims: Sequence[str],
    shape: Sequence[int],
    fields: Mapping[str, tuple[str, tuple[int, ...]]],
    windows: bool,
    assets: Sequence[str] | None,
) -> None:
    """Write all chunks as row groups of one file; see `ChunkedSolution.to_parquet`."""
    arrow = require(_WHERE, "pyarrow", "parquet")
    parquet = require(_WHERE, "pyarrow.parquet", "parquet")
    file_path, window = as_path(_WHERE, path), fields["x"][1]
    names = checked_labels(_WHERE, window, assets=assets).get("asset")
    begun, writer = 0, None
    with replaced(_WHERE, file_path) as file:
        for chunk in chunks:
            rows = np.arange(begun, begun + len(chunk.num_steps))
            columns = _index(dims, shape, rows) | _columns(chunk, names)
            if windows:
                flat = arrow.array(chunk.to_numpy()["x"].reshape(-1))
                columns["x"] = arrow.FixedSizeListArray.from_arrays(flat, int(np.prod(window)))
            table = arrow.table(columns)
            if writer is None:
                writer = parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
            begun += len(rows)
        if writer is None:
            raise ValueError(f"{_WHERE}: expected at least one row, got a grid of {tuple(shape)}")
        writer.close()


def _index(dims: Sequence[str], shape: Sequence[int], rows: np.ndarray) -> dict[str, Any]:
    """Where rows lie along each dimension."""
    return dict(zip(dims, np.unravel_index(rows, tuple(shape)), strict=True))


def _columns(chunk: Solution, assets: Sequence[str] | None) -> dict[str, Any]:
    """Status in words, the scalars, and a column for every weight."""
    arrays = chunk.to_numpy()
    columns: dict[str, Any] = {"status": [str(Status(int(code))) for code in arrays["status"]]}
    columns |= {name: arrays[name] for name in ("loss", "error", "num_steps")}
    weights = arrays["weights"].reshape(len(arrays["loss"]), -1)
    models = torch.Size(chunk.weights.shape[1:-1]).numel()
    for place, column in enumerate(weights.T):
        asset, model = place % chunk.weights.shape[-1], place // chunk.weights.shape[-1]
        name = f"weight {assets[asset] if assets else asset}"
        columns[name if models == 1 else f"{name} of model {model}"] = column
    return columns
