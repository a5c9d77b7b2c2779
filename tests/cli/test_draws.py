"""Runs that draw markets at which a target holds."""

import json
from html import escape
from pathlib import Path
from typing import Any

import pytest

import funcexplain as fe
from funcexplain.cli import main
from funcexplain.commands.config import parse_config
from funcexplain.reports.draws import share_of
from tests.cli.workplace import ASSETS, furnish, table, write


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder, and the module of its networks."""
    monkeypatch.chdir(tmp_path)
    return tmp_path, furnish(tmp_path)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funcexplain.commands.draws.NUM_SAMPLES", 2000)


@pytest.mark.usefixtures("few_samples", "rough_pictures")
def test_draws_are_saved_and_shown(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, module = place
    network = {"factory": f"{module}:sharp", "weights": None}
    asked: dict[str, Any] = {"target": None, "at_least": {"OIL": 0.35}, "ahead": 3, "draws": 40}
    output, once = {"report": True, "picture": True}, {"starts": {"number": 1}}
    whole = table(module, network=network, question=asked, output=output, method=once)
    assert main(["run", write(folder, whole)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "markets drawn" in line)
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert {"draws.safetensors", "fan.png"} <= {*summary["files"]}
    said = summary["answers"][0]["draws"]
    draws = fe.load(folder / "out" / "draws.safetensors")
    assert draws.hit.all()
    assert len(draws.x) == said["count"] == 40
    assert sum(story["share"] for story in said["stories"]) == pytest.approx(1.0)
    moves = draws.x[:, 0, -3:].sum(1).expm1()  # the first channel has the returns
    for at, name in enumerate(ASSETS):
        assert said["assets"][name]["falls"] == float((moves[:, at] < 0).double().mean())
        assert said["assets"][name]["low"] == pytest.approx(float(moves[:, at].quantile(0.05)), abs=1e-5)
    main_asset = max(said["assets"], key=lambda name: abs(said["assets"][name]["sigmas"]))
    falls = share_of(said["assets"][main_asset]["falls"])
    assert line.startswith(
        f"In 40 markets drawn at which the target holds, {main_asset} falls in {falls}"
    )
    (folder / "out" / "report.html").write_text("")
    assert main(["report", "out"]) == 0
    assert escape(line) in (folder / "out" / "report.html").read_text()
    parts = {"question": {**asked, "draws": None}, "output": {"report": False}}
    assert main(["run", write(folder, table(module, network=network, **parts))]) == 0
    assert not (folder / "out" / "draws.safetensors").exists()


@pytest.mark.usefixtures("few_samples")
def test_draws_need_one_date_ahead_and_a_target_with_a_chance(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    asked: dict[str, Any] = {"ahead": 3, "draws": 40}
    with pytest.raises(ValueError, match=r"question\.draws: needs ahead"):
        parse_config(table(module, question={**asked, "ahead": None}))
    several = table(module, question={**asked, "date": {"every": 20}})
    assert main(["run", write(folder, several)]) == 2
    assert "question.draws: needs one date, got 3" in capsys.readouterr().err
    assert main(["run", write(folder, table(module, question=asked, method={"atol": 0.0}))]) == 2
    assert "question.draws: atol must be > 0 for a target that fixes a weight" in capsys.readouterr().err
    impossible = {"ahead": 1, "draws": 8, "target": None, "at_least": {"OIL": 0.999999}}
    whole = table(module, question=impossible, method={"max_steps": 1, "atol": 0.0})
    assert main(["run", write(folder, whole)]) == 1
    assert "No market could be drawn: problem must have a target" in capsys.readouterr().out
