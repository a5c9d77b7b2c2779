"""A config is code: which code runs under which command, and what a report needs none for."""

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from funcexplain.cli import main
from funcexplain.commands.config import NetworkConfig
from funcexplain.commands.network import load_network
from funcexplain.reports import report
from tests.cli.workplace import furnish, table, write

GADGETS = """
import functools, os, subprocess, torch
from os import system
from subprocess import run, Popen
from functools import partial
started = functools.partial(os.mkdir, "ran")
make = lambda: torch.nn.Linear(2, 2)

@functools.cache
def cached():
    return torch.nn.Linear(2, 2)

@torch.no_grad()
def wrapped():
    return torch.nn.Linear(2, 2)

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
    @classmethod
    def build(cls):
        return cls()

class Maker:
    def __call__(self):
        return Net()

maker, net = Maker(), Net()
"""
_count = 0


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder whose names reach other modules."""
    global _count
    _count += 1  # a process imports a module once, even from another folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"gadgets_{_count}.py").write_text(GADGETS)
    return f"gadgets_{_count}"


@pytest.mark.parametrize("name", ["make", "cached", "wrapped", "Net", "Net.build", "net"])
def test_functions_of_the_folder_and_networks_are_factories(module: str, name: str) -> None:
    assert isinstance(load_network(NetworkConfig(f"{module}:{name}")), torch.nn.Linear)


@pytest.mark.parametrize(
    "name",
    [
        *("system", "os.system", "run", "subprocess.run", "Popen", "subprocess.Popen", "partial"),
        *("started", "functools.partial", "torch.load", "torch.hub.load", "make.__globals__", "maker"),
        *("torch.nn.Embedding.from_pretrained", "torch.utils.collect_env.run", "os", "Maker"),
    ],
)
def test_what_a_module_of_the_folder_imports_is_not_a_factory(module: str, name: str) -> None:
    for package in (None, module):
        with pytest.raises(ValueError, match=rf"network.factory: {module}:{name} must be a function"):
            load_network(NetworkConfig(f"{module}:{name}", {"x": "touch ran"}, package=package))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "factory",
    [
        *("os:system", "posix:system", "builtins:eval", "subprocess:Popen", "functools:partial"),
        *(
            "antigravity:fly",
            "this:s",
            "test.support:run_in_subinterp",
            "pathlib:Path",
            "runpy:run_path",
        ),
    ],
)
def test_the_standard_library_is_refused_before_it_is_imported(module: str, factory: str) -> None:
    name, before = factory.partition(":")[0], set(sys.modules)
    with pytest.raises(ValueError, match=rf"got '{name}' of Python's standard library"):
        load_network(NetworkConfig(factory, {"cmd": "touch ran"}))
    with pytest.raises(ValueError, match=r"network.package: expected an installed package"):
        load_network(NetworkConfig(f"{module}:make", package=name))
    assert not {"antigravity", "this"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    "factory", ["torch:load", "torch.hub:load", "torch.utils.collect_env:run", "numpy:load", "pip:main"]
)
def test_functions_of_what_this_package_builds_on_are_refused(module: str, factory: str) -> None:
    del module
    with pytest.raises(ValueError, match=r"must be a function of a module in the config's folder"):
        load_network(NetworkConfig(factory))
    with pytest.raises(ValueError, match=r"network.package: expected an installed package"):
        load_network(NetworkConfig(factory, package=factory.partition(":")[0]))


def test_programs_are_refused(module: str) -> None:
    del module
    for factory in ("pip.__main__:main", "__main__:main"):
        with pytest.raises(ValueError, match="is a program"):
            load_network(NetworkConfig(factory))


def test_an_installed_package_must_be_named(
    module: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, name = tmp_path_factory.mktemp("site"), f"installed_{_count}"
    (installed / name).mkdir()
    (installed / name / "__init__.py").write_text("open('imported', 'w').close()")
    (installed / name / "nets.py").write_text(f"{GADGETS}\ndef build():\n    return Net()\n")
    monkeypatch.syspath_prepend(installed)
    for function in ("build", "started", "absent"):
        with pytest.raises(ValueError, match=rf'if you trust it, add package = "{name}" to'):
            load_network(NetworkConfig(f"{name}.nets:{function}"))
        assert not Path("imported").exists()
    assert isinstance(load_network(NetworkConfig(f"{name}.nets:Net")), torch.nn.Linear)
    with pytest.raises(ValueError, match=rf'add package = "{name}"'):
        load_network(NetworkConfig(f"{name}.nets:Net.build"))
    assert load_network(NetworkConfig(f"{name}.nets:build", package=name))
    with pytest.raises(ValueError, match="must be a function"):
        load_network(NetworkConfig(f"{name}.nets:run", package=name))


# --- reports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "search"),
    [
        ({"target": {"OIL": 0.5}, "date": {"every": 20}}, "features"),
        ({"target": None, "shift": {"GOLD": 0.05}, "turnover": 0.3}, "scenario"),
        ({"target": None, "top": "RICE", "date": {"every": 20}}, "features"),
    ],
)
def test_a_report_runs_no_code_of_the_config(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    question: dict[str, Any],
    search: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("row_pictures", "overview"):  # they take seconds
        monkeypatch.setattr(report, part, lambda *_: [])
    module = furnish(tmp_path)
    whole = table(module, question={**question, "search": search}, output={"report": True})
    assert main(["run", write(tmp_path, whole), "--quiet"]) in (0, 1)
    page = tmp_path / "out" / "report.html"
    before = page.read_text()
    config = tmp_path / "out" / "config.toml"

    def rewrite(old: str, new: str) -> None:
        """Change the config, and its digest with it."""
        config.write_text(config.read_text().replace(old, new))
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        summary["sha256"]["config.toml"] = sha256(config.read_bytes()).hexdigest()
        (tmp_path / "out" / "summary.json").write_text(json.dumps(summary))

    rewrite(f"{module}:make", "os:mkdir")
    capsys.readouterr()
    assert main(["report", "out"]) == 0
    shown = capsys.readouterr().out
    assert "why the weights change, the real windows nearest to the target are left out" in shown
    after = page.read_text()
    for kept in ("How unusual would it be?", "gap closed", "<td>rarity</td>"):
        assert before.count(kept) == after.count(kept) > 0
    for left_out in (
        "Real windows nearest to the target",
        "<td>invalidation</td>",
        "<td>noise error</td>",
    ):
        assert left_out in before
        assert left_out not in after
    assert "left out, since the network was not evaluated" in after
    # What needs today's weights only is the same: the sentence, and the share of the gap closed.
    lead = before.index('class="lead"')
    assert before[lead : lead + 200] == after[lead : lead + 200]
    measured = before.index("<td>gap closed</td>")
    assert before[measured : before.index("</td>", measured + 25)] in after

    assert main(["report", "out", "--trust-config"]) == 2
    assert "got 'os' of Python's standard library" in capsys.readouterr().err
    rewrite("os:mkdir", f"{module}:make")
    assert main(["report", "out", "--trust-config"]) == 0
    assert page.read_text() == before


def test_a_report_with_features_of_ones_own_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = furnish(tmp_path)
    with (tmp_path / f"{module}.py").open("a") as code:
        code.write(
            "\ndef daily(returns):\n    return torch.stack([returns, 2 * returns, returns.abs()])\n"
        )
    features = {"factory": f"{module}:daily", "span": None}
    whole = table(module, features=features, method={"max_steps": 1, "starts": {"number": 1}})
    assert main(["run", write(tmp_path, whole), "--quiet"]) in (0, 1)
    (tmp_path / f"{module}.py").write_text("open('ran', 'w')")
    assert main(["report", "out"]) == 2
    error = capsys.readouterr().err
    assert "features.factory: computes the windows" in error
    assert error.endswith("add --trust-config\n")
    assert error.count("\n") == 1
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "damage",
    [
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"digest": []}',
        b'{"digest": {}, "answers": 3}',
        b'{"digest": {}, "answers": [{"today": {"OIL": "1"}}]}',
        b'{"digest": {}, "answers": []}',
    ],
    ids=range(7),
)
def test_a_damaged_summary_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = furnish(tmp_path)
    assert main(["run", write(tmp_path, table(module, method={"max_steps": 1})), "--quiet"]) in (0, 1)
    (tmp_path / "out" / "summary.json").write_bytes(damage)
    capsys.readouterr()
    assert main(["report", "out"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("funcexplain: error: ")
    assert err.count("\n") == 1
    assert "run again" in err or "not the folder of a finished run" in err
    assert "Error:" not in err
