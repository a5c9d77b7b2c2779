"""Fonts for names in any script: fallbacks that are installed, or ASCII with a warning."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def make_figure(width: float, height: float) -> Figure:
    """A white figure, unknown to pyplot, whose names are drawn in fonts that have their letters.

    Args:
        width: in inches.
        height: in inches.

    Returns:
        The figure.

    Example:
        >>> make_figure(2.0, 1.0).get_size_inches()
        array([2., 1.])
    """
    return _figure_class()(figsize=(width, height), dpi=100, facecolor="white")


@cache
def _figure_class() -> Any:
    """A figure that looks for fonts before it is drawn; defined late, since matplotlib is optional."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    class NamedFigure(Figure):
        def draw(self, renderer: Any) -> None:
            for text in self.findobj(Text):
                families = find_fonts(_foreign(text.get_text()))[0]
                if families:
                    text.set_fontfamily([*matplotlib.rcParams["font.sans-serif"][:1], *families])
            super().draw(renderer)

    return NamedFigure


@cache
def find_fonts(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Installed fonts that have the letters that the default one lacks, and letters that none has.

    Example:
        >>> find_fonts(frozenset("é"))
        ((), frozenset())
    """
    from matplotlib import font_manager

    missing = _lacking(font_manager.findfont(font_manager.FontProperties()), letters)
    families: list[str] = []
    for font in font_manager.fontManager.ttflist if missing else ():
        left = _lacking(font.fname, missing)
        if len(left) < len(missing) and font.name not in families:
            families, missing = [*families, font.name], left
        if not missing:
            break
    return tuple(families), missing


def _lacking(path: str, letters: Iterable[str]) -> frozenset[str]:
    """The letters that a font file does not have; all of them if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset(letters)
    return frozenset(letter for letter in letters if not font.get_char_index(ord(letter)))


def drawable(text: str) -> str:
    """Replace letters that no installed font has by their nearest ASCII ones, and warn.

    Example:
        >>> drawable("EUR"), drawable("Zürich")
        ('EUR', 'Zürich')
    """
    missing = find_fonts(_foreign(text))[1]
    if not missing:
        return text
    warnings.warn(
        f"plots: no installed font has {''.join(sorted(missing))!r}; such letters are drawn in ASCII or "
        "as '?'. Install a font of that script, such as Noto Sans",
        stacklevel=2,
    )
    nearest = {letter: unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"
               for letter in missing}  # fmt: skip
    return "".join(nearest.get(letter, letter) for letter in text)


def _foreign(letters: Iterable[str]) -> frozenset[str]:
    """The letters that are not ASCII."""
    return frozenset(letter for letter in letters if not letter.isascii())
