"""What a report says in sentences is true of the answer, and its numbers are those of the tables."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import funcexplain as fe
from funcexplain.reports.answer import describe_answer
from funcexplain.reports.cards import likely, reached, why
from funcexplain.reports.dates import Dates, describe_dates, describe_sizes
from funcexplain.reports.moves import PriceMoves, describe_moves, measure_moves, moves_table
from funcexplain.reports.reason import Reason, describe_reason, find_reason
from funcexplain.reports.trades import trades_table, turnover_of
from tests.helpers import make_problem

SEEDS = st.integers(0, 2**32 - 1)
PERCENT = r"[+-]?\d+\.\d\d%"


def names(count: int) -> list[str]:
    return [f"asset{'ABCDEFGHIJ'[at]}" for at in range(count)]


def random_moves(seed: int, ahead: bool) -> PriceMoves:
    rng = np.random.default_rng(seed)
    assets, days, shocked = rng.integers(1, 8), rng.integers(2, 9), rng.integers(1, 9)
    steps = 0.02 * rng.standard_normal((days + shocked, assets))
    base = np.where(np.arange(len(steps))[:, None] >= days, 0.0, steps) if ahead else steps
    shocks = 0.05 * rng.standard_normal((shocked, assets))
    moved = base.copy()
    moved[-shocked:] += shocks
    actual, scenario = (np.exp(np.cumsum(table, 0)) for table in (base, moved))
    draws = moved[-shocked:].sum(0) + 0.01 * rng.standard_normal((50, 1))
    found = measure_moves(actual, scenario, rng.standard_normal((200, assets)), draws)
    assert found.days == shocked
    np.testing.assert_allclose(np.log1p(found.difference + found.actual), moved[-shocked:].sum(0))
    return found


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


@given(SEEDS, st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_is_said_of_moves_is_what_the_table_holds(seed: int, ahead: bool) -> None:
    moves = random_moves(seed, ahead)
    assets = names(len(moves.actual))
    text = describe_moves(moves, assets, ahead=moves.days if ahead else 0)
    lines = {line[0]: line for line in cells(moves_table(moves, assets, ahead=0))[1:]}
    assert set(lines) == set(assets)
    told = re.findall(rf"(asset\w) (falls|rises) by ({PERCENT})", text)
    assert 1 <= len(told) <= 3
    for name, verb, move in told:
        signed = lines[name][2]
        assert signed.lstrip("+-") == move
        assert verb == ("falls" if signed.startswith("-") else "rises")
    size = np.abs(moves.difference)
    rest = [at for at, name in enumerate(assets) if name not in {name for name, *_ in told}]
    if rest:
        assert size[rest].max() <= size.max()
        bound = float(re.findall(r"by at most (\d+\.\d\d)", text)[0])
        largest = np.abs(moves.scenario[rest]).max() if ahead else size[rest].max()
        assert bound == pytest.approx(100 * largest, abs=0.006)
    assert moves.percentile is not None
    assert ((moves.percentile >= 0) & (moves.percentile <= 1)).all()
    assert moves.low is not None
    assert moves.high is not None
    assert (moves.low <= moves.high).all()


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_trades_lead_from_today_to_what_is_reached(seed: int) -> None:
    rng = np.random.default_rng(seed)
    today, reached_, target = rng.dirichlet(np.ones(5), size=3)
    table, sentence = trades_table(today, target, reached_, names(5), spread=0.001)
    for line in cells(table)[1:]:
        at = names(5).index(line[0])
        held, wanted, got, trade = (float(cell.rstrip("%")) / 100 for cell in line[1:])
        assert (held, wanted, got) == pytest.approx((today[at], target[at], reached_[at]), abs=6e-5)
        assert trade == pytest.approx(reached_[at] - today[at], abs=6e-5)
    shown = float(re.findall(PERCENT, sentence)[0].rstrip("%")) / 100
    assert shown == pytest.approx(turnover_of(today, reached_), abs=6e-5)
    cost = float(re.findall(r"([\d.]+) basis points", sentence)[0])
    assert cost == pytest.approx(1e4 * 0.001 * turnover_of(today, reached_), abs=0.06)


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_the_parts_of_a_reason_add_up_in_words(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 8))
    parts = 0.1 * rng.standard_normal((size, size))
    reason = Reason(int(rng.integers(size)), parts.sum(1), parts, 0.0)
    whole, *split = (
        float(number) for number in re.findall(r"[+-]\d+\.\d\d", describe_reason(reason, names(size)))
    )
    assert sum(split) == pytest.approx(whole, abs=0.005 * (len(split) + 1) + 1e-9)
    assert why(reason, names(size)).head.startswith("Mostly the data of asset")
    assert why(reason._replace(error=1.0), names(size)).head == "Unknown"


def test_a_linear_network_has_its_parts_as_reason() -> None:
    solution = fe.solve(problem := make_problem(mask=None), fe.levenberg_marquardt(), atol=1e-3)
    reason = find_reason(problem, solution, np.asarray(problem.args["target"]))
    assert reason is not None
    np.testing.assert_allclose(reason.parts.sum(1), reason.change, atol=1e-4)
    still = fe.solve(problem, max_steps=0)
    assert why(find_reason(problem, still, np.ones(5)), names(5)).head == "Nothing moves"


@pytest.mark.parametrize("status", list(fe.Status))
@pytest.mark.parametrize("ahead", [0, 5])
def test_answers_are_called_what_they_are(status: fe.Status, ahead: int) -> None:
    moves, sigmas = PriceMoves(5, np.zeros(2), np.array([-0.06, 0.001])), np.ones((1, 1, 2))
    text = describe_answer(status, 0.02, sigmas, moves, ["A", "B"], law=True, ahead=ahead)
    assert ("likeliest" in text) == (status is fe.Status.CLOSEST)
    assert ("Not reached" in text) == (not status.is_hit)
    assert ("next 5 trading days" in text) == bool(ahead)
    closest = describe_answer(status, 0.02, sigmas, None, ["A", "B"], law=False)
    assert "likeliest" not in closest
    assert ("50.00% in the data of A" in closest) == (not np.isnan(sigmas).any())
    still = describe_answer(status, 0.02, 0 * sigmas, moves, ["A", "B"], law=True, ahead=ahead)
    assert ("nothing has to" in still) == status.is_hit
    assert describe_answer(status, 0.02, np.nan * sigmas, None, ["A", "B"], law=True) == (
        "The search found no answer."
    )


@pytest.mark.parametrize("status", list(fe.Status))
def test_a_miss_says_what_ended_the_search(status: fe.Status) -> None:
    card = reached(status, 0.02, {"gap_closed": 0.5}, "boom" if status is fe.Status.FAILED else "")
    assert (card.head == "Reached") == status.is_hit
    assert "2.00" in card.text + card.head
    assert "atol" not in card.text
    assert ("boom" in card.text) == (status is fe.Status.FAILED)


def chance(estimate: float, low: float, high: float) -> fe.Probability:
    one = torch.tensor(1.0, dtype=torch.float64)
    numbers = (estimate * one, one, low * one, high * one)
    return fe.Probability(*numbers, one.long(), one.long(), one[None], fe.Status.HIT, ("subset",), ("",))


@given(st.floats(1e-12, 1.0))
def test_a_probability_is_said_as_often_as_it_happens(p: float) -> None:
    card = likely(chance(p, p / 2, min(1.0, 2 * p)), 10)
    if "once in" in card.text:
        count = float(re.findall(r"once in ([\d,]+)", card.text)[0].replace(",", ""))
        assert 1 / count == pytest.approx(p, rel=0.2)
    if card.head.endswith("%"):
        assert float(card.head.rstrip("%")) / 100 == pytest.approx(p, abs=6e-5)
    else:
        assert p < 1e-4


def test_a_target_that_never_happened_has_a_bound() -> None:
    card = likely(chance(float("nan"), 0.0, 1e-3), 10)
    assert card.head == "Below 0.10%"
    assert "none of the markets drawn" in card.text


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_dates_are_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hit = rng.random(9) < 0.7
    already = hit & (rng.random(9) < 0.3)
    blank = np.zeros(9)
    text = describe_dates(Dates(names(9), blank, hit, already, blank, blank, blank, None))
    counts = list(map(int, re.findall(r"\d+", text)))
    assert counts[:2] == [hit.sum(), 9]
    assert counts[2:] == ([already.sum()] if already.any() else [])
    size = rng.random(9)
    text = describe_sizes(Dates(names(9), blank, hit, already, blank, size, blank, None, "sigmas"))
    changed = size[hit & ~already]
    assert bool(text) == bool(len(changed))
    if text:
        shown = list(map(float, re.findall(r"\d\.\d\d", text)))
        assert shown == pytest.approx([np.median(changed), changed.min(), changed.max()], abs=0.006)
