"""Starts of a run: the reference, real windows before the date, and noise."""

from pathlib import Path
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.commands.config import parse_config
from funcexplain.commands.inputs import load_inputs
from funcexplain.commands.outputs import make_outcome
from funcexplain.commands.question import build_query
from funcexplain.markets.features import log_returns
from tests.cli.workplace import furnish, table
from tests.helpers import assert_close

FREE = {"last_days": 2, "assets": ["OIL", "RICE"]}


def inputs(folder: Path, **question: Any) -> Any:
    module = furnish(folder)
    network = {"factory": f"{module}:sharp", "weights": None}
    method = {"starts": {"number": 7, "jitter": 0.5}}
    asked = {"target": None, "at_least": {"OIL": 0.7}, **question}
    return load_inputs(parse_config(table(module, network=network, method=method, question=asked)))


def starts(problem: fe.Problem) -> torch.Tensor:
    return torch.stack([problem[row].start(problem[row].args) for row in range(problem.shape[-1])])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("ahead", [None, 3])
def test_starts_repeat_the_history_that_held_the_target(tmp_path: Path, ahead: int | None) -> None:
    given = inputs(tmp_path, ahead=ahead)
    problem, history = given.query.problem, given.history
    points = starts(problem)
    assert not points[0].any()
    base = problem[0].args["returns"]
    free, past = ahead or len(base), log_returns(history.prices).to(base)
    ends = []
    for z in points[1:4]:
        path = problem.returns(z, problem[0].args)
        assert_close(path[:-free], base[:-free], atol=1e-7)
        days = past.unfold(0, free, 1).mT
        gaps = (days - path[-free:]).abs().amax((1, 2))
        assert gaps.min() < 1e-5
        ends.append(int(gaps.argmin()) + free)
    windows = history.windows[[end - int(history.last_days[0]) for end in ends]]
    with torch.no_grad():
        held = given.network(windows)[:, 1] >= 0.69  # atol is 0.01
        real = given.network(history.windows[:-1:5])[:, 1] >= 0.69
    assert held[: int(real.sum())].all()
    assert abs(float(points[4:].abs().mean()) - 0.4) < 0.2  # noise of half a sigma


def test_what_is_frozen_is_so_at_every_start(tmp_path: Path) -> None:
    for search in ("scenario", "features"):
        problem = inputs(tmp_path, free=FREE, search=search).query.problem
        row = problem[0].args
        for z in starts(problem)[:4]:
            x = problem.decode(z, row)
            assert torch.equal(x[..., 0], row["reference"][..., 0])
            assert torch.equal(x[0, :-2], row["reference"][0, :-2])


def test_each_date_starts_at_what_happened_before_it(tmp_path: Path) -> None:
    date = ["2024-01-20", "2024-02-20"]
    together = inputs(tmp_path, date=date).query
    for number, day in enumerate(date):
        assert_close(
            starts(together.problem[number]),
            starts(inputs(tmp_path, date=day).query.problem),
            rtol=1e-4,
            atol=1e-5,
        )
    # The first window has none before it: these starts are the reference.
    first = inputs(tmp_path, date="2024-01-09").query.problem
    assert not starts(first)[:4].any()


def test_precedents_find_what_noise_does_not(tmp_path: Path) -> None:
    """A network that is flat around today, and holds the target where the market once was."""
    given = inputs(tmp_path)
    remembered = given.history.windows[10].flatten()

    class Flat(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            near = torch.exp(-2e4 * (x.flatten(1) - remembered).square().sum(1))
            return torch.stack([1 - near, near, 0 * near], 1)

    query = build_query(given.config, Flat(), given.history)
    found = fe.closest(query.problem, atol=0.01)
    assert found.hit[1]
    assert not found.hit[0]
    assert not found.hit[4:].any()
    assert make_outcome(found, fe.evaluate(found, query.problem, scale=1.0), query).agree == [1]
