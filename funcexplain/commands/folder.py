"""The folder of a run: its files change together, and are read only if unchanged since.

A run writes into a temporary folder. Once all files are complete they are moved, the summary last. It
holds digests of the others, which reveal a crash in between or a modified file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from funcexplain.networks.network import deferred_interrupts
from funcexplain.solutions.reading import MIB, read_bytes
from funcexplain.solutions.writing import check_regular, output_path

CONFIG, SOLUTION, SUMMARY = "config.toml", "solution.safetensors", "summary.json"
ANSWERS = "answers"
"""Folder of the answers, if workers shared the searches; it is resumed, and never moved."""
WEIGHTS, METRICS, PICTURE, REPORT = "weights.csv", "metrics.csv", "overview.png", "report.html"
MARKET, SHOCKS, TABLES = "market.csv", "shocks.csv", "tables.xlsx"
DRAWS, FAN, PDF = "draws.safetensors", "fan.png", "report.pdf"
COMPARISON, PAGE = "compare.csv", "compare.html"  # of several questions

_TABLES = (WEIGHTS, METRICS, MARKET, SHOCKS, TABLES)
_FILES = (CONFIG, SOLUTION, DRAWS, *_TABLES, PICTURE, FAN, REPORT, PDF, COMPARISON, PAGE)
_FRESH = ".run-"
_MAX_SUMMARY = 256 * MIB


def make_folder(folder: Path) -> Path:
    """Make a folder and check that it can be written to, before any work is done for it."""
    with _folder_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    return folder


def check_writable(folder: Path) -> None:
    """Raise unless a folder, or its nearest existing parent, can be written to; changes nothing."""
    output_path("output.folder", folder)
    with _folder_named(folder):
        existing = folder
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        with TemporaryFile(dir=existing):
            pass


@contextmanager
def _folder_named(folder: Path) -> Iterator[None]:
    """Name the folder in errors, and the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write to the folder {str(folder)!r}: {error.strerror}; choose another one"
        ) from error


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A folder for files until all of them are complete, and `replace_files` moves them."""
    with _folder_named(folder):
        for left in folder.glob(f"{_FRESH}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        fresh = TemporaryDirectory(prefix=_FRESH, dir=folder, ignore_cleanup_errors=True)
    with fresh as path:
        yield Path(path)


def replace_files(folder: Path, fresh: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Move new files to their folder, remove those of an earlier run, and write the summary.

    Args:
        folder: the folder of the run.
        fresh: a folder in it that holds the new files.
        summary: ``"files"`` names all that belong to the run, and ``"questions"`` the folders in it of
            several; the digests of the files are added.

    Returns:
        Folders of questions that an earlier run answered, and this one did not.
    """
    names = [name for name in summary["files"] if name != SUMMARY]
    moved = [name for name in names if (fresh / name).exists()]
    places = {name: _place(folder, name) for name in (*moved, SUMMARY)}
    earlier = _earlier(folder)
    digests = {name: _digest((fresh if name in moved else folder) / name) for name in names}
    text = json.dumps({**summary, "sha256": digests}, indent=2, allow_nan=False) + "\n"
    (fresh / SUMMARY).write_text(text, encoding="utf-8")
    with _folder_named(folder), deferred_interrupts():
        for name in moved:
            os.replace(fresh / name, places[name])
        for name in set(_FILES) & {*_names(earlier, "files")} - {*names}:
            (folder / name).unlink(missing_ok=True)
        os.replace(fresh / SUMMARY, places[SUMMARY])
    asked = [name for name in _names(earlier, "questions") if name not in _names(summary, "questions")]
    return [folder / name for name in asked if (folder / name / SUMMARY).exists()]


def _place(folder: Path, name: str) -> Path:
    """Where a file of the folder goes: nothing but a regular file is replaced."""
    path = output_path("output", folder / name)
    check_regular("output", path, name="another output.folder")
    return path


def _names(summary: Mapping[str, Any], key: str) -> list[str]:
    """Names in a summary, which may be damaged."""
    found = summary.get(key)
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def earlier_question(folder: Path) -> str:
    """The question of the run that wrote a folder, as part of a sentence; empty if unknown."""
    question = _earlier(folder).get("question")
    return f" ({question})" if isinstance(question, str) else ""


def _earlier(folder: Path) -> dict[str, Any]:
    """The summary of the run that wrote the folder before, empty if there is none."""
    try:
        summary = json.loads(read_bytes("output", folder / SUMMARY, _MAX_SUMMARY, "run again"))
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run, whose other files are those that it wrote; a report can be written again."""
    remedy = "funcexplain run CONFIG.toml makes one"
    if inner := sorted(folder.glob(f"*/{SUMMARY}")):
        remedy = f"it holds those of several questions: name one, such as {inner[0].parent}"
    path, unfinished = (
        folder / SUMMARY,
        FileNotFoundError(
            f"{str(folder)!r} is not the folder of a finished run, which contains {CONFIG}, {SUMMARY} "
            f"and {SOLUTION} or {ANSWERS}; {remedy}"
        ),
    )
    try:
        content = read_bytes("report", path, _MAX_SUMMARY, "run again")
    except (FileNotFoundError, NotADirectoryError):
        raise unfinished from None
    try:
        summary = json.loads(content)
        digests = dict(summary["sha256"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise unfinished from None
    if "questions" in summary:
        raise unfinished
    try:
        days = [answer["today"].items() for answer in summary["answers"]]
        fits = all(isinstance(weight, float | None) for day in days for _, weight in day)
        summary["digest"].get("prices")
    except (LookupError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"{str(path)!r} is damaged, or not the summary of a run; run again")
    torn = [name for name in digests if name != REPORT and _digest(folder / name) != digests[name]]
    if torn:
        raise ValueError(
            f"{str(folder)!r} is torn: {', '.join(torn)} {'is' if len(torn) == 1 else 'are'} not what "
            "its run wrote, because a later run was cut off, or by a change; run again"
        )
    return summary


def _digest(path: Path) -> str | None:
    """Digest of a file, or of a folder's names and files; None if there is nothing."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("[!.]*") if file.is_file())  # nothing temporary
        parts = [f"{file.relative_to(path)} {_digest(file)}" for file in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
