"""Integrated gradients: the change of weights along a path of windows, split over their entries.

``part[k, i] = integral of (dw_k / dx_i) x_i'(t) dt`` over ``0 <= t <= 1``. Over all entries the parts of
a weight add up to its change, by the fundamental theorem of calculus. The change over each panel of a
quadrature is known exactly, from the weights at its ends, and so is the panel's error: panels with large
ones are bisected.

References:
    M. Sundararajan, A. Taly, Q. Yan (2017), Axiomatic Attribution for Deep Networks,
    https://arxiv.org/abs/1703.01365
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from funcexplain.engine.forward import Along, weights_of
from funcexplain.engine.slopes import slopes_of
from funcexplain.networks.network import raise_pending
from funcexplain.problems.problem import Args, Problem

# Nodes of the Gauss-Legendre rule on each panel, which is exact for polynomials of degree 15.
NODES = 8
# Panels in one batch of Jacobians.
_PANELS = 32
# Changes below this fraction of the largest weight are as good as none.
_NEGLIGIBLE = 1e-3
_SHORTEST = 1e-9

Path = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From times ``(N,)`` and rows ``(N,)`` to windows and their derivatives, ``(N, C, L, A)``."""


class Panels(NamedTuple):
    """Panels of paths, each from ``start`` to ``end``.

    Attributes:
        row: the path's number, ``(P,)``.
        start: time, ``(P,)``, float64.
        end: time, ``(P,)``, float64.
        before: weights at the start, ``(P, K)``, float64.
        after: weights at the end.
        parts: integrals ``(P, K, N)``.
        error: largest distance of their sums from the change of a weight, ``(P,)``.
    """

    row: Tensor
    start: Tensor
    end: Tensor
    before: Tensor
    after: Tensor
    parts: Tensor
    error: Tensor


class Paths(NamedTuple):
    """Paths of windows, and the network and data with which their weights are computed.

    Attributes:
        problem: whose network it is.
        path: windows and their derivatives.
        take: from rows to their data and its dimensions.
    """

    problem: Problem
    path: Path
    take: Callable[[Tensor], tuple[Args, Along]]

    def weights(self, windows: Tensor, row: Tensor) -> Tensor:
        """Weights of the windows of some rows, ``(N, K)``, float64; NaN where the network raises."""
        args, dims = self.take(row)
        found = weights_of(self.problem, windows, args, dims, skip_errors=True)
        return found.flatten(1).double()

    def measure(self, row: Tensor, start: Tensor, end: Tensor, before: Tensor, after: Tensor) -> Panels:
        """Integrate over panels."""
        nodes, factors = (torch.from_numpy(a).to(start) for a in np.polynomial.legendre.leggauss(NODES))
        found = []
        for batch in torch.arange(len(row), device=row.device).split(_PANELS):
            raise_pending()
            half = 0.5 * (end - start)[batch]
            times = 0.5 * (start + end)[batch, None] + half[:, None] * nodes
            rows = row[batch].repeat_interleave(NODES)
            windows, moves = self.path(times.flatten(), rows)
            slopes = slopes_of(self.problem, windows, *self.take(rows), skip_errors=True)
            moves = moves.flatten(1)[:, None]
            # Nothing of what does not move, even where the network has no slope.
            parts = torch.where(moves == 0.0, 0.0, slopes * moves)
            steps = half[:, None] * factors
            found.append(torch.einsum("pn,pnki->pki", steps.to(parts), parts.unflatten(0, steps.shape)))
        whole = torch.cat(found)
        error = (whole.sum(-1, dtype=torch.float64) - (after - before)).abs().amax(-1)
        return Panels(row, start, end, before, after, whole, error)

    def bisect(self, panels: Panels) -> Panels:
        """The halves of panels."""
        row, start, end, before, after = panels[:5]
        middle = 0.5 * (start + end)
        between = self.weights(self.path(middle, row)[0], row)
        return self.measure(
            torch.cat([row, row]),
            torch.cat([start, middle]),
            torch.cat([middle, end]),
            torch.cat([before, between]),
            torch.cat([between, after]),
        )


def integrate(paths: Paths, before: Tensor, after: Tensor, tolerance: float, max_nodes: int) -> Tensor:
    """Split the changes from ``before`` to ``after``, ``(R, K)``, over the entries of windows.

    Panels are bisected until the sum of their errors is at most ``tolerance`` times the largest change
    of a weight, or ``max_nodes`` are used.

    Returns:
        Parts ``(R, K, N)``.
    """
    count = len(before)
    zero = before.new_zeros(count)
    largest = torch.maximum(before.abs(), after.abs()).amax(-1)
    allowed = tolerance * torch.maximum((after - before).abs().amax(-1), _NEGLIGIBLE * largest)
    rows = torch.arange(count, device=before.device)
    panels = paths.measure(rows, zero, zero + 1.0, before, after)
    while True:
        number = panels.row.bincount(minlength=count)
        total = zero.index_add(0, panels.row, panels.error)
        open_rows = (total > allowed) & (number * NODES < max_nodes)
        split = open_rows[panels.row] & (panels.error > (allowed / number)[panels.row])
        split &= panels.end - panels.start > _SHORTEST
        if not split.any():
            parts = panels.parts.new_zeros(count, *panels.parts.shape[1:])
            return parts.index_add(0, panels.row, panels.parts)
        halves = paths.bisect(Panels(*(field[split] for field in panels)))
        panels = Panels(
            *(torch.cat([old[~split], new]) for old, new in zip(panels, halves, strict=True))
        )
