"""The result of `evaluate`: measures by name with descriptions, printed as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from funcexplain.solutions.html import table
from funcexplain.solutions.tables import require, row_index

if TYPE_CHECKING:
    import pandas

DESCRIPTIONS = {
    "hit": "whether the search ended with the target hit",
    "max_error": "largest deviation of a weight from the target",
    "total_variation": "share of the portfolio that has to be moved to reach the target",
    "kl": "Kullback-Leibler divergence of the weights from the target, nats",
    "gap_closed": "share of the gap between today's weights and the target that was closed",
    "l1": "sum of absolute changes, in units of x",
    "l2": "Euclidean length of the change, in units of x",
    "linf": "largest change of an entry, in units of x",
    "rms_sigmas": "root mean square change, sigmas",
    "mad_distance": "mean absolute change in median absolute deviations of each feature",
    "changed_share": "share of entries that change",
    "assets_touched": "number of assets with a change",
    "days_touched": "number of days with a change",
    "channels_touched": "number of channels with a change",
    "gini": "concentration of the change: 0 all entries alike, near 1 few entries carry it",
    "rarity": "share of real paths as extreme, when they happened, as the worst that the answer changes",
    "rarity_today": "the same for the path behind the reference, in its worst statistic",
    "move_tail": "share of real paths with a move as large, for the most extreme move of an asset",
    "joint_tail": "share of real paths with a joint move as far from the usual",
    "volatility_tail": "share of real windows with a volatility as high, or as low",
    "correlation_tail": "share of real windows with a correlation as high, or as low",
    "log10_chance": "log10 of the chance of standard normal shocks as large along their direction",
    "turbulence": "how unusual the last day's returns are; 1 is the average of the history",
    "nearest_windows": "mean distance to the nearest windows of the history, sigmas per entry",
    "in_range": "share of entries within the history's 1 to 99 % range; 0.98 is usual",
    "volatility_ratio": "volatility of the returns, as a multiple of the history's",
    "correlation_gap": "mean pair correlation of the returns, less the history's",
    "kurtosis_gap": "excess kurtosis of the returns, less the history's",
    "autocorrelation_gap": "autocorrelation of the returns at one day, less the history's",
    "diversity": "mean distance to the answers from other starts, sigmas per entry",
    "spread": "standard deviation of the answers over starts, sigmas per entry",
    "agreement": "overlap of the largest changes with those from other starts, 0 to 1",
    "noise_error": "mean over noise of the largest deviation from the target",
    "invalidation": "share of noisy windows at which the target is missed",
    "held_0.05": "share of draws of noise of 0.05 sigmas under which the target holds",
    "held_0.1": "share of draws of noise of 0.1 sigmas under which the target holds",
    "held_0.25": "share of draws of noise of 0.25 sigmas under which the target holds",
    "today_moves_0.05": "mean largest change of today's weights under noise of 0.05 sigmas",
    "today_moves_0.1": "mean largest change of today's weights under noise of 0.1 sigmas",
    "today_moves_0.25": "mean largest change of today's weights under noise of 0.25 sigmas",
    "ensemble_error": "mean over models of the largest deviation from the target",
    "ensemble_hit": "share of models that hit the target at this window",
}
"""A description of each measure, in the order in which they are listed."""


@dataclass(frozen=True, eq=False, repr=False)
class Metrics(Mapping[str, Tensor]):
    """Measures of every row by name: a mapping whose printed form is a table.

    Attributes:
        measures: tensors of the rows' shape, by name.
        dims: names of the row dimensions, outermost first; none for one question.
        worst: of the worst statistic behind ``rarity``, of the rows' shape: its ``kind``, a place in
            ``funcexplain.measures.rarity.KINDS``, ``days`` and ``asset``, ``value`` and ``tail``, the
            value ``today``, and the number of real ``paths``. Empty without a history.

    Example:
        >>> import torch
        >>> Metrics({"l1": torch.tensor(7.0)})
        l1  7  sum of absolute changes, in units of x
    """

    measures: dict[str, Tensor]
    dims: tuple[str, ...] = ()
    worst: dict[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the measures, in order."""
        return tuple(self.measures)

    @property
    def descriptions(self) -> dict[str, str]:
        """A description of each of them."""
        return {name: DESCRIPTIONS[name] for name in self.measures}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.measures:
            raise KeyError(f"no measure {name!r}; there are {', '.join(self.names)}")
        return self.measures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.measures)

    def __len__(self) -> int:
        return len(self.measures)

    def to_pandas(self) -> pandas.DataFrame:
        """Make a table with one line per row and one column per measure.

        Returns:
            A ``pandas.DataFrame`` indexed by the row dimensions.

        Raises:
            ImportError: pandas is not installed.
        """
        pd = require("to_pandas", "pandas")
        shape = next(iter(self.values())).shape
        columns = {name: value.flatten().cpu().numpy() for name, value in self.items()}
        return pd.DataFrame(columns, index=row_index(pd, self.dims, tuple(shape)))

    def __repr__(self) -> str:
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = ["<", *">" * (len(widths) - 2), "<"]
        return "\n".join(
            "  ".join(f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths, strict=True)).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        heads, *lines = self._lines() if self.dims else [[], *self._lines()]
        return table(heads, lines, (1, 2, 3) if self.dims else (1,))

    def _lines(self) -> list[list[str]]:
        """Cells of a table: names, values or their median and range, descriptions; heads for a grid."""
        lines = [["", "median", "minimum", "maximum", ""]] if self.dims else []
        for name, value in self.items():
            numbers = value.flatten().double().sort().values  # NaN comes last
            known = numbers[: max(1, int((~numbers.isnan()).sum()))]
            # Not torch.quantile, which interpolates between two infinite values to NaN.
            median = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
            shown = [median, known[0], known[-1]] if self.dims else [known[0]]
            lines.append([name, *(f"{float(number):.3g}" for number in shown), DESCRIPTIONS[name]])
        return lines
