"""Questions and verdicts in words: what they name, and where one verdict ends and the next begins."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.measures.rarity import KINDS
from funcexplain.reports.cards import reached, stable
from funcexplain.reports.details import select_row
from funcexplain.reports.precedents import Precedents
from funcexplain.reports.questions import describe_question
from funcexplain.reports.wording import statistic, unusual
from tests.helpers import make_problem

NAMES = ["EUR", "USD", "GBP", "JPY", "CHF"]
ALLOCATION = make_problem().args["target"].tolist()


def test_questions_name_what_moves_most() -> None:
    names = [f"asset {place}" for place in range(6)]
    today = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    text = describe_question(today, np.array([0.0, 0.4, 0.2, 0.2, 0.1, 0.1]), names)
    assert "0.00% asset 0 (today 50.00%), 40.00% asset 1 (today 10.00%)" in text
    assert text.endswith("and given weights of 3 more assets?")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (fe.targets.at_least("EUR", 0.6), "hold a weight of at least 60.00% in EUR?"),
        (
            fe.targets.group(["EUR", "JPY"], at_most=0.2),
            "hold a weight of at most 20.00% in EUR and JPY together?",
        ),
        (
            fe.targets.all_of(fe.targets.turnover(0.1), fe.targets.concentration(0.5)),
            "a turnover of at most 10.00% and a concentration (Herfindahl index) of at most 0.5?",
        ),
        (
            fe.targets.exact(make_problem().args["target"]),
            f"{100 * ALLOCATION[0]:.2f}% EUR (today",
        ),
    ],
    ids=["at least", "group", "turnover and concentration", "exact"],
)
def test_goals_are_put_into_words(target: Any, text: str) -> None:
    problem = make_problem(target=target, assets=NAMES)
    row = select_row(fe.solve(problem, max_steps=0), problem, None, "")
    assert text in describe_question(row.today, row.target, NAMES)


WORST = {"kind": 1, "days": 20, "asset": 0, "value": 0.1, "today": 0.02, "tail": -2.0, "paths": 999}
RECORD = WORST | {"tail": -3.5}


def found(held: int, near: int) -> Precedents:
    one = torch.ones(1)
    return Precedents(one.long(), one, one, held=held, near=near, total=999, known=999)


@pytest.mark.parametrize(
    ("rarity", "log10_chance", "worst", "precedents", "head"),
    [
        (0.01, math.nan, RECORD, None, "Beyond history"),
        (0.01, math.nan, WORST, None, "Rare"),
        (0.2, math.nan, RECORD, None, "Unusual"),
        (0.9, math.nan, WORST, None, "Ordinary"),
        (0.9, math.nan, WORST, found(0, 3), "Ordinary"),
        (0.9, math.nan, WORST, found(0, 0), "Unusual"),
        (0.9, -2.0, WORST, found(0, 3), "Rare"),
        (0.9, -4.0, WORST, found(0, 3), "Beyond history"),
        (0.9, -4.0, WORST, found(2, 3), "Rare"),
        (0.9, -5.0, WORST, None, "Rare"),
        (0.9, -14.0, WORST, found(2, 3), "Beyond history"),
        (math.nan, -0.2, {}, None, "Ordinary"),
        (math.nan, math.nan, WORST, found(3, 3), "Unknown"),
    ],
)
def test_an_answer_is_as_unusual_as_the_worst_of_its_sides(
    rarity: float, log10_chance: float, worst: Any, precedents: Precedents | None, head: str
) -> None:
    measured = {"rarity": rarity, "log10_chance": log10_chance, "in_range": 0.98}
    assert unusual(measured, worst, precedents, assets=NAMES).head == head
    # A market that leaves the range of single values is not ordinary, however calm it is.
    beyond = unusual(measured | {"in_range": 0.5}, worst, precedents, assets=NAMES).head
    assert beyond == ("Unusual" if head == "Ordinary" else head)
    missed = unusual(measured, worst, precedents, assets=NAMES, hit=False)
    assert missed.head == "Not graded"


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_the_worst_statistic_is_put_into_words(kind: int) -> None:
    text = statistic(WORST | {"kind": kind}, NAMES)
    assert "9 of 999 real paths" in text
    assert "than in any of 999 real paths" in statistic(RECORD | {"kind": kind}, NAMES)
    assert ("EUR" in text) == (KINDS[kind] in ("rise", "fall"))
    assert "inf" not in statistic(RECORD | {"kind": kind, "value": math.inf}, NAMES)


def test_unknown_measures_are_reported_as_such() -> None:
    for measured in ({}, {"rms_sigmas": math.nan}):
        assert unusual(measured).head == "Unknown"
    assert stable({}, 0.05, 1e-3).head == "Unknown"
    assert reached(fe.Status.NONFINITE, math.nan, {}).head == "No answer"


def test_stability_is_what_noise_adds_to_the_error() -> None:
    noisy = {"noise_error": 0.2, "invalidation": 1.0}
    assert stable(noisy, 0.05, 1e-3).head == "Fragile"
    assert stable(noisy | {"max_error": 0.17}, 0.05, 1e-3).head == "Moves a little"
    assert stable(noisy | {"max_error": 0.195}, 0.05, 1e-3).head == "Steady"
