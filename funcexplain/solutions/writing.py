"""Atomic writing of files, and system errors with a remedy."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO


def as_path(where: str, path: Any) -> Path:
    """A path with symbolic links resolved; raises unless it is a path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{where}: path must be a str or a path, got {type(path).__name__}")
    # A link is followed: the file behind it is replaced, not the link.
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a null byte
        raise ValueError(f"{where}: path must name a file, got {path!r}: {error}") from None


@contextmanager
def replaced(where: str, path: Path, *, exclusive: bool = False) -> Iterator[BinaryIO]:
    """Write a new file in the same folder that replaces ``path`` once it is complete on disk.

    If ``exclusive``, an existing file is kept and a FileExistsError is raised.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{where}: {quote(path)} is a folder; name a file in it")
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
        except BaseException:  # clean up on Ctrl-C, too
            with suppress(OSError):
                fresh.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise os_error(where, "write", path, error) from None


def _linked(fresh: Path, path: Path) -> bool:
    """Give a file a second, unused name; False if the system has no links."""
    try:
        os.link(fresh, path)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power failure, on systems that can sync a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def os_error(where: str, verb: str, path: Path, error: OSError) -> OSError:
    """An error of the same type that names the function, the file and a remedy."""
    folder = "" if path.parent.is_dir() else f": there is no folder {quote(path.parent)}"
    remedy = "create it first" if folder else "check that it exists, and its permissions"
    if verb == "write" and not folder:
        remedy = "choose another folder, or free some space; an existing file is unchanged"
    reason = folder or f": {error.strerror or error}"
    return type(error)(f"{where}: cannot {verb} {quote(path)}{reason}; {remedy}")


def quote(path: Path) -> str:
    """A path as messages show it."""
    return repr(str(path))
