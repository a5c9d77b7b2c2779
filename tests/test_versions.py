"""What the package needs of torch: no more than its oldest supported version has."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import funcexplain as fe
from funcexplain.networks import versions
from funcexplain.networks.network import slope
from tests.helpers import make_problem, make_x0

PACKAGE = Path(fe.__file__).parent
ATTRIBUTES = {"itemsize", "nbytes"}
ARGUMENTS = {"materialize_grads", "stack_weights"}


def test_a_torch_without_all_that_came_later_is_enough() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.oldest"]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "compiled steps need torch 2.2, got 2.0.1" in done.stderr


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
def test_one_file_asks_for_versions(path: Path) -> None:
    if path.name == "versions.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            assert "torch.__version__" not in ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
            assert not ast.unparse(node.args[0]).startswith("torch"), ast.unparse(node)
        assert not (isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES), ast.unparse(node)
        assert not (isinstance(node, ast.keyword) and node.arg in ARGUMENTS), ast.unparse(node)


def test_no_newer_version_is_excluded() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [project["requires-python"], *project["dependencies"]]
    wanted += [one for name, every in extras.items() if name != "docs" for one in every]
    limited = [one for one in wanted if set("<~!") & set(one) or "==" in one]
    assert limited == []


def test_a_part_with_two_names_is_put_back() -> None:
    part = torch.nn.Linear(2, 2)
    both, weight = torch.nn.ModuleList([part, part]), part.weight
    new = torch.zeros(2, 2)
    with versions.reparametrized(both, {"0.weight": new, "1.weight": new}):
        assert part.weight is new
    assert part.weight is weight


def test_without_transforms_nothing_is_mapped() -> None:
    def mapped(x: torch.Tensor) -> torch.Tensor:
        with versions.without_transforms():
            assert not torch._C._are_functorch_transforms_active()
        assert torch._C._are_functorch_transforms_active()
        return x

    torch.func.vmap(torch.func.grad(lambda x: mapped(x).sum()))(torch.ones(3, 2))


@pytest.mark.parametrize("batched", [False, True])
def test_a_slope_is_zero_where_nothing_depends_on_the_input(batched: bool) -> None:
    z, other = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    direction = torch.ones((4, 2) if batched else (2,))
    for outputs in (other * 2.0, torch.ones(2)):
        found = slope(outputs, z, direction, batched=batched)
        assert torch.equal(found, torch.zeros((4, 3) if batched else (3,)))


def test_steps_that_cannot_be_compiled_say_which_torch_they_need(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.1.2"))
    fe.solve(fe.vmap(make_problem(), x0=make_x0().expand(3, -1, -1, -1)), max_steps=1, compile=True)
    assert "goes on uncompiled: compiled steps need torch 2.2, got 2.1.2" in caplog.text
