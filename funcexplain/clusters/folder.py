"""A run's directory: a manifest, a file per chunk, and the errors of chunks that failed.

manifest.json                         what decides the answers, the rows, and how they are cut
chunks/000000/000000123.safetensors   rows ``[123 * chunk_size, 124 * chunk_size)``, as `fe.load` reads
chunks/000000/000000124.error         why a chunk has no answer, as text
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from funcexplain.clusters.fingerprint import differences
from funcexplain.clusters.manifest import FIELDS, FORMAT, Manifest, decoded
from funcexplain.solutions.archive import read_archive, read_notes, write_archive
from funcexplain.solutions.solution import Solution
from funcexplain.solutions.writing import as_path, os_error, quote, replaced

# File systems slow down with very many files in one folder.
_FILES_PER_FOLDER = 1000
# Seconds after which a file that is being written has been left behind.
_LEFT_BEHIND = 3600
Failures = dict[int, str]


class Folder:
    """Reads and writes a directory.

    Args:
        where: public function that was called.
        path: the directory.
        manifest: what it is for.
    """

    def __init__(self, where: str, path: Path, manifest: Manifest) -> None:
        self.where, self.path, self.manifest = where, path, manifest

    def publish(self, number: int, solution: Solution) -> Counter[int]:
        """Write the answers of a chunk, as a whole or not at all; returns how many rows ended how."""
        path = self._file(number)
        _make(self.where, path.parent)
        counts = Counter(torch.as_tensor(solution.status).tolist())
        told = {str(code): count for code, count in sorted(counts.items())}
        first = self.manifest.span(number).start
        chunk = {"run": self.manifest.key, "first_row": first, "status": told}
        notes = {"dims": ["row"], "labels": {}, "settings": chunk}
        write_archive(self.where, path, {name: getattr(solution, name) for name in FIELDS}, notes)
        with suppress(OSError):  # what an earlier attempt may have left does not count any more
            path.with_suffix(".error").unlink()
        return counts

    def read(self, number: int, names: tuple[str, ...] = FIELDS) -> dict[str, Tensor]:
        """Read fields of a chunk.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if its file is damaged, or of another run or other rows.
            OSError: if it cannot be read.
        """
        tensors, notes = read_archive(self.where, self._file(number), names)
        self._counts(number, notes)
        return tensors

    def counts(self, number: int) -> Counter[int]:
        """How many rows of a chunk ended how, from its header; raises what `read` raises."""
        path = self._file(number)
        if not path.exists():
            # A network file system may remember for a while that it was not there.
            with suppress(OSError):
                os.listdir(path.parent)
        return self._counts(number, read_notes(self.where, path))

    def unsound(self, found: Counter[int]) -> Iterator[int]:
        """Numbers of chunks without a sound file; what the others hold is added to ``found``."""
        for number in range(self.manifest.chunks):
            try:
                notes = read_archive(self.where, self._file(number))[1]  # with all checksums
                found.update(self._counts(number, notes))
            except (OSError, ValueError):
                yield number

    def note(self, number: int, error: str) -> None:
        """Keep the error of a chunk that failed, until it is answered."""
        path = self._file(number).with_suffix(".error")
        _make(self.where, path.parent)
        with replaced(self.where, path) as file:
            file.write(error.encode())

    def failures(self) -> Failures:
        """Errors of chunks that have no file, by their number."""
        found = Failures()
        for path in sorted(self.path.glob("chunks/*/*.error")):
            number = int(path.stem) if path.stem.isdecimal() else -1
            if 0 <= number < self.manifest.chunks and not self._file(number).exists():
                with suppress(OSError):  # answered in between
                    found[number] = path.read_text(encoding="utf-8", errors="replace")
        return found

    def clean(self) -> None:
        """Take away what killed workers had begun to write, and nobody else may be writing now."""
        for path in (*self.path.glob(".*.tmp"), *self.path.glob("chunks/*/.*.tmp")):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT_BEHIND:
                    path.unlink()

    def _file(self, number: int) -> Path:
        folder = f"{number // _FILES_PER_FOLDER:06d}"
        return self.path / "chunks" / folder / f"{number:09d}.safetensors"

    def _counts(self, number: int, notes: dict[str, Any]) -> Counter[int]:
        """How many rows of a chunk ended how; refuses one of another run or other rows."""
        span = self.manifest.span(number)
        try:
            chunk = notes["settings"]
            counts = Counter({int(code): int(count) for code, count in chunk["status"].items()})
            place = (chunk["run"], chunk["first_row"], counts.total())
        except (LookupError, ValueError, TypeError, AttributeError):
            place, counts = None, Counter()
        if place != (self.manifest.key, span.start, len(span)):
            raise ValueError(
                f"{self.where}: {quote(self._file(number))} holds other rows, or those of another run; "
                "solve again with this directory, and it is replaced"
            )
        return counts


def begin(where: str, directory: Any, wanted: Manifest, chunk_size: int | None) -> Folder:
    """Make a directory, or take up one that is for the same.

    Args:
        where: public function that was called.
        directory: its path.
        wanted: what is to be answered.
        chunk_size: the caller's own choice, if there is one.

    Returns:
        The directory with its manifest.

    Raises:
        TypeError: for a path that is none.
        ValueError: if it is for something else.
        OSError: if it cannot be written.
    """
    path = _absolute(where, directory)
    manifest = path / "manifest.json"
    if not manifest.exists():
        _make(where, path)
        names = {item.name for item in path.iterdir() if not item.name.endswith(".tmp")}
        if strangers := names - {"chunks", manifest.name}:
            raise ValueError(
                f"{where}: directory must be new, empty, or that of a run, got {quote(path)} with "
                f"{sorted(strangers)[0]!r}; name another one"
            )
        # Who begins at the same time with another question is refused below.
        with suppress(FileExistsError), replaced(where, manifest, exclusive=True) as file:
            file.write(wanted.encoded())
    folder = opened(where, path)
    found = folder.manifest
    if found.key != wanted.key:
        raise ValueError(
            f"{where}: directory {quote(path)} holds answers to something else: "
            f"{differences(found.parts, wanted.parts)}; name another directory, or ask as before"
        )
    if chunk_size not in (None, found.chunk_size):
        raise ValueError(
            f"{where}: chunk_size must be that of the directory {quote(path)}, {found.chunk_size}, got "
            f"{chunk_size}; leave it out, or name another directory"
        )
    try:
        with TemporaryFile(dir=path):  # refuses a read-only folder before anything is solved
            pass
    except OSError as error:
        raise os_error(where, "write", manifest, error) from None
    return folder


def opened(where: str, directory: Any) -> Folder:
    """Open a directory that is there.

    Raises:
        TypeError: for a path that is none.
        ValueError: if its manifest is damaged or of a later version.
        OSError: if there is none that can be read.
    """
    path = _absolute(where, directory)
    manifest = path / "manifest.json"
    try:
        found = decoded(manifest.read_bytes())
    except OSError as error:
        raise os_error(where, "read", manifest, error) from None
    if isinstance(found, Manifest):
        return Folder(where, path, found)
    if found is not None:
        raise ValueError(
            f"{where}: {quote(manifest)} is of format {found}, this version reads up to {FORMAT}; "
            "pip install -U funcexplain"
        )
    raise ValueError(
        f"{where}: {quote(manifest)} is damaged or no manifest; name another directory, or take this "
        "file away, and chunks that were solved for the same are taken as they are"
    )


def _absolute(where: str, directory: Any) -> Path:
    as_path(where, directory)  # refuses what is none
    # Links are not followed: another machine may have them elsewhere.
    return Path(os.path.abspath(directory))


def _make(where: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(
            f"{where}: cannot make the folder {quote(folder)}: {reason}; name another directory, or "
            "make room for this one"
        ) from None
