"""Files that are there as a whole or not at all, and errors of the system retold with a remedy."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def as_path(where: str, path: Any) -> Path:
    """The file that a path leads to, or a refusal of what is no path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{where}: path must be a str or a path, got {type(path).__name__}")
    # Through a link the file behind it is replaced, and not the link.
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a zero byte
        raise ValueError(f"{where}: path must be that of a file, got {path!r}: {error}") from None


@contextmanager
def replaced(where: str, path: Path, *, exclusive: bool = False) -> Iterator[BinaryIO]:
    """A new file in the same folder that takes the place of ``path`` once it is complete on disk.

    If ``exclusive``, a file that is there already stays, and a FileExistsError is raised.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{where}: {shown(path)} is a folder; name a file in it")
    fresh = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with fresh.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if exclusive and _linked(fresh, path):
                fresh.unlink()
            else:
                os.replace(fresh, path)
        except BaseException:  # Ctrl-C, too, leaves nothing behind
            with suppress(OSError):
                fresh.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise retold(where, "write", path, error) from None


def _linked(fresh: Path, path: Path) -> bool:
    """Give a file a second name, if there is no such file; False where the system has no links."""
    try:
        os.link(fresh, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, on systems that can sync a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def retold(where: str, verb: str, path: Path, error: OSError) -> OSError:
    """An error of the same kind that names the function, the file and what to do."""
    folder = "" if path.parent.is_dir() else f": there is no folder {shown(path.parent)}"
    remedy = "make it first" if folder else f"is it there, and may you {verb} it?"
    if verb == "write" and not folder:
        remedy = "choose another folder, or make room in this one; what was there is as it was"
    reason = folder or f": {error.strerror or error}"
    return type(error)(f"{where}: cannot {verb} {shown(path)}{reason}; {remedy}")


def shown(path: Path) -> str:
    """A path as it stands in messages."""
    return repr(str(path))
