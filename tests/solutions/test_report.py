"""The report: what it holds, and that it needs nothing else."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.solutions.precedents import precedents
from tests.grids import targets, x0s
from tests.helpers import ASSETS, CHANNELS, LOOKBACK, make_problem

pytest.importorskip("matplotlib")
NAMES = ["EUR", "<script>alert(1)</script>", "A & B", "JPY", 'CHF"']
CHANNEL_NAMES = ["return", "volatility"]
DAYS = [f"2024-01-{day:02d}" for day in range(1, LOOKBACK + 1)]


class Page(HTMLParser):
    """What a reader of a page meets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for name, v in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def one_answer(**changes: Any) -> tuple[fe.Solution, fe.Problem]:
    problem = make_problem(mask=None, **changes)
    return fe.solve(problem, fe.levenberg_marquardt(), max_steps=30, atol=1e-3), problem


def write(path: Path, solution: fe.Solution, problem: fe.Problem, **more: Any) -> str:
    history = torch.randn(CHANNELS, 80, ASSETS, dtype=torch.float64)
    settings: Any = {
        "history": history,
        "assets": NAMES,
        "channels": CHANNEL_NAMES,
        "dates": DAYS,
        "scale": 1.0,
        "settings": {"method": "levenberg_marquardt", "seed": 7},
        **more,
    }
    assert solution.report(path, problem, **settings) == path
    return path.read_text(encoding="utf-8")


def test_it_holds_the_answer_and_needs_nothing_else(tmp_path: Path) -> None:
    solution, problem = one_answer()
    text = write(tmp_path / "report.html", solution, problem)
    page = Page(text)
    assert page.loads
    assert all(source.startswith("data:") for source in page.loads)
    assert not {"script", "iframe", "object"} & set(page.tags)
    assert page.tags.count("img") >= 3
    for told in (*NAMES, *CHANNEL_NAMES, "levenberg_marquardt", torch.__version__, DAYS[-1]):
        assert told in page.text, told
    assert "Reached" in page.text
    assert "Of 75 real windows the nearest to the target misses it by" in page.text
    for name in fe.evaluate(solution, problem, scale=1.0).names:
        assert name.replace("_", " ") in page.text.replace("_", " "), name
    assert write(tmp_path / "again.html", solution, problem, history=None) != text


def test_precedents_are_those_of_a_loop() -> None:
    _, problem = one_answer()
    history = torch.randn(CHANNELS, 40, ASSETS, dtype=torch.float64)
    found = precedents(problem, history, 2.0, count=4)
    misses = []
    for end in range(LOOKBACK, 41):
        window = history[:, end - LOOKBACK : end]
        _, weights = problem.objective(window, problem.args)
        misses.append(float((weights - problem.args["target"]).abs().max()))
    order = sorted(range(len(misses)), key=misses.__getitem__)[:4]
    assert found.total == len(misses)
    assert found.days_ago.tolist() == [len(misses) - 1 - place for place in order]
    torch.testing.assert_close(
        found.error, torch.tensor([misses[place] for place in order], dtype=torch.float64)
    )


def test_the_same_arguments_make_the_same_file(tmp_path: Path) -> None:
    solution, problem = one_answer()
    pages = [write(tmp_path / f"{place}.html", solution, problem, history=None) for place in range(2)]
    assert pages[0] == pages[1]


def test_a_miss_says_how_near(tmp_path: Path) -> None:
    problem = make_problem()
    solution = fe.solve(problem, max_steps=0)
    text = Page(write(tmp_path / "report.html", solution, problem)).text
    assert f"Missed by {100 * float(solution.error):.2f} points" in text


def test_goals_and_grids_are_told(tmp_path: Path) -> None:
    problem = make_problem(target=fe.targets.at_least(0, 0.5), assets=list("ABCDE"))
    solution = fe.solve(problem, fe.levenberg_marquardt(), atol=1e-3)
    assert "at least" in Page(write(tmp_path / "goal.html", solution, problem)).text
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(3), name="start"), target=targets(2))
    answers = fe.solve(grid, fe.levenberg_marquardt(), max_steps=30, atol=1e-3)
    text = Page(write(tmp_path / "grid.html", answers, grid)).text
    assert "6" in text
    assert "start" in text
    assert "target" in text


def test_a_report_of_many_rows_is_small(tmp_path: Path) -> None:
    grid = fe.vmap(make_problem(), x0=x0s(1000))
    answers = fe.solve(grid, fe.levenberg_marquardt(), max_steps=3, atol=1e-3, history=False)
    text = write(tmp_path / "many.html", answers, grid, history=None)
    assert len(text) < 3_000_000


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"assets": NAMES[:2]}, ValueError, "assets"),
        ({"channels": ["one"]}, ValueError, "channels"),
        ({"dates": DAYS[:2]}, ValueError, "dates"),
        ({"history": torch.zeros(3)}, ValueError, "history"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    change: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    solution, problem = one_answer()
    with pytest.raises(error, match=message):
        write(tmp_path / "report.html", solution, problem, **change)
    assert not list(tmp_path.iterdir())


def test_notebooks_get_a_short_summary() -> None:
    solution, problem = one_answer()
    page = Page(solution._repr_html_())
    assert "HIT" in page.text or "Reached" in page.text or "hit" in page.text
    assert not page.loads
    del problem
