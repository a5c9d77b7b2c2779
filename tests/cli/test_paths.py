"""What a config names is beside it, wherever the command runs."""

import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from funcexplain.cli import main
from funcexplain.reports import report
from tests.cli.workplace import furnish, table, write


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A folder beside the current one, and the module of its networks."""
    for part in ("row_pictures", "overview"):  # they take seconds
        monkeypatch.setattr(report, part, lambda *_: [])
    (tmp_path / "asked").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "asked", furnish(tmp_path / "asked")


def contents(folder: Path) -> dict[str, Any]:
    """The files of a run, without what differs between equal runs."""
    files: dict[str, Any] = {file.name: file.read_bytes() for file in folder.iterdir()}
    summary = json.loads(files["summary.json"])
    summary |= {"seconds": 0, "folder": "", "audit": {}}
    summary["sha256"] = {n: d for n, d in summary["sha256"].items() if n != "report.html"}
    made = rb"<tr><td>(command|time)</td>.*?</tr>"
    report = re.sub(made, b"", files.get("report.html", b""))
    return files | {"summary.json": summary, "report.html": report}


def test_a_run_does_not_depend_on_the_current_folder(
    place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    path, out, runs = write(folder, table(module)), folder / "out", []
    for config in (path, "../asked/config.toml", str(out / "config.toml")):
        assert main(["check", config, "--quiet"]) == 0
        assert main(["run", config, "--quiet"]) == 0
        runs.append(contents(out))
    assert main(["report", "../asked/out", "--trust-config"]) == 0
    pages = [(out / "report.html").read_bytes()]
    assert not [*Path.cwd().iterdir()]
    monkeypatch.chdir(folder)
    assert main(["report", "out", "--trust-config"]) == 0
    pages.append((out / "report.html").read_bytes())
    assert pages[0] == pages[1]
    capsys.readouterr()
    assert main(["run", "config.toml"]) == 0
    assert "out: config.toml, " in capsys.readouterr().out
    runs.append(contents(out))
    assert all(run == runs[0] for run in runs)
    written = tomllib.loads(runs[0]["config.toml"].decode())
    assert (written["prices"]["file"], written["network"]["weights"]) == (
        "../market.csv",
        "../w.safetensors",
    )
    assert (written["network"]["folder"], written["output"]["folder"]) == ("..", ".")


def test_a_folder_and_its_answers_move_together(place: tuple[Path, str]) -> None:
    folder, module = place
    path = write(folder, table(module, output={"folder": "../answers/one"}))
    assert main(["run", path, "--quiet"]) == 0
    assert {file.name for file in folder.parent.iterdir()} == {"answers", "asked", "elsewhere"}
    shutil.copytree(
        folder.parent, folder.parent / "elsewhere" / "moved", ignore=lambda *_: ["elsewhere"]
    )
    assert main(["report", "moved/answers/one"]) == 0


def test_absolute_paths_and_shipped_prices_remain(place: tuple[Path, str]) -> None:
    folder, module = place
    parts: dict[str, Any] = {
        "network": {"factory": f"{module}:make", "weights": str(folder / "w.safetensors")},
        "prices": {"file": "ecb", "assets": ["EUR", "JPY", "GBP"]},
        "question": {"target": {"EUR": 0.5}},
        "method": {"max_steps": 1},
        "output": {"folder": str(folder.parent / "far")},
    }
    assert main(["run", write(folder, table(module, **parts)), "--quiet"]) in (0, 1)
    written = tomllib.loads((folder.parent / "far" / "config.toml").read_text())
    assert written["prices"]["file"] == "ecb"
    assert written["network"]["weights"] == str(folder / "w.safetensors")
    assert main(["report", "../far", "--trust-config"]) == 0


def test_a_module_of_another_folder_must_be_named(
    place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    os.mkdir("asks")
    for name in ("market.csv", "w.safetensors"):
        shutil.copy(folder / name, "asks")
    assert main(["check", write(Path("asks"), table(module))]) == 2
    assert (
        f"no module '{module}', neither installed nor in the config's folder" in capsys.readouterr().err
    )
    named = table(module, network={"folder": "../../asked"})
    assert main(["check", write(Path("asks"), named), "--quiet"]) == 0
    # The current folder is not the config's, even if it can be imported from.
    Path(f"own_{module}.py").write_text("import torch\nmake = lambda: torch.nn.Linear(2, 2)\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert main(["check", write(Path("asks"), table(f"own_{module}"))]) == 2
    assert "must be a function of a module in the config's folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["w.safetensors", "market.csv"])
def test_a_file_of_the_current_folder_is_not_the_config_s(
    place: tuple[Path, str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    shutil.move(folder / name, name)
    path = write(folder, table(module))
    assert main(["check", path]) == 2
    assert f"asked/{name}" in capsys.readouterr().err
