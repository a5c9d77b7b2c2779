"""The report of an answer: one HTML file that needs nothing else, for readers who run no code.

It says what was asked, whether it was reached, how unusual and how stable the answer is, shows it, and
lists what is needed to find it again. Of a grid it sums up all rows and shows the best ones in detail,
so that its size does not grow with the rows. The same arguments give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from funcexplain.measures.evaluate import evaluate
from funcexplain.measures.metrics import Metrics
from funcexplain.problems.problem import Problem
from funcexplain.reports import plots, wording
from funcexplain.reports.details import Labels, Row, changes_of, pictures_of, row_of
from funcexplain.reports.drawing import plain, require_matplotlib
from funcexplain.reports.overview import best_first, overview
from funcexplain.reports.page import Html, element, page, picture, table
from funcexplain.reports.precedents import Precedents, precedents
from funcexplain.reports.summary import number, quantiles, single
from funcexplain.solutions.answer import Answer, Status
from funcexplain.solutions.archive import versions
from funcexplain.solutions.labels import checked_labels
from funcexplain.solutions.writing import as_path, replaced

DETAILED_ROWS = 3
"""Rows of a grid that are shown with pictures."""

NOISE, DRAWS, ATOL = 0.05, 16, 1e-3
"""What `evaluate` measures stability with; stands in the report."""

Paths = tuple[np.ndarray, np.ndarray]


def write_report(
    where: str,
    answer: Answer,
    path: str | os.PathLike[str],
    problem: Problem,
    *,
    history: Tensor | None = None,
    assets: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    dates: Iterable[object] | None = None,
    scale: float | Tensor | None = None,
    prices: tuple[Tensor, Tensor] | Callable[[tuple[int, ...]], Any] | None = None,
    models: Any = None,
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of an answer; ``solution.report`` says what the arguments are."""
    require_matplotlib()
    file_path = as_path(where, path)
    told = _settings(where, settings)
    metrics = _measured(where, answer, problem, history, scale=scale, models=models)
    window = answer.sample.x.shape[-3:]
    given = checked_labels(
        where, window, assets=assets or problem.assets, channels=channels, dates=dates
    )
    labels = _labels(given, window)
    paths = None if prices is None else _paths(where, prices, answer)
    sigma, unit = _sigma(problem, history, scale)
    order = best_first(answer, metrics)
    shown = [row_of(answer, problem, index, sigma, unit) for index in order[:DETAILED_ROWS]]
    head = title or "What would the market have to look like?"
    content = [
        element("h1", head),
        element("p", _question(shown[0], labels, given, answer), class_="lead"),
        _verdict(answer, metrics, order[0]),
        *(overview(answer, problem, metrics, order) if answer.dims else []),
    ]
    for row, index in zip(shown, order, strict=False):
        content.append(element("h2", f"Row in detail: {row.name}" if row.name else "The answer"))
        if row is not shown[0]:
            content.append(element("p", _question(row, labels, given)))
        content += pictures_of(row, labels, given.get("day"), paths and paths(index))
        content += [element("h3", "Largest changes"), changes_of(row, labels)]
    if not answer.dims:
        ax = plots.plot_history(answer.history)
        content.append(picture(ax, "Loss of the search over its steps, on a logarithmic scale."))
    if history is not None and history.shape[1] >= window[-2]:
        best = problem[order[0]] if order[0] else problem
        content += _history(precedents(best, history, 1.0 if sigma is None else sigma), unit)
    content += [
        element("h2", "Measures"),
        _measures(metrics, order[0]),
        element("h2", "To find it again"),
        _origin(answer, problem, told),
    ]
    with replaced(where, file_path) as file:
        file.write(page(head, *content).encode())
    return file_path


def _question(row: Row, labels: Labels, given: Mapping[str, Any], grid: Answer | None = None) -> str:
    day = labels.days[-1] if "day" in given else ""
    told = wording.question(row.today, row.target, labels.assets, day)
    if grid is None or not grid.dims:
        return told
    return f"{told} So asks the best of {grid.num_steps.numel()} rows ({row.name}), shown first below."


def _verdict(answer: Answer, metrics: Metrics, index: tuple[int, ...]) -> Html:
    """Three cards on the answer, of a grid on its best row, and how many rows hit."""
    best = answer[index] if index else answer
    measured = {name: float(value[index]) for name, value in metrics.items()}
    cards = [
        wording.reached(Status(int(best.status)), float(best.error), measured),
        wording.unusual(measured),
        wording.stable(measured, NOISE, ATOL),
    ]
    if answer.dims:
        hits, total = int(answer.hit.sum()), answer.num_steps.numel()
        head = f"{hits} of {total} rows hit"
        mood = "good" if hits else "bad"
        cards.insert(
            0, wording.Judgement("How many rows reach their target?", head, answer.message, mood)
        )
    return element(
        "div",
        *(
            element("div", element("span", c.about), element("b", c.head), element("p", c.text),
                    class_=f"card {c.mood}")
            for c in cards
        ),
        class_="cards",
    )  # fmt: skip


