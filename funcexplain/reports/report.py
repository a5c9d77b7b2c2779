"""The report of an answer: one self-contained HTML file for readers who do not run code.

It states the question, whether the target was reached, and how unusual and how stable the answer is; it
shows the answer, and lists what is needed to reproduce it. For a grid it summarizes all rows and details
only the best ones, so its size does not grow with the rows. The same arguments give the same bytes.
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
from funcexplain.reports.details import Labels, Row, changes_table, row_pictures, select_row
from funcexplain.reports.drawing import as_array, require_matplotlib
from funcexplain.reports.overview import best_first, format_number, format_quantiles, overview
from funcexplain.reports.page import page, picture
from funcexplain.reports.precedents import Precedents, date_of, precedents
from funcexplain.solutions.archive import versions
from funcexplain.solutions.html import Html, element, table
from funcexplain.solutions.labels import check_labels
from funcexplain.solutions.matching import repeat_for_draws
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solutions.writing import check_regular, output_path, replaced

DETAILED_ROWS = 3
"""Number of rows of a grid that are shown with pictures."""

NOISE, DRAWS, ATOL = 0.05, 16, 1e-3
"""Settings with which `evaluate` measures stability; the report lists them."""

LEFT_OUT = ("noise error", "invalidation", "held under noise", "the real windows nearest to the target")
"""What a report without ``probe`` leaves out."""

Paths = tuple[np.ndarray, np.ndarray]


def report(
    solution: Solution,
    problem: Problem,
    path: str | os.PathLike[str],
    *,
    history: Tensor | None = None,
    history_dates: Iterable[object] | None = None,
    assets: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    dates: Iterable[object] | None = None,
    scale: float | Tensor | None = None,
    prices: tuple[Tensor, Tensor] | Callable[[tuple[int, ...]], Any] | None = None,
    models: Any = None,
    probe: bool = True,
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write an answer for readers: one HTML file with embedded pictures, which needs no network access.

    It holds the question in a sentence, a verdict (hit or how close, how unusual, how stable), pictures,
    the largest changes, every measure of `evaluate` with its meaning, and settings, seeds and versions.
    For a grid it summarizes all rows and shows the best ones in detail. The same arguments make the same
    file. An existing file is replaced only once the new one is complete.

    Args:
        solution: what `solve` found.
        problem: the question or grid that it answers.
        path: the file, such as ``"report.html"``.
        history: market history: features of every day, ``(C, days, A)``, which show how unusual the
            answer is; as in `evaluate`, like ``scale`` and ``models``.
        history_dates: its days, by which real windows are named.
        assets: ``A`` names. Default: those of the problem.
        channels: ``C`` names.
        dates: ``L`` days of the window.
        scale: one sigma.
        prices: positive prices, actual ``(days, A)`` and in the scenario ``(*rows, days, A)``; see
            ``fe.scenarios.prices_of``. For large grids, a function ``index -> (actual, scenario)`` or
            None; it is called for the rows that are shown.
        models: parameters of other models, evaluated at each answer.
        probe: whether to evaluate the network at windows other than the references: under noise, and at
            every window of the history. Without, what needs that is left out, and the report names it.
        title: headline.
        settings: how the answer was found, by name.

    Returns:
        The path.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: if the problem has other rows, or labels, prices or history do not fit.
        ImportError: matplotlib is not installed.
        OSError: if the file cannot be written.

    Example:
        >>> import pathlib, tempfile, torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> path = pathlib.Path(tempfile.mkdtemp(), "report.html")
        >>> fe.report(fe.solve(p), p, path, scale=1.0).read_text()[:15]
        '<!DOCTYPE html>'
    """
    require_matplotlib()
    file_path = output_path("report", path)
    check_regular("report", file_path, name="a file in it")
    setting_lines = _setting_lines(settings)
    draws = DRAWS if probe else 0
    if isinstance(solution, Solution) and isinstance(problem, Problem):
        problem = repeat_for_draws(solution, problem)
    metrics = _evaluate(solution, problem, history, scale=scale, models=models, draws=draws)
    window, assets = solution.sample.x.shape[-3:], assets or problem.assets
    names = check_labels("report", window, assets=assets, channels=channels, dates=dates)
    if history_dates is not None:
        history_dates = list(history_dates)
        if history is None or len(history_dates) != history.shape[1]:
            days = "no history" if history is None else f"{history.shape[1]} days"
            raise ValueError(
                "report: history_dates must be one for each day of history, got "
                f"{len(history_dates)} for {days}"
            )
    labels = _complete_labels(names, window, solution.sample.weights.shape[-1], problem.outputs)
    prices_at = None if prices is None else _price_paths(prices, solution)
    order = best_first(solution, metrics)
    rows = [
        select_row(solution, problem, index, *_sigma(problem, index, history, scale))
        for index in order[:DETAILED_ROWS]
    ]
    found = None
    if probe and history is not None:
        best = problem[order[0]] if order[0] else problem
        found = precedents(best, history, torch.tensor(rows[0].sigma), atol=ATOL)
    head = title or "What would the market have to look like?"
    content = [
        element("h1", head),
        element("p", _question(rows[0], labels, solution), class_="lead"),
        _verdict(solution, metrics, order[0], probe, found, labels.assets),
        *(overview(solution, problem, metrics, order) if solution.dims else []),
    ]
    for row, index in zip(rows, order, strict=False):
        content.append(element("h2", f"Row in detail: {row.name}" if row.name else "The answer"))
        if row is not rows[0]:
            content.append(element("p", _question(row, labels)))
        content += row_pictures(row, labels, prices_at and prices_at(index))
        content += [element("h3", "Largest changes"), changes_table(row, labels)]
    if not solution.dims:
        ax = plots.plot_history(solution.history)
        content.append(picture(ax, "Loss at each step of the search, on a logarithmic scale."))
    if found is not None:
        content += _history_section(found, history_dates, rows[0].unit)
    content += [
        element("h2", "Measures"),
        _measures_table(metrics, order[0]),
        element("h2", "How to reproduce it"),
        _origin_table(solution, problem, setting_lines, probe),
    ]
    with replaced("report", file_path) as file:
        file.write(page(head, *content).encode())
    return file_path


