"""A report as PDF, printed by a browser or by WeasyPrint, whichever is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from funcexplain.solutions.writing import replaced

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
"""Programs that print pages, the first one found is used."""

_TIMEOUT = 120  # seconds


def require_printer() -> None:
    """Raise unless a PDF can be made, before any work is done for one.

    Raises:
        ImportError: there is neither a browser nor WeasyPrint.
    """
    if _find_browser() is None and find_spec("weasyprint") is None:
        raise ImportError(
            "a PDF needs a Chromium or Chrome on the PATH, or WeasyPrint: pip install weasyprint; or "
            "print report.html from a browser"
        )


def write_pdf(page: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Print a report to A4; folded parts stay folded.

    Args:
        page: the HTML file.
        path: the PDF file; an existing one is replaced once the new one is complete.

    Returns:
        Its path.

    Raises:
        ImportError: neither a browser nor WeasyPrint is installed.
        OSError: if the file cannot be written, or the browser fails.

    Example:
        >>> write_pdf("report.html", "report.pdf")  # doctest: +SKIP
        PosixPath('report.pdf')
    """
    source, target = Path(page), Path(path)
    require_printer()
    browser = _find_browser()
    content = _by_browser(browser, source) if browser else _by_weasyprint(source)
    with replaced("report", target) as file:
        file.write(content)
    return target


def _find_browser() -> str | None:
    """The first browser that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _by_browser(browser: str, page: Path) -> bytes:
    """Print by a headless Chromium with a temporary profile."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "page.pdf")
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--no-pdf-header-footer",
            f"--user-data-dir={folder}/profile",
            f"--print-to-pdf={output}",
            page.resolve().as_uri(),
        ]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.insert(1, "--no-sandbox")  # which Chromium refuses to root
        try:
            done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            raise OSError(f"report: {browser} took more than {_TIMEOUT} seconds to print") from None
        if not output.exists():
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise OSError(f"report: {browser} did not print {str(page)!r}: {lines[-1]}")
        return output.read_bytes()


def _by_weasyprint(page: Path) -> bytes:
    """Print by WeasyPrint."""
    from weasyprint import HTML

    content: bytes = HTML(filename=str(page)).write_pdf()
    return content
