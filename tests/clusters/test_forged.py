"""Files of a run that others made, with checksums that fit: refused in words, and solved again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.clusters.manifest import _checksum
from funcexplain.solutions.archive import read_archive, write_archive
from tests.clusters import builds
from tests.clusters.conftest import assert_same

Solve = Callable[..., fe.clusters.ChunkedSolution]
FIRST = Path("run", "chunks", "000000", "000000000.safetensors")


def forge(path: Path, **tensors: torch.Tensor) -> None:
    """Replace tensors of a chunk."""
    kept, notes = read_archive("load", path)
    fields = {name: tensor for name, tensor in {**kept, **tensors}.items() if tensor.ndim}
    write_archive("save", path, fields, notes)


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(5, 2, 3, 4)},
        {"x": torch.zeros(5, 2, 3, 5, dtype=builds.F64)},
        {"weights": torch.zeros(5, 4, dtype=torch.int64)},
        {"loss": torch.zeros(5, dtype=torch.bool)},
        {"status": torch.zeros(5, dtype=builds.F64)},
        {"num_steps": torch.zeros(5, dtype=torch.int32)},
        {"history": torch.zeros(4, 12, dtype=builds.F64)},
        {"error": torch.zeros(())},  # left out
        {"status": torch.full((5,), 77)},
    ],
    ids=lambda change: "-".join(f"{name}-{tensor.dtype}" for name, tensor in change.items()),
)
def test_a_forged_chunk_is_refused_and_solved_again(
    here: Solve, tmp_path: Path, expected: fe.Solution, change: dict[str, torch.Tensor]
) -> None:
    here()
    forge(tmp_path / FIRST, **change)
    (name,) = change
    with pytest.raises(ValueError, match=rf"000000000.safetensors.* (hold {name} as|holds other rows)"):
        fe.clusters.open(tmp_path / "run")[...]
    with pytest.raises(ValueError, match=r"solve again with this directory"):
        fe.clusters.open(tmp_path / "run")[0, 0]
    assert_same(here(), expected)


@pytest.mark.parametrize("errors", [[], 3, {"one": "x"}, {"5": "x"}, {"9" * 5000: "x"}], ids=range(5))
def test_forged_errors_are_refused(here: Solve, tmp_path: Path, errors: Any) -> None:
    here()
    path = tmp_path / FIRST
    tensors, notes = read_archive("load", path)
    write_archive("save", path, tensors, {**notes, "exceptions": errors})
    with pytest.raises(ValueError, match="holds other rows"):
        _ = fe.clusters.open(tmp_path / "run").exceptions


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_size": 0},
        {"chunk_size": "5"},
        {"shape": [4]},
        {"shape": [4, -6]},
        {"shape": [4, 6.0]},
        {"dims": [1, 2]},
        {"parts": {"loss": 3}},
        {"fields": {}},
        {"fields": {"x": ["load", [2, 3, 4]]}},
        {"fields": {"x": ["int64", [2, 3, 4]]}},
        {"fields": {"x": ["float64", [2, 3]]}},
        {"fields": {"x": ["float64", [2, 3, 2**70]]}},
        {"fields": {"more": ["float64", []]}},
    ],
    ids=str,
)
def test_a_forged_manifest_is_damaged(here: Solve, tmp_path: Path, change: dict[str, Any]) -> None:
    here()
    path = tmp_path / "run" / "manifest.json"
    entries = json.loads(path.read_bytes())
    del entries["checksum"], entries["format"]
    fields = {**entries["fields"], **change["fields"]} if change.get("fields") else change.get("fields")
    entries |= change if fields is None else {"fields": fields}
    path.write_text(json.dumps({"format": 1, **entries, "checksum": _checksum(entries)}))
    with pytest.raises(ValueError, match="is damaged or not a manifest"):
        fe.clusters.open(tmp_path / "run")
