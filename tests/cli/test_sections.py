"""Groups, benchmarks, long-short books, layouts, features and weight files of a config."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.cli import main
from funcexplain.commands.weights import load_weights
from funcexplain.reports import report, trades
from funcexplain.reports.pictures.weights import asset_bounds
from tests.cli.desks import CODE
from tests.cli.workplace import market, pickled, write

_count = 0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    """A folder with code and prices, and the code's module."""
    global _count
    _count += 1  # a process imports a module once, even from another folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"sections_{_count}.py").write_text(CODE)
    (tmp_path / "market.csv").write_text("\n".join(market()))
    return tmp_path, importlib.import_module(f"sections_{_count}")


def table(module: Any, **parts: dict[str, Any]) -> dict[str, Any]:
    """A config; factories are of the module."""
    whole: dict[str, Any] = {
        "network": {"factory": "Flat"},
        "prices": {"file": "market.csv"},
        "features": {"lookback": 4, "span": 5},
        "question": {"market": "normal"},
        "method": {"max_steps": 30, "answer": "first", "starts": {"number": 1}},
        "output": {"folder": "out", "picture": False, "report": False},
    }
    for name, entries in parts.items():
        whole[name] = {**whole.get(name, {}), **entries}
    for name in ("network", "features"):
        factory = whole[name].get("factory")
        if factory and ":" not in factory:
            whole[name]["factory"] = f"{module.__name__}:{factory}"
    return {name: {k: v for k, v in entries.items() if v is not None} for name, entries in whole.items()}


def run(folder: Path, whole: dict[str, Any]) -> fe.Solution:
    """The answer of a config."""
    assert main(["run", write(folder, whole), "--quiet"]) in (0, 1)
    return fe.load(folder / "out" / "solution.safetensors")


def test_groups_stand_for_their_members(place: tuple[Path, Any]) -> None:
    folder, module = place
    (folder / "sectors.csv").write_text("asset;group\nGOLD;Metals\nOIL;Energy\nGAS;Energy\nRICE;Food\n")
    groups = {"file": "sectors.csv"}
    by_name = run(folder, table(module, groups=groups, question={"at_least": {"Metals": "50%"}}))
    goal = {"assets": ["GOLD"], "at_least": 0.5}
    by_hand = run(folder, table(module, question={"group": goal}))
    torch.testing.assert_close(by_name.weights, by_hand.weights)
    assert main(["check", "config.toml", "--quiet"]) == 0


