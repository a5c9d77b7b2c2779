"""A folder of a run is whole: that of the last run that was finished, or refused."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from funcexplain.cli import main
from funcexplain.commands import folder as folders
from tests.cli.workplace import TWICE, furnish, table, write

TABLES = ("weights.csv", "metrics.csv", "market.csv", "shocks.csv")
FILES = ("config.toml", "solution.safetensors", "summary.json", *TABLES)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rough_pictures: None) -> tuple[Path, str]:
    """The current folder, and the module of its networks."""
    monkeypatch.chdir(tmp_path)
    return tmp_path, furnish(tmp_path)


def run(place: tuple[Path, str], **parts: dict[str, Any]) -> int:
    folder, module = place
    return main(["run", write(folder, table(module, **parts)), "--quiet"])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


OTHER: dict[str, Any] = {"question": {"target": {"GOLD": 0.6}}}


def test_an_interrupted_run_leaves_the_folder_as_it_was(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pressed: dict[str, Any] = {
        "network": {"factory": f"{place[1]}:Pressed", "weights": None},
        "method": {"atol": 0.0, **TWICE},
    }
    assert run(place, **pressed) == 130
    assert " of 2 searches are answered; nothing is written to 'out'" in capsys.readouterr().err
    assert not contents(place[0] / "out")
    assert run(place) == 0
    before = contents(place[0] / "out")
    assert set(before) == {*FILES}
    folders_before = sorted(place[0].rglob("*"))
    assert run(place, **pressed) == 130
    assert contents(place[0] / "out") == before
    assert sorted(place[0].rglob("*")) == folders_before
    assert main(["report", "out"]) == 0


@pytest.mark.parametrize("name", [name for name in FILES if name != "summary.json"])
def test_a_folder_with_a_file_of_another_run_is_refused(
    place: tuple[Path, str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place, **OTHER) == 0
    shutil.move("out", "other")
    assert run(place) == 0
    for damage in (shutil.copy, lambda _, path: path.write_bytes(b""), lambda _, path: path.unlink()):
        damage(place[0] / "other" / name, place[0] / "out" / name)
        assert main(["report", "out"]) == 2
        assert f"'out' is torn: {name} is not what its run wrote" in capsys.readouterr().err
    assert not (place[0] / "out" / "report.html").exists()


def test_a_folder_without_digests_is_not_that_of_a_finished_run(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(place) == 0
    path = place[0] / "out" / "summary.json"
    summary = json.loads(path.read_text())
    for text in ("", "[]", "{}", "\xff", json.dumps({**summary, "sha256": None})):
        path.write_text(text)
        assert main(["report", "out"]) == 2
        assert "is not the folder of a finished run" in capsys.readouterr().err


@pytest.mark.parametrize("moves", [0, 1, 4, 6, len(FILES)])
def test_a_run_that_is_cut_off_while_it_moves_files(
    place: tuple[Path, str], moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The report shows the question of the run before, or of this one, or nothing.
    assert run(place) == 0
    left, replace = moves, os.replace

    def cut(*paths: Any) -> None:
        nonlocal left
        if Path(paths[1]).parent.name == "out":
            if not left:
                raise SystemExit
            left -= 1
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(folders.os, "replace", cut)
        if moves < len(FILES):
            with pytest.raises(SystemExit):
                run(place, **OTHER)
        else:
            assert run(place, **OTHER) == 0
    assert main(["report", "out"]) == (2 if 0 < moves < len(FILES) else 0)
    if moves in (0, len(FILES)):
        page = (place[0] / "out" / "report.html").read_text()
        assert ("60% GOLD" in page, "60% OIL" in page) == (moves > 0, moves == 0)
    assert run(place, **OTHER) == 0
    assert set(contents(place[0] / "out")) == {*FILES}


def test_a_press_while_files_are_moved_waits(
    place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def pressed(*paths: Any) -> None:
        if (Path(paths[1]).parent.name, Path(paths[1]).name) == ("out", "weights.csv"):
            signal.raise_signal(signal.SIGINT)
        replace(*paths)

    monkeypatch.setattr(folders.os, "replace", pressed)
    assert run(place) == 130
    assert set(contents(place[0] / "out")) == {*FILES}
    assert main(["report", "out"]) == 0


def test_files_of_an_earlier_run_go_and_the_callers_stay(place: tuple[Path, str]) -> None:
    assert run(place, output={"report": True}) == 0
    (place[0] / "out" / "overview.png").write_bytes(b"mine")
    (place[0] / "out" / ".run-left").mkdir()  # by a run that was killed
    assert run(place) == 0
    assert set(contents(place[0] / "out")) == {*FILES, "overview.png"}
    assert main(["report", "out"]) == 0
    assert "report.html" in json.loads((place[0] / "out" / "summary.json").read_text())["files"]
    assert run(place) == 0
    assert set(contents(place[0] / "out")) == {*FILES, "overview.png"}


def test_no_file_of_an_earlier_run_stays_beside_a_later_one(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    fast = {"method": {"max_steps": 20, "starts": {"number": 1}}}
    single = table(module, **fast, output={"report": True})
    text = Path(write(folder, single)).read_text()
    asked = '[[question]]\ntop = "OIL"\n[[question]]\ntop = "RICE"\nname = "rice"\n'
    several, out = str(folder / "several.toml"), folder / "out"
    Path(several).write_text(re.sub(r"\[question\]\n(?:.+\n)*", asked, text))

    def names() -> set[str]:
        return {path.name for path in out.iterdir()}

    assert main(["run", several]) in (0, 1)
    pages = {"compare.csv", "compare.html", "summary.json"}
    assert names() == {"1", "rice", *pages}
    assert main(["report", "out"]) == 2
    assert "it holds those of several questions" in capsys.readouterr().err
    assert main(["run", several, "--set", "output.report=false"]) in (0, 1)
    assert names() == {"1", "rice", *pages} - {"compare.html"}
    assert main(["run", write(folder, single), "--set", "output.report=false"]) in (0, 1)
    assert names() == {"1", "rice", *FILES}
    printed = capsys.readouterr().out
    for label in ("1", "rice"):
        assert f"{Path('out', label)} has the answer of an earlier run; remove what is old" in printed
    assert main(["run", several, "--set", "output.report=false"]) in (0, 1)
    assert names() == {"1", "rice", *pages} - {"compare.html"}
    assert "of an earlier run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("why", ("--from", "2024-02-05", "--to", "2024-02-26")),
        ("whatif", ("--shock", "OIL=-5%")),
    ],
)
def test_no_earlier_picture_stays_beside_a_later_table(
    place: tuple[Path, str], command: str, asked: tuple[str, ...]
) -> None:
    folder, module = place
    path = write(folder, table(module, output={"picture": True}))
    assert main([command, path, *asked]) == 0
    assert (folder / "out" / f"{command}.png").is_file()
    assert main([command, path, *asked, "--set", "output.picture=false"]) == 0
    assert {file.name for file in (folder / "out").iterdir()} == {f"{command}.csv"}
