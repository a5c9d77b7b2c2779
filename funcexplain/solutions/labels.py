"""Names of the assets, channels and days of a window, for files and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

AXES = ("channel", "day", "asset")
"""Dimensions of a window ``(C, L, A)``."""


def check_labels(
    where: str,
    window: Sequence[int],
    *,
    assets: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    dates: Iterable[object] | None = None,
) -> dict[str, list[str]]:
    """Convert labels to text, by the dimension that they name; dimensions without labels are left out.

    Args:
        where: public function that was called.
        window: ``(C, L, A)``, sizes of a window.
        assets: ``A`` names.
        channels: ``C`` names.
        dates: ``L`` days, as text, dates or ``datetime64``.

    Returns:
        Labels by the names of `AXES`.

    Raises:
        TypeError: if an argument is not a sequence.
        ValueError: for a wrong number of labels, or duplicates.

    Example:
        >>> check_labels("save", (1, 5, 2), assets=("EUR", "JPY"))
        {'asset': ['EUR', 'JPY']}
    """
    arguments = {"channels": channels, "dates": dates, "assets": assets}
    labels = {}
    for (name, values), axis, size in zip(arguments.items(), AXES, window, strict=True):
        if values is None:
            continue
        labels[axis] = _as_text(where, name, values)
        if len(labels[axis]) != size:
            raise ValueError(
                f"{where}: {name} must be {size} labels, one per {axis} of x, got {len(labels[axis])}"
            )
        if len(set(labels[axis])) != size:
            raise ValueError(f"{where}: {name} must differ from each other, got {labels[axis]}")
    return labels


def _as_text(where: str, name: str, values: Any) -> list[str]:
    """A sequence of labels as a list of text."""
    try:
        if isinstance(values, str):  # a sequence of letters, never meant as labels
            raise TypeError
        return [str(value) for value in values]
    except TypeError:
        raise TypeError(
            f"{where}: {name} must be a sequence of labels, got {type(values).__name__}"
        ) from None
