"""What a search tells while it runs."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.engine.progress import Reporter
from tests.grids import targets, x0s
from tests.helpers import make_network, make_problem


class Listener:
    """A callback that follows the progress."""

    def __init__(self) -> None:
        self.steps = 0
        self.told: list[fe.Progress] = []

    def __call__(self, state: fe.State, info: fe.Info) -> None:
        self.steps += 1

    def report(self, progress: fe.Progress) -> None:
        self.told.append(progress)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def grid(rows: int = 8) -> fe.Problem:
    return fe.vmap(make_problem(), x0=x0s(rows), target=targets(rows))


SETTINGS: dict[str, Any] = {"max_steps": 30, "atol": 0.1}


def solve(problem: fe.Problem, **settings: Any) -> fe.Solution:
    return fe.solve(problem, fe.sgd(lr=20.0, momentum=0.9), **{**SETTINGS, **settings})


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_a_listener_follows_rows_from_none_to_all(chunk_size: Any) -> None:
    listener = Listener()
    solution = solve(grid(), chunk_size=chunk_size, callback=listener)
    first, last = listener.told[0], listener.told[-1]
    assert (first.done, first.hits, first.rows) == (0, 0, 8)
    assert (last.done, last.hits) == (8, int(solution.hit.sum()))
    assert 0 < last.hits < 8
    assert last.chunk_size == (chunk_size or 8)
    for before, after in zip(listener.told, listener.told[1:], strict=False):
        assert before.done < after.done
        assert before.hits <= after.hits
        assert before.seconds <= after.seconds
    assert listener.steps >= 30


def test_a_listener_follows_one_question() -> None:
    listener = Listener()
    solution = solve(make_problem(), callback=listener)
    assert [(told.rows, told.done, told.hits) for told in listener.told] == [
        (1, 0, 0),
        (1, 1, int(solution.hit)),
    ]


def test_a_plain_callback_is_no_reporter() -> None:
    assert isinstance(Listener(), Reporter)
    assert isinstance(fe.progress(), Reporter)
    assert not isinstance(print, Reporter)


def test_a_callback_of_a_grid_sees_the_rows_in_work() -> None:
    sizes: list[int] = []

    def callback(state: fe.State, info: fe.Info) -> None:
        assert state.z.shape[0] == info.loss.shape[0] == len(state.status)
        sizes.append(len(info.error))

    solve(grid(), chunk_size=3, callback=callback)
    assert sizes[0] == 3
    assert max(sizes) == 3


def test_rates_are_of_rows_that_have_ended() -> None:
    assert fe.Progress(8, 0, 0, 4, 2.0).hit_rate == fe.Progress(8, 0, 0, 4, 2.0).rate == 0.0
    assert fe.Progress(8, 4, 1, 4, 2.0).hit_rate == 0.25
    assert fe.Progress(8, 4, 1, 4, 2.0).rate == 2.0
    assert fe.Progress(8, 4, 1, 4, 0.0).rate == 0.0
    assert fe.Progress(8, 6, 1, 4, 2.0, known=4).rate == 1.0


def test_the_time_left_is_told_from_the_rate() -> None:
    assert fe.Progress(8, 6, 1, 4, 3.0, known=4).seconds_left == 3.0
    assert fe.Progress(8, 4, 1, 4, 3.0, known=4).seconds_left == float("inf")
    assert fe.Progress(8, 8, 1, 4, 3.0, known=8).seconds_left == 0.0
    lines = io.StringIO()
    bar = fe.progress(stream=lines, every=0)
    for done, over in ((10, False), (20, False), (30, True)):
        bar.report(fe.Progress(30, done, 5, 10, 60.0, 2, 10, over))
    assert lines.getvalue().splitlines() == [
        "10 of 30 rows done, hit 50%, 2 workers, 0 rows/s, 1:00, ? left",
        "20 of 30 rows done, hit 25%, 2 workers, 0.167 rows/s, 1:00, 1:00 left",
        "30 of 30 rows done, hit 17%, 2 workers, 0.333 rows/s, 1:00",
    ]


def test_a_bar_begins_where_an_earlier_run_was_left() -> None:
    stream = Terminal()
    bar = fe.progress(stream=stream)
    bar.report(fe.Progress(30, 10, 5, 10, 0.0, 2, 10))
    bar.report(fe.Progress(30, 30, 5, 10, 4.0, 2, 10, over=True))
    assert "10/30" in stream.getvalue()
    assert "30/30" in stream.getvalue()
    assert "hit 17%, 2 workers" in stream.getvalue()


def test_a_log_gets_plain_lines() -> None:
    every, seldom = io.StringIO(), io.StringIO()
    solution = solve(grid(), chunk_size=2, callback=fe.progress(stream=every, every=0))
    solve(grid(), chunk_size=2, callback=fe.progress(stream=seldom, every=1e9))
    lines = every.getvalue().splitlines()
    assert lines[0].startswith("0 of 8 rows done, hit 0%, 0 rows/s, 0 s")
    assert lines[-1].startswith(f"8 of 8 rows done, hit {int(solution.hit.sum()) / 8:.0%}, ")
    assert len(lines) > 3
    (line,) = seldom.getvalue().splitlines()
    assert line.split(",")[:2] == lines[-1].split(",")[:2]


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    solve(make_problem(), callback=fe.progress(unit="searches"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("1 of 1 searches done, hit ")


def test_a_terminal_gets_a_bar_for_every_search() -> None:
    stream = Terminal()
    callback = fe.progress(stream=stream)
    for rows in (8, 5):
        solution = solve(grid(rows), chunk_size=2, callback=callback)
        assert f"{rows}/{rows}" in stream.getvalue()
        assert f"hit {int(solution.hit.sum()) / rows:.0%}" in stream.getvalue()
        assert "rows done" not in stream.getvalue()
        assert stream.getvalue().endswith("\n")  # closed


def test_a_terminal_without_tqdm_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    stream = Terminal()
    solve(grid(), callback=fe.progress(stream=stream))
    assert stream.getvalue().startswith("8 of 8 rows done")


def interrupted(callback: Any) -> fe.Solution:
    """A grid of eight rows, interrupted when some of them have ended."""
    calls: list[int] = []

    def apply(p: dict[str, Tensor], x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 34:
            raise KeyboardInterrupt
        return inner(p, x)

    inner, p = fe.functionalize(make_network("mlp_tanh"))
    rows = fe.vmap(make_problem((apply, p)), x0=x0s(8), target=targets(8))
    return solve(rows, chunk_size=2, callback=callback)


def test_an_interrupted_search_closes_its_bar() -> None:
    stream = Terminal()
    bar = fe.progress(stream=stream)  # held here: a bar that is collected is closed, too
    interrupted(bar)
    assert stream.getvalue().endswith("\n")


def test_an_interrupted_search_writes_its_last_line() -> None:
    stream = io.StringIO()
    status = torch.as_tensor(interrupted(fe.progress(stream=stream, every=1e9)).status)
    ended = int((status != fe.Status.INTERRUPTED).sum())
    assert ended > 0
    assert stream.getvalue().startswith(f"{ended} of 8 rows done")


def test_an_interrupted_question_is_not_done() -> None:
    class Interrupts(Listener):
        def __call__(self, state: fe.State, info: fe.Info) -> None:
            raise KeyboardInterrupt

    listener = Interrupts()
    solve(make_problem(), callback=listener)
    assert listener.told[-1].done == 0
