"""How far the weights can go, as a run asks it: its radii, its ranges, and where they are shown."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import funcexplain as fe
from funcexplain.cli import main
from funcexplain.commands.config import parse_config, read_configs
from funcexplain.commands.inputs import load_inputs
from tests.cli.workplace import ASSETS, furnish, table, write

ASKED: dict[str, Any] = {"target": None, "at_least": {"OIL": 0.35}, "ahead": 2, "market": "normal"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder, and the module of its networks, whose reach is searched briefly."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fe, "reach", partial(fe.reach, starts=2, max_steps=5))
    return tmp_path, furnish(tmp_path)


@pytest.mark.usefixtures("rough_pictures")
def test_ranges_are_recorded_and_shown(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    once = {"starts": {"number": 1}}
    whole = table(module, question={**ASKED, "reach": [0.5, 1.0]}, method=once)
    assert main(["run", write(folder, whole)]) == 0
    shown = capsys.readouterr().out
    config = folder / "out" / "config.toml"
    assert read_configs(config)[None].question.reach == (0.5, 1.0)
    (answer,) = json.loads((folder / "out" / "summary.json").read_text())["answers"]
    query = load_inputs(parse_config(whole)).query
    expected = fe.reach(query.from_reference, [0.5, 1.0])
    assert [each["radius"] for each in answer["reach"]] == [0.5, 1.0]
    for row, each in enumerate(answer["reach"]):
        for at, name in enumerate(ASSETS):
            ends = each["weights"][name]
            assert ends["lower"] == pytest.approx(float(expected.lower[row, at]), abs=1e-6)
            assert ends["upper"] == pytest.approx(float(expected.upper[row, at]), abs=1e-6)
            assert ends["lower"] <= answer["unshocked"][name] <= ends["upper"]
    ends = answer["reach"][1]["weights"]["OIL"]
    assert f"OIL {100 * ends['lower']:.2f}% to {100 * ends['upper']:.2f}%" in shown
    assert "Within 1 sigmas, searches found weights of " in shown
    assert main(["report", "out"]) == 0
    text = (folder / "out" / "report.html").read_text()
    assert "of at most 1 standard deviations together" in text
    assert "against the radius" in text


def test_of_several_networks_it_is_that_of_their_mean(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    network = {"factory": [f"{module}:sharp", f"{module}:make"], "weights": None}
    whole = table(module, network=network, question={**ASKED, "at_least": {"OIL": 0.2}, "reach": 1.0})
    main(["run", write(folder, whole), "--json"])
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    (found,) = answer["reach"]
    for name in ASSETS:
        ends = found["weights"][name]
        assert ends["lower"] < answer["unshocked"][name] < ends["upper"]


@pytest.mark.parametrize("radii", [0.0, -1, [], [2.0, 1.0], [1.0, 1.0], "far", True, [1.0, "2"]])
def test_bad_radii_are_refused(place: tuple[Path, str], radii: Any) -> None:
    with pytest.raises(ValueError, match=r"question\.reach"):
        parse_config(table(place[1], question={**ASKED, "reach": radii}))


def test_it_needs_one_date(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, module = place
    several = table(module, question={**ASKED, "reach": 1.0, "date": {"every": 20}})
    assert main(["run", write(folder, several)]) == 2
    assert "question.reach: needs one date, got 3" in capsys.readouterr().err
