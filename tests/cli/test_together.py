"""Parts of configs that meet: weights beside the assets', several dates, networks, questions."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from funcexplain.cli import main
from funcexplain.commands.config import parse_config
from funcexplain.commands.inputs import load_inputs
from tests.cli.test_why import DATES, answer, error_line
from tests.cli.workplace import ASSETS, furnish, market, table, write

pytestmark = pytest.mark.usefixtures("rough_pictures")

CODE = """
import torch

class Fund(torch.nn.Module):
    "Weights of cash first, then of three assets."
    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer = torch.nn.Linear(36, 4)
        with torch.no_grad():
            self.layer.weight.copy_(4.0 * torch.randn(4, 36, generator=generator))
            self.layer.bias.zero_()
    def forward(self, x):
        return self.layer(x.flatten(1)).softmax(-1)

def daily(returns):
    return torch.stack([returns, returns.cumsum(0), returns.abs()])
daily.channels = ("daily", "sum", "size")
"""
NAMES = ("CASH", *ASSETS)
_count = 0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder, and the module of its networks."""
    global _count
    _count += 1
    monkeypatch.chdir(tmp_path)
    module = furnish(tmp_path)
    (tmp_path / f"funds_{_count}.py").write_text(CODE)
    return tmp_path, module


def fund(module: str, **parts: dict[str, Any]) -> dict[str, Any]:
    """A config of the network with cash."""
    network = {"factory": f"funds_{_count}:Fund", "weights": None, "outputs": ["CASH", "..."]}
    goal = {"target": None, "at_least": {"CASH": 0.5}}
    parts["network"] = network | parts.get("network", {})
    parts["question"] = goal | parts.get("question", {})
    return table(module, **parts)


def test_why_and_whatif_name_all_weights(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    path = write(folder, fund(module, output={"picture": True}))
    why = answer(capsys, "why", path, *DATES)
    assert (*why["change"],) == NAMES
    assert (*why["by_asset"]["CASH"],) == ASSETS
    assert sum(why["by_asset"]["CASH"].values()) == pytest.approx(why["change"]["CASH"], abs=1e-5)
    shock = answer(capsys, "whatif", path, "--shock", "OIL=-5% over 2 days")["scenarios"][1]
    assert (*shock["weights"],) == NAMES
    assert (*shock["moves"],) == ASSETS
    with (folder / "out" / "whatif.csv").open() as file:
        cash, gold, oil, rice = [*csv.DictReader(file)][4:]
    assert [row["asset"] for row in (cash, gold, oil, rice)] == [*NAMES]
    assert cash["price_move"] == ""
    assert float(oil["price_move"]) == pytest.approx(-0.05, abs=1e-5)
    assert float(rice["weight"]) == pytest.approx(shock["weights"]["RICE"], abs=1e-6)


def test_dates_and_networks_with_cash_in_one_report(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    network = {"arguments": [{"seed": 0}, {"seed": 1}]}
    asked = {"date": {"every": 25}, "ahead": 2, "how_likely": True}
    found = answer(
        capsys,
        "run",
        write(folder, fund(module, network=network, question=asked, output={"report": True})),
    )
    assert len(found["answers"]) == 3
    with (folder / "out" / "weights.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["best"] == "1"]
    for row, one in zip(rows, found["answers"], strict=True):
        moved = sum(abs(one["weights"][name] - one["today"][name]) for name in NAMES) / 2
        assert float(row["turnover"]) == pytest.approx(moved, abs=1e-6)
        mean = sum(float(row[f"weight_{model}_CASH"]) for model in (0, 1)) / 2
        assert mean == pytest.approx(one["weights"]["CASH"], abs=1e-6)


def test_what_holds_already_is_so_in_every_output(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    held = {"target": None, "at_most": {"OIL": 0.999}, "market": "filtered_history"}
    (folder / "market.csv").write_text("\n".join(market(300)))
    path = write(folder, table(module, question=held, output={"report": True}))
    assert main(["run", path]) == 0
    sentence = "The network holds this today; nothing has to change."
    assert sentence in capsys.readouterr().out
    for argv in ((), ("--trust-config",)):
        assert main(["report", "out", *argv]) == 0
        page = (folder / "out" / "report.html").read_text()
        assert sentence in page
        assert "Held already" in page


def test_channels_that_hold_returns_are_history_under_any_name(place: tuple[Path, str]) -> None:
    _, module = place
    network = {"factory": f"{module}:make", "weights": None}
    own = {"factory": f"funds_{_count}:daily", "span": None}
    whole = table(module, network=network, features=own)
    history = load_inputs(parse_config(whole)).history
    assert history.channels[0] == "daily"
    assert history.has_returns


def test_questions_are_named_on_lines_of_their_own(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    path = Path(write(folder, table(module)))
    tables = re.split(r"^(?=\[question\])|(?<=\n\n)(?=\[)", path.read_text(), flags=re.MULTILINE)
    kept = "".join(each for each in tables if not each.startswith("[question"))
    path.write_text(kept + "".join(f'[[question]]\nname="{name}"\ntop="OIL"\n' for name in ("a", "b")))
    for command in ("check", "run"):
        assert main([command, str(path)]) in (0, 1)
        lines = capsys.readouterr().out.splitlines()
        assert {"Question a:", "Question b:"} <= {*lines}
    assert "got 2; leave one [[question]]" in error_line(capsys, "why", str(path), *DATES)
    assert "or name one, as in --question a" in error_line(capsys, "why", str(path), *DATES)
    for name in ("b", "2"):
        assert main(["why", str(path), "--question", name, *DATES]) == 0
    assert (folder / "out" / "b" / "why.csv").is_file()
    assert not (folder / "out" / "a" / "why.csv").exists()
    shock = ("--shock", "OIL=-5%", "--question")
    assert main(["whatif", str(path), *shock, "a"]) == 0
    assert (folder / "out" / "a" / "whatif.csv").is_file()
    for name in ("c", "3", ""):
        line = error_line(capsys, "whatif", str(path), *shock, name)
        assert f"--question: there is no {name!r}; choose from a, b" in line


def test_the_terminal_and_the_report_show_the_same_chance(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    asked: dict[str, Any] = {"target": None, "at_least": {"OIL": 0.35}, "ahead": 3, "how_likely": True}
    network = {"factory": f"{module}:sharp", "weights": None}
    path = write(folder, table(module, network=network, question=asked, output={"report": True}))
    assert main(["run", path]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Probability"))
    share = line.partition(": ")[2].split()[0]
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert share == f"{100 * summary['answers'][0]['probability']['estimate']:.2f}%"
    assert share in (folder / "out" / "report.html").read_text()
