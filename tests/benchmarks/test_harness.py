"""The benchmark harness: the frameworks answer alike, and the tables can be made."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

import funcexplain as fe
from tests.benchmarks import closest, twins
from tests.benchmarks.__main__ import main, parse
from tests.benchmarks.catalogue import DEEPDOW, OWN, Case, make_network, make_questions
from tests.benchmarks.frameworks import FRAMEWORKS
from tests.benchmarks.report import Row, judge, to_csv, to_markdown
from tests.benchmarks.worker import Worker

# Not importorskip, which would import JAX here (see conftest.py).
needs_jax = pytest.mark.skipif(not importlib.util.find_spec("optax"), reason="needs jax and optax")
needs_deepdow = pytest.mark.skipif(not importlib.util.find_spec("deepdow"), reason="needs deepdow")


@pytest.mark.parametrize("network", OWN)
@pytest.mark.parametrize("problems", [1, 3])
def test_ways_in_torch_end_alike(network: str, problems: int) -> None:
    case = Case(network, "float64", problems, 4)
    (eager,), (batched,) = (FRAMEWORKS[name](case) for name in ("eager", "batched"))
    ours, theirs = eager.read(eager.run()), batched.read(batched.run())
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-9)
    assert ours.num_steps == theirs.num_steps == 4


@needs_deepdow
@pytest.mark.parametrize("network", ["mlp", "DummyNet", "LinearNet"])
def test_the_original_ends_alike(network: str) -> None:
    case = Case(network, "float64", 2, 4)
    (eager,), (original,) = (FRAMEWORKS[name](case) for name in ("eager", "original"))
    ours, theirs = eager.read(eager.run()), original.read(original.run())
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-9)


@needs_deepdow
@pytest.mark.filterwarnings("ignore")  # of cvxpylayers
@pytest.mark.parametrize("network", DEEPDOW)
def test_networks_of_deepdow_take_the_windows(network: str) -> None:
    starts = make_questions(Case(network, "float32", 2, 1)).starts
    weights = make_network(network, "float32")(torch.from_numpy(starts))
    assert weights.shape == (2, 10)


def test_fewer_questions_are_the_first_of_more() -> None:
    few, many = (make_questions(Case("mlp", "float32", count, 1)) for count in (2, 5))
    for some, all_ in zip(few, many, strict=True):
        assert (some == all_[:2]).all()


@needs_jax
def test_networks_in_jax_end_alike(tmp_path: Path) -> None:
    with Worker("jax", "float64", 0, str(tmp_path)) as worker:
        for network in OWN:
            case = Case(network, "float64", 2, 4)
            (batched,) = FRAMEWORKS["batched"](case)
            reply = worker.ask(case=case)
            assert "error" not in reply, reply
            assert reply["losses"] == pytest.approx(batched.read(batched.run()).losses, rel=1e-9)
            assert worker.ask()["seconds"] > 0


def test_a_quick_run_writes_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(["--quick", "--frameworks", "eager", "batched", "--out", str(tmp_path)])
    assert len(rows) == 4
    assert all(row.median > 0 and not row.note for row in rows)
    printed = capsys.readouterr().out
    assert "**Time of eager / time of batched**" in printed
    assert (tmp_path / "benchmarks.md").read_text() == printed.removesuffix("\n")
    assert len((tmp_path / "benchmarks.csv").read_text().splitlines()) == 5


def test_a_row_that_ends_elsewhere_is_void_and_in_no_ratio() -> None:
    def row(framework: str, *losses: float) -> Row:
        return Row("mlp", "float64", 2, 3, framework, (1.0,), losses=losses)

    rows = judge([row("eager", 0.1, 0.2), row("batched", 0.1, 0.3), row("jax", 0.1, 0.2), row("limit")])
    assert [bool(row.note) for row in rows] == [False, True, False, False]
    assert "50% of losses differ from eager's, by up to 1.0e-01" in rows[1].note
    table = to_markdown("", rows)
    assert "**Time of eager / time of JAX**" in table
    assert "**Time of batched / time of JAX**" not in table
    assert ',0.5,"void: 50%' in to_csv(rows)


def test_a_worker_that_fails_marks_its_row(tmp_path: Path) -> None:
    case = Case("no such network", "float32", 1, 1)
    with Worker("batched", "float32", 0, str(tmp_path)) as worker:
        row = Row.of(case, "batched", worker.ask(case=case))
    assert row.note == "KeyError: 'no such network'"
    assert math.isnan(row.median)


def test_closest_answers_are_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fe.functionalize(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1)))
    x0, target = torch.zeros(2, 1, 1, 2), torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    one = torch.ones(1, 1, 1)
    pairs = twins.Twins(network, x0, target, 0.0 * one, one)
    monkeypatch.setattr(twins, "make_twins", lambda *args: pairs)
    closest.main(["--pairs", "2", "--repetitions", "1", "--networks", "demo", "--asked"])
    assert "| 2 of 2 | " in capsys.readouterr().out


def test_everything_can_be_asked_for() -> None:
    arguments = parse([])
    assert set(arguments.networks) == {*OWN, *DEEPDOW}
    assert set(arguments.frameworks) == {*FRAMEWORKS, "jax"}
