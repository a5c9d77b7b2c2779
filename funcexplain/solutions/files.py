"""Solutions in files: `load` reads what ``solution.save`` wrote, `describe` the notes on it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from funcexplain.solutions.archive import read_archive, read_notes
from funcexplain.solutions.solution import FIELDS, Solution, Status, with_search_point

_MAX_DIGITS = 18  # of the number of a row


def load(path: str | os.PathLike[str]) -> Solution:
    """Read a solution that ``solution.save(path)`` wrote, bit for bit.

    The file holds only numbers and text; reading an untrusted file runs no code.

    Args:
        path: the file.

    Returns:
        The solution, on the CPU; ``optree.tree_map(lambda leaf: leaf.cuda(), solution)`` moves it.
        `describe` reads the labels, settings and versions saved with it.

    Raises:
        TypeError: for a value that is not a path.
        ValueError: for a file that is truncated, damaged, of another kind, or of a later version.
        OSError: if it cannot be read.

    Example:
        >>> import pathlib, tempfile, torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> solution = fe.explain(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> path = pathlib.Path(tempfile.mkdtemp(), "answer.safetensors")
        >>> solution.save(path)
        >>> torch.equal(fe.load(path).x, solution.x)
        True
    """
    tensors, notes = read_archive("load", path)
    dims: Any = notes.get("dims")
    errors = notes.get("exceptions", {})
    if tensors.keys() | {"z"} != set(FIELDS) or not fits(tensors, dims) or not are_errors(errors):
        found = ", ".join(f"{n} {t.dtype} {tuple(t.shape)}" for n, t in sorted(tensors.items()))
        raise ValueError(
            f"load: {str(path)!r} must hold the fields of a solution {sorted(FIELDS)}, got {found} with "
            f"rows {dims}; it is not a saved solution"
        )
    values: dict[str, Any] = dict(tensors)
    if not dims:
        values["status"] = Status(int(tensors["status"]))
    exceptions = {int(row): str(error) for row, error in errors.items()}
    return Solution(**with_search_point(values), dims=tuple(dims), exceptions=exceptions)


def fits(tensors: dict[str, Tensor], dims: Any) -> bool:
    """Whether all fields are of their kind and lead with the same rows, and every status is valid."""
    if not isinstance(dims, list) or not all(isinstance(name, str) for name in dims):
        return False
    rows = tensors["num_steps"].shape
    for name, tensor in tensors.items():
        own, count = tensor.ndim - len(dims), {"x": 3, "weights": 1, "history": 1}.get(name, 0)
        integers = tensor.dtype is torch.int64
        # The weights of a consensus have a dimension of models.
        if own != count and name != "z" and (name, own) != ("weights", 2):
            return False
        if not (integers if name in ("num_steps", "status") else tensor.is_floating_point()):
            return False
    lead = all(tensor.shape[: len(dims)] == rows for tensor in tensors.values())
    return lead and len(rows) == len(dims) and {*tensors["status"].flatten().tolist()} <= {*Status}


def are_errors(errors: Any) -> bool:
    """Whether a note holds errors by the numbers of their rows."""
    rows = errors if isinstance(errors, dict) else ("not a number",)
    return all(row.isdecimal() and len(row) <= _MAX_DIGITS for row in rows)


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the notes saved with a solution, without its tensors.

    Args:
        path: the file.

    Returns:
        A dict of ``dims``, ``labels`` (by the names ``channel``, ``day`` and ``asset``), ``settings``,
        ``versions`` (of funcexplain, torch and Python) and the version of the ``format``.

    Raises:
        TypeError, ValueError, OSError: as `load`.

    Example:
        >>> import pathlib, tempfile, torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> solution = fe.explain(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> path = pathlib.Path(tempfile.mkdtemp(), "answer.safetensors")
        >>> solution.save(path, assets=["EUR", "JPY"], settings={"max_steps": 100})
        >>> about = describe(path)
        >>> about["labels"], about["settings"]
        ({'asset': ['EUR', 'JPY']}, {'max_steps': 100})
    """
    return read_notes("describe", path)
