"""Tables of solutions: their columns, and how they are written.

`columns_of` defines the columns: status, the scalars of a row, then its weights. In tables without
an index (csv, parquet), the columns that identify the row come first. pandas, xarray and pyarrow are
imported only here, when needed; an ImportError explains how to install them.

``arrays`` are the fields of a solution by name, each leading with the row dimensions ``dims``;
``assets`` are ``A`` names, by default numbers; ``where`` is the public function that was called.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from funcexplain.solutions.labels import AXES
from funcexplain.solutions.status import Status
from funcexplain.solutions.writing import output_path, replaced

if TYPE_CHECKING:
    import pandas
    import xarray

Arrays = Mapping[str, np.ndarray]

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")

# Dimensions after the rows'; in a consensus the weights have one for the models before the asset.
_TRAILING = {"x": AXES, "weights": ("model", AXES[-1]), "history": ("step",)}


def columns_of(arrays: Arrays, assets: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Columns of a table with one line per row, in order: status, the row's scalars, its weights.

    The weights are called ``weight_ASSET``, in a consensus ``weight_MODEL_ASSET``.

    Example:
        >>> fields = {"status": [0], "loss": [0.1], "weights": [[0.4, 0.6]]}
        >>> columns_of({name: np.array(values) for name, values in fields.items()}, ["EUR", "JPY"])
        {'status': array(['HIT'], dtype=object), 'loss': array([0.1]), 'weight_EUR': array([0.4]),
         'weight_JPY': array([0.6])}
    """
    shape, weights = arrays["status"].shape, arrays["weights"]
    words = [Status(code).name for code in arrays["status"].ravel().tolist()]
    columns = {"status": np.array(words, dtype=object)}
    columns |= {n: a.ravel() for n, a in arrays.items() if a.shape == shape and n != "status"}
    for *models, asset in np.ndindex(*weights.shape[len(shape) :]):
        name = "_".join(["weight", *map(str, models), assets[asset] if assets else str(asset)])
        columns[name] = weights[(..., *models, asset)].ravel()
    return columns


