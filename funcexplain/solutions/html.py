"""HTML elements; text is escaped unless it is `Html`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from funcexplain.solutions.writing import printable


class Html(str):
    """Text that is HTML; elements escape any other text."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: str) -> Html:
    """An element around its content; text in it and in attributes is escaped.

    Example:
        >>> element("p", "R&D ", element("b", "<script>"), class_="note")
        '<p class="note">R&amp;D <b>&lt;script&gt;</b></p>'
    """
    pairs = "".join(f' {key.rstrip("_")}="{_escape(value)}"' for key, value in attributes.items())
    inside = "".join(part if isinstance(part, Html) else _escape(part) for part in content)
    return Html(f"<{name}{pairs}>{inside}</{name}>")


def _escape(text: str) -> str:
    """Escape markup, and control characters other than line ends."""
    return escape(printable(text, keep="\n"))


def table(heads: Sequence[str], lines: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> Html:
    """A table in a box that scrolls, also by keys; columns with these ``numbers`` are aligned right."""

    def line(cells: Sequence[str], kind: str, **scope: str) -> Html:
        aligned = [{"class_": "number"} if place in numbers else {} for place in range(len(cells))]
        parts = zip(cells, aligned, strict=True)
        return element("tr", *(element(kind, cell, **scope, **more) for cell, more in parts))

    head = [element("thead", line(heads, "th", scope="col"))] if heads else []
    body = element("tbody", *(line(cells, "td") for cells in lines))
    return element("div", element("table", *head, body), class_="scroll", tabindex="0")


def details(summary: str, *content: str) -> Html:
    """A part of a page that is folded until its summary is clicked.

    Example:
        >>> details("More", element("p", "text"))
        '<details><summary>More</summary><p>text</p></details>'
    """
    return element("details", element("summary", summary), *content)
