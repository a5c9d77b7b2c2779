"""The public surface, the direction of imports, and what importing costs."""

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import funcexplain as fe

ROOT = Path(fe.__file__).parent
SURFACE = """
    Attribution GradientCheck Info Optimizer Probability Problem Progress Reach Sensitivity Solution
    State Status adam adapt agreement alternatives as_optimizer asset_masks attribute bands box cast
    channels check_gradient clip closest clusters consensus difference drivers evaluate explain freeze
    functionalize gradient_wrt_input jitter levenberg_marquardt load losses make_step models moves
    one_hot_targets opaque penalize penalties pipe plot probability problem progress prune rarity reach
    register_rule reparametrize report robust run sample scenarios sensitivity sgd shadow_prices smooth
    solve sparsify stack standardize starts stories targets tie vmap windows zero_masked
""".split()
# Left to right: a module imports from its own house or from one to its left.
HOUSES = [
    *("networks", "problems", "solutions", "solvers", "engine"),
    *("markets", "measures", "reports", "clusters", "commands"),
]
MODULES = sorted(
    ".".join(("funcexplain", *path.relative_to(ROOT).with_suffix("").parts))
    for path in ROOT.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py") and "data" not in path.parts
)


def imported(module: str) -> set[str]:
    """Modules of the project that a module imports, wherever in its text."""
    tree = ast.parse((ROOT.parent / (module.replace(".", "/") + ".py")).read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("funcexplain"):
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(a.name for a in node.names if a.name.startswith("funcexplain"))
    return names & set(MODULES)


def test_the_surface_is_pinned() -> None:
    assert fe.__all__ == sorted(SURFACE)
    assert set(SURFACE) <= set(dir(fe))
    with pytest.raises(AttributeError, match="no attribute 'adamw'"):
        fe.adamw  # noqa: B018


def test_what_type_checkers_see_is_what_there_is() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("funcexplain")
        for alias in node.names
    }
    assert sorted(filter(None, seen)) == fe.__all__ == [n for n in fe.__all__ if hasattr(fe, n)]
    for name, path in seen.items():
        module, _, attribute = path.rpartition(".")
        assert name is not None
        assert getattr(importlib.import_module(module), attribute) is getattr(fe, name)


@pytest.mark.parametrize("name", SURFACE)
def test_every_public_name_is_documented(name: str) -> None:
    doc = inspect.getdoc(getattr(fe, name))
    assert doc
    value = getattr(fe, name)
    if inspect.isfunction(value):
        assert "Args:" in doc or not inspect.signature(value).parameters
        assert "Returns:" in doc or name == "register_rule"
        assert "Example:" in doc
    api = (ROOT.parent / "docs" / "api.md").read_text()
    owner = value.__name__ if inspect.ismodule(value) else f"{value.__module__}.{name}"
    assert f"::: {owner}" in api


@pytest.mark.parametrize("name", ["losses", "penalties", "targets"])
def test_every_loss_and_penalty_is_documented(name: str) -> None:
    module = getattr(fe, name)
    public = [n for n, v in vars(module).items() if inspect.isfunction(v) and not n.startswith("_")]
    assert sorted(public) == module.__all__
    for function in public:
        assert "Example:" in (getattr(module, function).__doc__ or "")


@pytest.mark.parametrize("page", ["api", "modules"])
def test_every_entry_of_the_api_exists(page: str) -> None:
    text = (ROOT.parent / "docs" / f"{page}.md").read_text()
    for entry in re.findall(r"^::: (\S+)", text, re.MULTILINE):
        module, _, attribute = entry.rpartition(".")
        assert entry in MODULES or importlib.util.find_spec(entry.rsplit(".", 1)[0]), entry
        if entry not in MODULES and attribute[0] != "_":
            found = importlib.import_module(module)
            assert hasattr(found, attribute) or importlib.util.find_spec(entry), entry


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[1] in HOUSES])
def test_imports_point_to_the_left(module: str) -> None:
    place = HOUSES.index(module.split(".")[1])
    for other in imported(module):
        assert other.split(".")[1] in HOUSES[: place + 1], other


def test_no_imports_go_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in imported(module):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_readable(module: str) -> None:
    path = ROOT.parent / (module.replace(".", "/") + ".py")
    assert len(path.read_text().splitlines()) <= 400


def test_importing_loads_neither_extras_nor_torch_before_they_are_needed() -> None:
    program = (
        "import sys, funcexplain as fe;"
        "assert 'torch' not in sys.modules;"
        "[getattr(fe, name) for name in fe.__all__];"
        "extras = {'matplotlib', 'pandas', 'cvxpy', 'cvxpylayers', 'deepdow', 'torchopt', 'scipy',"
        "'xarray', 'sklearn', 'dask', 'distributed', 'pyarrow', 'openpyxl'};"
        "assert not extras & set(sys.modules), extras & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
