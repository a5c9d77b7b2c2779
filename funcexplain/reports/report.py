"""The report of an answer: one self-contained HTML file for readers who do not run code.

Its first page has the question, the answer in a sentence, the verdict and two pictures; numbers follow,
and details are folded. For a grid it summarizes all answers and details only the best ones, so its size
does not grow with them. The same arguments give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from funcexplain.engine.reach import Reach
from funcexplain.markets.periods import DAY, unit_of
from funcexplain.measures.agreement import Agreement
from funcexplain.measures.evaluate import evaluate
from funcexplain.measures.metrics import DESCRIPTIONS, Metrics
from funcexplain.problems.problem import Problem
from funcexplain.reports import plots, wording
from funcexplain.reports.answer import describe_answer
from funcexplain.reports.dates import DATE, collect_dates, dates_section
from funcexplain.reports.details import Row, changes_table, row_pictures, select_row, sigma_of
from funcexplain.reports.drawing import as_array, require_matplotlib
from funcexplain.reports.draws import draws_section, find_common
from funcexplain.reports.front import Answer, Front, day_of, front_page
from funcexplain.reports.inputs import (
    Labels,
    check_coords,
    check_history_dates,
    complete_labels,
    name_of_row,
    price_paths,
)
from funcexplain.reports.moves import measure_moves, moves_table
from funcexplain.reports.numbers import format_percent, format_points
from funcexplain.reports.origin import ATOL, DRAWS, NOISE, origin_table, setting_lines
from funcexplain.reports.overview import (
    best_first,
    change_size,
    format_number,
    format_quantiles,
    overview,
    rank_rows,
)
from funcexplain.reports.page import page, picture
from funcexplain.reports.precedents import Precedents, date_of, precedents
from funcexplain.reports.questions import describe_question
from funcexplain.reports.reason import find_reason, reason_table
from funcexplain.reports.trades import groups_picture, trades_table
from funcexplain.solutions.html import Html, details, element, table
from funcexplain.solutions.labels import check_labels
from funcexplain.solutions.matching import repeat_for_draws
from funcexplain.solutions.probability import Probability
from funcexplain.solutions.solution import Solution, Status
from funcexplain.solutions.writing import check_regular, output_path, replaced

DETAILED_ROWS = 3
"""Number of answers of a grid that are shown with tables of their own."""


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
    coords: Mapping[str, Sequence[object]] | None = None,
    scale: float | Tensor | None = None,
    prices: tuple[Tensor, Tensor] | Callable[[tuple[int, ...]], Any] | None = None,
    probability: Probability | None = None,
    draws: Solution | None = None,
    reach: tuple[float | Sequence[float], Reach] | None = None,
    agreement: Agreement | None = None,
    ahead: int = 0,
    period: str = DAY,
    groups: Mapping[str, Sequence[str]] | None = None,
    today: Tensor | None = None,
    spread: float | None = None,
    models: Any = None,
    probe: bool = True,
    note: str = "",
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write an answer for readers: one HTML file with embedded pictures, which needs no network access.

    Its first page, one sheet of A4 on paper, holds the question, the answer in a sentence, a verdict
    (reached or how near, how likely, how unusual, how sure, why) and pictures of prices and weights.
    Tables of moves and trades follow, then folded details: all changes, every measure of `evaluate` with
    its meaning, and settings, seeds and versions. For a grid it shows the best answers in detail; rows
    along a dimension ``date`` become a time series. The same arguments make the same file. An existing
    file is replaced only once the new one is complete.

    Args:
        solution: the result of `solve`.
        problem: the question or grid that it answers.
        path: the file, such as ``"report.html"``.
        history: market history: features of every day, ``(C, days, A)``, which show how unusual the
            answer is; as in `evaluate`, like ``scale`` and ``models``.
        history_dates: its days, to name real windows.
        assets: ``A`` names. Default: those of the problem.
        channels: ``C`` names.
        dates: ``L`` days of the window.
        coords: labels of the rows along each named dimension, such as ``{"date": [...]}``.
        scale: one sigma.
        prices: positive prices, actual ``(days, A)`` and in the scenario ``(*rows, days, A)``; see
            ``fe.scenarios.prices_of``. For large grids, a function ``index -> (actual, scenario)`` or
            None; it is called for the rows that are shown.
        probability: result of `probability`, for one question or for each date.
        draws: markets from `sample` at which the target of the best answer holds; they add ranges, and a
            section on what they have in common.
        reach: a radius, or several, and what `reach` found within them for the question of the best
            answer.
        agreement: of several networks at the answer of the first one alone, from `agreement`.
        ahead: number of coming days that are shocked; 0 for past days.
        period: what a day is, such as ``"week"`` for weekly prices.
        groups: names of the assets in each group, whose total weights are drawn.
        today: weights held today, broadcastable to ``(*rows, A)``. Default: those at the reference.
        spread: bid-ask spread as a fraction of the price, for the cost of the trades.
        models: parameters of other models, evaluated at the best answer.
        probe: whether to evaluate the network at windows other than the references: under noise, and at
            every window of the history. If not, the report omits and lists what needs it.
        note: a warning for the reader, shown below the headline.
        title: headline. Default: the question.
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
    made = setting_lines(settings)
    if isinstance(solution, Solution) and isinstance(problem, Problem):
        problem = repeat_for_draws(solution, problem)
    entire: dict[str, Any] = {"scale": scale, "models": models, "draws": DRAWS if probe else 0}
    if isinstance(solution, Solution) and solution.dims:
        # Of all rows only what orders and counts them; everything of the best one, below. Without a
        # scale, that takes the history up to the date of each.
        dated = history if scale is None else None
        measured = _evaluate(solution, problem, dated, scale=scale, draws=0)
    else:
        measured = _evaluate(solution, problem, history, **entire)
    window, assets = solution.sample.x.shape[-3:], assets or problem.assets
    names = check_labels("report", window, assets=assets, channels=channels, dates=dates)
    known = check_history_dates(history_dates, history)
    labels = complete_labels(names, solution, problem, period)
    places = check_coords(coords or {}, solution)
    prices_at = None if prices is None else price_paths(prices, solution)
    size = change_size(solution, problem, measured)
    rank = rank_rows(solution.hit, size[0], solution.error)
    order, series = best_first(rank), None
    if DATE in places:
        series = collect_dates(solution, problem, places[DATE], rank, size, scale, probability)
        latest = tuple(map(int, np.unravel_index(series.rows[-1], solution.shape)))
        order = [latest, *(index for index in order if index != latest)]

    asked = problem[order[0]] if order[0] else problem
    common = None if draws is None else find_common(draws, asked)

    def show(index: tuple[int, ...]) -> Answer:
        one, question = (solution[index], problem[index]) if index else (solution, problem)
        row = select_row(one, question, *sigma_of(question, history, scale))
        if today is not None:
            row = row._replace(
                today=as_array(today.broadcast_to((*solution.shape, len(labels.weights)))[index])
            )
        pair = prices_at(index) if prices_at else None
        totals = as_array(common.totals) if common is not None and index == order[0] else None
        moves, reason = None, None
        if pair is not None:
            moves = measure_moves(*pair, _past_returns(question, history), totals)
        if probe and index == order[0]:
            reason = find_reason(question, one, row.target)
        sentence = describe_answer(
            Status(int(one.status)),
            float(one.error),
            (row.x - row.reference) / row.sigma,
            moves,
            labels.assets,
            law=bool(question.law),
            ahead=ahead,
            last=labels.dates[-1] if labels.dates and not ahead else "",
            period=period,
        )
        return Answer(index, one, row, pair, moves, reason, sentence)

    best = show(order[0])
    metrics = measured
    if solution.dims:
        of_best = _evaluate(best.solution, asked, history, **entire)
        values = {name: value[order[0]] for name, value in measured.items()} | dict(of_best)
        values = {name: values[name] for name in DESCRIPTIONS if name in values}
        metrics = Metrics(values, (), of_best.worst)
    found = None
    if probe and history is not None:
        found = precedents(asked, history, torch.tensor(best.row.sigma), atol=ATOL)
    chance = probability
    if chance is not None and chance.dims:
        at = [index for dim, index in zip(solution.dims, order[0], strict=True) if dim in chance.dims]
        chance = chance[tuple(at)]
    last = labels.dates[-1] if labels.dates else ""
    head = title or describe_question(
        best.row.today, best.row.target, labels.weights, "" if ahead else last, ahead, period
    )
    front = Front(
        head, note, best, solution, metrics, labels, series, chance, common, agreement, found, known,
        ahead, probe,
    )  # fmt: skip
    weights = (best.row.today, best.row.target, best.row.weights)
    content = [
        front_page(front),
        *(dates_section(series, labels.assets) if series else []),
        element("h2", "Prices and weights" if best.moves else "Weights"),
        *([moves_table(best.moves, labels.assets, ahead=ahead)] if best.moves else []),
        *trades_table(*weights, labels.weights, spread),
        *groups_picture(*weights, labels.weights, groups or {}),
    ]
    if common is not None:
        content += draws_section(common, asked, best.solution, labels.assets, period)
    if reach is not None:
        content.append(details("How far the weights can go", *_reach(reach, best.row, labels)))
    if agreement is not None:
        content.append(details("Network by network", *_networks(agreement)))
    content += _behind(best, labels, found, known)
    # What holds without a change needs no other answer, unless to another date.
    for index in order[1:DETAILED_ROWS] if series or not best.row.met else []:
        other = show(index)
        name = name_of_row(solution.dims, index, places)
        content.append(details(f"Another answer: {name}", *_other(other, labels, spread)))
    if solution.dims:
        content.append(details("All answers", *overview(solution, problem, size, order, places)))
    else:
        losses = plots.plot_history(solution.history)
        content.append(
            details("The search", picture(losses, "Loss at each step, on a logarithmic scale."))
        )
    content += [
        details("Measures", _measures_table(metrics, measured)),
        details("How it was made", origin_table(solution, problem, made, probe)),
    ]
    with replaced("report", file_path) as file:
        file.write(page(head, *content).encode())
    return file_path


def _reach(reach: tuple[float | Sequence[float], Reach], row: Row, labels: Labels) -> list[Html]:
    """The range of every weight over all markets within a radius, and its growth over several."""
    radii, (lower, upper) = np.atleast_1d(reach[0]), map(torch.atleast_2d, reach[1])
    radius, today, assets = float(radii[-1]), row.today, labels.weights
    ax = plots.plot_reach(lower[-1], today, upper[-1], assets=assets, radius=radius)
    pictures = [picture(ax, "Range of every weight, with today's marked.")]
    if len(radii) > 1:
        ax = plots.plot_frontier(radii, upper, today=today, assets=assets)
        pictures.append(picture(ax, "Highest weight against the radius, of the assets it raises most."))
    text = (
        f"The lowest and the highest weight that a search found among all markets of at most {radius:g} "
        "standard deviations together. These are inner bounds: other such markets may go further."
    )
    return [element("p", text), *pictures]


def _networks(found: Agreement) -> list[Html]:
    """Each network at the answer of the first one alone."""
    values = zip(found.held.tolist(), found.error.tolist(), found.gap_closed.tolist(), strict=True)
    lines = [
        (str(number), "yes" if held else "no", format_points(error), format_percent(closed))
        for number, (held, error, closed) in enumerate(values, start=1)
    ]
    heads = ("network", "holds the target", "misses it by", "share of its gap that is closed")
    text = "Every network at the market that the first one alone needs."
    return [element("p", text), table(heads, lines, (2, 3))]


def _behind(
    best: Answer, labels: Labels, found: Precedents | None, known: Sequence[object] | None
) -> list[Html]:
    """Folded details of the best answer; nothing if the target holds without a change."""
    if best.row.met:
        return []
    content = []
    if best.reason is not None:
        parts = reason_table(best.reason, labels.assets, labels.weights)
        content.append(details("Why: what the data of each asset add", *parts))
    changed = [*row_pictures(best.row, labels), element("h3", "Largest changes")]
    content.append(details("Every change of the window", *changed, changes_table(best.row, labels)))
    if found is not None:
        content.append(
            details(
                "Real windows nearest to the target", *_history(found, known, unit_of(labels.period))
            )
        )
    return content


def _other(answer: Answer, labels: Labels, spread: float | None) -> list[Html]:
    """Another answer of a grid: in a sentence and two tables."""
    row = answer.row
    return [
        element("p", answer.sentence),
        *trades_table(row.today, row.target, row.weights, labels.weights, spread),
        element("h3", "Largest changes"),
        changes_table(row, labels),
    ]


def _history(found: Precedents, dates: Sequence[object] | None, unit: str) -> list[Html]:
    """The real windows that hold the target or come nearest to it, to compare the answer with."""
    lines = [
        (day_of(int(day), found, dates, unit), format_points(float(error)), f"{float(change):.2f}")
        for day, error, change in zip(*found[:3], strict=True)
    ]
    heads = ("ends on", "misses the target by", "root mean square distance, standard deviations")
    text = element("p", f"{wording.precedent(found)} The nearest of them:")
    return [text, table(heads, lines, numbers=(1, 2))]


def _measures_table(metrics: Metrics, measured: Metrics) -> Html:
    """Every measure of the best answer with its meaning; for a grid also quantiles over all."""
    heads = ["measure", "value", "meaning"]
    if measured.dims:
        heads[1:2] = ["best", "minimum", "median", "maximum"]
    lines = []
    for name, value in metrics.items():
        cells = [format_number(value)]
        if measured.dims:
            quantiles = format_quantiles(measured[name]) if name in measured else [""] * 6
            cells += [quantiles[at] for at in (0, 2, -1)]
        lines.append([name.replace("_", " "), *cells, metrics.descriptions[name]])
    return table(heads, lines, numbers=range(1, len(heads) - 1))


def _evaluate(solution: Solution, problem: Problem, history: Any, **options: Any) -> Metrics:
    """`evaluate`, whose errors name `report`; the arguments have the same names in both."""
    try:
        return evaluate(solution, problem, history, noise=NOISE, atol=ATOL, **options)
    except (TypeError, ValueError) as error:
        if not str(error).startswith("evaluate: "):  # the network's own
            raise
        raise type(error)(str(error).replace("evaluate", "report", 1)) from None


def _past_returns(problem: Problem, history: Tensor | None) -> np.ndarray | None:
    """Log returns of the history up to the question's date: its first channel."""
    return None if history is None else as_array(history[0, : date_of(problem, history)])
