"""Faults that a process survives: what raises, disks, files and directories, and wrong calls."""

from __future__ import annotations

import errno
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import funcexplain as fe
from funcexplain.clusters import folder as folder_module
from funcexplain.clusters import scheduling
from funcexplain.clusters.folder import Folder
from funcexplain.solutions import writing
from tests.clusters import builds
from tests.clusters.conftest import assert_same

Solve = Callable[..., fe.clusters.ChunkedSolution]


def chunk_file(run: Path, number: int) -> Path:
    return run / "chunks" / "000000" / f"{number:09d}.safetensors"


def test_a_finished_run_is_not_solved_again(here: Solve, faults: Path, expected: fe.Solution) -> None:
    builds.arrange(faults)
    here()
    assert builds.solved(faults) == [0, 5, 10, 15, 20]
    assert_same(here(), expected)
    assert_same(here(chunk_size=None), expected)
    assert len(builds.solved(faults)) == 5


def test_a_poisoned_chunk_is_reported_and_the_rest_arrives(
    here: Solve, faults: Path, tmp_path: Path, expected: fe.Solution, caplog: pytest.LogCaptureFixture
) -> None:
    (faults / "raise-5").touch()
    builds.arrange(faults)
    with caplog.at_level(logging.WARNING, "funcexplain"):
        solution = here(retries=1)
    assert "chunk 1 failed: ArithmeticError: poisoned at 5" in caplog.text
    status = torch.as_tensor(solution.status).flatten()
    assert (status[5:10] == fe.Status.FAILED).all()
    rest = torch.tensor([*range(5), *range(10, 24)])
    assert_same(solution.flat(rest), expected.flat(rest))
    assert solution.flat(torch.tensor([7])).x.isnan().all()
    (failure,) = solution.failures
    assert failure.rows == range(5, 10)
    assert "poisoned at 5" in failure.error
    assert "FAILED 5" in repr(solution)
    reopened = fe.clusters.open(tmp_path / "run")
    assert reopened.failures == solution.failures
    assert "FAILED 5" in repr(reopened)

    (faults / "raise-5").unlink()
    cured = here()
    assert cured.failures == []
    assert not list((tmp_path / "run").rglob("*.error"))
    assert_same(cured, expected)
    assert builds.solved(faults) == [0, 5, 10, 15, 20]


def test_memory_that_runs_out_once(here: Solve, faults: Path, expected: fe.Solution) -> None:
    (faults / "memory-10").touch()
    builds.arrange(faults)
    assert_same(here(retries=1), expected)


def test_a_full_disk_fails_its_chunks_and_leaves_nothing_behind(
    here: Solve, faults: Path, tmp_path: Path, expected: fe.Solution
) -> None:
    (faults / "full-10").touch()
    builds.arrange(faults)
    solution = here(retries=0)
    assert "No space left on device" in solution.failures[0].error
    assert not list((tmp_path / "run").rglob("*.tmp"))
    (faults / "full-10").unlink()
    assert_same(here(), expected)


