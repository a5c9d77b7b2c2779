"""Runs notice what has changed, go on with what is accepted, and store the errors of single rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import funcexplain as fe
from funcexplain.clusters import folder as folder_module
from funcexplain.clusters.behavior import compare_behavior, measure_behavior
from funcexplain.clusters.fingerprint import fingerprint
from funcexplain.clusters.manifest import decode_manifest
from tests.clusters import builds
from tests.clusters.conftest import assert_same

Solve = Callable[..., fe.clusters.ChunkedSolution]
SCALE = {"all": [1.0]}
HIDDEN = "SCALE_OF_THE_LOSS"


def scaled(weights: Tensor, target: Tensor) -> Tensor:
    return SCALE["all"][0] * fe.losses.mse(weights, target)


def hidden(weights: Tensor, target: Tensor) -> Tensor:
    """Reads what no description follows."""
    return float(os.environ.get(HIDDEN, "1")) * fe.losses.mse(weights, target)


def grid(loss: Any, network: Any = None) -> fe.Problem:
    x0 = torch.linspace(-1.0, 1.0, 24, dtype=builds.F64).view(2, 3, 4)
    p = fe.problem(network or builds.network(), torch.full((4,), 0.25, dtype=builds.F64), x0, loss=loss)
    return fe.vmap(p, x0=torch.stack([x0, 2.0 * x0]))


def with_scaled_loss() -> fe.Problem:
    return grid(scaled)


def with_hidden_loss() -> fe.Problem:
    return grid(hidden)


class Refuses(nn.Module):
    """Raises at windows that no start has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = builds.network()

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 2.05:
            raise ArithmeticError("too large")
        return self.inner(x)


def refusing(models: int = 1) -> fe.Problem:
    p = grid(fe.losses.mse, Refuses())
    return p if models == 1 else fe.vmap(p, params=fe.stack([Refuses() for _ in range(models)])[1])


