"""The law of the catalogue: ``run`` answers as Python does with a wrapper written by hand."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import funcexplain as fe
from funcexplain.cli import main
from funcexplain.commands.config import METHODS
from funcexplain.markets import covariances
from funcexplain.markets.features import log_returns
from funcexplain.markets.prices import load
from tests.cli import desks
from tests.cli.desks import DESKS, Desk
from tests.cli.workplace import ASSETS, market, pickled, write

STEPS, ATOL = 30, 1e-3
_count = 0


def furnish(folder: Path) -> Any:
    """Write code and prices into a folder, and import the code."""
    global _count
    _count += 1  # a process imports a module once, even from another folder
    name = f"desks_{_count}"
    (folder / f"{name}.py").write_text(desks.CODE)
    (folder / "market.csv").write_text("\n".join(market()))
    return importlib.import_module(name)


def table(desk: Desk, module: Any) -> dict[str, Any]:
    """Its config."""

    def placed(entries: dict[str, Any]) -> dict[str, Any]:
        factory = entries.get("factory")
        return {**entries, "factory": f"{module.__name__}:{factory}"} if factory else entries

    whole: dict[str, Any] = {
        "network": placed(desk.network),
        "prices": {"file": "market.csv"},
        "features": {"lookback": 4, "span": 5, **placed(desk.parts.get("features", {}))},
        "question": {"at_least": {"OIL": 0.5}, "market": "normal", **desk.parts.get("question", {})},
        "method": {"max_steps": STEPS, "atol": ATOL, "answer": "first", "starts": {"number": 1}},
        "output": {"folder": "out", "picture": False, "report": False},
    }
    return whole


def answer_by_hand(desk: Desk, module: Any) -> fe.Solution:
    """The answer in Python, with the wrapper."""
    prices = load("market.csv")
    x0, returns, compute = desks.window_of(desk, module, prices)
    question = desk.parts.get("question", {}).get("at_least", {"OIL": 0.5})
    ((asset, weight),) = question.items()
    share = float(weight.removesuffix("%")) / 100 if isinstance(weight, str) else weight
    problem = fe.problem(
        desk.wrap(module).eval(),
        fe.targets.at_least(asset, share),
        x0,
        assets=ASSETS,
        outputs=desk.outputs,
    )
    model = fe.models.normal(covariances.sample(log_returns(prices)))
    own = {} if desk.channels is None else {"features": compute, "inverse": lambda window, r: r}
    problem = fe.scenarios.scenario(returns, model, **own)(problem)
    method = fe.levenberg_marquardt(**METHODS["levenberg_marquardt"])
    return fe.solve(problem, method, max_steps=STEPS, atol=ATOL, keep="best", history=1)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path, furnish(tmp_path)


@pickled
@pytest.mark.parametrize("name", DESKS)
def test_run_answers_as_python_does_with_a_wrapper(
    name: str, place: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, module = place
    desk = DESKS[name]
    if desk.save is not None:
        desk.save(module, folder)
    path = write(folder, table(desk, module))
    trust = ["--trust-model"] if desk.trusted else []
    code = main(["run", path, *trust, "--quiet"])
    assert code in (0, 1), capsys.readouterr().err
    found, expected = fe.load(folder / "out" / "solution.safetensors"), answer_by_hand(desk, module)
    torch.testing.assert_close(found.weights, expected.weights, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(found.x, expected.x, atol=1e-8, rtol=1e-6)
    assert bool(expected.hit)
    assert code == 0