def test_a_disk_that_is_full_for_the_errors_too(
    here: Solve, faults: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def note(self: Folder, number: int, error: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Folder, "note", note)
    (faults / "raise-0").touch()
    builds.arrange(faults)
    with caplog.at_level(logging.WARNING, "funcexplain"):
        solution = here(retries=0)
    assert len(solution.failures) == 1
    assert "No space left" in caplog.text


def test_errors_are_stored_until_their_chunk_is_answered(
    here: Solve, faults: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (faults / "raise-5").touch()
    builds.arrange(faults)
    inner, seen = Folder.note, list[list[str]]()

    def note(self: Folder, number: int, error: str) -> None:
        inner(self, number, error)
        seen.append([failure.error for failure in fe.clusters.open(tmp_path / "run").failures])

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "note", note)
        here(retries=0)
    ((error,),) = seen  # at once, in case the process is killed later
    assert error.startswith("ArithmeticError: poisoned at 5")
    assert 'raise ArithmeticError(f"poisoned' in error  # and where
    with monkeypatch.context() as patch:
        patch.setattr(scheduling, "wait", interrupt)
        solution = here(retries=0)  # Ctrl-C before the chunk is tried again
    assert [failure.error for failure in solution.failures] == [error]
    assert (torch.as_tensor(solution.status).flatten()[5:10] == fe.Status.FAILED).all()
    (faults / "raise-5").unlink()
    here()
    assert fe.clusters.open(tmp_path / "run").failures == []


def interrupt(*args: Any, **more: Any) -> Any:
    raise KeyboardInterrupt


def test_files_that_were_exchanged(here: Solve, tmp_path: Path, expected: fe.Solution) -> None:
    solution = here()
    one, other = (chunk_file(tmp_path / "run", number) for number in (0, 1))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(ValueError, match="holds other rows, or those of another run"):
        fe.clusters.open(tmp_path / "run").loss  # noqa: B018
    assert "INTERRUPTED 10" in repr(solution)
    assert_same(here(), expected)


def test_a_directory_that_was_made_again(here: Solve, tmp_path: Path, expected: fe.Solution) -> None:
    here()
    shutil.rmtree(tmp_path / "run")
    assert_same(here(chunk_size=7), expected)  # a worker with a cached run uses the new chunks


def test_two_questions_that_begin_at_once(
    here: Solve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = folder_module.replaced

    def replaced(where: str, path: Path, **more: Any) -> Any:
        monkeypatch.setattr(folder_module, "replaced", inner)
        here(atol=0.5)  # the other question is faster
        return inner(where, path, **more)

    monkeypatch.setattr(folder_module, "replaced", replaced)
    with pytest.raises(ValueError, match=r"settings.atol \(0.5 there, 0.02 here\)"):
        here()
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_systems_without_links(
    here: Solve, monkeypatch: pytest.MonkeyPatch, expected: fe.Solution
) -> None:
    def link(*args: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    assert_same(here(), expected)
    assert_same(here(), expected)


def test_a_run_in_which_everything_fails_is_given_up(
    here: Solve, faults: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scheduling, "_MAX_FAILURES", 2)
    for first in range(0, 24, 5):
        (faults / f"raise-{first}").touch()
    builds.arrange(faults)
    with caplog.at_level(logging.WARNING, "funcexplain"):
        solution = here(retries=0, in_flight=1)
    assert "given up: the first 2 chunks failed, all of them" in caplog.text
    status = torch.as_tensor(solution.status).flatten().tolist()
    assert status == [fe.Status.FAILED] * 10 + [fe.Status.INTERRUPTED] * 14


def test_an_executor_that_was_shut_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, expected: fe.Solution
) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with caplog.at_level(logging.WARNING, "funcexplain"):
        solution = fe.clusters.solve(
            builds.grid, builds.METHOD, executor=pool, directory=tmp_path / "run", **builds.SETTINGS
        )
    assert "the executor broke (RuntimeError: cannot schedule" in caplog.text
    assert (torch.as_tensor(solution.status) == fe.Status.INTERRUPTED).all()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "of another run", "appended"])
def test_a_damaged_file_is_solved_again(
    here: Solve, tmp_path: Path, faults: Path, expected: fe.Solution, damage: str
) -> None:
    solution = here()
    path = chunk_file(tmp_path / "run", 2)
    content = path.read_bytes()
    if damage == "of another run":
        here(directory=tmp_path / "other", atol=0.5)
        content = chunk_file(tmp_path / "other", 2).read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    broken = {"truncated": content[:-9], "flipped": flipped, "empty": b"", "appended": content + b" "}
    path.write_bytes(broken.get(damage, content))
    with pytest.raises(ValueError, match=r"damaged|cut off|not a saved solution|another run"):
        solution[1, 5]  # row 11
    builds.arrange(faults)
    assert_same(here(), expected)
    assert builds.solved(faults) == [10]


def test_files_of_killed_workers_are_removed(here: Solve, tmp_path: Path) -> None:
    here()
    left = chunk_file(tmp_path / "run", 0).with_name(".000000009.safetensors.abc.tmp")
    left.write_bytes(b"half")
    here()
    assert left.exists()  # another process may be writing it
    os.utime(left, (0, 0))
    here()
    assert not left.exists()


