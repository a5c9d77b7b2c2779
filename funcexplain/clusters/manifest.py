"""What a directory is for: the rows, how they are cut into chunks, and what decides their answers."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.clusters.fingerprint import Fingerprint, key_of
from funcexplain.solutions.solution import Solution
from funcexplain.solutions.status import Status

FORMAT = 1
FIELDS = tuple(field.name for field in fields(Solution) if field.name != "dims")


class Manifest(NamedTuple):
    """What a directory is for.

    Attributes:
        parts: the fingerprint.
        dims: names of the row dimensions.
        shape: their sizes.
        chunk_size: rows per file.
        fields: dtype and trailing shape of every field of the answer.
    """

    parts: Fingerprint
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk_size: int
    fields: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def key(self) -> str:
        """Hash of what decides the answers."""
        return key_of(self.parts)

    @property
    def rows(self) -> int:
        """Rows in all."""
        return math.prod(self.shape)

    @property
    def chunks(self) -> int:
        """Chunks in all."""
        return -(-self.rows // self.chunk_size)

    def span(self, number: int) -> range:
        """Numbers of the rows of a chunk."""
        return range(number * self.chunk_size, min(self.rows, (number + 1) * self.chunk_size))

    def unanswered(
        self, rows: int, status: Status, names: tuple[str, ...] = FIELDS
    ) -> dict[str, Tensor]:
        """Fields of rows that have no answer."""
        tensors = {}
        for name in names:
            code, trailing = self.fields[name]
            dtype = getattr(torch, code)
            fill = math.nan if dtype.is_floating_point else 0
            tensors[name] = torch.full((rows, *trailing), fill, dtype=dtype)
        if "status" in tensors:
            tensors["status"].fill_(int(status))
        return tensors

    def encoded(self) -> bytes:
        """The manifest as JSON, with a checksum."""
        told = self._asdict()
        whole = {"format": FORMAT, **told, "checksum": _checksum(told)}
        return json.dumps(whole, indent=1).encode()


def decoded(content: bytes) -> Manifest | int | None:
    """Read what `Manifest.encoded` wrote.

    Args:
        content: of the file.

    Returns:
        The manifest; the number of a format that is not known; or None for what is damaged or none.
    """
    try:
        found = json.loads(content)
        version = found.pop("format")
        if version > FORMAT:
            return int(version)
        if found.pop("checksum") != _checksum(found):
            return None
        kinds = {name: (code, tuple(size)) for name, (code, size) in found["fields"].items()}
        dims, shape = tuple(found["dims"]), tuple(found["shape"])
        return Manifest(found["parts"], dims, shape, found["chunk_size"], kinds)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _checksum(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
