"""What is not folded in a report speaks plainly, and its page can be read by a screen reader."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.measures.agreement import Agreement
from funcexplain.reports.drawing import BLUE, COLORS
from tests.grids import targets, x0s
from tests.helpers import ASSETS, CHANNELS, make_problem
from tests.measures.draws import exact_draws, question

pytest.importorskip("matplotlib")
NAMES = ["EUR", "USD", "GBP", "JPY", "CHF"]
JARGON = r"\b(rows?|atol|linf|loss|sigmas? per entry|hits?|nan|inf)\b"


class Page(HTMLParser):
    """Text of a page, all of it and what is not folded, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.folded, self.summary, self.quiet = 0, False, False
        self.all = self.shown = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self.folded += tag == "details"
        self.summary |= tag == "summary"
        self.quiet |= tag == "style"
        if tag == "img":
            self.handle_data(dict(attrs)["alt"])

    def handle_endtag(self, tag: str) -> None:
        self.folded -= tag == "details"
        self.summary &= tag != "summary"
        self.quiet &= tag != "style"

    def handle_data(self, data: str) -> None:
        if not self.quiet:
            self.all += data + " "
            self.shown += data + " " if self.summary or not self.folded else ""


def answers(kind: str) -> tuple[fe.Solution, fe.Problem, dict[str, Any]]:
    """The arguments of a report of some kind."""
    problem = make_problem(mask=None, assets=NAMES)
    history, count = torch.randn(CHANNELS, 60, ASSETS, dtype=torch.float64), 6
    more: dict[str, Any] = {"history": history, "scale": 1.0}
    method: Any = fe.levenberg_marquardt()
    steps = 0 if kind == "missed" else 30
    if kind == "dates":
        windows = torch.cat([x0s(count - 1), x0s(1)])
        problem = fe.vmap(problem, x0=windows, reference=windows, name="date")
        more["coords"] = {"date": [f"2026-09-{day + 1:02d}" for day in range(count)]}
    elif kind == "starts":
        problem = fe.vmap(problem, x0=x0s(count), name="start")
    elif kind == "questions":
        problem = fe.vmap(problem, target=targets(count))
    elif kind == "held":
        problem = make_problem(mask=None, assets=NAMES, target=fe.targets.at_least(0, 0.0))
    elif kind == "networks":
        held = torch.tensor([True, False])
        more["agreement"] = Agreement(held, 0.1 * (~held).double(), held.double())
    elif kind == "draws":
        problem = question(sides=2, level=3.0)
        draws = exact_draws(problem, 60, sides=2, beta=3.0)
        more = {"scale": 0.02, "assets": ["EUR", "JPY", "CHF"], "draws": draws, "ahead": 4}
        return draws[0], problem, more
    return fe.solve(problem, method, max_steps=steps, atol=1e-3), problem, more


KINDS = ["one", "missed", "dates", "starts", "questions", "held", "networks", "draws"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_speaks_plainly_and_has_a_structure(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    solution, problem, more = answers(kind)
    page = Page(fe.report(solution, problem, tmp_path / "page.html", **more).read_text())
    assert not re.findall(JARGON, page.shown, re.I)
    if kind in ("dates", "starts", "questions"):
        assert not re.findall(r"\brows?\b", page.all, re.I)
    assert_structure(page)


def assert_structure(page: Page) -> None:
    """What a checker of accessibility looks for: headings in order, texts of pictures, scopes, keys."""
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")
    boxes = [attrs for _, attrs in page.tags if attrs.get("class") == "scroll"]
    assert all(attrs.get("tabindex") == "0" for attrs in boxes)  # else keys could not scroll them
    assert ("html", {"lang": "en"}) in page.tags
    assert [tag for tag, _ in page.tags].count("main") == 1


def luminance(color: str) -> float:
    """Of the WCAG: https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    digits = color.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_lines_stand_out_from_white() -> None:
    from funcexplain.reports.page import _STYLE

    texts = re.findall(r"[^-]color: (#[0-9A-Fa-f]{3,6})", _STYLE)
    assert len(texts) >= 2
    assert all(1.05 / (luminance(color) + 0.05) >= 4.5 for color in (*texts, BLUE))
    # Lines and marks of up to five assets, see https://www.w3.org/TR/WCAG21/#non-text-contrast.
    assert all(1.05 / (luminance(color) + 0.05) >= 3.0 for color in COLORS[:5])
