"""A run that ends early ends quietly, with a code of its own, and leaves an earlier answer as it was."""

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from funcexplain.cli import main
from funcexplain.commands import check, outputs
from tests.cli.workplace import ASSETS, furnish, table, write

QUICK: dict[str, Any] = {"method": {"max_steps": 3, "starts": {"number": 1}}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder, and the module of its networks."""
    monkeypatch.chdir(tmp_path)
    return tmp_path, furnish(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("where", ["save_solution", "summarize"])
def test_a_full_disk_has_its_own_code_and_leaves_an_earlier_answer(
    place: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    path = write(place[0], table(place[1], **QUICK))
    assert main(["run", path, "--quiet"]) in (0, 1)
    before = contents(place[0] / "out")

    def full(*_: Any, **__: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:  # as the writers of files name it
            raise OSError(f"cannot write: {error.strerror}; free some space") from None

    monkeypatch.setattr(outputs, where, full)
    capsys.readouterr()
    assert main(["run", path, "--quiet"]) == 74
    reason = "cannot write: No space left on device; free some space"
    assert capsys.readouterr().err == f"funcexplain: error: the disk is full: {reason}\n"
    assert contents(place[0] / "out") == before


def test_an_error_that_is_its_own_cause_is_reported(
    place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        error, wrapper = ValueError("of the network"), RuntimeError("at row 1")
        error.__cause__, wrapper.__cause__ = wrapper, error
        raise error

    monkeypatch.setattr(outputs, "summarize", fails)
    assert main(["run", write(place[0], table(place[1], **QUICK)), "--quiet"]) == 2
    assert capsys.readouterr().err == "funcexplain: error: of the network\n"


def test_a_closed_pipe_and_a_full_output_end_quietly(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {os.getcwd()!r}); from funcexplain.cli import main\n"
    code += "import funcexplain.commands.check as module\n"
    code += "def check(path, *, print_line, **_):\n    for _ in range(9999): print_line('x' * 99)\n"
    code += "module.check_config = check\n"
    code += "sys.exit(main(['check', 'config.toml']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as file:
            done = subprocess.run(
                [sys.executable, "-c", code], stdout=file, stderr=subprocess.PIPE, check=False
            )
        assert done.returncode == 74
        assert done.stderr.count(b"\n") == 1
        assert b"the disk is full" in done.stderr


def test_other_system_errors_are_errors_of_the_user(
    place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(check, "check_config", refused)
    assert main(["check", "config.toml"]) == 2
    assert "not yours" in capsys.readouterr().err


# --- tables ----------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_the_market_and_its_shocks(place: tuple[Path, str]) -> None:
    path = write(place[0], table(place[1], **QUICK))
    assert main(["run", path, "--quiet"]) in (0, 1)
    out = place[0] / "out"
    (row,) = read(out / "weights.csv")
    today, reached = ([float(row[f"{kind}_{name}"]) for name in ASSETS] for kind in ("today", "weight"))
    assert float(row["target_OIL"]) == pytest.approx(0.6)
    moved = sum(abs(a - b) for a, b in zip(today, reached, strict=True)) / 2
    assert float(row["turnover"]) == pytest.approx(moved, rel=1e-5)
    market, shocks = read(out / "market.csv"), read(out / "shocks.csv")
    assert len(market) == len(shocks) == (4 + 5 - 1) * 3
    prices = read(place[0] / "market.csv")
    for line in market:
        (day,) = (price for price in prices if price["date"] == line["day"])
        assert float(line["actual_price"]) == pytest.approx(float(day[line["asset"]]), rel=1e-5)
    assert any(float(line["sigmas"]) for line in shocks)
    assert {line["day"] for line in shocks} == {line["day"] for line in market}


@pytest.mark.parametrize(
    "question",
    [
        {"target": None, "at_least": {"OIL": 0.5}, "at_most": {"OIL": 0.7}, "date": {"every": 20}},
        {"target": None, "at_least": {"OIL": 0.5}, "ahead": 3},
        {"target": None, "exit": "RICE", "top": "OIL", "search": "features"},
    ],
    ids=["dates", "ahead", "features"],
)
def test_every_kind_of_question_has_its_tables(
    place: tuple[Path, str], question: dict[str, Any]
) -> None:
    path = write(place[0], table(place[1], question=question, **QUICK))
    assert main(["run", path, "--quiet"]) in (0, 1)
    out = place[0] / "out"
    market, shocks = read(out / "market.csv"), read(out / "shocks.csv")
    assert {line["date"] for line in market} == {line["date"] for line in read(out / "weights.csv")}
    assert ("channel" in shocks[0]) == ("search" in question)
    assert [line["day"] for line in market if line["day"].startswith("ahead")][-1:] == (
        ["ahead 3"] if "ahead" in question else []
    )
    wanted = read(out / "weights.csv")[0]["target_OIL"]
    assert (
        wanted
        == {"dates": ">= 0.5 and <= 0.7", "ahead": ">= 0.5", "features": "largest"}[
            "features" if "search" in question else "ahead" if "ahead" in question else "dates"
        ]
    )


def test_names_that_are_formulas_are_text(place: tuple[Path, str]) -> None:
    market = place[0] / "market.csv"
    market.write_text(market.read_text().replace("OIL", "=1+1").replace("RICE", "@SUM(A1)"))
    whole = table(place[1], question={"target": {"=1+1": 0.6}}, **QUICK)
    assert main(["run", write(place[0], whole), "--quiet"]) in (0, 1)
    names = {line["asset"] for line in read(place[0] / "out" / "market.csv")}
    assert names == {"GOLD", "'=1+1", "'@SUM(A1)"}


def test_a_workbook_has_a_sheet_for_each_table(
    place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(place[0], table(place[1], **QUICK))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openpyxl", None)
        assert main(["run", path, "--xlsx"]) == 2
        assert (
            'needs openpyxl; install it with: pip install "funcexplain[excel]"'
            in capsys.readouterr().err
        )
    openpyxl = pytest.importorskip("openpyxl")
    assert main(["run", path, "--xlsx", "--quiet"]) in (0, 1)
    book = openpyxl.load_workbook(place[0] / "out" / "tables.xlsx")
    assert book.sheetnames == ["weights", "metrics", "market", "shocks"]
    lines = read(place[0] / "out" / "market.csv")
    rows = [*book["market"].iter_rows(values_only=True)]
    assert list(rows[0]) == [*lines[0]]
    assert rows[1][0] == lines[0]["date"]
    assert rows[1][-1] == pytest.approx(float(lines[0]["scenario_price"]))
    assert main(["run", path, "--quiet"]) in (0, 1)
    assert not (place[0] / "out" / "tables.xlsx").exists()


# --- prices of one's own ---------------------------------------------------------------------------


def test_a_config_reads_a_file_in_any_dialect(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split(",") for line in (place[0] / "market.csv").read_text().splitlines()]
    lines = [";".join([row[0], *(cell.replace(".", ",") for cell in row[1:]), "x"]) for row in rows]
    (place[0] / "german.csv").write_text("\n".join([lines[0], *lines[:0:-1], "Source: me;;;;"]))
    prices = {"file": "german.csv", "assets": list(ASSETS), "end": "2024-02-20", "gaps": "drop_days"}
    path = write(place[0], table(place[1], prices=prices, **QUICK))
    assert main(["check", path]) == 0
    shown = capsys.readouterr().out
    assert "(separated by semicolons, without the last 1 lines" in shown
    assert "newest first, decimal comma)" in shown
    assert main(["run", path, "--quiet"]) in (0, 1)
    assert main(["run", "out/config.toml", "--quiet"]) in (0, 1)
    assert main(["report", "out", "--quiet"]) == 0


def test_check_names_a_split_once(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split(",") for line in (place[0] / "market.csv").read_text().splitlines()]
    for row in rows[30:]:
        row[1] = repr(float(row[1]) / 4)
    (place[0] / "market.csv").write_text("\n".join(map(",".join, rows)))
    assert main(["check", write(place[0], table(place[1]))]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Check the prices") == 1
    assert f"on {rows[30][0]}, as an unadjusted 4:1 split does" in shown


def test_minutes_are_periods(place: tuple[Path, str]) -> None:
    rows = [line.split(",") for line in (place[0] / "market.csv").read_text().splitlines()]
    for number, row in enumerate(rows[1:]):
        row[0] = f"2024-01-{2 + number // 30:02} 10:{number % 30:02}"
    (place[0] / "market.csv").write_text("\n".join(map(",".join, rows)))
    for date, end in (("last", "10:29"), ("2024-01-03", "10:29"), ("2024-01-03 10:20", "10:20")):
        path = write(place[0], table(place[1], question={"date": date}, **QUICK))
        assert main(["run", path, "--quiet"]) in (0, 1)
        assert read(place[0] / "out" / "weights.csv")[0]["date"] == f"2024-01-03T{end}"
        assert main(["report", "out", "--quiet"]) == 0
