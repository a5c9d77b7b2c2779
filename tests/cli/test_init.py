"""From a network and a price file to an answer: ``init``, ``check`` and ``run``, and a first try."""

import csv
import json
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from funcexplain.cli import main
from funcexplain.commands import inputs
from tests.cli.desks import CODE
from tests.cli.workplace import market

QUICK = [
    f"--set={entry}"
    for entry in (
        *("output.report=false", "output.picture=false", "method.starts.number=1"),
        *("method.max_steps=20", "question.market=normal", "method.answer=first"),
    )
]
KINDS = {
    "Flat": {},
    "Recurrent": {"layout": "n l (c a)"},
    "Days": {"layout": "n l c a"},
    "Convolution": {},
    "OfOneAsset": {"layout": "(n a) l c", "normalize": "softmax"},
    "Tuple": {"output": 1},
    "Dict": {"output": "weights"},
    "Data": {"output": "weights"},
    "Horizons": {"horizon": "mean"},
    "Cash": {"outputs": ["...", "CASH"]},
    "LongShort": {},
    "Logits": {},
}
_count = 0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A folder with code and prices, and the name of the code's file."""
    global _count
    _count += 1  # a process imports a module once, even from another folder
    monkeypatch.chdir(tmp_path)
    name = f"house_{_count}.py"
    (tmp_path / name).write_text(CODE)
    (tmp_path / "market.csv").write_text("\n".join(market()))
    return tmp_path, name


