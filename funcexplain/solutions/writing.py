"""Atomic writing of regular files, and system errors with a remedy."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from unicodedata import category

_MAX_LINKS = 40  # as Linux follows
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, surrogate, line and paragraph separator


def as_path(where: str, path: Any) -> Path:
    """A path with symbolic links resolved; raises unless it is a path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{where}: path must be a str or a path, got {type(path).__name__}")
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a null byte
        raise ValueError(f"{where}: path must name a file, got {path!r}: {error}") from None


def output_path(where: str, path: Any) -> Path:
    """A path to write to, with symbolic links resolved: the file behind a link is replaced.

    Raises:
        TypeError: if it is not a path.
        PermissionError: if a link is in a folder where another user could have made it.
        OSError: if a device, a pipe or a socket is there.
    """
    as_path(where, path)  # raises if it is not a path
    _check_not_special(where, Path(path))  # before links are followed: those of /dev/fd lead nowhere
    found, ahead, links = Path(), [*reversed(Path(path).absolute().parts)], 0
    while ahead:
        name = ahead.pop()
        here = found.parent if name == ".." else found / name
        if not os.path.islink(here):
            found = here
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, f"{where}: too many symbolic links; name the file itself", path)
        if _writable_by_others(found):
            raise PermissionError(
                f"{where}: cannot write to {quote(path)}: {quote(here)} is a symbolic link in a folder "
                "that other users can write to; name the file itself, or choose another folder"
            )
        ahead += reversed(Path(os.readlink(here)).parts)
    return found


def _writable_by_others(folder: Path) -> bool:
    """Whether users other than this one and root can make files in a folder; never on Windows."""
    if not hasattr(os, "geteuid"):
        return False
    about = folder.stat()
    others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return bool(others) or about.st_uid not in (0, os.geteuid())


def check_regular(where: str, path: Path, *, name: str = "the file in it") -> None:
    """Raise if a folder, a device, a pipe or a socket is there: anything but a regular file."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{where}: {quote(path)} is a folder; name {name}")
    _check_not_special(where, path)


def _check_not_special(where: str, path: Path) -> None:
    """Raise if a device, a pipe or a socket is there."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise OSError(f"{where}: {quote(path)} is not a regular file; name another file")


@contextmanager
def replaced(where: str, path: Path, *, exclusive: bool = False) -> Iterator[BinaryIO]:
    """Write a new file in the same folder that replaces ``path`` once it is complete on disk.

    Every file of this package is written here. If ``exclusive``, an existing file is kept and a
    FileExistsError is raised.
    """
    path = output_path(where, path)
    check_regular(where, path, name="a file in it")
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


def printable(text: str, keep: str = "") -> str:
    r"""Text without control characters, which could move the cursor, or hide or reverse other text.

    All except those to ``keep`` become escapes, including line ends.

    Example:
        >>> print(printable("GOLD\x1b[2J\n"))
        GOLD\x1b[2J\n
    """
    if text.isprintable():  # nearly always
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if category(letter) in _UNSEEN and letter not in keep
        else letter
        for letter in text
    )
