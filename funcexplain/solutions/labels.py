"""Names of the assets, channels and days of a window, for files and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
        try:
            if isinstance(values, str):  # a sequence of letters, never meant as labels
                raise TypeError
            labels[axis] = [str(value) for value in values]
        except TypeError:
            kind = type(values).__name__
            raise TypeError(f"{where}: {name} must be a sequence of labels, got {kind}") from None
        if len(labels[axis]) != size:
            raise ValueError(
                f"{where}: {name} must be {size} labels, one per {axis} of x, got {len(labels[axis])}"
            )
        if len(set(labels[axis])) != size:
            raise ValueError(f"{where}: {name} must differ from each other, got {labels[axis]}")
    return labels
