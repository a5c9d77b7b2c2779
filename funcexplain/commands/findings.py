"""What a question asks beside its answers: their chance, draws, reach, and what other networks hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.config import Config
from funcexplain.commands.draws import Drawn, describe_draws, draw_markets
from funcexplain.commands.execution import solve_here
from funcexplain.commands.inputs import Inputs
from funcexplain.commands.outputs import as_json
from funcexplain.commands.question import Query
from funcexplain.engine.event import check_event
from funcexplain.engine.reach import Reach
from funcexplain.measures.agreement import Agreement
from funcexplain.reports.cards import likelihood_sentence, whose
from funcexplain.reports.numbers import format_percent

_SHOWN = 3  # ranges
_CHANCE = ("estimate", "standard_error", "lower", "upper")
_AGREEMENT = ("held", "error", "gap_closed")

Answers = Sequence[dict[str, Any]]
"""The answers in the summary of a run, one for each date."""


def check_findings(config: Config, query: Query) -> None:
    """Raise, before anything is searched, unless draws and reach can be found."""
    question = config.question
    for name, given in {"draws": question.draws, "reach": question.reach}.items():
        if given and len(query.dates) > 1:
            raise ValueError(
                f"question.{name}: needs one date, got {len(query.dates)}; name one, or leave {name} out"
            )
    if question.draws:
        check_event("question.draws", query.from_reference, config.method.atol, 0, None)


def add_findings(inputs: Inputs, answers: Answers, consequence: str) -> tuple[list[str], Drawn | None]:
    """Add to the answers what their question asks beside them, as JSON values.

    Args:
        inputs: of the run.
        answers: of its summary.
        consequence: of Ctrl-C.

    Returns:
        Sentences to print, and the draws.
    """
    query, question, atol = inputs.query, inputs.config.question, inputs.config.method.atol
    sentences, drawn = list[str](), None
    if question.how_likely:
        chance = fe.probability(query.from_reference, atol=atol)
        for row, answer in enumerate(answers):
            answer["probability"] = _describe_chance(chance[row] if chance.dims else chance)
        if not chance.dims:
            sentences.append(likelihood_sentence(chance, query.ahead, inputs.history.period))
    if question.draws:
        assets = inputs.history.prices.assets
        drawn = draw_markets(query, question.draws, atol, assets)
        answers[0]["draws"] = as_json(drawn.found and describe_draws(drawn.found, assets))
        sentences.append(drawn.sentence)
    if question.reach:
        # Of several networks, the range of their mean.
        measure = None if query.first is None else lambda weights: weights.mean(0)
        reach = fe.reach(query.from_reference, [*question.reach], measure=measure)
        answers[0]["reach"] = _describe_reach(reach, question.reach, query.names)
        sentences.append(_reach_sentence(reach, question.reach, query.names))
    if query.first is not None:
        first = solve_here(query.first, inputs.config.method, consequence)
        networks = [inputs.network, *inputs.others]
        agreement = fe.agreement(first, query.first, networks, atol=atol)
        for row, answer in enumerate(answers):
            values = {name: getattr(agreement, name).view(len(networks), -1) for name in _AGREEMENT}
            held = {name: value[:, row].tolist() for name, value in values.items()}
            answer["agreement"] = as_json({"reached": bool(first.hit.flatten()[row]), **held})
        if (agreed := recorded_agreement(answers)) is not None:
            card = whose(agreed)
            sentences.append(f"{card.about} {card.head}. {card.text}")
    return sentences, drawn


def recorded_findings(answers: Answers) -> dict[str, Any]:
    """What `add_findings` added to answers, as arguments of `fe.report`; None where it was not asked."""
    return {
        "probability": _recorded_chance(answers),
        "reach": _recorded_reach(answers),
        "agreement": recorded_agreement(answers),
    }


def _describe_chance(chance: fe.Probability) -> dict[str, Any]:
    """The probability of one question as JSON values."""
    found = {name: float(getattr(chance, name)) for name in _CHANCE}
    return as_json({**found, "status": fe.Status(int(chance.status)).name, "method": str(chance.method)})


def _recorded_chance(answers: Answers) -> fe.Probability | None:
    """The probability of one question or of each date."""
    found = [answer["probability"] for answer in answers if answer.get("probability")]
    if len(found) < len(answers) or not found:
        return None
    numbers: list[Any] = [_numbers([chance[name] for chance in found]) for name in _CHANCE]
    unknown = torch.zeros(len(found), dtype=torch.int64, device="cpu")
    status = unknown.new_tensor([int(fe.Status[chance["status"]]) for chance in found])
    methods = tuple(chance["method"] for chance in found)
    levels = numbers[0].new_empty(len(found), 0)
    unnamed = ("",) * len(found)
    fields: list[Any] = [*numbers, unknown, unknown, levels, status, methods, unnamed, ("date",)]
    chances = fe.Probability(*fields)
    return chances if len(found) > 1 else chances[0]


def _describe_reach(reach: Reach, radii: Sequence[float], names: Sequence[str]) -> list[dict[str, Any]]:
    """The ranges within each radius as JSON values."""
    found = []
    for radius, *ends in zip(radii, *reach, strict=True):
        bounds = zip(names, *(end.tolist() for end in ends), strict=True)
        weights = {name: {"lower": lower, "upper": upper} for name, lower, upper in bounds}
        found.append({"radius": radius, "weights": weights})
    return as_json(found)


def _reach_sentence(reach: Reach, radii: Sequence[float], names: Sequence[str]) -> str:
    """The widest ranges within the largest radius, as a sentence to print."""
    lower, upper = (end[-1] for end in reach)
    widest = (upper - lower).nan_to_num(nan=0.0).argsort(descending=True)[:_SHOWN]
    ranges = [
        f"{names[at]} {format_percent(float(lower[at]))} to {format_percent(float(upper[at]))}"
        for at in widest
    ]
    return f"Within {radii[-1]:g} sigmas, searches found weights of {', '.join(ranges)}."


def _recorded_reach(answers: Answers) -> tuple[list[float], Reach] | None:
    """The radii and their ranges."""
    recorded = answers[0].get("reach")
    if not recorded:
        return None
    ends = (
        torch.stack([_numbers([each[name] for each in one["weights"].values()]) for one in recorded])
        for name in ("lower", "upper")
    )
    return [one["radius"] for one in recorded], Reach(*ends)


def recorded_agreement(answers: Answers) -> Agreement | None:
    """The agreement of networks with the answer of the first one, if there is one date."""
    values = answers[0].get("agreement")
    if values is None or len(answers) > 1:
        return None
    held, *numbers = (_numbers(values[name]) for name in _AGREEMENT)
    return Agreement(held.bool(), *numbers)


def _numbers(values: Sequence[float | None]) -> Tensor:
    """Numbers of a JSON file, which has None for those that are not finite."""
    known = [torch.nan if value is None else value for value in values]
    return torch.tensor(known, dtype=torch.float64, device="cpu")