@pytest.mark.parametrize("kind", KINDS)
def test_init_check_run(kind: str, place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    _, file = place
    assert main(["init", f"{file}:{kind}", "market.csv"]) == 0, capsys.readouterr().err
    config = tomllib.loads(Path("config.toml").read_text())
    found = {name: value for name, value in config["network"].items() if name != "factory"}
    if kind != "Convolution":  # whose channels may be assets or channels, three each
        assert found == KINDS[kind]
    capsys.readouterr()
    assert main(["check", *QUICK, "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["sum"] == pytest.approx(sum(checked["today"].values()))
    assert checked["parameters"] > 0
    assert checked["digest"]["network"]
    logits = any("softmax" in warning for warning in checked["warnings"])
    assert logits == (kind in ("LongShort", "Logits"))
    assert main(["run", *QUICK, "--quiet"]) in (0, 1)
    assert Path("run", "summary.json").is_file()


def test_init_finds_the_files_of_a_folder_and_overwrites_nothing(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = place
    Path(file).rename(folder / f"only_{file}")
    code = CODE + "\n\ndef make():\n    return Flat()\n"
    (folder / f"only_{file}").write_text(code)
    assert main(["init", "--target", "OIL=50%"]) == 0
    config = tomllib.loads(Path("config.toml").read_text())
    assert config["network"]["factory"] == f"only_{file[:-3]}:make"
    assert config["question"]["at_least"] == {"OIL": 0.5}
    assert main(["init"]) == 2
    assert "'config.toml' exists; name another file with --out" in capsys.readouterr().err


def test_init_takes_the_only_weights_beside_a_named_network_and_says_so(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = place
    assert main(["init", f"{file}:Flat", "market.csv", "--out", "without.toml"]) == 0
    assert "network.weights: none, so the network is as built" in capsys.readouterr().out
    code = runpy.run_path(str(folder / file))
    torch.save(code["Flat"]().state_dict(), "trained.pt")
    assert main(["init", f"{file}:Flat", "market.csv"]) == 0
    assert "network.weights: trained.pt" in capsys.readouterr().out
    assert tomllib.loads(Path("config.toml").read_text())["network"]["weights"] == "trained.pt"


def test_a_config_in_another_folder_has_paths_relative_to_it(place: tuple[Path, str]) -> None:
    folder, file = place
    (folder / "sub").mkdir()
    assert main(["init", f"{file}:Flat", "market.csv", "--out", "sub/mine.toml"]) == 0
    config = tomllib.loads(Path("sub/mine.toml").read_text())
    assert (config["prices"]["file"], config["network"]["folder"]) == ("../market.csv", "..")
    assert main(["check", "sub/mine.toml", *QUICK, "--quiet"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py", "market.csv"], "there is no file 'nowhere.py'"),
        (["{}", "market.csv"], "expected one function or class that makes a network in"),
        (["{}:Flat", "none.csv"], "none.csv"),
        (["market.csv"], "network must be a file such as mine.py, or mine:make"),
        (["{}:Flat", "market.csv", "x"], "expected a network and prices, got 3 names"),
    ],
)
def test_mistakes_of_init_are_one_line(
    place: tuple[Path, str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, file = place
    assert main(["init", *(text.format(file) for text in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("config.toml").exists()


def test_a_network_that_no_window_fits_gets_a_config_that_says_so(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = place
    (folder / "odd.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(7919, 3)\n")
    assert main(["init", "odd.py", "market.csv"]) == 0
    assert "no window of up to 3 channels and 256 days fits" in capsys.readouterr().out
    assert main(["check"]) == 2


def test_run_without_a_config(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    _, file = place
    first = ["run", "--network", f"{file}:Flat", "--prices", "market.csv", "--target", "OIL=50%"]
    assert main([*first, *QUICK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answers"][0]["weights"]["OIL"] == pytest.approx(0.5, abs=2e-3)
    assert main([*first, "config.toml"]) == 2
    assert "a first try has no config" in capsys.readouterr().err


def test_check_accepts_a_question_that_is_met_already(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, file = place
    assert main(["init", f"{file}:Flat", "market.csv", "--target", "OIL=1%"]) == 0
    assert main(["check", *QUICK]) == 0
    assert "The network holds this today; nothing has to change." in capsys.readouterr().out


def test_several_questions_are_compared_in_one_table(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, file = place
    assert main(["init", f"{file}:Flat", "market.csv"]) == 0
    text = Path("config.toml").read_text()
    start = text.index("[question]")
    more = '[[question]]\nname = "more oil"\nat_least = {OIL = 0.5}\n\n[[question]]\ntop = "GOLD"\n\n'
    Path("config.toml").write_text(text[:start] + more + text[text.index("[output]") :])
    capsys.readouterr()
    assert main(["run", *QUICK]) in (0, 1)
    printed = capsys.readouterr().out
    lines = Path("run/compare.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["question", "more_oil", "2"]
    assert {"Question more_oil:", "Question 2:"} <= {*printed.splitlines()}
    assert Path("run/more_oil/summary.json").is_file()
    assert Path("run/2/config.toml").is_file()
    assert main(["check", *QUICK, "--set", "question.at_least.OIL=0.4", "--json"]) == 0
    checked: dict[str, Any] = json.loads(capsys.readouterr().out)["questions"]
    assert all("40% OIL" in question["question"] for question in checked.values())


TARGETS = """name;GOLD;OIL
oily;;50,0%
impossible;;-0.5
even;0,4;0.4
"""


def test_a_file_of_targets_is_a_question_for_each_row(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = place
    (folder / "ask").mkdir()
    (folder / "ask" / "targets.csv").write_text(TARGETS)
    assert main(["init", f"{file}:Flat", "market.csv", "--out", "ask/config.toml"]) == 0
    path, loaded = Path("ask/config.toml"), list[str]()
    text = path.read_text().replace("at_least = ", 'targets = "targets.csv"\nturnover = 2.0\n# ')
    path.write_text(text)
    load = inputs.load_network

    def count(*args: Any, **kwargs: Any) -> Any:
        loaded.append("")
        return load(*args, **kwargs)

    monkeypatch.setattr(inputs, "load_network", count)
    capsys.readouterr()
    assert main(["run", "ask/config.toml", "--quiet", *QUICK]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "question impossible: question.target: expected the weight of OIL in 0 ... 1" in error
    assert len(loaded) == 1
    with Path("ask/run/compare.csv").open() as lines:
        rows = [*csv.DictReader(lines)]
    assert [row["question"] for row in rows] == ["oily", "impossible", "even"]
    assert [row["status"] == "REFUSED" for row in rows] == [False, True, False]
    found = json.loads(Path("ask/run/even/summary.json").read_text())["answers"][0]["weights"]
    assert found["GOLD"] == pytest.approx(0.4, abs=2e-3)
    assert "targets" not in Path("ask/run/even/config.toml").read_text()
    assert main(["report", "ask/run"]) == 2
    assert "name one, such as ask/run/even" in capsys.readouterr().err
    assert main(["check", "ask/config.toml", *QUICK, "--json"]) == 2
    questions = json.loads(capsys.readouterr().out)["questions"]
    assert "50% OIL" in questions["oily"]["question"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header such as name,EUR,CHF"),
        ("name,OIL,OIL\na,0.2,0.3\n", "an asset once for each column"),
        ("name,OIL\na,\n", "line 2: expected a weight such as 0.4 or 40%, got none"),
        ("name,OIL\na,0.2,0.3\n", "line 2: expected 2 cells, as in the header, got 3"),
        ("name,OIL\n\na,40\n", 'line 3, OIL: expected a number such as 0.4, or text such as "40%"'),
        ("name,OIL\na,much\n", "line 2, OIL: expected a number"),
        ("name,OIL\na,1\nA,0.3\n", "question.name: expected different names, got 'A' twice"),
        ("name,OLI\na,0.4\n", "question.target: there is no 'OLI' in the data; did you mean 'OIL'?"),
        ("name,OIL\n\ud800", "is not text; save it as a csv file in UTF-8"),
        (None, "cannot read 'targets.csv'"),
    ],
    ids=range(10),
)
def test_bad_files_of_targets_are_one_line(
    place: tuple[Path, str], text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, file = place
    assert main(["init", f"{file}:Flat", "market.csv", "--target", "OIL=0.5", "--quiet"]) == 0
    path = Path("config.toml")
    path.write_text(path.read_text().replace("at_least = ", 'targets = "targets.csv" # '))
    if text is not None:
        Path("targets.csv").write_bytes(text.encode(errors="surrogatepass"))
    assert main(["run", *QUICK]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("question", "--set: expected an entry such as question.at_least.CHF=0.3"),
        ("question.at_least.OIL.x=1", "question.at_least.OIL is not a table"),
        ("question.at_leest.OIL=0.3", "did you mean 'at_least'?"),
        ("question.at_least.OIL=lots", "text such as \"40%\", got 'lots'"),
    ],
)
def test_settings_that_are_wrong(
    place: tuple[Path, str], setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, file = place
    assert main(["init", f"{file}:Flat", "market.csv", "--target", "OIL=0.5", "--quiet"]) == 0
    assert main(["check", "--set", setting]) == 2
    assert message in capsys.readouterr().err
