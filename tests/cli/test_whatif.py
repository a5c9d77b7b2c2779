"""What the network would hold after moves of the market, on the command line."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from funcexplain.cli import main
from funcexplain.commands.config import parse_config
from funcexplain.commands.inputs import load_single
from funcexplain.commands.scenarios import parse_shock, read_scenarios
from funcexplain.markets.features import features
from tests.cli.test_why import answer, error_line
from tests.cli.workplace import ASSETS, furnish, table, write


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder, and the module of its networks."""
    monkeypatch.chdir(tmp_path)
    return tmp_path, furnish(tmp_path)


def test_scenarios_and_their_trades(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, module = place
    path = write(folder, table(module, output={"picture": True}))
    (folder / "moves.csv").write_text("scenario,days,OIL,RICE\ncrash,3,-20%,\ncalm,,0,0.01\n")
    argv = ["--shock", "GOLD=-5% over 3 days", "--replay", "2024-02-01:2024-02-04"]
    found = answer(capsys, "whatif", path, *argv, "--scenarios", "moves.csv")
    assert (found["date"], found["ahead"], found["market"]) == ("2024-02-29", 4, "normal")
    names = [each["name"] for each in found["scenarios"]]
    assert names == ["no shock", "GOLD=-5% over 3 days", "replay 2024-02-01:2024-02-04", "crash", "calm"]
    none, shock, replay, crash, calm = found["scenarios"]
    assert none["sigmas"] == 0.0
    assert all(abs(move) < 1e-6 for move in none["moves"].values())
    assert shock["moves"]["GOLD"] == pytest.approx(-0.05, abs=1e-5)
    assert crash["moves"]["OIL"] == pytest.approx(-0.2, abs=1e-4)
    assert calm["moves"]["RICE"] == pytest.approx(0.01, abs=1e-5)
    assert replay["sigmas"] > 0.0
    for each in found["scenarios"]:
        assert sum(each["weights"].values()) == pytest.approx(1.0, abs=1e-5)
        for asset in ASSETS:
            expected = each["weights"][asset] - found["today"][asset]
            assert each["trades"][asset] == pytest.approx(expected, abs=1e-6)
    with (folder / "out" / "whatif.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["asset"] for row in rows] == list(ASSETS) * 5
    assert float(rows[3]["trade"]) == pytest.approx(shock["trades"]["GOLD"], abs=1e-6)
    assert (folder / "out" / "whatif.png").read_bytes().startswith(b"\x89PNG")


def test_the_weights_are_those_of_the_library(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    whole = table(module)
    shocks = ["--shock", "GOLD=-5%,RICE=2% over 3 days", "--others", "still"]
    found = answer(capsys, "whatif", write(folder, whole), *shocks)["scenarios"][1]
    assert found["moves"]["OIL"] == pytest.approx(0.0, abs=1e-6)
    network, history = load_single(parse_config(whole))
    past = torch.from_numpy(history.prices.values).log().diff(dim=0)
    coming = torch.tensor([-0.05, 0.0, 0.02], dtype=torch.float64).log1p() / 3
    path = torch.cat([past, coming.expand(3, 3)])
    window = features(path[-8:], 5).float()
    with torch.no_grad():
        weights = network(window[None])[0]
    assert list(found["weights"].values()) == pytest.approx(weights.tolist(), abs=1e-4)


def test_tables_have_units_and_signs(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    path = write(folder, table(module))
    assert main(["whatif", path, "--shock", "GOLD=-5%", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["whatif", path, "--shock", "GOLD=-5%"]) == 0
    shown = capsys.readouterr().out
    assert "after the next 5 trading days, from 2024-02-29?" in shown
    assert "the trade in percentage points" in shown
    table_rows = (line.split() for line in shown.splitlines())
    rows = {cells[0]: cells for cells in table_rows if cells and cells[0] in ASSETS}
    assert rows["GOLD"][1] == "-5.00%"
    for row in rows.values():
        assert row[1][0] in "+-"
        assert row[5][0] in "+-"
        assert float(row[4][:-1]) - float(row[2][:-1]) == pytest.approx(float(row[5]), abs=0.02)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "--shock: expected a scenario, got none"),
        (("--shock", "GOLD"), "--shock: expected NAME=CHANGE"),
        (("--shock", "GOLD=-5% over few days"), "--shock: expected NAME=CHANGE"),
        (
            ("--shock", "GOLD=-5% over 0 days"),
            "expected 1 ... 5 trading days, as many as are ahead, got 0",
        ),
        (("--shock", "GOLD=-5% over 0 days"), "leave the number out for all of them"),
        (
            ("--shock", "GOLD=-5% over 2 weeks"),
            "expected a number of days, the period of the prices, got weeks",
        ),
        (("--shock", "GOLD=5"), "got 'GOLD=5'; 5 percent is GOLD=5%"),
        (("--shock", "GOLD=nan%"), "expected a change of price above -100% for GOLD, got nan%"),
        (("--replay", "2024-02-01T10:00"), "--replay: expected a date"),
        (("--shock", "GOLD=-5% over 50 days"), "a window shows only as many"),
        (("--shock", "GOLD=-100%"), "--shock 'GOLD=-100%'"),
        (("--shock", "GLD=-5%"), "there is no 'GLD' in the data; did you mean 'GOLD'?"),
        (("--replay", "2024-02-01"), "--replay: expected two dates"),
        (("--shock", "OIL=-5"), "above -100% for OIL, got -500%; a fall of 5 percent is -5%"),
        (("--replay", "soon:later"), "--replay: expected a date"),
        (("--replay", "2020-02-01:2020-02-05"), "expected two dates in order, within 2024-01-02"),
        (("--replay", "2024-02-05:2024-02-01"), "expected two dates in order"),
        (("--replay", "2024-02-01:2024-02-20"), "a window shows only as many"),
        (("--scenarios", "none.csv"), "none.csv"),
        (("--others", "fall", "--shock", "GOLD=1%"), "invalid choice: 'fall'"),
    ],
    ids=range(20),
)
def test_bad_scenarios_are_one_line(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    folder, module = place
    assert message in error_line(capsys, "whatif", write(folder, table(module)), *argv)


def test_the_days_ahead_of_the_config_are_a_limit(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    path = write(folder, table(module, question={"ahead": 2}))
    for argv in (("--replay", "2024-02-01:2024-02-04"), ("--shock", "GOLD=1% over 3 days")):
        message = error_line(capsys, "whatif", path, *argv)
        assert "expected 1 ... 2 trading days, as many as are ahead" in message
        assert "set question.ahead" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a csv file with a header"),
        ("EUR,EUR\n1,2\n", "none twice"),
        ("EUR\n", "expected 1 ... 10000 scenarios, got 0"),
        ("EUR,JPY\n1%\n", "scenario 1: expected 2 cells"),
        ("EUR\nmuch\n", "expected a change of price such as -5% or -0.05 for EUR, got 'much'"),
        ("EUR\n5\n", "expected a change of price such as -5% or -0.05 for EUR, got '5'"),
        ("EUR,days\n1%,soon\n", "days must be an integer, got 'soon'"),
        ("scenario,EUR\nnothing,\n", "expected a change of price, got none"),
    ],
    ids=range(8),
)
def test_bad_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "moves.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"--scenarios .*moves.csv") as caught:
        read_scenarios(path)
    assert message in str(caught.value)


def test_shocks_are_read() -> None:
    scenario = parse_shock(" EUR = -5 %, JPY=0.02 over 1 day ")
    assert scenario.days == 1
    assert scenario.moves == pytest.approx({"EUR": -0.05, "JPY": 0.02})
    assert parse_shock("EUR=3%").days is None
    assert parse_shock("BTC=150%").moves == {"BTC": 1.5}
    assert json.dumps(scenario.name)
    nothing: Any = parse_shock("a over b=1%").moves
    assert nothing == {"a over b": 0.01}
