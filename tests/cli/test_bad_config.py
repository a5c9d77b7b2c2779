"""Bad input: one line on stderr that names the remedy, and exit code 2."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from funcexplain.cli import main
from tests.cli.workplace import furnish, market, pickled, table, write


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The current folder, and the module of its networks."""
    monkeypatch.chdir(tmp_path)
    return tmp_path, furnish(tmp_path)


def error_line(capsys: pytest.CaptureFixture[str], path: str) -> str:
    """Run both commands on a bad config, and return the error line."""
    capsys.readouterr()
    for command in ("check", "run"):
        assert main([command, path, "--quiet"]) == 2
        out, message = capsys.readouterr()
        assert out == ""
        assert message.startswith("funcexplain: error: ")
        assert message.count("\n") == 1, message
    assert not Path("out").exists()
    return message


def without_a_price(lines: list[str]) -> list[str]:
    date, _, *rest = lines[5].split(",")
    return [*lines[:5], ",".join([date, "", *rest]), *lines[6:]]


def with_a_price(text: str) -> Any:
    def changed(lines: list[str]) -> list[str]:
        date, _, *rest = lines[5].split(",")
        return [*lines[:5], ",".join([date, text, *rest]), *lines[6:]]

    return changed


def shuffled(lines: list[str]) -> list[str]:
    body = lines[1:]
    random.Random(0).shuffle(body)
    return [lines[0], *body]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_price, "column 'GOLD': expected a price, got a gap ('')"),
        (with_a_price("0"), "expected a finite price above zero, got '0'"),
        (with_a_price("-3.0"), "expected a finite price above zero"),
        (with_a_price("closed"), "expected a number with a decimal point, got 'closed'"),
        (lambda lines: [*lines[:6], f"{lines[5]}1", *lines[6:]], "appears twice; sort the days"),
        (shuffled, "sort the days, oldest first, each once"),
        (lambda lines: lines[:9], "the history is too short: expected prices of at least span + look"),
        (lambda lines: [lines[0].replace("OIL", "GOLD"), *lines[1:]], "'GOLD' has two columns"),
        (lambda lines: [], "expected a header row such as 'date,EUR,JPY', got an empty file"),
        (lambda lines: ["\x00\x01"], "expected a date column"),
    ],
)
def test_prices(
    place: tuple[Path, str], change: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    (folder / "market.csv").write_text("\n".join(change(market())))
    assert message in error_line(capsys, write(folder, table(module)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"prices": {"file": "none.csv"}}, "expected 'ecb', 'sp500' or the path of a csv or parquet"),
        ({"prices": {"assets": ["GOLD", "OYL"]}}, "prices.assets: there is no 'OYL' in the data"),
        ({"prices": {"assets": ["GOLD", "OIL"]}}, "the network does not map windows of 3 channels"),
        ({"question": {"target": {"oil": 0.5}}}, "there is no 'oil' in the data; did you mean 'OIL'?"),
        ({"question": {"target": {"OIL": 1.5}}}, "the weight of OIL in 0 ... 1, got 1.5"),
        ({"question": {"target": {"OIL": 0.6, "GOLD": 0.6}}}, "sum to at most 1, got 1.2"),
        ({"question": {"exit": "SILVER"}}, "question.exit: there is no 'SILVER' in the data; choose"),
        ({"question": {"target": None, "at_least": {"OIL": 1.2}}}, "target must be feasible"),
        ({"question": {"target": None, "top": "OIL", "loss": "kl"}}, "compares whole allocations"),
        ({"question": {"date": "2023-01-01"}}, "the first day with 9 days behind it is 2024-01-09"),
        ({"question": {"date": "2025-01-01"}}, "no window ends on 2025-01-01; the trading day before"),
        ({"question": {"date": {"start": "2030-01-01"}}}, "no window ends between start and end"),
        ({"question": {"frozen": {"assets": ["TIN"]}}}, "question.frozen.assets: there is no 'TIN'"),
        (
            {"question": {"search": "features", "frozen": {"last_days": 4}}},
            "question.frozen: no entry is free",
        ),
        (
            {"question": {"search": "features", "free": {"last_days": 5}}},
            "question.free.last_days: expected at most 4, got 5",
        ),
        ({"features": {"lookback": 5}}, "the network does not map windows of 3 channels"),
        ({"features": {"channels": ["return"]}}, "the network does not map windows of 1 channels"),
        ({"features": {"channels": ["returns"]}}, "no 'returns' in the data; did you mean 'return'?"),
        ({"features": {"lookback": 10**6}}, "the history is too short"),
        ({"question": {"market": "filtered_history"}}, "must have at least 250 days, got 59"),
        ({"question": {"ahead": 9}}, "question.ahead: expected at most lookback + span - 1 = 8 days"),
        ({"method": {"lr": -1.0}}, "method: adam: lr must be finite and >= 0, got -1"),
        ({"method": {"name": "levenberg_marquardt", "damping": 0.0}}, "damping must be finite and > 0"),
        (
            {"method": {"name": "levenberg_marquardt", "residual": "logs"}},
            "residual must be 'auto', 'weights'",
        ),
    ],
)
def test_entries_that_contradict_each_other(
    place: tuple[Path, str],
    parts: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, module = place
    assert message in error_line(capsys, write(folder, table(module, **parts)))


@pytest.mark.parametrize("days", [60, 300])
def test_a_price_that_never_moves_is_named(
    place: tuple[Path, str], days: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    lines = [line.split(",") for line in market(days)]
    still = [",".join([day, gold, "5.0" if row else oil, rice]) for row, (day, gold, oil, rice) in
             enumerate(lines)]  # fmt: skip
    (folder / "market.csv").write_text("\n".join(still))
    message = error_line(capsys, write(folder, table(module)))
    assert "every price must move, got a constant one of 'OIL'; leave it out of prices.assets" in message


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("nowhere:make", "no module 'nowhere', neither installed nor in the config's folder"),
        ("torch.nowhere:make", "no module 'torch.nowhere'"),
        ("broken:make", "importing 'broken' raised SyntaxError"),
        ("needy:make", "importing 'needy' raised ModuleNotFoundError: No module named 'not_there'"),
        ("{}:mak", "has no 'mak'; name a function of this module"),
        ("{}:fails", "fails raised ZeroDivisionError: one line and another; check network.arguments"),
        ("{}:leaves", "leaves raised SystemExit: 7"),
        ("{}:number", "number must return a torch.nn.Module, got int"),
        ("{}:torch", "torch must be a function, got module"),
        ("{}:Rounded", "does not depend on the input near its start"),
    ],
)
def test_factories(
    place: tuple[Path, str], factory: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    (folder / "broken.py").write_text("def make(:")
    (folder / "needy.py").write_text("import not_there")
    whole = table(module, network={"factory": factory.format(module), "weights": None})
    path = write(folder, whole)
    if factory.endswith("Rounded"):  # run accepts it, but cannot find an answer
        assert main(["check", path, "--quiet"]) == 2
        assert message in capsys.readouterr().err
        assert main(["run", path]) == 1
        assert "funcexplain: warning: solve: no gradient reaches the input" in capsys.readouterr().err
    else:
        assert message in error_line(capsys, path)


def test_arguments_that_a_factory_does_not_accept(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    whole = table(module, network={"arguments": {"asset": 3}})
    assert "unexpected keyword argument 'asset'" in error_line(capsys, write(folder, whole))


@pytest.mark.parametrize("suffix", [pytest.param("pt", marks=pickled), "safetensors"])
def test_weights(place: tuple[Path, str], suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    from funcexplain.solutions.archive import write_archive

    folder, module = place
    name = f"other.{suffix}"
    path = write(folder, table(module, network={"weights": name}))
    assert name in error_line(capsys, path)  # is not there

    def save(state: dict[str, torch.Tensor]) -> None:
        if suffix == "pt":
            torch.save(state, folder / name)
        else:
            write_archive("save", folder / name, state, {})

    save({"1.weight": torch.zeros(4, 36), "1.bias": torch.zeros(4)})
    assert "do not fit the network of" in error_line(capsys, path)
    save({"weight": torch.zeros(3)})
    assert "do not fit the network of" in error_line(capsys, path)
    save({"1.weight": torch.full((3, 36), float("nan")), "1.bias": torch.zeros(3)})
    assert "its weights are not finite" in error_line(capsys, path)
    whole = (folder / name).read_bytes()
    for content in (b"", b"1234567", whole[: len(whole) // 2], whole[:20], b"\x80\x02" + whole):
        (folder / name).write_bytes(content)
        assert name in error_line(capsys, path)


@pickled
def test_weights_that_would_run_code_or_are_not_a_state_dict(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    path = write(folder, table(module, network={"weights": "w.pt"}))
    torch.save(torch.nn.Linear(2, 2), folder / "w.pt")
    assert "write one with torch.save(network.state_dict(), path)" in error_line(capsys, path)
    torch.save([1, 2], folder / "w.pt")
    assert "must hold a state_dict" in error_line(capsys, path)
    path = write(folder, table(module, network={"weights": "w.h5"}))
    assert "expected a file .safetensors, .pt, .pth, .bin, .ckpt or .pt2, got 'w.h5'" in error_line(
        capsys, path
    )


def test_invalid_toml(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = place
    (folder / "config.toml").write_text("[network\nfactory")
    assert "is not a TOML file: Expected ']'" in error_line(capsys, "config.toml")
    assert "there is no config file 'none.toml'" in error_line(capsys, "none.toml")
    assert "is a folder" in error_line(capsys, ".")


def test_folders_that_cannot_be_written(
    place: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    for name in ("market.csv", "market.csv/inside", "n" * 300):
        path = write(folder, table(module, output={"folder": name}))
        assert f"cannot write to the folder '{name}'" in error_line(capsys, path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_read_only_folders(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, module = place
    (folder / "locked").mkdir(mode=0o500)
    path = write(folder, table(module, output={"folder": "locked"}))
    assert "cannot write to the folder 'locked'" in error_line(capsys, path)


def test_errors_as_json(place: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "none.toml", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "exit_code": 2,
        "error": err.removeprefix("funcexplain: error: ").strip(),
    }


def test_debug_shows_the_traceback(place: tuple[Path, str]) -> None:
    folder, module = place
    path = write(folder, table(module, network={"factory": f"{module}:fails", "weights": None}))
    with pytest.raises(ValueError, match="ZeroDivisionError") as error:
        main(["check", path, "--debug"])
    assert isinstance(error.value.__cause__, ZeroDivisionError)
