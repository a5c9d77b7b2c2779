"""The command line: quick help, one line per error, and the demo from end to end."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.cli import main, parse_target
from funcexplain.commands import demo
from funcexplain.commands.allocation import fill_target
from funcexplain.commands.demo import run_demo


@pytest.fixture
def market(tmp_path: Path) -> Path:
    """A csv of three assets over 90 days."""
    returns = np.random.default_rng(0).normal(0.0, 0.01, size=(90, 3))
    days = np.datetime64("2024-01-01") + np.arange(90)
    rows = zip(days, 100.0 * np.exp(returns.cumsum(axis=0)), strict=True)
    lines = [
        "date,GOLD,OIL,RICE",
        *(f"{day},{','.join(map(repr, map(float, row)))}" for day, row in rows),
    ]
    path = tmp_path / "market.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def quick_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = run_demo.__kwdefaults__ or {}
    for name, value in {"training_steps": 20, "max_steps": 300, "num_starts": 2}.items():
        monkeypatch.setitem(defaults, name, value)
    monkeypatch.setattr(demo, "DRAWS", 8)
    monkeypatch.setattr(demo, "SAMPLES", 1000)
    monkeypatch.setattr(fe, "probability", partial(fe.probability, num_samples=1000))


def error_line(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run an invalid command line, and return its error line."""
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("funcexplain: error: ")
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize("argv", [["--help"], ["demo", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_nothing_but_the_parser(argv: list[str]) -> None:
    code = (
        "import runpy, sys\n"
        f"before, sys.argv[1:] = set(sys.modules), {argv!r}\n"
        "try:\n    runpy.run_module('funcexplain', run_name='__main__')\nfinally:\n"
        "    loaded = sys.modules.keys() - before\n"
        "    own = sorted(n for n in loaded if n.split('.')[0] not in sys.stdlib_module_names)\n"
        "    print(len(loaded), *own)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    assert ("--target" in "".join(shown)) == (argv == ["demo", "--help"])
    count, *own = last.split()
    parser = ["funcexplain.commands", "funcexplain.commands.parser"]
    assert own == ["funcexplain", "funcexplain.cli", *parser]
    assert int(count) < 120  # argparse and what it imports: about 55


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("EUR=0.4", {"EUR": 0.4}),
        ("EUR=40%", {"EUR": 0.4}),
        (" EUR = 0.4 , CHF=20 % ", {"EUR": 0.4, "CHF": 0.2}),
        ("S&P=500=1", {"S&P=500": 1.0}),
    ],
)
def test_targets_are_read(text: str, target: dict[str, float]) -> None:
    assert parse_target(text) == pytest.approx(target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EUR", "expected NAME=WEIGHT such as EUR=0.4 or CHF=20%, got 'EUR'"),
        ("EUR=much", "got 'EUR=much'"),
        ("EUR=0.4,", "got ''"),
        ("=0.4", "got '=0.4'"),
        ("EUR=0.4,EUR=0.2", "EUR appears twice"),
    ],
)
def test_other_texts_raise(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=message):
        parse_target(text)
    assert message in error_line(capsys, "demo", "--target", text)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND; see funcexplain --help"),
        (["dmo"], "invalid choice: 'dmo'"),
        (["demo", "--seed", "-1"], "expected an integer in 0 ... 4294967295, got '-1'"),
        (["demo", "--sed", "1"], "unrecognized arguments"),
        (["demo", "--data", "none.csv"], "'none.csv'; expected 'ecb', 'sp500' or the path"),
        (["demo", "--target", "EURO=0.4"], "no asset 'EURO'; choose from EUR, JPY, GBP"),
        (["demo", "--target", "EUR=1.4"], "the weight of EUR in 0 ... 1, got 1.4"),
        (["demo", "--target", "EUR=-10%"], "the weight of EUR in 0 ... 1, got -0.1"),
        (["demo", "--target", "EUR=nan"], "the weight of EUR in 0 ... 1, got nan"),
        (["demo", "--target", "EUR=0.6,CHF=0.6"], "sum to at most 1, got 1.2"),
    ],
)
def test_user_errors_are_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_line(capsys, *argv)


