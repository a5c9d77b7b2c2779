"""The HTML page of a report.

The page is self-contained: style and pictures are embedded, it has no scripts, and its policy forbids
the browser to load anything. It fits phones, desktops and paper; wide tables and pictures scroll
separately. Printed, the first page is one sheet, and folded parts stay folded.
"""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, cast

from funcexplain.solutions.html import Html, element

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS = 150
"""Per inch of a picture: sharp on screens of twice the usual density, and on paper."""

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 60rem; background: #fff; color: #222;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
p { margin: .4rem 0; }
.lead { font-size: 1.1rem; }
.note { color: #555; font-size: .9rem; }
.cards { display: grid; gap: .6rem; margin: .9rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.card { border: 1px solid #ddd; border-left: 5px solid #0072B2; border-radius: 4px;
  padding: .5rem .8rem; font-size: .9rem; }
.card.bad { border-left-color: #D55E00; }
.card.open { border-left-color: #8C8C8C; }
.card h2 { color: #555; font-size: .85rem; font-weight: normal; margin: 0; border: 0; padding: 0; }
.card b { display: block; font-size: 1.05rem; }
.pair { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.pair figure { margin: 0; }
.pair figure img { min-width: 0; }
details { border-top: 1px solid #ddd; padding: .5rem 0; }
summary { cursor: pointer; font-weight: bold; }
.scroll { overflow-x: auto; max-width: 100%; margin: .8rem 0; }
figure { margin: 1.2rem 0; }
figure img { display: block; width: 100%; min-width: 32rem; max-width: 52rem; height: auto; }
figcaption { color: #555; font-size: .9rem; margin-top: .3rem; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #e3e3e3;
  vertical-align: top; overflow-wrap: normal; }
td.number { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
@media screen and (max-width: 30rem) {
  body { padding: .8rem; font-size: 15px; line-height: 1.4; }
  h1 { font-size: 1.15rem; }
  .lead { font-size: 1rem; }
  .cards { gap: .3rem; margin: .6rem 0; }
  .card { padding: .25rem .6rem; font-size: .85rem; }
  .card h2, .card b { display: inline; font-size: .95rem; }
  .card b { margin-left: .4rem; }
  .card p { margin: .1rem 0; }
  .pair .scroll { margin: .3rem 0; }
  .pair figcaption { display: none; }
}
@page { margin: 15mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  .front { break-after: page; font-size: 9.5pt; }
  .front .lead { font-size: 10.5pt; }
  .front h1 { font-size: 14pt; }
  .front .card { font-size: 8.5pt; padding: .3rem .6rem; }
  .cards, .pair { grid-template-columns: 1fr 1fr; }
  .pair figure img { max-height: 75mm; margin: 0 auto; }
  .scroll { overflow: visible; margin: .3rem 0; }
  figure img { width: auto; min-width: 0; max-width: 100%; max-height: 165mm; }
  th, th.number { white-space: normal; }
  td { overflow-wrap: anywhere; }
  figure, .card, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def picture(ax: Axes, caption: str) -> Html:
    """The figure of some axes as a picture inside the page, with a caption."""
    buffer = BytesIO()
    figure = cast("Figure", ax.figure)
    figure.savefig(buffer, format="png", dpi=PIXELS)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    image = Html(f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">')
    scrolled = element("div", image, class_="scroll", tabindex="0")
    return element("figure", scrolled, element("figcaption", caption))


def page(title: str, *content: str) -> str:
    """The whole document.

    Example:
        >>> page("A & B", element("p", "text")).count("A &amp; B")
        1
    """
    head = (
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        # Without an icon, a browser would request one from the server.
        Html('<link rel="icon" href="data:,">'),
        element("title", title),
        Html(f"<style>{_STYLE}</style>"),
    )
    body = element("body", element("main", *content))
    document = element("html", element("head", *head), body, lang="en")
    return f"<!DOCTYPE html>\n{document}\n"