def _question(row: Row, labels: Labels, solution: Solution | None = None) -> str:
    """The question of a row; for the best row of a grid, with a sentence that identifies it."""
    day = labels.dates[-1] if labels.dates else ""
    text = wording.question(row.today, row.target, labels.weights, day)
    if solution is None or not solution.dims:
        return text
    rows = solution.num_steps.numel()
    return f"{text} This is the question of the best of {rows} rows ({row.name}), shown first."


def _verdict(
    solution: Solution,
    metrics: Metrics,
    index: tuple[int, ...],
    probe: bool,
    found: Precedents | None,
    assets: Sequence[str],
) -> Html:
    """Three cards on the answer, or the best row of a grid and a fourth on how many rows hit."""
    best = solution[index] if index else solution
    measured, worst = (
        {name: float(value[index]) for name, value in values.items()}
        for values in (metrics, metrics.worst)
    )
    cards = [
        wording.reached(
            Status(int(best.status)), float(best.error), measured, *best.exceptions.values()
        ),
        wording.unusual(measured, worst, found, assets=assets, hit=Status(int(best.status)).is_hit),
        wording.stable(measured, NOISE, ATOL, probed=probe),
    ]
    if solution.dims:
        hits, total = int(solution.hit.sum()), solution.num_steps.numel()
        head, mood = f"{hits} of {total} rows hit", "good" if hits else "bad"
        about = "How many rows reach their target?"
        cards.insert(0, wording.Judgement(about, head, solution.message, mood))
    boxes = []
    for about, head, text, mood in cards:
        parts = element("span", about), element("b", head), element("p", text)
        boxes.append(element("div", *parts, class_=f"card {mood}"))
    return element("div", *boxes, class_="cards")


def _history_section(found: Precedents, dates: Sequence[object] | None, unit: str) -> list[Html]:
    """The real windows that hold the target or come nearest to it, to compare the answer with."""

    def name(day: int) -> str:
        before = f"{found.known - day} days before" if day < found.known else "the day of the question"
        return before if dates is None else str(dates[day - 1])

    lines = [
        (name(int(day)), f"{100 * float(error):.2f} points", f"{float(change):.2f}")
        for day, error, change in zip(*found[:3], strict=True)
    ]
    heads = ("ends on", "misses the target by", f"distance, {unit}")
    text = element("p", f"{wording.precedent(found)} The nearest of them:")
    return [element("h2", "What history offers"), text, table(heads, lines, numbers=(1, 2))]


def _measures_table(metrics: Metrics, index: tuple[int, ...]) -> Html:
    """Every measure with its meaning; for a grid that of the best row, and quantiles over rows."""
    heads = ["measure", "value", "meaning"]
    if metrics.dims:
        heads[1:2] = ["best row", "minimum", "median", "maximum"]
    lines = []
    for name, value in metrics.items():
        quantiles = format_quantiles(value) if metrics.dims else []
        cells = [format_number(value[index]), *(quantiles[at] for at in (0, 2, -1) if quantiles)]
        lines.append([name.replace("_", " "), *cells, metrics.descriptions[name]])
    return table(heads, lines, numbers=range(1, len(heads) - 1))


