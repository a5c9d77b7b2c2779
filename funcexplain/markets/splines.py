"""Monotone splines with an exact inverse: rational quadratic pieces, linear beyond the outer knots.

On a piece of width ``h`` and mean slope ``s``, with slopes ``d0`` and ``d1`` at its ends and ``t`` from
0 to 1, the value rises by

    ``h s (s t^2 + d0 t (1 - t)) / (s + (d0 + d1 - 2 s) t (1 - t))``,

which is increasing for any positive slopes. Its inverse is the root of a quadratic.

References:
    J. A. Gregory, R. Delbourgo (1982), Piecewise Rational Quadratic Interpolation to Monotonic Data,
    https://doi.org/10.1093/imanum/2.2.123
    C. Durkan, A. Bekasov, I. Murray, G. Papamakarios (2019), Neural Spline Flows,
    https://arxiv.org/abs/1906.04032
"""

from __future__ import annotations

import torch
from torch import Tensor


def spline(points: Tensor, values: Tensor, slopes: Tensor | None = None) -> Tensor:
    """The table of a spline through points, ``(..., 3, K)``: points, values and slopes.

    Args:
        points: ascending, ``(..., K)``.
        values: ascending, ``(..., K)``.
        slopes: positive, ``(..., K)``. Default: the geometric mean of the slopes of both neighboring
            pieces, the shorter with more weight.

    Returns:
        The table, which `evaluate` and `invert` read.

    Example:
        >>> table = spline(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 4.0]))
        >>> evaluate(table, torch.tensor(1.0))
        tensor(1.)
    """
    if slopes is None:
        widths = points.diff(dim=-1)
        rises = (values.diff(dim=-1) / widths).log()
        before, after = widths[..., :-1], widths[..., 1:]
        inner = (after * rises[..., :-1] + before * rises[..., 1:]) / (before + after)
        slopes = torch.cat([rises[..., :1], inner, rises[..., -1:]], -1).exp()
    return torch.stack([points, values, slopes], -2)


def evaluate(table: Tensor, x: Tensor) -> Tensor:
    """The spline at ``x``; the table ``(..., 3, K)`` broadcasts to the points ``(...)``.

    Example:
        >>> doubled = spline(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
        >>> evaluate(doubled, torch.tensor([-1.0, 0.5, 3.0]))
        tensor([-2.,  1.,  6.])
    """
    inside, beyond = _split(table, 0, x)
    (x0, y0, d0), (x1, y1, d1) = _piece(table, 0, inside)
    s = (y1 - y0) / (x1 - x0)
    t = (inside - x0) / (x1 - x0)
    rest = t * (1 - t)
    return y0 + (y1 - y0) * (s * t * t + d0 * rest) / (s + (d0 + d1 - 2 * s) * rest) + beyond


def invert(table: Tensor, y: Tensor) -> Tensor:
    """Where the spline has the value ``y``: the exact inverse of `evaluate`.

    Example:
        >>> doubled = spline(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
        >>> invert(doubled, torch.tensor([-2.0, 1.0, 6.0]))
        tensor([-1.0000,  0.5000,  3.0000])
    """
    inside, beyond = _split(table, 1, y)
    (x0, y0, d0), (x1, y1, d1) = _piece(table, 1, inside)
    s = (y1 - y0) / (x1 - x0)
    risen, bend = inside - y0, d0 + d1 - 2 * s
    b = (y1 - y0) * d0 - risen * bend
    root = (b.square() + 4 * s * risen * ((y1 - y0) * (s - d0) + risen * bend)).clamp_min(0).sqrt()
    return x0 + (x1 - x0) * 2 * s * risen / (b + root) + beyond


def _split(table: Tensor, row: int, given: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest place within the knots, and what the linear continuation adds to the result."""
    first, last = table[..., row, 0], table[..., row, -1]
    below, above = given < first, given > last
    inside = torch.where(below, first, torch.where(above, last, given))
    slope = torch.where(below, table[..., 2, 0], table[..., 2, -1])
    # Not the difference to the place within: it is zero there, but the parts of its gradient, as large
    # as the slope, would cancel only to rounding.
    excess = torch.where(below, given - first, torch.where(above, given - last, 0.0))
    return inside, excess * slope if row == 0 else excess / slope


def _piece(table: Tensor, row: int, given: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Point, value and slope at both ends of each place's piece."""
    # Counted, since torch.searchsorted does not broadcast; tables are short.
    above = given.unsqueeze(-1) >= table[..., row, 1:-1]
    index = above.float().sum(-1).long()[..., None, None]  # a sum of bools first copies them as int64
    table, index = table.expand(*given.shape, *table.shape[-2:]), index.expand(*given.shape, 3, 1)
    ends = (table.gather(-1, index + side).squeeze(-1).unbind(-1) for side in (0, 1))
    return tuple(ends)  # type: ignore[return-value]
