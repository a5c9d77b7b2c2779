"""Numbers and lists in text: percent with two decimals, so that sentences and tables agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

ROUNDING = 1e-6
"""A change of at most so many sigmas is none."""


def format_percent(share: float) -> str:
    """A fraction in percent.

    Example:
        >>> format_percent(0.12345), format_percent(float("nan"))
        ('12.35%', 'an unknown share')
    """
    return f"{100 * share:.2f}%" if math.isfinite(share) else "an unknown share"


def format_signed(share: float) -> str:
    """A fraction in percent with its sign.

    Example:
        >>> format_signed(-0.061), format_signed(0.0)
        ('-6.10%', '+0.00%')
    """
    return f"{100 * share:+.2f}%"


def format_points(share: float) -> str:
    """A difference of fractions in percentage points.

    Example:
        >>> format_points(0.032)
        '3.20 percentage points'
    """
    return f"{100 * share:.2f} percentage points" if math.isfinite(share) else "an unknown amount"


def format_chance(chance: float, smallest: float = 1e-4) -> str:
    """A probability: percent down to the smallest, below that "1 in N".

    Example:
        >>> format_chance(0.25), format_chance(1e-5), format_chance(10**-9.3)
        ('25.00%', '1 in 100,000', '1 in 10^9.3')
    """
    if chance >= smallest:
        return format_percent(chance)
    if chance <= 0.0:
        return "0.00%"
    return f"1 in {1 / chance:,.0f}" if chance > 1e-7 else f"1 in 10^{-math.log10(chance):.1f}"


def format_interval(low: float, high: float) -> str:
    """A range of probabilities, both in percent or both "1 in N" unless they are far apart.

    Example:
        >>> format_interval(0.0268, 0.033), format_interval(8e-5, 2e-4)
        ('2.68% to 3.30%', '1 in 12,500 to 1 in 5,000')
    """
    smallest = 0.01 if 0.0 < low < 1e-4 else 1e-4
    return f"{format_chance(low, smallest)} to {format_chance(high, smallest)}"


def join(parts: Sequence[str]) -> str:
    """Join parts of a sentence.

    Example:
        >>> join(["a"]), join(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def format_number(value: Tensor | float) -> str:
    """A number with three digits.

    Example:
        >>> format_number(0.00012345)
        '0.000123'
    """
    return f"{float(value):.3g}"


def share_of(share: float) -> str:
    """A share in percent; only exactly all or none is 100% or 0%.

    Example:
        >>> share_of(0.0), share_of(0.002), share_of(0.126), share_of(0.999)
        ('0%', 'under 1%', '13%', 'over 99%')
    """
    if 0.0 < share < 0.01:
        return "under 1%"
    return "over 99%" if 0.99 < share < 1.0 else f"{100 * share:.0f}%"
