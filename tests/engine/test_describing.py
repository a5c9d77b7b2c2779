"""Descriptions of a user's code follow what it refers to, in all of the user's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType

import pytest

from funcexplain.engine.describing import describe_value
from funcexplain.engine.references import is_library, is_users
from tests.engine.described import (
    CHANGES,
    IRRELEVANT,
    LISTED,
    NAMED,
    OF_PROCESS,
    SOURCE,
    UNSAFE,
    source,
)

ROOT = Path(__file__).parents[2]


def skip_without_packages(text: str) -> None:
    """Skip a case of an extra that is not installed."""
    for package in ("cvxpy", "pandas", "scipy", "sklearn"):
        if package in text:
            pytest.importorskip(package)


@contextmanager
def imported(folder: Path, files: Mapping[str, str]) -> Iterator[ModuleType]:
    """The module ``mine`` among a user's files."""
    for name, text in files.items():
        (folder / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text)
    invalidate_caches()
    sys.path.insert(0, str(folder))
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield import_module("mine")
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = written
        for name in files:
            sys.modules.pop(name.replace("/", ".").removesuffix(".__init__"), None)


def described(folder: Path, **files: str) -> str:
    with imported(folder, files) as mine:
        return describe_value(mine.forward)


def all_described(folder: Path) -> dict[str, str]:
    """What every case is described as."""
    return {
        name: described(folder / str(number), mine=mine, helpers=source(helpers, 1))
        for number, (name, (mine, helpers)) in enumerate(CHANGES.items())
    } | {"unsafe": described(folder, mine=NAMED, helpers=source(UNSAFE, 1))}


@pytest.mark.parametrize("name", CHANGES)
def test_what_code_refers_to_is_described(name: str, tmp_path: Path) -> None:
    mine, helpers = CHANGES[name]
    skip_without_packages(helpers)
    texts = [
        described(tmp_path / str(place), mine=mine, helpers=source(helpers, number))
        for place, number in enumerate((1, 1, 2))
    ]
    assert texts[0] == texts[1] != texts[2]
    assert " at 0x" not in texts[0]


def test_files_of_a_package_are_followed(tmp_path: Path) -> None:
    def text(number: int) -> str:
        folder = tmp_path / str(number)
        mine = "from pack import one\nimport pack.three\n"
        mine += "def forward(x): return one.f(x) + pack.three.g(x)"
        one = "from . import two\ndef f(x):\n    from .three import g\n    return two.h(g(x))"
        files = {"pack/__init__": "", "pack/one": one, "pack/two": source("def h(x): return @", number)}
        with imported(folder, {"mine": mine, **files, "pack/three": "def g(x): return x"}) as module:
            return describe_value(module.forward)

    assert text(1) == text(1) != text(2)


@pytest.mark.parametrize("name", IRRELEVANT)
def test_what_does_not_matter_is_not_described(name: str, tmp_path: Path) -> None:
    old, new = IRRELEVANT[name]
    assert old in SOURCE
    before, after = (
        described(tmp_path / str(number), mine=NAMED, helpers=text)
        for number, text in enumerate((SOURCE, SOURCE.replace(old, new, 1)))
    )
    assert before == after


@pytest.mark.parametrize("name", OF_PROCESS)
def test_what_belongs_to_a_process_is_not_described(name: str, tmp_path: Path) -> None:
    skip_without_packages(OF_PROCESS[name])
    one, other = (described(tmp_path / str(n), mine=LISTED, helpers=OF_PROCESS[name]) for n in (1, 2))
    assert one == other


def test_no_method_or_property_runs(tmp_path: Path) -> None:
    one, other = (described(tmp_path / str(n), mine=NAMED, helpers=source(UNSAFE, n)) for n in (1, 2))
    assert one != other


def test_installed_code_is_not_the_users() -> None:
    assert [is_users(name) for name in ("__main__", "__mp_main__", __name__)] == [True] * 3
    assert not any(
        is_users(name) for name in ("pytest", "_pytest.python", "json", "torch", "funcexplain")
    )
    assert [is_library(name) for name in ("json", "pytest", __name__)] == [True, False, False]


def test_a_file_named_like_a_module_of_python_is_the_users(tmp_path: Path) -> None:
    # One that is not imported yet, such as a quiz of the standard library's.
    mine = "import this\ndef forward(x): return this.f(x)"
    known = sys.modules.pop("this", None)
    one, other = (
        described(tmp_path / str(n), mine=mine, this=source("def f(x): return @", n)) for n in (1, 2)
    )
    assert one != other
    if known:
        sys.modules["this"] = known


@pytest.mark.cluster
def test_every_process_describes_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.engine.test_describing", str(tmp_path)]
    seeded = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        command, cwd=ROOT, env=seeded, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout) == all_described(tmp_path / "here")


if __name__ == "__main__":
    print(json.dumps(all_described(Path(sys.argv[1]) / "there")))
