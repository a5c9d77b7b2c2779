"""The first page of a report: question, answer, verdict, and two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from funcexplain.markets.periods import unit_of
from funcexplain.measures.agreement import Agreement
from funcexplain.measures.metrics import Metrics
from funcexplain.reports import cards, plots, wording
from funcexplain.reports.dates import Dates, describe_dates, describe_sizes
from funcexplain.reports.details import Row
from funcexplain.reports.drawing import new_axes
from funcexplain.reports.draws import Common, shocked_prices
from funcexplain.reports.inputs import Labels, PricePaths, name_of_row
from funcexplain.reports.moves import PriceMoves
from funcexplain.reports.origin import ATOL, NOISE
from funcexplain.reports.page import picture
from funcexplain.reports.precedents import Precedents
from funcexplain.reports.reason import Reason
from funcexplain.solutions.html import Html, element
from funcexplain.solutions.probability import Probability
from funcexplain.solutions.solution import Solution, Status

_SIZE = 5.2, 3.8  # of a picture, inches: for half a page, and for a phone
_MAX_ASSETS = 12  # in the picture of weights


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer that is shown.

    Attributes:
        index: of its row in the grid.
        solution: of this row.
        row: in arrays.
        prices: actual and in the scenario, if they are known.
        moves: of these prices.
        reason: why the weights change, if that was found.
        sentence: the answer in words.
    """

    index: tuple[int, ...]
    solution: Solution
    row: Row
    prices: PricePaths | None
    moves: PriceMoves | None
    reason: Reason | None
    sentence: str


@dataclass(frozen=True, eq=False)
class Front:
    """The content of the first page.

    Attributes:
        head: the question.
        note: a warning for the reader, or empty.
        best: the best answer.
        solution: all answers.
        metrics: measures of the best one.
        labels: names of channels, days and assets.
        series: answers date by date, for several dates.
        probability: of the target, if it was estimated.
        common: summaries of the draws, if any.
        agreement: of several networks at the answer.
        found: precedents of the target.
        history_dates: days of the history.
        ahead: number of coming shocked days.
        probe: whether the network was evaluated at other windows.
    """

    head: str
    note: str
    best: Answer
    solution: Solution
    metrics: Metrics
    labels: Labels
    series: Dates | None
    probability: Probability | None
    common: Common | None
    agreement: Agreement | None
    found: Precedents | None
    history_dates: Sequence[object] | None
    ahead: int
    probe: bool


def front_page(front: Front) -> Html:
    """The section of the first page."""
    return element(
        "section",
        element("h1", front.head),
        *([element("p", front.note, class_="note")] if front.note else []),
        *(element("p", text, class_="lead") for text in _sentences(front)),
        cards.cards(_verdict(front)),
        element("div", *_pictures(front), class_="pair"),
        class_="front",
    )


def _sentences(front: Front) -> list[str]:
    """The answer, and how many searches found one."""
    best, solution = front.best, front.solution
    texts = [best.sentence]
    if front.series:
        among = f"{describe_dates(front.series)} {describe_sizes(front.series)}"
        texts = [among, f"On {front.series.names[-1]}: {best.sentence}"]
    elif solution.dims:
        hits, total = int(solution.hit.sum()), solution.num_steps.numel()
        name = name_of_row(solution.dims, best.index, {})
        texts.append(f"{hits} of {total} searches reach their target; this is the best ({name}).")
    return texts


def _verdict(front: Front) -> list[cards.Judgement]:
    """The cards; a target that holds already needs only the first ones."""
    best, found, assets = front.best, front.found, front.labels.assets
    one, status = best.solution, Status(int(best.solution.status))
    measured, worst = (
        {name: float(value) for name, value in values.items()}
        for values in (front.metrics, front.metrics.worst)
    )
    errors, met = one.exceptions.values(), best.row.met
    estimated = front.probability is not None and bool(front.probability.log10.isfinite())
    if front.probability is not None and estimated:
        # Of all markets that hold the target, not only of those along the answer.
        measured["log10_chance"] = float(front.probability.log10)
    judged = [cards.reached(status, float(one.error), measured, *errors, already=met)]
    if front.probability is not None:
        judged.append(cards.likely(front.probability, front.ahead, front.labels.period))
    if met:
        return judged
    nearest = ""
    if found is not None:
        nearest = day_of(int(found.days[0]), found, front.history_dates, unit_of(front.labels.period))
    judged.append(
        wording.unusual(
            measured,
            worst,
            found,
            assets=assets,
            unit=unit_of(front.labels.period),
            hit=status.is_hit,
            nearest=nearest,
            estimated=estimated,
        )
    )
    judged.append(cards.stable(measured, NOISE, ATOL, probed=front.probe))
    if front.agreement is not None:
        judged.append(cards.whose(front.agreement))
    return [*judged, cards.why(best.reason, assets, front.labels.weights)]


def _pictures(front: Front) -> list[Html]:
    """Prices of all shocked days from the day before the first one on, and weights."""
    best, labels, pictures = front.best, front.labels, []
    if best.prices is not None and best.moves is not None and best.moves.days:
        paths, fan = shocked_prices(best.prices, front.common)
        seen, ax = len(labels.days), new_axes(*_SIZE)
        unit = unit_of(labels.period)
        plots.plot_prices(
            *paths,
            assets=labels.assets,
            window=seen,
            ahead=front.ahead,
            period=labels.period,
            fan=fan,
            ax=ax,
        )
        dashed = "without shocks" if front.ahead else "as they were"
        text = (
            f"Prices in the scenario, solid, and {dashed}, dashed; 100 before the first shocked {unit}."
        )
        if len(paths[0]) > seen:
            text += f" Shaded grey: the {unit}s that the network sees."
        pictures.append(picture(ax, text))
    row, ax = best.row, new_axes(*_SIZE)
    plots.plot_weights(
        row.today, row.target, row.weights, assets=labels.weights, most=_MAX_ASSETS, ax=ax
    )
    goal = "target" if row.target.ndim == 1 else "bounds"
    return [*pictures, picture(ax, f"Weights today and reached, and their {goal}, in percent.")]


def day_of(day: int, found: Precedents, dates: Sequence[object] | None, unit: str = "day") -> str:
    """The last day of a real window."""
    if dates is not None:
        return str(dates[day - 1])
    return f"{found.known - day} {unit}s before" if day < found.known else f"the {unit} of the question"
