"""The report: what it holds, and that it needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.engine.reach import Reach
from funcexplain.reports import plots
from funcexplain.reports.page import PIXELS
from funcexplain.reports.precedents import precedents
from funcexplain.solutions.html import element
from tests.grids import models, targets, x0s
from tests.helpers import ASSETS, CHANNELS, LOOKBACK, make_problem

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("rough_pictures")
NAMES = ["EUR", "<script>alert(1)</script>", "A & B", "JPY", 'CHF" onload="x']
CHANNEL_NAMES = ["return", "volatility"]
DAYS = [f"2024-01-{day:02d}" for day in range(1, LOOKBACK + 1)]


class Page(HTMLParser):
    """Tags, loaded resources and text of a page; every tag has to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.names += [name for name, _ in attrs]
        self.open += [] if tag in ("meta", "link", "img") else [tag]
        self.loads += [v or "" for name, v in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

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
    assert fe.report(solution, problem, path, **settings) == path
    return path.read_text(encoding="utf-8")


def test_it_holds_the_answer_and_needs_nothing_else(tmp_path: Path) -> None:
    solution, problem = one_answer()
    text = write(tmp_path / "report.html", solution, problem)
    page = Page(text)
    assert page.loads
    assert all(source.startswith("data:") for source in page.loads)
    assert not {"script", "iframe", "object"} & set(page.tags)
    assert not [name for name in page.names if name.startswith("on")]
    assert page.tags.count("img") >= 3
    for name in (*NAMES, *CHANNEL_NAMES, "levenberg_marquardt", torch.__version__, DAYS[-1]):
        assert name in page.text, name
    assert "Reached" in page.text
    assert "of 75 real windows" in page.text
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
    assert found.days.tolist() == [place + LOOKBACK for place in order]
    torch.testing.assert_close(
        found.error, torch.tensor([misses[place] for place in order], dtype=torch.float64)
    )


def test_the_same_arguments_make_the_same_file(tmp_path: Path) -> None:
    solution, problem = one_answer()
    pages = [write(tmp_path / f"{place}.html", solution, problem, history=None) for place in range(2)]
    assert pages[0] == pages[1]


def test_the_method_writes_the_same_file(tmp_path: Path) -> None:
    solution, problem = one_answer()
    path = solution.report(tmp_path / "method.html", problem, assets=NAMES, title="The same")
    fe.report(solution, problem, tmp_path / "function.html", assets=NAMES, title="The same")
    assert path.read_text() == (tmp_path / "function.html").read_text()


def test_a_miss_says_how_near(tmp_path: Path) -> None:
    problem = make_problem()
    solution = fe.solve(problem, max_steps=0)
    text = Page(write(tmp_path / "report.html", solution, problem)).text
    assert f"Missed by {100 * float(solution.error):.2f} points" in text


def test_what_holds_already_needs_no_change_and_gets_no_grade(tmp_path: Path) -> None:
    solution, problem = one_answer(target=fe.targets.at_least(0, 0.0))
    assert torch.equal(solution.x, problem.args["reference"])
    text = Page(write(tmp_path / "report.html", solution, problem)).text
    assert text.count("The network holds this today; nothing has to change.") == 1
    for left_out in ("Largest changes", "How unusual", "How sure"):
        assert left_out not in text
    later = Page(write(tmp_path / "report.html", solution, problem, ahead=5)).text
    assert "The network will hold this without any shock; nothing has to happen." in later


def test_a_note_comes_first(tmp_path: Path) -> None:
    text = Page(write(tmp_path / "report.html", *one_answer(), note="Read <this> first.")).text
    assert text.index("Read <this> first.") < text.index("Is the target reached?")


def test_goals_and_grids_are_reported(tmp_path: Path) -> None:
    problem = make_problem(target=fe.targets.at_least(0, 0.5), assets=list("ABCDE"))
    solution = fe.solve(problem, fe.levenberg_marquardt(), atol=1e-3)
    assert "at least" in Page(write(tmp_path / "goal.html", solution, problem)).text
    grid = fe.vmap(fe.vmap(make_problem(), x0=x0s(3), name="start"), target=targets(2))
    answers = fe.solve(grid, fe.levenberg_marquardt(), max_steps=30, atol=1e-3)
    text = Page(write(tmp_path / "grid.html", answers, grid)).text
    assert f"{int(answers.hit.sum())} of 6 searches reach their target" in text
    assert "6 (2 target x 3 start)" in text
    sizes = fe.evaluate(answers, grid, scale=1.0)["rms_sigmas"]
    assert answers.hit.any()
    best = np.unravel_index(int(torch.where(answers.hit, sizes, torch.inf).argmin()), (2, 3))
    assert f"this is the best (target {best[0]}, start {best[1]})" in text
    others = re.findall(r"Another answer: target (\d), start (\d)", text)
    assert len(others) == 2
    assert tuple(map(str, best)) not in others


def test_the_largest_changes_come_first(tmp_path: Path) -> None:
    solution, problem = one_answer()
    text = write(tmp_path / "report.html", solution, problem, history=None, scale=0.5)
    change = ((solution.x - problem.args["reference"]) / 0.5).flatten()
    largest = change[change.abs().argsort(descending=True)][:20]
    part = text.split("Largest changes")[1].split("</table>")[0]
    shown = re.findall(r"([+-]\d+\.\d\d)</td></tr>", part)
    assert shown == [f"{float(sigmas):+.2f}" for sigmas in largest]


def test_a_pareto_path_names_its_strengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = fe.pipe(make_problem(), fe.penalize(fe.penalties.l2, strength=1e-2, name="proximity"))
    path = fe.vmap(problem, proximity=torch.tensor([1e-4, 1e-2, 1.0], dtype=torch.float64))
    named: list[Any] = []
    draw = plots.plot_tradeoff

    def seen(*values: Any, **more: Any) -> Any:
        named.append(more["labels"])
        return draw(*values, **more)

    monkeypatch.setattr(plots, "plot_tradeoff", seen)
    answers = fe.solve(path, max_steps=3)
    text = Page(write(tmp_path / "a.html", answers, path, history=None)).text
    assert "proximity (3): proximity" in text
    assert named == [["proximity 0.0001", "proximity 0.01", "proximity 1"]]


def test_models_that_agree_are_reported(tmp_path: Path) -> None:
    problem = fe.consensus(fe.vmap(make_problem(mask=None), params=models(2)))
    text = Page(write(tmp_path / "a.html", fe.solve(problem, max_steps=2), problem)).text
    assert "Missed by" in text


def test_trouble_is_reported_and_not_raised(tmp_path: Path) -> None:
    grid = fe.vmap(make_problem(), x0=torch.stack([x0s(1)[0], torch.full_like(x0s(1)[0], torch.nan)]))
    answers = fe.solve(grid, max_steps=2)
    assert "status NONFINITE1" in Page(write(tmp_path / "a.html", answers, grid)).text
    alone = Page(write(tmp_path / "b.html", answers[1], grid[1])).text
    assert "No answer" in alone
    assert "nan sigmas" not in alone
    still = fe.solve(make_problem(), max_steps=0)
    assert "Nothing changes." in Page(write(tmp_path / "c.html", still, make_problem())).text


def test_a_report_of_many_rows_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funcexplain.reports.page.PIXELS", PIXELS)
    grid = fe.vmap(make_problem(), x0=x0s(1000))
    answers = fe.solve(grid, fe.levenberg_marquardt(), max_steps=3, atol=1e-3, history=False)
    seen = []

    def seen_evaluate(solution: Any, problem: Any, history: Any, **more: Any) -> Any:
        seen.append((solution.shape, history is not None, more["draws"] > 0))
        return fe.evaluate(solution, problem, history, **more)

    monkeypatch.setattr("funcexplain.reports.report.evaluate", seen_evaluate)
    text = write(tmp_path / "many.html", answers, grid)
    assert len(text) < 3_000_000
    assert seen == [((1000,), False, False), ((), True, True)]  # all measures of the best one only


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"assets": NAMES[:2]}, ValueError, "assets"),
        ({"channels": ["one"]}, ValueError, "channels"),
        ({"dates": DAYS[:2]}, ValueError, "dates"),
        ({"history": torch.zeros(3)}, ValueError, "report: history must have shape"),
        ({"prices": 3}, TypeError, "report: prices must be a pair"),
        ({"prices": [torch.ones(4, 5), -torch.ones(4, 5)]}, ValueError, "scenario prices must be posit"),
        ({"settings": [1]}, TypeError, "report: settings must be a dict, got list"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_earlier_file_stays(
    change: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    solution, problem = one_answer()
    path = tmp_path / "report.html"
    path.write_text("earlier")
    with pytest.raises(error, match=message):
        write(path, solution, problem, **change)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "earlier"


def test_rows_and_paths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    solution, problem = one_answer()
    with pytest.raises(ValueError, match="report: solution must have the rows"):
        write(tmp_path / "a.html", solution, fe.vmap(problem, seed=torch.arange(2)))
    with pytest.raises(TypeError, match="report: path must be a str or a path, got int"):
        fe.report(solution, problem, 3)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"report: cannot write .* there is no folder"):
        write(tmp_path / "missing" / "a.html", solution, problem)


def test_notebooks_get_a_short_summary() -> None:
    page = Page(one_answer()[0]._repr_html_())
    assert "statusHIT" in page.text
    assert not page.loads
    answers = fe.solve(fe.vmap(make_problem(), seed=torch.arange(3)), max_steps=2)
    many = Page(answers._repr_html_()).text
    assert "3 (3 seed)" in many
    assert "hit rate0.0%" in many
    assert "b" not in Page(replace(answers, dims=("<b>",))._repr_html_()).tags
    assert "hit ratenone" in Page(answers[:0]._repr_html_()).text


def test_text_is_escaped_unless_it_is_markup() -> None:
    inner = element("b", "<&\"'>", title='"<')
    assert inner == '<b title="&quot;&lt;">&lt;&amp;&quot;&#x27;&gt;</b>'
    assert element("p", inner, "<i>") == f"<p>{inner}&lt;i&gt;</p>"


def test_many_dates_are_a_time_series(tmp_path: Path) -> None:
    problem, count = make_problem(mask=None, assets=NAMES), 15
    days = [f"2026-09-{day + 1:02d}" for day in range(count)]
    windows = torch.cat([x0s(count - 1), x0s(1)])
    dates = fe.vmap(problem, x0=windows, reference=windows, name="date")
    grid = fe.vmap(fe.pipe(dates, fe.jitter(0.1)), seed=torch.arange(2), name="start")
    answers = fe.solve(grid, fe.levenberg_marquardt(), max_steps=30, atol=1e-3)
    shape = dict(zip(answers.dims, answers.shape, strict=True))
    text = write(tmp_path / "a.html", answers, grid, dates=None, coords={"date": days})
    page = Page(text)
    assert shape == {"date": count, "start": 2}
    best = answers.hit.any(answers.dims.index("start"))
    assert f"The search reaches the target on {int(best.sum())} of {count} dates" in page.text
    assert f"On {days[-1]}: " in page.text
    shown = re.findall(r"<tr><td>(2026-09-\d\d)</td>", text.split("Date by date")[1])
    assert shown[:count] == days[::-1]
    assert not re.search(r"\brows?\b", page.text.split("How it was made")[0].split("All answers")[0])
    for coords, message in (({"date": days[1:]}, "expected 15 labels"), ({"asset": days}, "dimensions")):
        with pytest.raises(ValueError, match=f"report: coords of .*{message}"):
            write(tmp_path / "b.html", answers, grid, dates=None, coords=coords)


def test_how_far_is_shown_with_its_radius(tmp_path: Path) -> None:
    solution, problem = one_answer()
    held = solution.weights
    text = write(tmp_path / "a.html", solution, problem, reach=(2.5, Reach(0.5 * held, 2.0 * held)))
    part = Page(text).text.split("How far the weights can go")[1]
    assert "of at most 2.5 standard deviations together" in part
    assert "inner bounds" in part
    assert "How far" not in write(tmp_path / "b.html", solution, problem)
    curve = Reach(*(torch.stack([held, factor * held]) for factor in (0.5, 2.0)))
    several = write(tmp_path / "c.html", solution, problem, reach=([1.0, 2.5], curve))
    assert Page(several).text.split("How far the weights can go")[1].startswith(part[:200])
    assert several.count("<img") == text.count("<img") + 1
