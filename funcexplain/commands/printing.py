"""Output of commands: the prices, tables of weights and changes, and the outcome in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from funcexplain.commands.folder import WEIGHTS
from funcexplain.commands.outputs import Outcome, mean_weights
from funcexplain.commands.question import Query
from funcexplain.markets.periods import count_of, period_of, unit_of
from funcexplain.markets.prices import Prices
from funcexplain.markets.sanity import Finding
from funcexplain.reports import wording
from funcexplain.solutions.writing import printable

PrintLine = Callable[[str], object]
"""Prints one line."""

_MAX_ASSETS, _MAX_CHANGES, _MAX_FAULTS = 12, 8, 10


def print_plain(line: str) -> None:
    """Print a line, whose names may come from files, without control characters."""
    print(printable(line), flush=True)


def prices_line(prices: Prices) -> str:
    """Number of assets and periods, first and last date, source of the prices and how they were read."""
    assets, dates = prices.assets, prices.dates
    unit = unit_of(period_of(dates))
    line = (
        f"{len(assets)} assets, {count_of(len(dates), unit)}, {dates[0]} to {dates[-1]}: {prices.source}"
    )
    return f"{line} ({', '.join(prices.notes)})" if prices.notes else line


def fault_lines(faults: Sequence[Finding]) -> Iterator[str]:
    """The first few probable faults in the prices."""
    yield from (f"Check the prices: {fault.text}" for fault in faults[:_MAX_FAULTS])
    if len(faults) > _MAX_FAULTS:
        yield f"... and {len(faults) - _MAX_FAULTS} more, with --json"


def aligned(rows: Iterable[Sequence[str]], *columns: str) -> Iterator[str]:
    r"""Lines of a table, for columns such as ``"<8"``: to the left, and at least 8 characters wide.

    Example:
        >>> print(*aligned([("asset", "weight"), ("EUR", "40.00%")], "<4", ">8"), sep="\n")
        asset    weight
        EUR      40.00%
    """
    lines = [*rows]
    widths = [
        max(int(column[1:]), *map(len, cells)) for column, *cells in zip(columns, *lines, strict=True)
    ]
    for line in lines:
        cells = zip(line, columns, widths, strict=True)
        yield "  ".join(f"{cell:{column[0]}{width}}" for cell, column, width in cells)


def weights_table(
    columns: Mapping[str, Tensor], assets: Sequence[str], order: Sequence[int]
) -> Iterator[str]:
    """Allocations in percent, one column each, for assets in the given order."""
    yield ""
    rows = [("Weights", *columns)]
    for at in order:
        rows.append((assets[at], *(f"{100 * float(column[at]):.2f}%" for column in columns.values())))
    yield from aligned(rows, "<7", *[">8"] * len(columns))


def points_table(
    heading: str,
    title: str,
    names: Sequence[str],
    columns: Mapping[str, Tensor],
    weights: Mapping[str, Tensor] | None = None,
    *,
    total: str = "",
) -> Iterator[str]:
    """Signed parts in percentage points, one row per name: the largest, and the sum of the others.

    ``weights`` are columns in percent before them; ``total`` names a column of their sums. Rows keep
    their order.
    """
    shares = {name: 100.0 * column.double() for name, column in (weights or {}).items()}
    parts = {name: 100.0 * column.double() for name, column in columns.items()}
    if total:
        parts[total] = torch.stack([*parts.values()]).sum(0)
    size = torch.stack([*parts.values()]).abs().amax(0)
    largest = size.argsort(descending=True, stable=True)[:_MAX_ASSETS].tolist()
    shown, rest = sorted(largest), sorted({*range(len(names))} - {*largest})

    def row(name: str, index: list[int]) -> tuple[str, ...]:
        cells = [f"{float(column[index].sum()):.2f}%" for column in shares.values()]
        return (name, *cells, *(f"{float(column[index].sum()):+.2f}" for column in parts.values()))

    rows = [(title, *shares, *parts), *(row(names[index], [index]) for index in shown)]
    if rest:
        rows.append(row(f"{len(rest)} others", rest))
    if not total:
        rows.append(row("total", [*range(len(names))]))
    yield ""
    yield f"{heading}:"
    yield from aligned(rows, "<7", *[">10"] * (len(shares) + len(parts)))


def changes_table(
    x0: Tensor,
    x: Tensor,
    sigma: Tensor,
    assets: Sequence[str],
    channels: Sequence[str],
    dates: Sequence[str],
) -> Iterator[str]:
    """The largest changes of a window, in percent and in sigmas."""
    change = (x - x0) / sigma
    rows = [("day", "asset", "channel", "from", "to", "sigmas")]
    for flat in change.flatten().abs().topk(min(_MAX_CHANGES, change.numel())).indices.tolist():
        channel, day, asset = index = tuple(map(int, np.unravel_index(flat, change.shape)))
        before, after = (f"{100 * float(values[index]):+.2f}%" for values in (x0, x))
        sigmas = f"{float(change[index]):+.2f}"
        rows.append((dates[day], assets[asset], channels[channel], before, after, sigmas))
    yield ""
    yield "Largest changes:"
    yield from aligned(rows, "<10", "<5", "<10", ">10", ">10", ">6")


def outcome_lines(outcome: Outcome, query: Query, assets: Sequence[str]) -> Iterator[str]:
    """The outcome of a run: a table for one date, counts for several."""
    searches, all_hits, hits = len(outcome.hit), int(outcome.hit.sum()), outcome.num_hit_dates
    if len(query.dates) > 1:
        met = sum(outcome.met)
        already = f", on {met} of them already" if met else ""
        yield (
            f"Reached on {hits} of {len(query.dates)} dates{already}; {all_hits} of {searches} searches "
            "hit."
        )
        return
    today, best = query.today[0], outcome.solution.flat(torch.tensor(outcome.best))[0]
    reached = mean_weights(best)
    moved = (reached - today).abs().nan_to_num().argsort(descending=True, stable=True)
    columns = {"today": today, "reached": reached}
    yield from weights_table(columns, assets, moved[:_MAX_ASSETS].tolist())
    if len(assets) > _MAX_ASSETS:
        yield f"... and {len(assets) - _MAX_ASSETS} that change less, in {WEIGHTS}"
    totals = {name: [query.names.index(asset) for asset in query.groups[name]] for name in query.groups}
    if totals:
        sums = {
            kind: torch.stack([weights[index].sum() for index in totals.values()])
            for kind, weights in columns.items()
        }
        yield from weights_table(sums, [*totals], range(len(totals)))
    yield ""
    if outcome.met[0]:
        yield wording.met(query.ahead)
        return
    size = float(outcome.metrics["rms_sigmas"][outcome.best[0]])
    verdict = "Reached" if hits else "Not reached"
    yield (
        f"{verdict}: largest miss {100 * float(best.error):.2f} percentage points, after "
        f"{int(best.num_steps)} steps; root mean square change {size:.2f} sigmas; "
        f"{all_hits} of {searches} starts hit{describe_starts(outcome)}."
    )


def describe_starts(outcome: Outcome) -> str:
    """How many starts found the answer, if it is a hit."""
    if not outcome.hit[outcome.best[0]]:
        return ""
    return f"; {outcome.agree[0]} of {len(outcome.hit)} found this answer"
