"""A run's directory: a manifest, a file per chunk, and the errors of failed chunks.

manifest.json                         the fingerprint, the rows, and the size of chunks
chunks/000000/000000123.safetensors   rows ``[123 * chunk_size, 124 * chunk_size)``, as `fe.load` reads
chunks/000000/000000124.*.started     a worker solves the chunk
chunks/000000/000000124.error         the error of a failed chunk, as text
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from torch import Tensor

from funcexplain.clusters.fingerprint import differences
from funcexplain.clusters.manifest import FORMAT, Manifest, decode_manifest
from funcexplain.solutions.archive import read_archive, read_notes, write_archive
from funcexplain.solutions.files import are_errors
from funcexplain.solutions.reading import MIB, opened, read_bytes
from funcexplain.solutions.solution import Solution
from funcexplain.solutions.status import Status
from funcexplain.solutions.writing import as_path, os_error, output_path, quote, replaced

_FILES_PER_FOLDER = 1000  # file systems slow down with more
_ABANDONED_AFTER = 3600  # age of a temporary file in seconds
_MAX_MANIFEST, _MAX_ERROR = 64 * MIB, MIB
_MAX_TEXT = 1000  # characters of the error of a row
# About the longest name in a directory.
_LONGEST = Path("chunks", "0" * 6, "0" * 60)
# Parts of a fingerprint that are the question, not how it is computed.
_QUESTION = re.compile(r"args\..*|settings\..*|dims")
Failures = dict[int, str]


class Folder(NamedTuple):
    """Reads and writes a directory; ``where`` names the public function that was called."""

    where: str
    path: Path
    manifest: Manifest

    def publish(self, number: int, solution: Solution) -> Counter[int]:
        """Write the answers of a chunk atomically; returns the number of rows per status."""
        path = self._file(number)
        _make(self.where, path.parent)
        counts = Counter(solution.codes.tolist())
        status = {str(code): count for code, count in sorted(counts.items())}
        first = self.manifest.span(number).start
        chunk = {"run": self.manifest.key, "first_row": first, "status": status}
        notes = {"dims": ["row"], "labels": {}, "settings": chunk}
        if solution.exceptions:
            notes["exceptions"] = {
                str(row): text[:_MAX_TEXT] for row, text in solution.exceptions.items()
            }
        tensors = {name: getattr(solution, name) for name in self.manifest.fields}
        write_archive(self.where, path, tensors, notes)
        with suppress(OSError):  # of an earlier attempt
            path.with_suffix(".error").unlink()
        return counts

    def read(self, number: int, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Read fields of a chunk.

        Raises:
            FileNotFoundError: if it does not exist.
            ValueError: if its file is damaged, or belongs to another run or other rows.
            OSError: if it cannot be read.
        """
        return self._read(number, names)[0]

    def counts(self, number: int) -> Counter[int]:
        """Number of rows of a chunk per status, from its header; raises like `read`."""
        path = self._file(number)
        if not path.exists():
            # A network file system may cache for a while that it did not exist.
            with suppress(OSError):
                os.listdir(path.parent)
        return self._counts(number, read_notes(self.where, path))

    def exceptions(self, number: int) -> dict[int, str]:
        """Errors of the network in single rows of a chunk, by row number in the grid."""
        try:
            found = read_notes(self.where, self._file(number)).get("exceptions", {})
        except FileNotFoundError:
            return {}
        span = self.manifest.span(number)
        if not are_errors(found) or not all(int(row) < len(span) for row in found):
            raise self._strange(number)
        return {span.start + int(row): str(text) for row, text in found.items()}

    def marker(self, number: int, attempt: str) -> Path:
        """The file that marks the start of an attempt at a chunk."""
        return self._file(number).with_suffix(f".{attempt}.started")

    def missing(self, found: Counter[int]) -> Iterator[int]:
        """Numbers of chunks without a valid file; adds the status counts of the others to ``found``."""
        names = tuple(self.manifest.fields)
        for number in range(self.manifest.chunks):
            try:
                found.update(self._read(number, names)[1])  # verifies all checksums
            except (OSError, ValueError):
                yield number

    def note(self, number: int, error: str) -> None:
        """Store the error of a failed chunk, until the chunk is answered."""
        path = self._file(number).with_suffix(".error")
        _make(self.where, path.parent)
        with replaced(self.where, path) as file:
            file.write(error.encode())

    def failures(self) -> Failures:
        """Errors of chunks without a file, by chunk number."""
        found = Failures()
        for path in sorted(self.path.glob("chunks/*/*.error")):
            number = int(path.stem) if path.stem.isdecimal() else -1
            if 0 <= number < self.manifest.chunks and not self._file(number).exists():
                with suppress(OSError), opened(self.where, path) as file:  # or answered in between
                    found[number] = file.read(_MAX_ERROR).decode(errors="replace")
        return found

    def clean(self) -> None:
        """Remove abandoned temporary files of killed workers."""
        for path in (
            *self.path.glob(".*.tmp"),
            *self.path.glob("chunks/*/.*.tmp"),
            *self.path.glob("chunks/*/*.started"),
        ):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                    path.unlink()

    def _file(self, number: int) -> Path:
        folder = f"{number // _FILES_PER_FOLDER:06d}"
        return self.path / "chunks" / folder / f"{number:09d}.safetensors"

    def _read(self, number: int, names: tuple[str, ...]) -> tuple[dict[str, Tensor], Counter[int]]:
        """Fields of a chunk, as the manifest describes them, and the number of its rows per status."""
        tensors, notes = read_archive(self.where, self._file(number), names)
        counts, rows = self._counts(number, notes), len(self.manifest.span(number))
        for name in names:
            dtype, shape = self.manifest.kind(name, rows)
            found = tensors.get(name)
            if found is None or found.dtype is not dtype or found.shape != shape:
                kind = "nothing" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise ValueError(
                    f"{self.where}: {quote(self._file(number))} must hold {name} as the manifest "
                    f"describes it, {dtype} {shape}, got {kind}; solve again with this directory to "
                    "replace it"
                )
        if "status" in names and Counter(tensors["status"].tolist()) != counts:
            raise self._strange(number)
        return tensors, counts

    def _counts(self, number: int, notes: dict[str, Any]) -> Counter[int]:
        """Number of rows of a chunk per status; raises if it belongs to another run or other rows."""
        span = self.manifest.span(number)
        try:
            chunk = notes["settings"]
            counts = Counter({int(code): int(count) for code, count in chunk["status"].items()})
            place = (chunk["run"], chunk["first_row"], counts.total())
        except (LookupError, ValueError, TypeError, AttributeError):
            place, counts = None, Counter()
        known = counts.keys() <= {*Status} and min(counts.values(), default=0) >= 0
        if not known or place != (self.manifest.key, span.start, len(span)):
            raise self._strange(number)
        return counts

    def _strange(self, number: int) -> ValueError:
        """The error for a file whose notes do not fit the run."""
        return ValueError(
            f"{self.where}: {quote(self._file(number))} holds other rows, or those of another run; "
            "solve again with this directory to replace it"
        )


