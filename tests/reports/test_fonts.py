"""Names in any script are drawn: in a font that has their letters, or in ASCII with a warning."""

import warnings

import pytest

from funcexplain.reports import fonts
from funcexplain.reports.fonts import find_fonts
from funcexplain.reports.plots import plot_weights
from tests.reports.pictures import drawn, row_names

# A letter of Linear B, and one of no script at all.
UNKNOWN = "\U00010000\U000e0fff"


@pytest.mark.parametrize("name", ["Ødegård", "Ελλάδα", "Россия", "東京", "القاهرة", UNKNOWN])
def test_a_name_is_drawn_or_warned_about(name: str) -> None:
    _, missing = find_fonts(frozenset(name))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ax = plot_weights([0.5, 0.5], [0.5, 0.5], [0.5, 0.5], assets=[name, "B"])
        drawn(ax.figure)
    messages = [str(warning.message) for warning in caught]
    assert not [text for text in messages if "missing from font" in text]
    assert bool(missing) == any("no installed font has" in text for text in messages)
    if missing:
        assert not missing & {letter for label in row_names(ax) for letter in label}


def test_labels_of_ticks_fall_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fonts, "find_fonts", lambda letters: (("DejaVu Serif",) if letters else (), frozenset())
    )
    ax = plot_weights([0.5, 0.5], [0.5, 0.5], [0.5, 0.5], assets=["Øre", "B"])
    drawn(ax.figure)
    families = {label.get_text(): label.get_fontfamily() for label in ax.get_yticklabels()}
    assert families["Øre"][-1] == "DejaVu Serif"
    assert "DejaVu Serif" not in families["B"]
