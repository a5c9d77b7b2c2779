"""Runs from a config to files and back, on small networks."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.cli import main
from funcexplain.commands.config import parse_config
from funcexplain.solutions.archive import read_safetensors, write_archive
from funcexplain.solutions.files import describe
from tests.cli.workplace import ASSETS, TWICE, furnish, market, pickled, table, write


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder, and the module of its networks."""
    monkeypatch.chdir(tmp_path)
    return tmp_path, furnish(tmp_path)


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one JSON object on stdout."""
    return json.loads(capsys.readouterr().out)


def test_a_run_writes_the_files_it_lists(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    path = write(folder, table(module, output={"picture": True, "report": True}, method=TWICE))
    assert main(["run", path]) == 0
    shown = capsys.readouterr().out
    assert "for the network to hold 60% OIL?" in shown
    assert "Reached: largest miss" in shown
    out = folder / "out"
    answer = json.loads((out / "summary.json").read_text())
    assert {file.name for file in out.iterdir()} == set(answer["files"])
    assert (out / "overview.png").read_bytes().startswith(b"\x89PNG")
    assert "Reached" in (out / "report.html").read_text()

    solution = fe.load(out / "solution.safetensors")
    assert solution.dims == ("start",)
    about = describe(out / "solution.safetensors")
    assert about["labels"]["asset"] == list(ASSETS)
    assert len(about["labels"]["day"]) == 4
    assert about["settings"]["config"]["method"]["name"] == "levenberg_marquardt"
    with (out / "weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["CLOSEST", "CLOSEST"]
    assert sum(int(row["best"]) for row in rows) == 1
    scalars = ["date", "start", "best", "status", "loss", "num_steps", "error"]
    known = [f"{kind}_{name}" for kind in ("weight", "today", "target") for name in ASSETS]
    assert list(rows[0]) == [*scalars, *known[:3], "turnover", *known[3:]]
    weights = [[float(row[f"weight_{name}"]) for name in ASSETS] for row in rows]
    torch.testing.assert_close(torch.tensor(weights), solution.weights)
    with (out / "metrics.csv").open() as file:
        assert {"rms_sigmas", "turbulence", "spread"} <= set(next(csv.DictReader(file)))


def test_the_written_config_keeps_its_question_when_prices_are_added(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    whole = table(module, question={"date": {"every": 20}})
    assert main(["run", write(folder, whole), "--quiet"]) == 0
    before = fe.load(folder / "out" / "solution.safetensors")
    lines = market(80)
    lines[1:61] = market()[1:]
    (folder / "market.csv").write_text("\n".join(lines))
    assert main(["run", str(folder / "out" / "config.toml"), "--quiet"]) == 0
    assert torch.equal(fe.load(folder / "out" / "solution.safetensors").x, before.x)
    assert capsys.readouterr() == ("", "")


QUESTIONS: list[dict[str, Any]] = [
    {"target": {"OIL": 0.5}},
    {"target": None, "at_least": {"OIL": 0.5}, "at_most": {"GOLD": 0.2}},
    {"target": None, "top": "RICE"},
    {"target": None, "shift": {"GOLD": 0.05}},
    {"target": None, "shift": {"GOLD": -0.02}, "turnover": 0.1},
    {"target": None, "exit": "RICE", "concentration": 0.9},
    {"target": None, "group": {"assets": ["OIL", "RICE"], "weight": 0.5}},
    {"target": None, "group": [{"assets": ["OIL", "RICE"], "at_least": 0.5, "at_most": 0.7}]},
    {"frozen": {"assets": ["GOLD"], "last_days": 1, "channels": ["volatility"]}},
    {"free": {"assets": ["OIL", "RICE"], "last_days": 2}},
    {"search": "scenario", "frozen": {"assets": ["GOLD"]}},
    {"search": "scenario", "free": {"last_days": 6}, "covariance": "exponential"},
    {"loss": "mse"},
]


@pytest.mark.parametrize("date", ["last", {"every": 20}], ids=["last", "every"])
@pytest.mark.parametrize("asked", QUESTIONS, ids=str)
def test_every_question_can_be_asked(
    place: tuple[Path, str], asked: dict[str, Any], date: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    # A softmax cannot reach zero: an exit is missed by its smallest weight.
    whole = table(
        module,
        network={"factory": f"{module}:sharp", "weights": None},
        question={**asked, "date": date},
        method={"name": "levenberg_marquardt", "atol": 0.03, "max_steps": 400},
    )
    assert main(["run", write(folder, whole), "--json"]) == 0
    answer = found(capsys)
    assert answer["dates"] == answer["dates_hit"] == (1 if date == "last" else 3)


def test_the_days_to_come_and_their_probability(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    asked: dict[str, Any] = {"target": None, "at_least": {"OIL": 0.35}, "ahead": 3, "how_likely": True}
    network = {"factory": f"{module}:sharp", "weights": None}
    path = write(folder, table(module, network=network, question=asked))
    assert main(["run", path, "--json"]) == 0
    (answer,) = found(capsys)["answers"]
    chance = answer["probability"]
    assert 0.0 <= chance["lower"] <= chance["estimate"] <= chance["upper"] <= 1.0
    solution = fe.load(folder / "out" / "solution.safetensors")
    assert not solution.z[:, :-3].any()  # the past is fixed
    assert main(["run", path]) == 0
    assert "Probability over the next 3 trading days: " in capsys.readouterr().out
    assert main(["report", "out"]) == 0
    with pytest.raises(ValueError, match=r"question\.how_likely: needs ahead"):
        parse_config(table(module, network=network, question={**asked, "ahead": None}))


@pytest.mark.parametrize("search", ["scenario", "features"])
def test_an_answer_is_the_same_without_later_prices(place: tuple[Path, str], search: str) -> None:
    folder, module = place
    network = {"factory": f"{module}:sharp", "weights": None}
    asked = {"search": search, "date": "2024-02-10"}
    answers = []
    for end in (None, "2024-02-10"):
        prices = {"end": end}
        whole = table(module, network=network, question=asked, prices=prices)
        assert main(["run", write(folder, whole), "--quiet"]) == 0
        answers.append(fe.load(folder / "out" / "solution.safetensors"))
    assert torch.equal(answers[0].x, answers[1].x)
    assert torch.equal(answers[0].z, answers[1].z)


def test_a_report_of_single_channels_says_first_that_no_prices_make_them(
    place: tuple[Path, str],
) -> None:
    folder, module = place
    for search, channels, noted in (
        ("features", ["return", "momentum", "volatility"], True),
        ("scenario", ["return", "momentum", "volatility"], False),
        ("features", ["return"], False),  # which any prices may have
    ):
        arguments = {"channels": len(channels)}
        whole = table(
            module,
            network={"factory": f"{module}:make", "weights": None, "arguments": arguments},
            question={"search": search},
            features={"channels": channels},
            method={"max_steps": 2, "starts": {"number": 1}},
            output={"report": True},
        )
        main(["run", write(folder, whole), "--quiet"])
        text = (folder / "out" / "report.html").read_text()
        assert ("come from no path of prices" in text) == noted
        if noted:
            assert text.index("come from no path of prices") < text.index("Is the target reached?")


def test_named_parts_are_frozen(place: tuple[Path, str]) -> None:
    folder, module = place
    for search in ("features", "scenario"):
        asked = {"search": search, "frozen": {"assets": ["GOLD"]}}
        whole = table(module, question=asked, method={"answer": "first", "starts": {"jitter": 0.5}})
        assert main(["run", write(folder, whole), "--quiet"]) == 0
        x = fe.load(folder / "out" / "solution.safetensors").x
        assert torch.equal(x[0, ..., 0], x[1, ..., 0])
        assert not torch.equal(x[0, ..., 1], x[1, ..., 1])
        assert (x[:, 2] >= 0).all()


@pytest.mark.parametrize("name", ["adam", "sgd", "levenberg_marquardt"])
def test_every_method_can_be_asked_for(
    place: tuple[Path, str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    assert main(["run", write(folder, table(module, method={"name": name, **TWICE})), "--json"]) in (
        0,
        1,
    )
    assert found(capsys)["searches"] == 2


def test_exit_code_is_1_if_not_reached(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    whole = table(module, method={"max_steps": 0, "atol": 0.0})
    assert main(["run", write(folder, whole)]) == 1
    assert "Not reached: largest miss" in capsys.readouterr().out
    assert main(["run", write(folder, whole), "--json"]) == 1
    answer = found(capsys)
    assert (answer["exit_code"], answer["hits"]) == (1, 0)


def test_stdout_is_json_even_if_the_network_prints(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    whole = table(module, network={"factory": f"{module}:Loud", "weights": None})
    for command in ("check", "run"):
        main([command, write(folder, whole), "--json"])
        captured = capsys.readouterr()
        assert json.loads(captured.out)["exit_code"] in (0, 1)
        assert "forward!" in captured.err


def test_check_neither_solves_nor_writes(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    path = write(folder, table(module))
    assert main(["check", path]) == 0
    assert "The gradient agrees with central differences" in capsys.readouterr().out
    assert not (folder / "out").exists()


@pickled
def test_weights_are_read_from_a_state_dict(place: tuple[Path, str]) -> None:
    folder, module = place
    assert main(["run", write(folder, table(module)), "--quiet"]) == 0
    before = fe.load(folder / "out" / "solution.safetensors")
    whole = table(module, network={"weights": "w.pt"})
    assert main(["run", write(folder, whole), "--quiet"]) == 0
    assert torch.equal(fe.load(folder / "out" / "solution.safetensors").x, before.x)


@pytest.mark.parametrize("version", ["2.0.1", "2.5.1+cu121", "2.9.1", "2.10.0a0+git1"])
def test_pickled_weights_are_refused_where_reading_them_is_not_safe(
    place: tuple[Path, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
) -> None:
    folder, module = place
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    monkeypatch.setattr(torch, "load", None)
    assert main(["run", write(folder, table(module, network={"weights": "w.pt"}))]) == 2
    message = capsys.readouterr().err
    assert f"network.weights: reading 'w.pt' needs torch 2.10, got {version}" in message
    assert "safetensors.torch.save_file(network.state_dict(), 'weights.safetensors')" in message


def test_the_dtype_is_that_of_the_weights(place: tuple[Path, str]) -> None:
    folder, module = place
    state = read_safetensors("read", folder / "w.safetensors")
    state = {name: tensor.double() for name, tensor in state.items()}
    write_archive("save", folder / "w.safetensors", state, {})
    assert main(["run", write(folder, table(module)), "--quiet"]) == 0
    assert fe.load(folder / "out" / "solution.safetensors").x.dtype is torch.float64


def test_an_exported_program_runs_only_if_trusted(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3), torch.nn.Softmax(-1))
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        network.eval(), (torch.zeros(2, 3, 4, 3),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, folder / "w.pt2")
    whole = table(module, network={"factory": None, "weights": "w.pt2"})
    path = write(folder, whole)
    assert main(["run", path]) == 2
    assert "runs code from it; if you trust who made it, add --trust-model" in capsys.readouterr().err
    assert main(["run", path, "--trust-model", "--json"]) in (0, 1)
    assert found(capsys)["searches"] == 1
    (folder / "w.pt2").write_bytes(b"nothing")
    assert main(["run", path, "--trust-model"]) == 2
    assert "cannot be loaded as a program" in capsys.readouterr().err


def test_the_callers_state_does_not_change(place: tuple[Path, str]) -> None:
    folder, module = place
    path = write(folder, table(module, method={"threads": 2}))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (the state that must not move)

    def state() -> tuple[Any, ...]:
        numbers: Any = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), numbers.tolist(), Path.cwd()

    import sys

    before, path_before, threads = state(), list(sys.path), torch.get_num_threads()
    assert main(["run", path, "--quiet"]) == 0
    assert (state(), sys.path, torch.get_num_threads()) == (before, path_before, threads)


@pytest.mark.parametrize(("search", "date"), [("features", {"every": 20}), ("scenario", "last")])
def test_a_report_is_rewritten_from_the_folder(
    place: tuple[Path, str],
    search: str,
    date: Any,
    capsys: pytest.CaptureFixture[str],
    rough_pictures: None,
) -> None:
    folder, module = place
    whole = table(module, question={"search": search, "date": date}, output={"report": True})
    assert main(["run", write(folder, whole), "--quiet"]) in (0, 1)
    page = folder / "out" / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", "out", "--json", "--trust-config"]) == 0
    assert found(capsys)["files"] == ["report.html"]
    assert page.read_bytes() == before

    (folder / "market.csv").write_text("\n".join(market(seed=1)))
    assert main(["report", "out", "--trust-config"]) == 2
    assert "the network and the prices changed since the run" in capsys.readouterr().err


def test_a_folder_of_something_else_has_no_report(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".", "nowhere", "market.csv"):
        assert main(["report", name]) == 2
        assert "is not the folder of a finished run" in capsys.readouterr().err


def test_searches_at_which_the_network_fails_are_named(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    network = {"factory": f"{module}:Timid", "arguments": {"limit": 0.06}, "weights": None}
    question = {"target": None, "at_least": {"OIL": 0.99999}}
    method = {"name": "adam", "lr": 5.0, "starts": {"number": 2, "jitter": 0.1}}
    path = write(folder, table(module, network=network, question=question, method=method))
    assert main(["run", path]) == 1
    shown = capsys.readouterr().out
    assert "Search 0 failed: ValueError: too far" in shown
    failed = json.loads((folder / "out" / "summary.json").read_text())["failed"]
    assert failed[0] == {"first": 0, "last": 0, "error": "ValueError: too far"}


def test_an_error_at_a_start_names_its_row(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    network = {"factory": f"{module}:Timid", "weights": None}
    method = {"starts": {"number": 3, "jitter": 40.0}}
    assert main(["run", write(folder, table(module, network=network, method=method))]) == 2
    assert "too far; solve: at the start window of row (2,)" in capsys.readouterr().err


def test_leverage(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, module = place
    question = {"target": None, "at_least": {"OIL": 1.5}}
    few = {"max_steps": 2, "starts": {"number": 1}}
    for leverage, code in ((None, 2), (1.2, 2), (2, 1), (float("inf"), 1)):
        whole = table(module, question={**question, "leverage": leverage}, method=few)
        assert main(["run", write(folder, whole), "--quiet"]) == code
        assert ("target must be feasible" in capsys.readouterr().err) == (code == 2)
    assert main(["report", "out"]) == 0
