"""A run's directory: a manifest, a file per chunk, and the errors of chunks that failed.

manifest.json                      what decides the answers, the rows, and how they are cut
chunks/000000/000000123.safetensors   rows ``[123 * chunk_size, 124 * chunk_size)``, as `fe.load` reads
failures.json                      chunks that failed, with their errors; there only if some did
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcexplain.clusters.fingerprint import Fingerprint, differences, key_of
from funcexplain.solutions.answer import Answer, Status
from funcexplain.solutions.archive import read_archive, read_notes, write_archive
from funcexplain.solutions.solution import Solution
from funcexplain.solutions.writing import as_path, replaced, retold, shown

FORMAT = 1
# File systems slow down with very many files in one folder.
_FILES_PER_FOLDER = 1000
_FIELDS = tuple(field.name for field in fields(Answer) if field.name != "dims")
Failures = dict[int, str]


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

    def unanswered(self, number: int, status: Status, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Fields of a chunk that is not there."""
        tensors, count = {}, len(self.span(number))
        for name in names:
            code, trailing = self.fields[name]
            dtype = getattr(torch, code)
            fill = math.nan if dtype.is_floating_point else 0
            tensors[name] = torch.full((count, *trailing), fill, dtype=dtype)
        if "status" in tensors:
            tensors["status"].fill_(int(status))
        return tensors