def test_whole_targets_have_to_sum_to_one(market: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["demo", "--data", str(market), "--target", "GOLD=0.1,OIL=0.1,RICE=0.1"]
    assert "all assets are named, so the weights have to sum to 1, got 0.3" in error_line(capsys, *argv)


def test_unwritable_folders_raise(market: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (market, market / "inside"):
        message = error_line(capsys, "demo", "--data", str(market), "--out", str(folder))
        assert f"cannot write to the folder '{folder}'" in message


def test_short_histories_raise(market: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = market.read_text().splitlines()
    market.write_text("\n".join(lines[:46]))
    assert "at least 46 days of prices, got 45" in error_line(capsys, "demo", "--data", str(market))
    market.write_text("\n".join(line.rsplit(",", 2)[0] for line in lines))
    assert "at least 2 assets" in error_line(capsys, "demo", "--data", str(market))


def test_debug_lets_the_traceback_through() -> None:
    with pytest.raises(FileNotFoundError):
        main(["demo", "--debug", "--data", "none.csv"])


def test_fill_target_keeps_the_proportions_of_today() -> None:
    today, assets = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64), ["A", "B", "C"]
    target = fill_target({"C": 0.2}, today, assets)
    torch.testing.assert_close(target, torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64))
    empty = fill_target({"C": 0.5}, torch.tensor([0.0, 0.0, 1.0]), assets)
    torch.testing.assert_close(empty, torch.tensor([0.25, 0.25, 0.5]))
    whole = {"A": 0.5, "B": 0.25, "C": 0.25}
    torch.testing.assert_close(
        fill_target(whole, today, assets), torch.tensor([0.5, 0.25, 0.25]).double()
    )


@pytest.mark.usefixtures("rough_pictures", "quick_demo")
def test_command_runs_the_demo(market: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = market.parent / "deep" / "folder"
    argv = ["demo", "--data", str(market), "--target", "OIL=50%", "--seed", "1", "--out", str(out)]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "for the network to hold at least 50% OIL?" in shown
    assert "The network holds the target" in shown
    assert shown.rstrip().endswith(f"Picture: {out / 'overview.png'}")
    assert "In 8 markets drawn at which the target holds, " in shown or "No market could be" in shown
    assert (f"Fan: {out / 'fan.png'}" in shown) == (out / "fan.png").exists()
    assert (out / "overview.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("rough_pictures")  # the gallery draws them
def test_demo_hits_its_default_target(tmp_path: Path) -> None:
    """On the shipped prices, with the defaults of the command line."""
    lines: list[str] = []
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    solution = run_demo(out=tmp_path, print_line=lines.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert solution.status is fe.Status.CLOSEST
    assert solution.z.norm() < 2.9  # noise alone finds 3.6, precedents this one
    assert (solution.x[2] >= 0).all()  # no negative volatility

    text = "\n".join(lines)
    start = next(index for index, line in enumerate(lines) if "Weights" in line)
    table = [line.split() for line in lines[start + 1 : start + 17]]
    reached = {row[0]: row[2] for row in table}["SGD"]
    assert reached in ("19.90%", "19.91%")  # at least 20 %, within 0.1 points
    columns = np.array([[float(cell.rstrip("%")) for cell in row[1:]] for row in table])
    np.testing.assert_allclose(columns.sum(axis=0), 100.0, atol=0.1)
    assert text.count("  start ") == 8
    agree = re.search(r"; (\d) of 8 starts found this answer", text)
    assert agree is not None
    assert int(agree[1]) >= 2
    assert text.count("+10 ") >= 1


@pytest.mark.usefixtures("rough_pictures", "quick_demo")
def test_seed_determines_the_demo(market: Path) -> None:
    def answer(seed: int) -> torch.Tensor:
        return run_demo(market, seed=seed, out=market.parent, print_line=lambda line: None).x

    first = answer(3)
    assert torch.equal(first, answer(3))
    assert not torch.equal(first, answer(4))


@pytest.mark.usefixtures("rough_pictures", "quick_demo")
def test_demo_answers_a_target_that_already_holds(market: Path) -> None:
    """Nothing has to happen, and nothing is said to change."""
    lines: list[str] = []
    # A softmax holds a little of everything.
    solution = run_demo(market, {"OIL": 5e-4}, out=market.parent, print_line=lines.append)
    assert solution.hit
    assert solution.num_steps == 0
    assert not solution.z.any()
    text = "\n".join(lines)
    met = "The network will hold this without any shock; nothing has to happen."
    page = (market.parent / "report.html").read_text()
    for shown in (text, page):
        assert met in shown
        assert "Largest changes" not in shown
    assert "How unusual" not in page
