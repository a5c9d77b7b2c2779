"""Fields of a solution as a pandas table or an xarray dataset; both are imported only here.

They walk over whatever fields there are: a scalar of each row is a column, and what leads with the rows
and goes on is an array with dimensions of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from funcexplain.solutions.labels import AXES

if TYPE_CHECKING:
    import pandas
    import xarray

Arrays = Mapping[str, np.ndarray]
Labels = Mapping[str, Sequence[str]]

# What follows the row dimensions; of a consensus the weights of each model stand before the asset.
_TRAILING = {"x": AXES, "weights": ("model", AXES[-1]), "history": ("step",)}


def to_frame(
    where: str, arrays: Arrays, dims: tuple[str, ...], labels: Labels, codes: Mapping[int, str]
) -> pandas.DataFrame:
    """One line for each row of a grid: status, the scalars of the row, and its weights.

    Args:
        where: public function that was called.
        arrays: fields by name, each leading with the row dimensions.
        dims: names of the row dimensions.
        labels: names of assets under ``"asset"``; else they are numbered.
        codes: words for the numbers in ``status``.

    Returns:
        Table whose index has the row dimensions as levels.

    Raises:
        ImportError: pandas is not installed.

    Example:
        >>> arrays = {"status": [0], "loss": [0.1], "weights": [[0.4, 0.6]]}
        >>> arrays = {name: np.array(values) for name, values in arrays.items()}
        >>> to_frame("to_pandas", arrays, ("start",), {"asset": ["EUR", "JPY"]}, {0: "HIT"}).T
        start         0
        status      HIT
        loss        0.1
        weight_EUR  0.4
        weight_JPY  0.6
    """
    pandas = require(where, "pandas")
    lead = arrays["status"].shape
    status = pandas.Categorical(
        [codes[code] for code in arrays["status"].ravel().tolist()], categories=list(codes.values())
    )
    scalars = {n: a.ravel() for n, a in arrays.items() if a.shape == lead and n != "status"}
    weights = arrays["weights"]
    own = weights.shape[len(lead) :]
    names = labels.get("asset", list(map(str, range(own[-1]))))
    columns = {
        "weight_" + "_".join([*map(str, place[:-1]), names[place[-1]]]): weights[(..., *place)].ravel()
        for place in np.ndindex(*own)
    }
    return pandas.DataFrame(
        {"status": status, **scalars, **columns}, index=row_index(pandas, dims, lead)
    )


def row_index(pandas: Any, dims: tuple[str, ...], lead: tuple[int, ...]) -> Any:
    """Number the rows of a grid, one level for each dimension; one question has one row, 0."""
    if len(dims) > 1:
        return pandas.MultiIndex.from_product([range(size) for size in lead], names=dims)
    return pandas.RangeIndex(lead[0] if dims else 1, name=dims[0] if dims else None)


def to_dataset(
    where: str, arrays: Arrays, dims: tuple[str, ...], labels: Labels, codes: Mapping[int, str]
) -> xarray.Dataset:
    """All fields as arrays with named dimensions: those of the rows, then channel, day, asset, step.

    Args:
        where: public function that was called.
        arrays: fields by name, each leading with the row dimensions.
        dims: names of the row dimensions.
        labels: coordinates by dimension.
        codes: words for the numbers in ``status``, kept as its attributes.

    Returns:
        Dataset with a variable for each field.

    Raises:
        ImportError: xarray is not installed.
        ValueError: if a row dimension has the name of one of a field's own.
    """
    xarray = require(where, "xarray")
    own = {name for trailing in _TRAILING.values() for name in trailing}
    if own & set(dims):
        raise ValueError(
            f"{where}: row dimensions must not be called {sorted(own & set(dims))}, as the fields' own "
            "are; give another name, as in fe.vmap(problem, name=...)"
        )
    variables = {}
    for name, array in arrays.items():
        trailing = _TRAILING.get(name, ())
        variables[name] = ((*dims, *trailing[len(trailing) - array.ndim + len(dims) :]), array)
    dataset = xarray.Dataset(variables, coords=dict(labels))
    # The convention of climate data for numbers that stand for words.
    dataset["status"].attrs = {
        "flag_values": list(codes),
        "flag_meanings": " ".join(codes.values()),
    }
    return dataset


def require(where: str, package: str, extra: str = "tables") -> Any:
    """Import a package of an extra, or say how to get it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f'{where}: needs {package}; install it with: pip install "funcexplain[{extra}]"'
        ) from error