class Folder:
    """Reads and writes a directory.

    Args:
        where: public function that was called.
        path: the directory.
    """

    def __init__(self, where: str, path: Any) -> None:
        as_path(where, path)  # refuses what is none
        # Links are not followed: another machine may have them elsewhere.
        self.where, self.path = where, Path(os.path.abspath(path))
        self._manifest, self._failures = self.path / "manifest.json", self.path / "failures.json"

    def file(self, number: int) -> Path:
        """The file of a chunk."""
        return self.path / "chunks" / f"{number // _FILES_PER_FOLDER:06d}" / f"{number:09d}.safetensors"

    def begin(self, wanted: Manifest, chunk_size: int | None) -> Manifest:
        """Make the directory, or take up one that is for the same.

        Args:
            wanted: what is to be answered.
            chunk_size: the caller's own choice, if there is one.

        Returns:
            The manifest of the directory.

        Raises:
            ValueError: if it is for something else.
            OSError: if it cannot be written.
        """
        if self._manifest.exists():
            found = self.manifest()
            if found.key != wanted.key:
                raise ValueError(
                    f"{self.where}: directory {shown(self.path)} holds answers to something else: "
                    f"{differences(found.parts, wanted.parts)}; name another directory, or ask as before"
                )
            if chunk_size not in (None, found.chunk_size):
                raise ValueError(
                    f"{self.where}: chunk_size must be that of the directory {shown(self.path)}, "
                    f"{found.chunk_size}, got {chunk_size}; leave it out, or name another directory"
                )
            with replaced(self.where, self._manifest) as file:  # refuses a read-only folder now
                file.write(_encoded(found))
            return found
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = {item.name for item in self.path.iterdir() if not item.name.endswith(".tmp")}
        except OSError as error:
            raise retold(self.where, "write", self.path / "manifest.json", error) from None
        if strangers := names - {"chunks", self._failures.name}:
            raise ValueError(
                f"{self.where}: directory must be new, empty, or that of a run, got {shown(self.path)} "
                f"with {sorted(strangers)[0]!r}; name another one"
            )
        with replaced(self.where, self._manifest) as file:
            file.write(_encoded(wanted))
        return wanted

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            ValueError: if it is damaged or of a later version.
            OSError: if there is none that can be read.
        """
        try:
            text = self._manifest.read_text()
        except OSError as error:
            raise retold(self.where, "read", self._manifest, error) from None
        try:
            found = json.loads(text)
            version = found["format"]
            if version <= FORMAT:
                kinds = {name: (code, tuple(size)) for name, (code, size) in found["fields"].items()}
                dims, shape = tuple(found["dims"]), tuple(found["shape"])
                manifest = Manifest(found["parts"], dims, shape, found["chunk_size"], kinds)
                if manifest.key == found["key"] and kinds.keys() == {*_FIELDS}:
                    return manifest
        except (ValueError, LookupError, TypeError, AttributeError):
            version = None
        if isinstance(version, int) and version > FORMAT:
            raise ValueError(
                f"{self.where}: {shown(self._manifest)} is of format {version}, this version reads up "
                f"to {FORMAT}; pip install -U funcexplain"
            )
        raise ValueError(
            f"{self.where}: {shown(self._manifest)} is damaged or no manifest; name another "
            "directory, or take this file away, and the chunks are solved again"
        )

    def publish(self, manifest: Manifest, number: int, solution: Solution) -> Counter[int]:
        """Write the answers of a chunk, as a whole or not at all; returns how many rows ended how."""
        path = self.file(number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise retold(self.where, "write", path, error) from None
        counts = Counter(torch.as_tensor(solution.status).tolist())
        told = {str(code): count for code, count in sorted(counts.items())}
        chunk = {"run": manifest.key, "first_row": manifest.span(number).start, "status": told}
        notes = {"dims": ["row"], "labels": {}, "settings": chunk}
        write_archive(self.where, path, {name: getattr(solution, name) for name in _FIELDS}, notes)
        return counts

    def counts(self, manifest: Manifest, number: int, *, thorough: bool = False) -> Counter[int] | None:
        """How many rows of a chunk ended how, or None where it has no sound file.

        Args:
            manifest: that of the directory.
            number: the chunk's.
            thorough: whether its numbers are checked, too, and not only its header and length.
        """
        path = self.file(number)
        try:
            notes = read_archive(self.where, path)[1] if thorough else read_notes(self.where, path)
            chunk = notes["settings"]
            counts = Counter({int(code): int(count) for code, count in chunk["status"].items()})
            mine = (chunk["run"], chunk["first_row"]) == (manifest.key, manifest.span(number).start)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return counts if mine and counts.total() == len(manifest.span(number)) else None

    def read(
        self, manifest: Manifest, number: int, failed: bool, names: tuple[str, ...] = _FIELDS
    ) -> dict[str, Tensor]:
        """Read fields of a chunk; of one that is not there they say so.

        Raises:
            ValueError: if its file is damaged, or of another run.
        """
        try:
            tensors, notes = read_archive(self.where, self.file(number), names)
        except FileNotFoundError:
            status = Status.FAILED if failed else Status.INTERRUPTED
            return manifest.unanswered(number, status, names)
        if notes.get("settings", {}).get("run") != manifest.key:
            raise ValueError(
                f"{self.where}: {shown(self.file(number))} is of another run; solve again with this "
                "directory, and it is replaced"
            )
        return tensors

    def failures(self) -> Failures:
        """Errors of chunks that failed in the last run."""
        try:
            told = json.loads(self._failures.read_text())
            return {int(number): str(error) for number, error in told.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def note(self, failures: Failures) -> None:
        """Keep the errors of chunks that failed; none leaves no file."""
        if failures:
            with replaced(self.where, self._failures) as file:
                file.write(json.dumps(failures, indent=1).encode())
        else:
            self._failures.unlink(missing_ok=True)

    def clean(self) -> None:
        """Take away what killed workers had begun to write."""
        for path in (*self.path.glob(".*.tmp"), *self.path.glob("chunks/*/.*.tmp")):
            with suppress(OSError):
                path.unlink()


def missing(folder: Folder, manifest: Manifest, found: Counter[int]) -> Iterator[int]:
    """Numbers of chunks without a sound file; what the others hold is added to ``found``."""
    for number in range(manifest.chunks):
        counts = folder.counts(manifest, number, thorough=True)
        if counts is None:
            yield number
        else:
            found.update(counts)


def _encoded(manifest: Manifest) -> bytes:
    told = {"format": FORMAT, "key": manifest.key, **manifest._asdict()}
    return json.dumps(told, indent=1).encode()