@pytest.mark.parametrize("begun", [False, True])
def test_a_read_only_directory_raises_at_once(
    here: Solve, tmp_path: Path, faults: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    if begun:
        here()
        chunk_file(tmp_path / "run", 0).unlink()

    def no_access(*args: Any, **more: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", no_access)
        patch.setattr(writing.os, "open", no_access)
        builds.arrange(faults)
        with pytest.raises(PermissionError, match=r"clusters.solve: cannot (write|read)"):
            here()
    assert builds.solved(faults) == []
    here()
    assert builds.solved(faults) == ([0] if begun else [0, 5, 10, 15, 20])


def test_ctrl_c_leaves_a_directory_that_resumes(
    here: Solve, faults: Path, monkeypatch: pytest.MonkeyPatch, expected: fe.Solution
) -> None:
    calls = 0

    def interrupted(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return futures.wait(*args, **more)

    monkeypatch.setattr(scheduling, "wait", interrupted)
    builds.arrange(faults)
    solution = here(in_flight=1)
    status = torch.as_tensor(solution.status).flatten()
    assert (status[15:] == fe.Status.INTERRUPTED).all()
    assert solution.failures == []
    done = torch.arange(5)
    assert_same(solution.flat(done), expected.flat(done))
    assert_same(here(), expected)
    assert builds.solved(faults) == [0, 5, 10, 15, 20]


def test_another_question_raises_with_the_difference(here: Solve, tmp_path: Path) -> None:
    here()
    with pytest.raises(ValueError, match=r"settings.atol \(0.02 there, 0.5 here\)"):
        here(atol=0.5)
    with pytest.raises(ValueError, match=r"holds answers to something else: method \(.*lr.*0.1"):
        here(method=fe.adam(lr=0.2))
    with pytest.raises(ValueError, match=r"args.target .*, dims \(target=4"):
        here((builds.grid, {"targets": 3}))
    with pytest.raises(ValueError, match=r"chunk_size must be that of the directory .* 5, got 6"):
        here(chunk_size=6)
    manifest = tmp_path / "run" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"versions.torch": "', '"versions.torch": "0.'))
    with pytest.raises(ValueError, match="is damaged or not a manifest"):
        here()
    manifest.write_text(text.replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="has format 9, this version reads up to 1"):
        fe.clusters.open(tmp_path / "run")
    damaged = [json.dumps({**json.loads(text), "chunk_size": size}).encode() for size in (0, "4", 6)]
    for content in (*damaged, b"\xff\x00", b"", b"[" * 100_000, b"3", b"{}", text[:-20].encode()):
        manifest.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or not a manifest"):
            here()


def test_equal_settings_are_the_same_question(here: Solve, expected: fe.Solution, faults: Path) -> None:
    assert_same(here(atol=np.float64(0.02), max_steps=np.int64(12), rtol=np.float64(1e-3)), expected)
    builds.arrange(faults)
    here(rtol=1e-3)
    assert builds.solved(faults) == []


def test_a_manifest_that_was_lost_is_written_again(
    here: Solve, tmp_path: Path, faults: Path, expected: fe.Solution
) -> None:
    here()
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"clusters.open: cannot read"):
        fe.clusters.open(tmp_path / "run")
    builds.arrange(faults)
    assert_same(here(), expected)
    assert builds.solved(faults) == []


def test_wrong_calls_raise(here: Solve, tmp_path: Path) -> None:
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (TypeError, "build must be a function .* got a Problem; pass the function",
         {"build": builds.grid()}),
        (TypeError, "build must return a Problem, got NoneType", {"build": builds.nothing}),
        (ValueError, "must return a grid of rows, got a single question", {"build": builds.question}),
        (TypeError, "cannot be pickled", {"build": lambda: builds.grid()}),
        (ValueError, "recipe of at most 1 MiB", {"build": (builds.grid, {"targets": bytes(2 << 20)})}),
        (TypeError, r"method must be .* pickled .* \(fe.adam", {"method": (lambda z: (), lambda *a: a)}),
        (TypeError, "settings must be among .* got lr", {"lr": 0.1}),
        (ValueError, "max_steps", {"max_steps": -1}),
        (ValueError, "retries", {"retries": -1}),
        (ValueError, "in_flight", {"in_flight": 0}),
        (TypeError, "callback must be callable", {"callback": 3}),
        (TypeError, "path must be a str", {"directory": 3}),
    ]  # fmt: skip
    for kind, match, arguments in wrong:
        with pytest.raises(kind, match=match):
            here(**arguments)
    assert not (tmp_path / "run").exists()
    for executor in (None, ThreadPoolExecutor):
        with pytest.raises(TypeError, match=r"executor must be a concurrent.futures.Executor"):
            fe.clusters.solve(builds.grid, executor=executor, directory=tmp_path / "run")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="function given as executor must return"):
        fe.clusters.solve(builds.grid, executor=lambda: 3, directory=tmp_path / "run")  # type: ignore[arg-type, return-value]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"must be new, empty, or that of a run, .* 'thesis.tex'"):
        here(directory=tmp_path / "mine")


def test_workers_that_do_not_share_the_directory(here: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(self: Folder, number: int, solution: Any) -> dict[int, int]:
        return {0: 5}

    monkeypatch.setattr(Folder, "publish", elsewhere)
    assert "workers must share the directory" in here(retries=0).failures[0].error


def test_a_build_that_hangs(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        try:
            solution = fe.clusters.solve(
                builds.held, executor=pool, directory=tmp_path / "run", timeout=0.1, retries=0
            )
        finally:
            builds.RELEASED.set()
    (failure,) = solution.failures
    assert failure.error == "TimeoutError: no answer within 0.1 s"