def test_a_loss_that_reads_a_list_at_module_level(here: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    here(with_scaled_loss)
    monkeypatch.setitem(SCALE, "all", [2.0])
    with pytest.raises(ValueError, match=r"something else: loss .*behavior \(loss of row 0: .* there"):
        here(with_scaled_loss)


def test_a_loss_that_no_description_sees(here: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    run = here(with_hidden_loss)
    assert_same(here(with_hidden_loss), run[...])
    monkeypatch.setenv(HIDDEN, "1.001")
    with pytest.raises(
        ValueError, match=r"else: behavior \(loss of row 0.*; if .*accept=\['behavior'\]"
    ):
        here(with_hidden_loss)


def test_a_worker_that_computes_something_else(here: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = folder_module.open_or_create

    def opened(*args: Any) -> Any:
        monkeypatch.setenv(HIDDEN, "3")  # from here on, where the worker begins
        return inner(*args)

    monkeypatch.setattr("funcexplain.clusters.solving.open_or_create", opened)
    (failure,) = here(with_hidden_loss, retries=0).failures
    assert "build must make the same problem in every process" in failure.error
    assert "behavior (loss of row 0: " in failure.error


def test_a_change_that_is_accepted(
    here: Solve, tmp_path: Path, faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = here(with_scaled_loss, chunk_size=1)
    (tmp_path / "run" / "chunks" / "000000" / "000000001.safetensors").unlink()
    monkeypatch.setitem(SCALE, "all", [2.0])
    with pytest.raises(ValueError, match=r"something else: behavior"):
        here(with_scaled_loss, chunk_size=1, accept="loss")
    builds.arrange(faults)
    after = here(with_scaled_loss, chunk_size=1, accept=["loss", "behavior"])
    assert builds.solved(faults) == [1]
    assert_same(after[:1], before[:1])
    (record,) = after.accepted
    assert (sorted(record.changes), record.chunks) == (["behavior", "loss"], 1)
    assert "accepted=(loss, behavior)" in repr(fe.clusters.open(tmp_path / "run"))
    assert_same(here(with_scaled_loss, chunk_size=1), after[...])  # from now on it is the run's own
    assert builds.solved(faults) == [1]


@pytest.mark.parametrize("name", ["args.target", "settings.atol", "dims", 3])
def test_another_question_cannot_be_accepted(here: Solve, name: Any) -> None:
    with pytest.raises(ValueError, match="accept must name parts of the code"):
        here(accept=[name])
    with pytest.raises(TypeError, match="accept must be names of parts, got int"):
        here(accept=3)


def test_a_directory_of_an_earlier_version(here: Solve, tmp_path: Path, expected: fe.Solution) -> None:
    here()
    path = tmp_path / "run" / "manifest.json"
    manifest = decode_manifest(path.read_bytes())
    assert isinstance(manifest, folder_module.Manifest)
    old = {name: value for name, value in manifest._asdict().items() if name in _FIRST_FORMAT}
    text = json.dumps({"format": 1, **old, "checksum": _checksum(old)})
    path.write_text(text)
    assert_same(here(), expected)


_FIRST_FORMAT = ("parts", "dims", "shape", "chunk_size", "fields")


def _checksum(entries: dict[str, Any]) -> str:
    from funcexplain.clusters.manifest import _checksum as checksum

    return checksum(entries)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_sparse_buffers_are_part_of_a_network(layout: str) -> None:
    class Sparse(nn.Module):
        matrix: Tensor

        def __init__(self, number: float) -> None:
            super().__init__()
            matrix = torch.eye(4, 24, dtype=builds.F64) * number
            self.register_buffer("matrix", matrix.to_sparse(layout=getattr(torch, f"sparse_{layout}")))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax((self.matrix @ x.flatten(1).T).T, -1)

    one, same, other = (
        fingerprint(grid(fe.losses.mse, Sparse(number)), fe.adam(), {}) for number in (1.0, 1.0, 2.0)
    )
    assert one == same
    assert [name for name in one if one[name] != other[name]] == ["apply"]


def test_layers_that_a_loss_captures_are_described() -> None:
    def of(number: float) -> dict[str, str]:
        layer = nn.Linear(4, 1, bias=False).to(builds.F64)
        nn.init.constant_(layer.weight, number)
        return fingerprint(
            grid(lambda weights, target: layer(weights - target).square().sum()), None, {}
        )

    assert of(1.0) == of(1.0)
    assert of(1.0)["loss"] != of(2.0)["loss"]


def test_behavior_is_compared_as_machines_compute() -> None:
    behavior = measure_behavior(builds.grid(), builds.METHOD)
    assert {name.split(" of ")[0] for name in behavior} >= {"weights", "loss", "gradient", "step"}
    near = {name: [(1.0 + 1e-12) * n for n in numbers] for name, numbers in behavior.items()}
    assert compare_behavior(behavior, near) is None
    for method in (fe.adam(lr=0.1001), fe.sgd(lr=0.1)):
        difference = compare_behavior(behavior, measure_behavior(builds.grid(), method))
        assert difference is not None
        assert difference[0].startswith("step of row 0")


def test_what_differs_in_every_call_is_not_compared() -> None:
    calls = [0]

    def noisy(params: Any, x: Tensor) -> Tensor:
        calls[0] += 1
        return torch.softmax(x.flatten()[:4] + calls[0], -1) * calls[0]

    behavior = measure_behavior(grid(fe.losses.mse, (noisy, {})), builds.METHOD)
    assert not [name for name in behavior if name.startswith(("weights", "loss"))]


@pytest.mark.filterwarnings("ignore:solve. . of . rows are solved one at a time")
@pytest.mark.parametrize("models", [1, 2])
def test_errors_of_single_rows_are_stored(here: Solve, tmp_path: Path, models: int) -> None:
    settings: dict[str, Any] = {"method": fe.adam(lr=0.5), "max_steps": 10, "atol": 0.0}
    wanted = fe.solve(refusing(models), **settings)
    assert wanted.exceptions
    here((refusing, {"models": models}), chunk_size=1, **settings)
    run = fe.clusters.open(tmp_path / "run")
    assert run.exceptions == wanted.exceptions
    assert run[...].exceptions == wanted.exceptions
    row = next(iter(wanted.exceptions))
    assert run.flat(torch.tensor([row])).exceptions == {0: wanted.exceptions[row]}
    assert sum(len(part.exceptions) for part in run.chunks()) == len(wanted.exceptions)
    assert "The network failed in" in run.message


def test_a_path_that_is_too_long(here: Solve, tmp_path: Path) -> None:
    for long in (tmp_path / ("a" * 300), Path(str(tmp_path) + "/a" * 2040)):
        with pytest.raises(OSError, match=r"clusters.solve: directory must be a path that the system"):
            here(directory=long)
        with pytest.raises(OSError, match=r"clusters.open: directory must be a path that the system"):
            fe.clusters.open(long)
