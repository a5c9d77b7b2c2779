"""Several networks in a config: one answer for all, and whose story it is."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.cli import main
from funcexplain.commands.config import parse_config, read_configs
from funcexplain.commands.inputs import load_inputs
from funcexplain.measures.agreement import Agreement
from funcexplain.reports.cards import whose
from funcexplain.solutions.archive import write_archive
from tests.cli.workplace import ASSETS, TWICE, furnish, table, write

pytestmark = pytest.mark.usefixtures("rough_pictures")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder with two files of weights, and the module of its networks."""
    monkeypatch.chdir(tmp_path)
    module, generator = furnish(tmp_path), torch.Generator().manual_seed(1)
    weight = 5.0 * torch.randn(3, 36, generator=generator)
    write_archive("save", tmp_path / "v.safetensors", {"1.weight": weight, "1.bias": torch.zeros(3)}, {})
    return tmp_path, module


def several(module: str, kind: str) -> dict[str, Any]:
    """The table of two networks: of two files, two sizes or two functions."""
    tables: dict[str, dict[str, Any]] = {
        "weights": {"factory": f"{module}:make", "weights": ["w.safetensors", "v.safetensors"]},
        "arguments": {"arguments": [{"lookback": 4}, {"assets": 3}], "weights": None},
        "factory": {"factory": [f"{module}:sharp", f"{module}:make"], "weights": None},
    }
    return tables[kind]


@pytest.mark.parametrize("kind", ["weights", "arguments", "factory"])
def test_an_answer_is_for_all_networks(
    place: tuple[Path, str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    goal = {"target": None, "at_least": {"OIL": 0.4}}
    whole = table(module, network=several(module, kind), question=goal, method=TWICE)
    assert main(["run", write(folder, whole), "--quiet", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    solution = fe.load(folder / "out" / "solution.safetensors")
    assert solution.weights.shape == (2, 2, 3)
    assert (solution.weights[solution.hit][..., 1] >= 0.39).all()
    inputs = load_inputs(parse_config(whole))
    assert inputs.network is not None
    best = solution[answer["start"]]
    for at, network in enumerate((inputs.network, *inputs.others)):
        with torch.no_grad():
            torch.testing.assert_close(network(best.x[None])[0], best.weights[at], atol=1e-5, rtol=0)
    mean = best.weights.mean(0).tolist()
    assert answer["weights"] == pytest.approx(dict(zip(ASSETS, mean, strict=True)))
    with (folder / "out" / "weights.csv").open() as file:
        line = next(line for line in csv.DictReader(file) if line["best"] == "1")
    assert [float(line[f"weight_{name}"]) for name in ASSETS] == pytest.approx(mean)
    assert float(line["weight_1_OIL"]) == pytest.approx(float(best.weights[1, 1]))
    assert answer["agreement"]["reached"] is answer["agreement"]["held"][0] is True
    assert len(answer["agreement"]["gap_closed"]) == 2
    assert read_configs(folder / "out" / "config.toml")[None].network.members()[1].folder == ".."


def test_the_report_says_whose_story_it_is(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    output, once = {"report": True, "picture": True}, {"starts": {"number": 1}}
    network = several(module, "weights")
    assert main(["run", write(folder, table(module, network=network, output=output, method=once))]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("Whose story is it? ")]
    summary = json.loads((folder / "out" / "summary.json").read_text())
    found = summary["answers"][0]["agreement"]
    assert any("for all 2 networks to hold 60% OIL?" in line for line in lines)
    assert f"{sum(found['held'])} of 2 networks hold the target" in line
    assert f"{100 * found['gap_closed'][1]:.2f}% of their gap" in line
    assert "Whose story is it?" in (folder / "out" / "report.html").read_text()
    assert main(["report", "out"]) == 2
    assert "a report about several networks needs them; --trust-config" in capsys.readouterr().err
    assert main(["report", "out", "--trust-config"]) == 0


def test_several_networks_over_dates_share_one_target(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    network = several(module, "weights")
    goal = {"target": None, "at_least": {"OIL": 0.4}, "date": {"every": 20}}
    assert main(["run", write(folder, table(module, network=network, question=goal)), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert len(answers) == 3
    assert all(len(answer["agreement"]["held"]) == 2 for answer in answers)
    depends = {"shift": {"OIL": 0.1}, "target": None, "date": {"every": 20}}
    assert main(["run", write(folder, table(module, network=network, question=depends))]) == 2
    assert "question: several networks share one target" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"weights": ["w.safetensors"]},
            r"network\.weights: expected one value, or a list of at le",
        ),
        ({"weights": []}, r"network\.weights: expected one value, or a list of at le"),
        ({"weights": ["w.safetensors", 3]}, r"network\.weights\[1\]: expected text in quotes"),
        ({"arguments": [{}, 3]}, r"network\.arguments\[1\]: expected a table of keyword arguments"),
        ({"factory": ["a:b", "c"]}, r"network\.factory\[1\]: expected text such as"),
        (
            {"weights": ["a.pt", "b.pt"], "arguments": [{}, {}, {}]},
            "network: lists must have one entry for each network, got 3 of arguments, 2 of weights",
        ),
        ({"weights": ["a.pt", "b.pt2"]}, r"network\.factory: a \.pt2 file is the whole network"),
    ],
)
def test_lists_that_do_not_fit_are_refused(entries: dict[str, Any], message: str) -> None:
    whole = table("mine", network=entries)
    with pytest.raises(ValueError, match=message):
        parse_config(whole)


@pytest.mark.parametrize(
    ("held", "closed", "head"),
    [
        ([True, True, True], [1.0, 1.0, 1.0], "The market's"),
        ([True, True, False], [1.0, 1.0, 0.1], "Some networks'"),
        ([True, False, False], [1.0, 0.1, -0.2], "One network's"),
        ([True, False, False], [1.0, 0.8, 0.7], "Some networks'"),
        ([True, True, False, False], [1.0, 1.0, 0.0, 0.0], "Some networks'"),
        ([False, True, True], [0.0, 1.0, 1.0], "Unknown"),
    ],
)
def test_whose_story_it_is(held: list[bool], closed: list[float], head: str) -> None:
    gaps = torch.tensor(closed)
    card = whose(Agreement(torch.tensor(held), 1 - gaps, gaps))
    assert card.head == head
    if held[0]:
        assert f"{sum(held)} of {len(held)} networks hold the target" in card.text