def open_or_create(
    where: str, directory: Any, wanted: Manifest, chunk_size: int | None, accept: Collection[str] = ()
) -> Folder:
    """Create a directory, or open an existing one with the same fingerprint and chunk size.

    Args:
        where: the public function that was called.
        directory: its path.
        wanted: its manifest, if it is new.
        chunk_size: rows per file; None for those of an existing directory.
        accept: names of parts that may differ; the differences are recorded.

    Raises:
        ValueError: if it holds answers to something else.
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
        # A concurrent run with another question is detected below.
        with suppress(FileExistsError), replaced(where, manifest, exclusive=True) as file:
            file.write(wanted.encode())
    folder = open_folder(where, path)
    before, after = folder.manifest.changes(wanted)
    if refused := [name for name in before if name not in accept]:
        texts = ({name: parts[name] for name in refused} for parts in (before, after))
        remedy = "name another directory, or ask the same question"
        if not any(_QUESTION.fullmatch(name) for name in refused):
            remedy += f"; if its answers remain valid, accept={[*before]} goes on with them"
        raise ValueError(
            f"{where}: directory {quote(path)} holds answers to something else: "
            f"{differences(*texts)}; {remedy}"
        )
    if before:
        if folder.manifest.fields != wanted.fields:
            raise ValueError(
                f"{where}: accept must not change the dtypes or sizes of the answers in {quote(path)}; "
                "name another directory"
            )
        answered = sum(1 for _ in path.glob("chunks/*/*.safetensors"))
        folder = folder._replace(manifest=folder.manifest.accepting(wanted, answered))
        with replaced(where, manifest) as file:
            file.write(folder.manifest.encode())
    found = folder.manifest
    if chunk_size not in (None, found.chunk_size):
        raise ValueError(
            f"{where}: chunk_size must be that of the directory {quote(path)}, {found.chunk_size}, got "
            f"{chunk_size}; leave it out, or name another directory"
        )
    try:
        with TemporaryFile(dir=path):  # detects a read-only folder before anything is solved
            pass
    except OSError as error:
        raise os_error(where, "write", manifest, error) from None
    return folder


def check_accept(where: str, accept: Any) -> tuple[str, ...]:
    """Names of parts whose differences are accepted; raises for parts of the question itself."""
    if not isinstance(accept, Collection):
        raise TypeError(f"{where}: accept must be names of parts, got {type(accept).__name__}")
    names = (accept,) if isinstance(accept, str) else tuple(accept)
    for name in names:
        if not isinstance(name, str) or _QUESTION.fullmatch(name):
            raise ValueError(
                f"{where}: accept must name parts of the code, such as 'loss', 'behavior' or "
                f"'versions.funcexplain', got {name!r}; for other data or settings, use another one"
            )
    return names


def open_folder(where: str, directory: Any) -> Folder:
    """Open an existing directory; raises if its manifest is damaged or has a later format."""
    path = _absolute(where, directory)
    manifest = path / "manifest.json"
    found = decode_manifest(read_bytes(where, manifest, _MAX_MANIFEST, "name the directory of a run"))
    if isinstance(found, Manifest):
        return Folder(where, path, found)
    if found is not None:
        raise ValueError(
            f"{where}: {quote(manifest)} has format {found}, this version reads up to {FORMAT}; "
            "pip install -U funcexplain"
        )
    raise ValueError(
        f"{where}: {quote(manifest)} is damaged or not a manifest; name another directory, or remove "
        "this file, and existing answers to the same question are reused"
    )


def _absolute(where: str, directory: Any) -> Path:
    as_path(where, directory)  # raises if it is not a path
    # Links are not resolved: they may differ on another machine.
    path = Path(os.path.abspath(directory))
    try:
        os.lstat(path / _LONGEST)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OSError(
                error.errno,
                f"{where}: directory must be a path that the system allows, got one of "
                f"{len(str(path))} characters; name a shorter one",
            ) from None
    return path


def _make(where: str, folder: Path) -> None:
    output_path(where, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise type(error)(
            f"{where}: cannot make the folder {quote(folder)}: {reason}; name another directory, or "
            "make room for this one"
        ) from None