def index_columns(dims: Sequence[str], shape: Sequence[int], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The index along each row dimension, for row-major numbers of rows.

    Example:
        >>> index_columns(("target", "start"), (2, 3), np.array([0, 4]))
        {'target': array([0, 1]), 'start': array([0, 1])}
    """
    places = np.unravel_index(rows, tuple(shape)) if len(rows) else [rows] * len(dims)
    return dict(zip(dims, places, strict=True))


def to_frame(
    where: str, arrays: Arrays, dims: tuple[str, ...], assets: Sequence[str] | None
) -> pandas.DataFrame:
    """The columns of `columns_of` as a table whose index has the row dimensions as levels."""
    pandas = require(where, "pandas")
    columns: dict[str, Any] = columns_of(arrays, assets)
    columns["status"] = pandas.Categorical(columns["status"], [status.name for status in Status])
    return pandas.DataFrame(columns, index=row_index(pandas, dims, arrays["status"].shape))


def row_index(pandas: Any, dims: tuple[str, ...], shape: tuple[int, ...]) -> Any:
    """Number the rows of a grid, one level for each dimension; one question has one row, 0."""
    if len(dims) > 1:
        return pandas.MultiIndex.from_product([range(size) for size in shape], names=dims)
    return pandas.RangeIndex(shape[0] if dims else 1, name=dims[0] if dims else None)


def to_dataset(
    where: str, arrays: Arrays, dims: tuple[str, ...], labels: Mapping[str, Sequence[str]]
) -> xarray.Dataset:
    """All fields as arrays with named dimensions: those of the rows, then channel, day, asset, step.

    ``labels`` are coordinates by dimension. Raises a ValueError for a row dimension with such a name.
    """
    xarray = require(where, "xarray")
    shared = sorted({name for trailing in _TRAILING.values() for name in trailing} & set(dims))
    if shared:
        raise ValueError(
            f"{where}: row dimensions must not be called {shared}, as the fields' own are; give another "
            "name, as in fe.vmap(problem, name=...)"
        )
    variables = {}
    for name, array in arrays.items():
        trailing = _TRAILING.get(name, ())
        if name == "weights" and array.shape[-1] != arrays["x"].shape[-1]:  # cash, too
            trailing = ("model", "output")
        if name == "z":  # of any shape
            same = array.shape == arrays["x"].shape
            trailing = _TRAILING["x"] if same else tuple(f"z{k}" for k in range(array.ndim - len(dims)))
        variables[name] = ((*dims, *trailing[len(trailing) - array.ndim + len(dims) :]), array)
    dataset = xarray.Dataset(variables, coords=dict(labels))
    # The climate and forecast (CF) convention for codes.
    dataset["status"].attrs = {
        "flag_values": [int(status) for status in Status],
        "flag_meanings": " ".join(status.name for status in Status),
    }
    return dataset


def write_csv(where: str, path: Path, blocks: Iterable[Arrays]) -> None:
    """Write blocks of equal columns as csv, one after another, under one header.

    Text that a spreadsheet would take for a formula gets an apostrophe before it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "table.csv")
        >>> write_csv("run", path, [{"loss": np.array([0.5])}, {"loss": np.array([0.25])}])
        >>> path.read_text().split()
        ['loss', '0.5', '0.25']
    """
    with replaced(where, path) as raw:
        file = TextIOWrapper(raw, encoding="utf-8", newline="")
        writer = csv.writer(file)
        for number, block in enumerate(blocks):
            if number == 0:
                writer.writerow(map(_defused, block))
            columns = (map(_defused, column.tolist()) for column in block.values())
            writer.writerows(zip(*columns, strict=True))
        file.detach()  # writes what is left, and keeps the file open


def _defused(cell: Any) -> Any:
    """A cell that no spreadsheet runs as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell


def write_parquet(
    where: str, path: str | os.PathLike[str], empty: Arrays, blocks: Iterable[Arrays]
) -> None:
    """Write blocks of equal columns as the row groups of a parquet file, which appears when complete.

    A column of shape ``(rows, n)`` becomes a list of ``n`` in each line. ``empty`` is a block without
    lines, for the types of the columns. Raises an OSError if the file cannot be written.
    """
    arrow = require(where, "pyarrow", "parquet")
    parquet = require(where, "pyarrow.parquet", "parquet")

    def as_arrow(name: str, column: np.ndarray) -> Any:
        if column.ndim > 1:
            return arrow.FixedSizeListArray.from_arrays(arrow.array(column.ravel()), column.shape[1])
        return arrow.array(column, arrow.string() if name == "status" else None)

    def as_table(block: Arrays) -> Any:
        return arrow.table({name: as_arrow(name, column) for name, column in block.items()})

    schema = as_table(empty).schema
    target = output_path(where, path)
    with replaced(where, target) as file, parquet.ParquetWriter(file, schema) as writer:
        for block in blocks:
            writer.write_table(as_table(block))


def require(where: str, package: str, extra: str = "tables") -> Any:
    """Import an optional package, or raise an error that explains how to install it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f'{where}: needs {package}; install it with: pip install "funcexplain[{extra}]"'
        ) from error


def format_range(misses: Tensor) -> str:
    """The smallest and the largest of some numbers, NaN left out."""
    known = misses[~misses.isnan()]
    if not len(known):
        return "unknown distances"
    lower, upper = (f"{float(miss):.3g}" for miss in known.aminmax())
    return lower if lower == upper else f"{lower} to {upper}"


def format_value(value: Any) -> str:
    """A field in one line: the value of a scalar, else shape and dtype."""
    if not isinstance(value, Tensor):
        return str(value)
    if value.ndim == 0:
        return f"{value.item():.3g}" if value.is_floating_point() else str(value.item())
    return f"{tuple(value.shape)} {value.dtype}"
