"""The manifest of a directory: its rows, their chunks, and the fingerprint of their answers."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.clusters.behavior import Behavior, compare_behavior
from funcexplain.clusters.fingerprint import Fingerprint, hash_fingerprint
from funcexplain.solutions.files import fits
from funcexplain.solutions.solution import FIELDS
from funcexplain.solutions.status import Status

FORMAT = 1


class Acceptance(NamedTuple):
    """Differences with which a run was continued.

    Attributes:
        changes: each part before and after.
        chunks: number of chunks that were answered before.
    """

    changes: dict[str, tuple[str, str]]
    chunks: int


class Manifest(NamedTuple):
    """The contents of a directory.

    Attributes:
        parts: the fingerprint.
        dims: names of the row dimensions.
        shape: sizes of the row dimensions.
        chunk_size: rows per file.
        fields: dtype and trailing shape of every field of the answer.
        behavior: results at a few windows; empty in older directories.
        run: hash of the first fingerprint, where differences were accepted later.
        accepted: these differences.
    """

    parts: Fingerprint
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk_size: int
    fields: dict[str, tuple[str, tuple[int, ...]]]
    behavior: Behavior
    run: str = ""
    accepted: tuple[Acceptance, ...] = ()

    @property
    def key(self) -> str:
        """The hash of the first fingerprint, to which the files of the run refer."""
        return self.run or hash_fingerprint(self.parts)

    def changes(self, now: Manifest) -> tuple[Fingerprint, Fingerprint]:
        """Parts and behavior that differ from another manifest, as ``(here, there)``."""
        both = self.parts, now.parts
        names = [name for name in {**self.parts, **now.parts} if both[0].get(name) != both[1].get(name)]
        before, after = ({name: parts.get(name, "nothing") for name in names} for parts in both)
        if self.behavior and (difference := compare_behavior(self.behavior, now.behavior)):
            before["behavior"], after["behavior"] = difference
        return before, after

    def accepting(self, now: Manifest, chunks: int) -> Manifest:
        """Become another manifest, and record the differences."""
        before, after = self.changes(now)
        record = Acceptance({name: (before[name], after[name]) for name in before}, chunks)
        accepted = (*self.accepted, record)
        return self._replace(parts=now.parts, behavior=now.behavior, run=self.key, accepted=accepted)

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

    def kind(self, name: str, rows: int) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of a field with this many rows."""
        code, trailing = self.fields[name]
        return getattr(torch, code), (rows, *trailing)

    def unanswered(self, rows: int, status: Status, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Fields of rows without an answer."""
        tensors = {}
        for name in names:
            dtype, shape = self.kind(name, rows)
            fill = math.nan if dtype.is_floating_point else 0
            tensors[name] = torch.full(shape, fill, dtype=dtype, device="cpu")
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
        accepted = tuple(
            Acceptance({name: tuple(pair) for name, pair in changes.items()}, chunks)
            for changes, chunks in found.get("accepted", ())
        )
        later = (found.get("behavior", {}), found.get("run", ""), accepted)  # than the first format
        manifest = Manifest(found["parts"], dims, shape, found["chunk_size"], kinds, *later)
        return manifest if _is_sound(manifest) else None
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        return None


def _is_sound(manifest: Manifest) -> bool:
    """Whether a manifest, whose checksum is not secret, describes a grid of solutions."""
    fields, dims, shape = manifest.fields, manifest.dims, manifest.shape
    sizes = (*shape, manifest.chunk_size - 1, *(size for _, own in fields.values() for size in own))
    return (
        fields.keys() | {"z"} == {*FIELDS}
        and fits(manifest.unanswered(0, Status.FAILED, tuple(fields)), ["row"])
        and all(type(size) is int and size >= 0 for size in sizes)
        and len(dims) == len(shape) > 0
        and all(isinstance(text, str) for text in (*dims, *manifest.parts.values()))
    )


def _checksum(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