def _history(found: Precedents, unit: str) -> list[Html]:
    """The nearest real windows: what the answer is to be compared with."""
    told = (
        f"Of {found.total} real windows the nearest to the target misses it by "
        f"{100 * float(found.error[0]):.2f} percentage points."
    )
    lines = [
        (f"{int(days)} days", f"{100 * float(error):.2f} points", f"{float(change):.2f}")
        for days, error, change in zip(*found[:3], strict=True)
    ]
    heads = ("ends before the history's last day", "misses the target by", f"distance, {unit}")
    return [
        element("h2", "What history offers"),
        element("p", told),
        table(heads, lines, numbers=(0, 1, 2)),
    ]


def _measures(metrics: Metrics, index: tuple[int, ...]) -> Html:
    """Every measure with its line; of a grid the best row's, and quantiles over rows."""
    heads = ["measure", "value", "meaning"]
    if metrics.dims:
        heads[1:2] = ["best row", "least", "median", "most"]
    lines = []
    for name, value in metrics.items():
        told = quantiles(value) if metrics.dims else []
        cells = [number(value[index]), *(told[place] for place in (0, 2, -1) if told)]
        lines.append([name.replace("_", " "), *cells, metrics.descriptions[name]])
    return table(heads, lines, numbers=range(1, len(heads) - 1))


def _origin(answer: Answer, problem: Problem, settings: Sequence[tuple[str, str]]) -> Html:
    """Settings, seeds and versions."""
    seed = torch.as_tensor(problem.args["seed"]).flatten()
    seeds = str(int(seed[0])) if len(seed) == 1 else f"{len(seed)} from {seed.min()} to {seed.max()}"
    sample = answer.sample
    varying = [f"{dim.name} ({dim.size}): {', '.join(sorted(dim.varying))}" for dim in problem.dims]
    lines = [*settings, ("seed of the problem", seeds)]
    lines += [("rows vary in", told) for told in varying]
    lines += [] if answer.dims else single(answer)[2:4]
    lines += [
        ("window (channels, days, assets)", str(tuple(sample.x.shape[-3:]))),
        ("numbers", f"{sample.x.dtype} on {sample.x.device}"),
        ("stability measured with", f"noise of {NOISE:g} sigmas, {DRAWS} draws, seed 0, atol {ATOL:g}"),
        *versions().items(),
    ]
    return table((), lines)


def _measured(where: str, answer: Answer, problem: Problem, history: Any, **more: Any) -> Metrics:
    try:
        return evaluate(answer, problem, history, noise=NOISE, draws=DRAWS, atol=ATOL, **more)
    except (TypeError, ValueError) as error:  # the arguments have the same names there
        raise type(error)(str(error).replace("evaluate", where, 1)) from None


def _sigma(problem: Problem, history: Tensor | None, scale: Any) -> tuple[Tensor | None, str]:
    """One sigma, as `evaluate` takes it; None for each row's own."""
    if scale is not None:
        return torch.as_tensor(scale), "standard deviations"
    if history is not None:
        return history.double().flatten(1).std(1)[:, None, None], "standard deviations"
    return None, "standard deviations" if "std" in problem.args else "units of the window"


def _labels(given: Mapping[str, list[str]], window: Sequence[int]) -> Labels:
    """Names for everything; what has none is numbered, days backwards from the last one."""
    channels, days, assets = window
    return Labels(
        given.get("channel", [f"channel {place}" for place in range(channels)]),
        given.get("day", [f"day {place - days + 1}" for place in range(days)]),
        given.get("asset", [f"asset {place}" for place in range(assets)]),
    )


def _paths(where: str, prices: Any, answer: Answer) -> Callable[[tuple[int, ...]], Paths | None]:
    """Actual and scenario prices of a row, by its index."""
    size = answer.sample.x.shape[-1]
    if callable(prices):

        def of_row(index: tuple[int, ...]) -> Paths | None:
            found = prices(index)
            return None if found is None else _prices(where, found, (), size)

        return of_row
    actual, scenario = _prices(where, prices, answer.shape, size)
    return lambda index: (actual[index] if actual.ndim > 2 else actual, scenario[index])


def _prices(where: str, prices: Any, lead: tuple[int, ...], size: int) -> Paths:
    """Actual and scenario prices of rows ``lead``; actual ones may be the same for all."""
    if not isinstance(prices, tuple | list) or len(prices) != 2:
        raise TypeError(
            f"{where}: prices must be a pair (actual, scenario) of prices (days, A), or a function that "
            f"returns that of a row, got {type(prices).__name__}"
        )
    tables = [np.atleast_2d(plain(path)) for path in prices]
    allowed = {"actual": ((), lead), "scenario": (lead,)}
    for (name, leads), prices_ in zip(allowed.items(), tables, strict=True):
        fits = prices_.ndim >= 2 and prices_.shape[-2:] == (tables[0].shape[-2], size)
        if not fits or prices_.shape[:-2] not in leads or not (prices_ > 0).all():
            raise ValueError(
                f"{where}: the {name} prices must be positive and of shape {(*lead, 'days', size)}, one "
                f"path for each row, got {prices_.shape}; fe.scenarios.prices_of makes them of returns"
            )
    return tables[0], tables[1]


def _settings(where: str, settings: Any) -> list[tuple[str, str]]:
    if settings is None:
        return []
    if not isinstance(settings, Mapping):
        raise TypeError(f"{where}: settings must be a dict, got {type(settings).__name__}")
    return [
        (str(name), value if isinstance(value, str) else json.dumps(value, default=str))
        for name, value in settings.items()
    ]
