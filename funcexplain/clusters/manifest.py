"""The manifest of a directory: its rows, their chunks, and the fingerprint of their answers."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.clusters.fingerprint import Fingerprint, hash_fingerprint
from funcexplain.solutions.solution import FIELDS
from funcexplain.solutions.status import Status

FORMAT = 1


class Manifest(NamedTuple):
    """The contents of a directory.

    Attributes:
        parts: the fingerprint.
        dims: names of the row dimensions.
        shape: sizes of the row dimensions.
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
        """Hash of the fingerprint."""
        return hash_fingerprint(self.parts)

    @property
    def rows(self) -> int:
        """Total number of rows."""
        return math.prod(self.shape)

    @property
    def chunks(self) -> int:
        """Total number of chunks."""
        return -(-self.rows // self.chunk_size)

    def span(self, number: int) -> range:
        """Row numbers of a chunk."""
        return range(number * self.chunk_size, min(self.rows, (number + 1) * self.chunk_size))

    def unanswered(
        self, rows: int, status: Status, names: tuple[str, ...] = FIELDS
    ) -> dict[str, Tensor]:
        """Fields of rows without an answer."""
        tensors = {}
        for name in names:
            code, trailing = self.fields[name]
            dtype = getattr(torch, code)
            fill = math.nan if dtype.is_floating_point else 0
            tensors[name] = torch.full((rows, *trailing), fill, dtype=dtype, device="cpu")
        if "status" in tensors:
            tensors["status"].fill_(int(status))
        return tensors

    def encode(self) -> bytes:
        """The manifest as JSON, with a checksum."""
        entries = self._asdict()
        whole = {"format": FORMAT, **entries, "checksum": _checksum(entries)}
        return json.dumps(whole, indent=1).encode()


def decode_manifest(content: bytes) -> Manifest | int | None:
    """Decode a manifest; returns the number of a later format, None if it is damaged or another file."""
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


def _checksum(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
