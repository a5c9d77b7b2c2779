"""Texts count by the period of the prices: days, weeks, months or minutes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.cli import main
from funcexplain.reports import report
from funcexplain.reports.cards import likelihood_sentence, likely
from tests.cli.test_why import answer, error_line
from tests.cli.workplace import furnish, market, table, write

_STEPS = {"week": ("D", 7), "month": ("M", 1), "minute": ("m", 1)}
QUICK: dict[str, Any] = {"max_steps": 20, "starts": {"number": 1}, "answer": "first"}


def place_prices(folder: Path, unit: str, count: int = 60) -> list[str]:
    """Write prices of a period; returns their dates."""
    letter, step = _STEPS[unit]
    first = np.datetime64("2024-01-02", "D" if letter != "m" else "m")
    steps = step * np.arange(count).astype(f"timedelta64[{letter}]")
    dates = (first.astype("M8[M]") + steps).astype("M8[D]") if letter == "M" else first + steps
    head, *lines = market(count)
    rows = [f"{day},{line.partition(',')[2]}" for day, line in zip(dates, lines, strict=True)]
    (folder / "market.csv").write_text("\n".join([head, *rows]))
    return [str(day) for day in dates]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    monkeypatch.chdir(tmp_path)
    return tmp_path, furnish(tmp_path)


@pytest.mark.parametrize("unit", [*_STEPS])
def test_run_and_check_count_by_the_period(
    place: tuple[Path, str], unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    place_prices(folder, unit)
    path = write(folder, table(module, question={"ahead": 3}, method=QUICK))
    for command in ("check", "run"):
        assert main([command, path]) in (0, 1)
        shown = capsys.readouterr().out
        assert f"3 assets, 60 {unit}s, 2024-01-" in shown
        assert f"over the next 3 {unit}s after 20" in shown
        assert "trading day" not in shown


@pytest.mark.usefixtures("rough_pictures")
def test_a_report_counts_by_the_period(place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, module = place
    place_prices(folder, "week")
    for part in ("row_pictures", "overview"):  # they take seconds
        monkeypatch.setattr(report, part, lambda *_: [])
    asked = {"target": None, "at_least": {"OIL": 0.35}, "ahead": 3}
    path = write(folder, table(module, question=asked, method=QUICK, output={"report": True}))
    assert main(["run", path, "--quiet"]) in (0, 1)
    page = (folder / "out" / "report.html").read_text()
    assert "ver the next 3 weeks" in page
    assert "before the first shocked week" in page
    text = re.sub(r"base64,[\w+/=]+", "", page)
    assert not re.findall(r".{30}trading day.{20}|.{30}\d days.{20}|.{20} in a day.{9}", text)


def test_chances_count_by_the_period() -> None:
    one = torch.tensor(1.0)
    chance = fe.Probability(
        *(0.25 * one, 0.01 * one, 0.2 * one, 0.3 * one, one, one, one[None], one, ("plain",), ("",))
    )
    assert "over the next 3 weeks: 25.00%" in likelihood_sentence(chance, 3, "week")
    assert likely(chance, 1, "minute").text.startswith("Over the next minute; 95% interval 20.00%")


@pytest.mark.parametrize("unit", [*_STEPS])
def test_whatif_counts_by_the_period(
    place: tuple[Path, str], unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    dates = place_prices(folder, unit)
    path = write(folder, table(module))
    replay = f"{dates[40]}:{dates[43]}"
    argv = ("--replay", replay, "--shock", f"OIL=-5% over 2 {unit}s", "--shock", "OIL=-5% over 2 days")
    assert main(["whatif", path, *argv]) == 0
    shown = capsys.readouterr().out
    assert f"after the next 4 {unit}s, from {dates[-1]}?" in shown
    assert "day" not in shown.replace("today", "")
    found = answer(capsys, "whatif", path, *argv)["scenarios"]
    assert found[1]["weights"] == found[2]["weights"]
    wrong = "OIL=1% over 2 " + ("weeks" if unit != "week" else "months")
    assert f"expected a number of {unit}s, the period" in error_line(
        capsys, "whatif", path, "--shock", wrong
    )
    long = error_line(capsys, "whatif", path, "--replay", f"{dates[40]}:{dates[55]}")
    assert f"expected 1 ... 8 {unit}s, as many as are ahead, got 16" in long
    assert "choose dates closer together" in long
    set_ahead = error_line(
        capsys, "whatif", path, "--set", "question.ahead=2", "--replay", f"{dates[40]}:{dates[42]}"
    )
    assert f"expected 1 ... 2 {unit}s" in set_ahead
    assert "add --set question.ahead=3" in set_ahead
    missing = error_line(capsys, "run", path, "--set", "question.date=2024-01-01")
    assert f"the first {unit} with 9 {unit}s behind it" in missing


def test_replays_by_the_minute(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, module = place
    place_prices(folder, "minute")
    path = write(folder, table(module))
    times = ("2024-01-02T00:40:2024-01-02T00:43", "2024-01-02 00:40 : 2024-01-02 00:43")
    for text in times:
        found = answer(capsys, "whatif", path, "--replay", text)
        assert found["ahead"] == 4
    whole = error_line(capsys, "whatif", path, "--replay", "2024-01-02:2024-01-02")
    assert "expected 1 ... 8 minutes, as many as are ahead, got 59" in whole
