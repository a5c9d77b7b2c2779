"""Reports as PDF: by a browser that is there, and with a remedy where there is none."""

import shutil
import sys
from pathlib import Path

import pytest

from funcexplain.reports import pdf
from funcexplain.reports.pdf import require_printer, write_pdf


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text("<!DOCTYPE html><html><body><h1>A report</h1></body></html>")
    return path


def browser(path: Path, body: str) -> str:
    """A program that is called like a browser."""
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_browser_prints(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "out = [a for a in sys.argv if a.startswith('--print-to-pdf=')][0].split('=', 1)[1]\n"
    body += "open(out, 'wb').write(b'%PDF' + sys.argv[-1].encode())"
    program = browser(tmp_path / "chrome", body)
    monkeypatch.setattr(shutil, "which", lambda name: program if name == "google-chrome" else None)
    assert write_pdf(page, tmp_path / "a.pdf").read_bytes() == b"%PDF" + page.as_uri().encode()


def test_a_browser_that_fails_leaves_the_earlier_file(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = browser(tmp_path / "chrome", "sys.exit('no display')")
    monkeypatch.setattr(shutil, "which", lambda name: program)
    (tmp_path / "a.pdf").write_text("earlier")
    with pytest.raises(OSError, match=r"report: .* did not print .*report.html.: no display"):
        write_pdf(page, tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_text() == "earlier"


def test_without_a_printer_the_remedy_is_named(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(pdf, "find_spec", lambda name: None)
    for call in (require_printer, lambda: write_pdf(page, page.with_suffix(".pdf"))):
        with pytest.raises(ImportError, match=r"pip install weasyprint; or print report\.html"):
            call()


def test_a_real_browser_prints(page: Path) -> None:
    if not any(map(shutil.which, pdf.BROWSERS)):
        pytest.skip("no browser")
    assert write_pdf(page, page.with_suffix(".pdf")).read_bytes().startswith(b"%PDF")
