"""Answers as pandas tables and xarray datasets."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from tests.grids import targets
from tests.helpers import make_problem
from tests.solutions.test_files import answers, converted

pandas = pytest.importorskip("pandas")
xarray = pytest.importorskip("xarray")
SCALARS = ("loss", "num_steps")


def test_a_grid_is_one_line_per_row() -> None:
    solution = answers()["grid"]
    table = solution.to_pandas(assets=list("ABCDE"))
    assert table.index.names == ["target", "start"]
    assert next(iter(table.columns)) == "status"
    assert list(table.columns)[-5:] == [f"weight_{name}" for name in "ABCDE"]
    assert len(table) == 6
    for row in np.ndindex(*solution.shape):
        line = table.loc[row]
        assert line["status"] == fe.Status(int(torch.as_tensor(solution.status)[row])).name
        for name in SCALARS:
            np.testing.assert_array_equal(line[name], getattr(solution, name)[row].numpy())
        np.testing.assert_array_equal(line[-5:].to_numpy(float), solution.weights[row].numpy())


@pytest.mark.parametrize("name", ["one question", "no rows", "consensus", "grid"])
def test_every_scalar_of_a_row_is_a_column(name: str) -> None:
    solution = answers()[name]
    scalars = {n for n, t in solution._tensors().items() if t.shape == solution.shape}
    table = solution.to_pandas()
    assert scalars <= set(table.columns)
    assert len(table) == solution.num_steps.numel()
    weights = [c for c in table.columns if c.startswith("weight_")]
    assert len(weights) == solution.weights[..., :].numel() // max(len(table), 1) or not len(table)
    assert not set(table.columns) & {"x", "history"}


def test_one_question_and_one_dimension_have_plain_indices() -> None:
    assert list(answers()["one question"].to_pandas().index) == [0]
    grid = fe.solve(fe.vmap(make_problem(), target=targets(3)), max_steps=1)
    assert grid.to_pandas().index.name == "target"
    assert answers()["consensus"].to_pandas().columns[-1] == "weight_1_4"


def test_datasets_hold_every_field() -> None:
    solution = answers()["grid"]
    days = [f"2024-01-0{day}" for day in range(1, 7)]
    data = solution.to_xarray(assets=list("ABCDE"), channels=["r", "v"], dates=days)
    assert set(data.data_vars) == solution._tensors().keys()
    for name, tensor in solution._tensors().items():
        np.testing.assert_array_equal(data[name].to_numpy(), tensor.numpy())
    assert data["x"].dims == ("target", "start", "channel", "day", "asset")
    assert data["history"].dims == ("target", "start", "step")
    picked = data["x"].sel(asset="C", channel="v", day="2024-01-06", target=1, start=0)
    assert float(picked) == float(solution.x[1, 0, 1, 5, 2])
    assert data["status"].attrs["flag_meanings"].split()[0] == "HIT"


@pytest.mark.parametrize("name", answers())
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_every_kind_of_answer_has_a_table_and_a_dataset(name: str, dtype: torch.dtype) -> None:
    solution = converted(answers()[name], dtype)
    assert len(solution.to_pandas()) == solution.num_steps.numel()
    data = solution.to_xarray()
    dims = ("model", "asset") if name == "consensus" else ("asset",)
    assert data["weights"].dims == (*solution.dims, *dims)


def test_a_row_dimension_called_like_another_is_refused() -> None:
    grid = fe.vmap(make_problem(), target=targets(2), name="asset")
    with pytest.raises(ValueError, match=r"to_xarray: row dimensions must not be called \['asset'\]"):
        fe.solve(grid, max_steps=0).to_xarray()


@pytest.mark.parametrize("package", ["pandas", "xarray"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    convert: Any = getattr(answers()["grid"], f"to_{package}")
    with pytest.raises(ImportError, match=rf'needs {package}; .* pip install "funcexplain\[tables\]"'):
        convert()


@pytest.mark.parametrize("method", ["to_pandas", "to_xarray"])
def test_labels_that_do_not_fit_are_refused(method: str) -> None:
    with pytest.raises(ValueError, match=f"{method}: assets must be 5 labels"):
        getattr(answers()["grid"], method)(assets=["EUR"])