@pytest.mark.usefixtures("rough_pictures")
def test_groups_are_shown_by_name(
    place: tuple[Path, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, module = place
    (folder / "sectors.csv").write_text("GOLD,Metals\nOIL,Others\nRICE,Others\n")
    for part in ("row_pictures", "overview"):  # they take seconds
        monkeypatch.setattr(report, part, lambda *_: [])
    whole = table(module, groups={"file": "sectors.csv"}, question={"at_least": {"Metals": "50%"}})
    whole["method"] = {"max_steps": 20, "answer": "first", "starts": {"number": 1}}
    path, more = write(folder, whole), ("--set", "output.report=true")
    assert main(["run", path, *more]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = {cells[0]: cells[1:] for cells in lines if len(cells) == 3 and cells[2].endswith("%")}
    assert shown["Metals"] == shown["GOLD"]
    assert "Total weight of each group" in (folder / "out" / "report.html").read_text()


@pytest.mark.parametrize("whole", [True, False])
def test_a_picture_of_groups_has_their_totals_and_bounds(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    plot = trades.plot_weights

    def draw(*values: Any, **names: Any) -> Any:
        drawn.append(values)
        return plot(*values, **names)

    monkeypatch.setattr(trades, "plot_weights", draw)
    today, reached = np.array([0.2, 0.3, 0.5]), np.array([0.1, 0.2, 0.7])
    goals = np.array([[0, 1, 1, 0, 0.6, np.inf], [1, 0, 0, 0, -np.inf, 0.3], [1, 1, 0, 0, 0.0, 1.0]])
    groups = {"Metals": ("A",), "Others": ("B", "C")}
    assert trades.groups_picture(today, reached if whole else goals, reached, [*"ABC"], groups)
    ((before, target, after),) = drawn
    assert before.tolist() == pytest.approx([0.2, 0.8])
    assert after.tolist() == pytest.approx([0.1, 0.9])
    if whole:
        assert target.tolist() == pytest.approx([0.1, 0.9])
    else:
        lower, upper = asset_bounds(target)
        assert lower.tolist() == [-np.inf, 0.6]
        assert upper.tolist() == [0.3, np.inf]
    assert trades.groups_picture(today, goals, reached, [*"ABC"], {}) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\nX,Y\n", "expected rows such as 'GOLD,Name of its group'"),
        ("GOLD,OIL\n", "a group must not have an asset's name, got 'OIL'"),
        ("GOLD,A\nGOLD,B\n", "line 2: expected one group of GOLD, got A and B"),
        ("GOLD\n", "line 1: expected one group of GOLD, got none"),
        ("", "expected rows such as"),
    ],
)
def test_files_of_groups_that_are_wrong(
    place: tuple[Path, Any], text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    (folder / "sectors.csv").write_text(text)
    whole = table(module, groups={"file": "sectors.csv"}, question={"top": "OIL"})
    assert message in error(folder, whole, capsys)


def test_targets_and_tables_are_relative_to_a_benchmark(place: tuple[Path, Any]) -> None:
    folder, module = place
    benchmark = {"GOLD": "50%", "OIL": 0.3, "RICE": 0.2}
    found = run(folder, table(module, question={"benchmark": benchmark, "at_least": {"OIL": 0.1}}))
    assert found.weights.sum().abs() < 1e-9
    absolute = run(folder, table(module, question={"at_least": {"OIL": 0.4}}))
    torch.testing.assert_close(
        found.weights + torch.tensor([0.5, 0.3, 0.2]).double(), absolute.weights, atol=1e-6, rtol=0.0
    )


def test_a_long_short_target_keeps_the_total(place: tuple[Path, Any]) -> None:
    folder, module = place
    whole = table(module, network={"factory": "LongShort"}, question={"target": {"OIL": -0.4}})
    found = run(folder, whole)
    assert float(found.weights[1]) == pytest.approx(-0.4, abs=2e-3)
    x = fe.load(folder / "out" / "solution.safetensors").weights
    assert x.shape == (3,)


def test_move_leaves_the_others(place: tuple[Path, Any]) -> None:
    folder, module = place
    whole = table(module, question={"move": {"OIL": "5%", "GOLD": -0.05}})
    found = run(folder, whole)
    import json

    today = json.loads((folder / "out" / "summary.json").read_text())["answers"][0]["today"]
    assert float(found.weights[2]) == pytest.approx(today["RICE"], abs=2e-3)
    assert float(found.weights[1]) == pytest.approx(today["OIL"] + 0.05, abs=2e-3)


def test_windows_from_a_file_are_searched_as_features(
    place: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    folder, module = place
    stack = 0.01 * np.random.default_rng(0).normal(size=(20, 2, 6, 3))
    np.save(folder / "windows.npy", stack)
    whole = table(
        module,
        network={"arguments": {"inputs": 36}},
        features={"file": "windows.npy"},
        question={"at_least": {"OIL": 0.5}, "market": None},
    )
    path = write(folder, whole)
    assert main(["run", path]) == 0
    assert "each channel by itself" in capsys.readouterr().out
    found = fe.load(folder / "out" / "solution.safetensors")
    network = module.Flat(36)
    torch.testing.assert_close(network(found.x[None])[0], found.weights)
    whole["question"]["search"] = "scenario"
    with pytest.raises(ValueError, match=r"features.file holds them"):
        write(folder, whole)


def error(folder: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a config is refused."""
    path = write(folder, whole)
    capsys.readouterr()
    assert main(["run", path, "--quiet"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--debug shows the traceback" not in message
    return message


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"network": {"layout": "n l"}}, "network.layout: adapt: layout must name every axis of more"),
        ({"network": {"layout": "n l z"}}, "layout must name the axes n, c, l, a"),
        ({"network": {"layout": "n l (c a)", "factory": "Days"}}, "windows have shape (n, 3, 4, 3)"),
        ({"network": {"factory": "Recurrent"}}, "several fit the network, 'n l (c a)', 'n l (a c)'"),
        ({"network": {"factory": "Cash"}}, 'name them all, as in outputs = ["...", "CASH"]'),
        (
            {"network": {"factory": "Dict"}},
            "got dict of 'risk' (), 'weights' (1, 3); name them",
        ),
        ({"network": {"factory": "Tuple", "output": 7}}, "output must be one of what it returns, 0 (1"),
        ({"network": {"factory": "Horizons"}}, 'give horizon, an index or "mean"'),
        ({"network": {"factory": "Horizons", "horizon": 2}}, "horizon must be one of 2, got 2"),
        ({"network": {"outputs": ["...", "OIL"]}}, "network.outputs: expected different names"),
        ({"network": {"inputs": {"today": {"TIN": 1}}}}, "network.inputs.today: there is no 'TIN'"),
        ({"network": {"inputs": {"today": "none.npy"}}}, "network.inputs.today: there is no file"),
        ({"network": {"inputs": {"rate": 0.1}}}, "unexpected keyword argument 'rate'"),
        ({"network": {"window": 1}}, "network.window must be an index in 0 ... 0, or a name, got 1"),
        ({"network": {"inputs": {"rate": [[1], [1, 2]]}}}, "expected numbers in lists of one length"),
        ({"features": {"factory": "Flat"}}, "features.factory"),
        ({"features": {"factory": "no_such"}}, "features.factory: 'sections_"),
        ({"features": {"factory": "os:getcwd"}}, "features.factory: expected a module with a network"),
        ({"features": {"factory": "of_returns", "arguments": {"days": 99}}}, "features.factory"),
        ({"features": {"factory": "of_returns", "channels": ["a"]}}, "2 channels, got 1 names for them"),
        ({"features": {"factory": "of_levels"}}, "must not depend on the level of prices"),
        ({"features": {"factory": "branches"}}, "must work under torch.func.vmap"),
        ({"features": {"factory": "flat_result"}}, "must return channels (C, days, A)"),
        ({"features": {"channels": ["momentum(3"]}}, "features.channels[0]: expected a channel such as"),
        ({"features": {"channels": ["momentum(99)"]}}, "the history is too short"),
        ({"features": {"scaling": "weights"}}, '"weights" needs network.weights'),
        (
            {"features": {"file": "none.npy"}, "question": {"market": None}},
            "features.file: there is no file 'none.npy'",
        ),
        (
            {"question": {"benchmark": {"OIL": 0.5}}},
            "expected weights that sum to 1, got 0.5",
        ),
        ({"question": {"move": {"OIL": 0.2}}}, "target must be feasible"),
        ({"question": {"at_least": {"OIL": 1.5}}}, "set question.leverage, the largest weight that it"),
        ({"question": {"at_least": {"OIL": 7}, "leverage": 2}}, "set question.leverage, its largest"),
        ({"question": {"target": {"OIL": 4}}}, 'in 0 ... 1, got 4; 4 percent is "4%"'),
        (
            {"network": {"factory": "LongShort"}, "question": {"loss": "kl", "target": {"OIL": 0.5}}},
            "question.loss: kl compares distributions",
        ),
    ],
)
def test_entries_that_do_not_fit(
    place: tuple[Path, Any],
    parts: dict[str, dict[str, Any]],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, module = place
    (folder / f"{module.__name__}.py").write_text(CODE)
    parts = {**parts, "question": {"at_least": {"OIL": 0.5}, **parts.get("question", {})}}
    if parts["question"].keys() & {"move", "target"}:
        parts["question"]["at_least"] = None
    assert message in error(folder, table(module, **parts), capsys)


@pickled
@pytest.mark.parametrize(
    ("prefix", "fits"),
    [
        *[(prefix, True) for prefix in ("", "module.", "_orig_mod.", "model.", "net.")],
        ("model._orig_mod.module.", True),
        ("backbone.", False),
    ],
)
def test_prefixes_are_stripped_if_all_names_then_match(
    place: tuple[Path, Any], prefix: str, fits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    state = {f"{prefix}{name}": tensor for name, tensor in module.Flat(seed=3).state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 1}, folder / "w.pth")
    whole = table(module, network={"weights": "w.pth"}, question={"at_least": {"OIL": 0.5}})
    assert main(["check", write(folder, whole)]) == (0 if fits else 2)
    out, err = capsys.readouterr()
    assert (f"stripped {prefix!r}" in out) == (fits and bool(prefix))
    assert ("do not fit the network" in err) == (not fits)


@pickled
@pytest.mark.parametrize(
    ("prefix", "beside", "said"),
    [
        ("net.", {"loss.weight": 1.0, "metric.total": 0.0}, "left out loss.weight, metric.total, which"),
        ("net.", {f"ema.{k}": 1.0 for k in range(9)}, "left out ema.0, ema.1, ema.2 and 6 more, which"),
        ("", {"val_loss.weight": 1.0, "hparams": {"lr": 0.1}}, "left out val_loss.weight, hparams,"),
        ("model._orig_mod.", {"loss_fn.steps": 2.0}, "left out loss_fn.steps, which"),
        ("", {"head.weight": 1.0}, None),
        ("net.", {"net.head.weight": 1.0}, None),
        ("net.", {"copy": "model."}, "several networks that fit, 'model.', 'net.'; save"),
    ],
    ids=range(7),
)
def test_what_a_checkpoint_holds_beside_the_network_is_left_out(
    place: tuple[Path, Any],
    prefix: str,
    beside: dict[str, Any],
    said: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, module = place
    own = module.Flat(seed=3).state_dict()
    state = {f"{prefix}{name}": tensor for name, tensor in own.items()}
    more = {name: torch.tensor(v) if isinstance(v, float) else v for name, v in beside.items()}
    if "copy" in beside:
        more = {f"model.{name}": tensor + 1.0 for name, tensor in own.items()}
    torch.save({"state_dict": {**state, **more}, "hparams": {"lr": 0.1}, "epoch": 1}, folder / "w.ckpt")
    network, lines = module.Flat(), list[str]()
    if said is None or "several" in said:
        with pytest.raises(ValueError, match=said or r"do not fit the network.*head\.weight"):
            load_weights(network, "w.ckpt", "mine:Flat", lines.append)
        return
    load_weights(network, "w.ckpt", "mine:Flat", lines.append)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in own.items())
    assert said in lines[-1]
    assert len(lines) == 1 + bool(prefix)


def test_features_in_other_units_are_warned_of(
    place: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    state = {**module.Flat().state_dict(), "mean": torch.zeros(3).double()}
    state["std"] = torch.full((3,), 1e-4).double()
    torch.save(state, folder / "w.pt")
    whole = table(
        module,
        network={"weights": "w.pt"},
        features={"scaling": "weights"},
        question={"at_least": {"OIL": 0.5}},
    )
    main(["check", write(folder, whole)])
    error = capsys.readouterr().err
    assert "sigmas of the given units away from its mean" in error
    assert "one-hot at all" in error