def _origin_table(
    solution: Solution, problem: Problem, setting_lines: Sequence[tuple[str, str]], probe: bool
) -> Html:
    """Settings, seeds and versions."""
    seed = problem.args["seed"].flatten()
    seeds = str(int(seed[0])) if len(seed) == 1 else f"{len(seed)} from {seed.min()} to {seed.max()}"
    sample = solution.sample
    varying = [f"{dim.name} ({dim.size}): {', '.join(sorted(dim.varying))}" for dim in problem.dims]
    lines = [*setting_lines, ("seed of the problem", seeds)]
    lines += [("rows vary in", text) for text in varying]
    if not solution.dims:
        lines += [("loss", format_number(solution.loss)), ("steps", str(int(solution.num_steps)))]
    lines += [
        ("window (channels, days, assets)", str(tuple(sample.x.shape[-3:]))),
        ("numbers", f"{sample.x.dtype} on {sample.x.device}"),
        ("stability measured with", f"noise of {NOISE:g} sigmas, {DRAWS} draws, seed 0, atol {ATOL:g}")
        if probe
        else ("left out, since the network was not evaluated", ", ".join(LEFT_OUT)),
        *versions().items(),
    ]
    return table((), lines)


def _evaluate(solution: Solution, problem: Problem, history: Any, **options: Any) -> Metrics:
    """`evaluate`, whose errors name `report`; the arguments have the same names in both."""
    try:
        return evaluate(solution, problem, history, noise=NOISE, atol=ATOL, **options)
    except (TypeError, ValueError) as error:
        if not str(error).startswith("evaluate: "):  # the network's own
            raise
        raise type(error)(str(error).replace("evaluate", "report", 1)) from None


def _sigma(
    problem: Problem, index: tuple[int, ...], history: Tensor | None, scale: Any
) -> tuple[Tensor | None, str]:
    """One sigma of a row, as in `evaluate`, and its unit; None for each row's own."""
    if scale is not None:
        return torch.as_tensor(scale, device="cpu"), "standard deviations"
    if history is not None:
        days = history[:, : date_of(problem[index] if index else problem, history)]
        return days.double().flatten(1).std(1)[:, None, None], "standard deviations"
    return None, "standard deviations" if "std" in problem.args else "units of the window"


def _complete_labels(
    names: Mapping[str, list[str]], window: Sequence[int], count: int, outputs: Sequence[str] | None
) -> Labels:
    """A label for everything: numbers where there are no names, days counted back from the last one."""
    channels, days, size = window
    assets = names.get("asset", [f"asset {number}" for number in range(size)])
    weights = (
        [*outputs] if outputs else [*assets, *(f"output {number}" for number in range(size, count))]
    )
    return Labels(
        names.get("channel", [f"channel {number}" for number in range(channels)]),
        names.get("day", [f"day {number - days + 1}" for number in range(days)]),
        assets,
        names.get("day"),
        weights[:count],
    )


def _price_paths(prices: Any, solution: Solution) -> Callable[[tuple[int, ...]], Paths | None]:
    """A function from the index of a row to its actual and scenario prices."""
    size = solution.sample.x.shape[-1]
    if callable(prices):

        def prices_at(index: tuple[int, ...]) -> Paths | None:
            pair = prices(index)
            return None if pair is None else _check_prices(pair, (), size)

        return prices_at
    actual, scenario = _check_prices(prices, solution.shape, size)
    return lambda index: (actual[index] if actual.ndim > 2 else actual, scenario[index])


def _check_prices(prices: Any, rows: tuple[int, ...], size: int) -> Paths:
    """Actual and scenario prices as arrays; all ``rows`` may share the actual ones."""
    if not isinstance(prices, tuple | list) or len(prices) != 2:
        raise TypeError(
            "report: prices must be a pair (actual, scenario) of prices (days, A), or a function that "
            f"returns one for a row, got {type(prices).__name__}"
        )
    tables = [np.atleast_2d(as_array(path)) for path in prices]
    allowed = {"actual": ((), rows), "scenario": (rows,)}
    for (name, leads), values in zip(allowed.items(), tables, strict=True):
        fits = values.ndim >= 2 and values.shape[-2:] == (tables[0].shape[-2], size)
        if not fits or values.shape[:-2] not in leads or not (values > 0).all():
            raise ValueError(
                f"report: the {name} prices must be positive and of shape {(*rows, 'days', size)}, one "
                f"path for each row, got {values.shape}; fe.scenarios.prices_of converts returns"
            )
    return tables[0], tables[1]


def _setting_lines(settings: Any) -> list[tuple[str, str]]:
    """Settings as lines of a table."""
    if settings is None:
        return []
    if not isinstance(settings, Mapping):
        raise TypeError(f"report: settings must be a dict, got {type(settings).__name__}")
    return [
        (str(name), value if isinstance(value, str) else json.dumps(value, default=str))
        for name, value in settings.items()
    ]
