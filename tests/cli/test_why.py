"""What moved the weights between two dates, on the command line: parts add up, errors are one line."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from funcexplain.cli import main
from funcexplain.commands.config import parse_config
from funcexplain.commands.inputs import load_single
from tests.cli.workplace import ASSETS, furnish, table, write

DATES = ("--from", "2024-02-10", "--to", "2024-02-29")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder, and the module of its networks."""
    monkeypatch.chdir(tmp_path)
    return tmp_path, furnish(tmp_path)


def answer(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def error_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("funcexplain: error: ")
    assert message.count("\n") == 1
    return message


def test_parts_add_up_to_the_change(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, module = place
    whole = table(module)
    found = answer(capsys, "why", write(folder, whole), *DATES)
    assert (found["method"], found["complete"], found["exit_code"]) == ("integrated gradients", True, 0)
    network, history = load_single(parse_config(whole))
    windows = torch.stack([history.windows[history.ends.index(day)] for day in DATES[1::2]])
    with torch.no_grad():
        before, after = network(windows).tolist()
    for number, asset in enumerate(ASSETS):
        assert found["before"][asset] == pytest.approx(before[number], abs=1e-6)
        change = after[number] - before[number]
        assert found["change"][asset] == pytest.approx(change, abs=1e-6)
        for by, size in (("by_channel", 3), ("by_day", 4), ("by_asset", 3)):
            assert len(found[by][asset]) == size
            assert sum(found[by][asset].values()) == pytest.approx(change, abs=1e-5)
    with (folder / "out" / "why.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ASSETS) * (3 + 4 + 3)
    row = next(
        row for row in rows if (row["weight"], row["by"], row["name"]) == ("OIL", "asset", "GOLD")
    )
    assert float(row["part"]) == pytest.approx(found["by_asset"]["OIL"]["GOLD"])


def test_tables_have_units_and_signs(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    path = write(folder, table(module, output={"picture": True}))
    assert main(["why", path, *DATES]) == 0
    shown = capsys.readouterr().out
    assert shown.count("percentage points, by") == 3
    assert "The parts add up to the changes: the largest distance is" in shown
    row = next(line for line in shown.splitlines() if line.startswith("OIL")).split()
    assert [cell[-1] for cell in row[1:3]] == ["%", "%"]
    assert all(cell[0] in "+-" for cell in row[3:])
    assert float(row[3]) + float(row[4]) + float(row[5]) == pytest.approx(float(row[6]), abs=0.02)
    assert (folder / "out" / "why.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_of_jumps_is_split_by_shapley_values(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    jumps = {"factory": f"{module}:Rounded", "weights": None}
    path = write(folder, table(module, network=jumps, output={"picture": True}))
    found = answer(capsys, "why", path, *DATES)
    assert found["method"] == "Shapley values"
    assert found["complete"]
    for asset in ASSETS:
        for by in ("by_channel", "by_day", "by_asset"):
            assert sum(found[by][asset].values()) == pytest.approx(found["change"][asset], abs=1e-6)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--from", "2024-02-10"), "required: --to"),
        (("--from", "2024-02-10", "--to", "soon"), "--to: expected a date such as 2024-01-31"),
        (("--from", "2024-02-10", "--to", "2024-02-10"), "--from: must be before --to"),
        (("--from", "2024-02-12", "--to", "2024-02-10"), "--from: must be before --to"),
        (
            ("--from", "2023-02-10", "--to", "2024-02-10"),
            "--from: no window ends on 2023-02-10;",
        ),
        (
            ("--from", "2024-02-10", "--to", "2025-02-10"),
            "--to: no window ends on 2025-02-10;",
        ),
    ],
    ids=range(6),
)
def test_bad_dates_are_one_line(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    folder, module = place
    assert message in error_line(capsys, "why", write(folder, table(module)), *argv)
