"""Real workers, of the standard library's pool and of Dask, that are killed in the middle of a run."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import funcexplain as fe
from funcexplain.clusters import pools
from tests.clusters import builds
from tests.clusters.conftest import ROOT, assert_same

pytestmark = pytest.mark.cluster


def solve(run: Path, faults: Path, executor: Any, **more: Any) -> fe.clusters.ChunkedSolution:
    build = (builds.faulty, {"faults": str(faults), "coordinator": os.getpid()})
    settings = {"directory": run, "chunk_size": 5, **builds.SETTINGS, **more}
    return fe.clusters.solve(build, builds.METHOD, executor=executor, **settings)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork workers from one process that has imported torch, where it does not matter how they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([builds.__name__])
    monkeypatch.setattr(pools, "multiprocessing", Mock(wraps=multiprocessing))
    monkeypatch.setattr(pools.multiprocessing, "get_context", lambda method: context)


def assert_ended(pid: int) -> None:
    """Wait until a process that is not a child of this one has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([handle], [], [], 60)[0], f"process {pid} still runs"
    os.close(handle)


@pytest.mark.usefixtures("forked")
def test_a_worker_that_is_killed_in_the_middle(
    tmp_path: Path, faults: Path, expected: fe.Solution
) -> None:
    (faults / "kill-5").touch()
    solution = solve(tmp_path / "run", faults, fe.clusters.processes(2))
    assert_same(solution, expected)
    assert not (faults / "kill-5").exists()
    assert {*builds.solved(faults)} == {0, 5, 10, 15, 20}


def test_forks_of_a_process_with_many_threads(tmp_path: Path) -> None:
    script = """if True:
        import sys, torch, funcexplain as fe
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        from tests.clusters import builds
        torch.set_num_threads(2)
        torch.randn(4000, 4000).relu_().sum()  # starts threads, which a fork does not inherit
        with ProcessPoolExecutor(1, get_context("fork")) as pool:
            solution = fe.clusters.solve(builds.wide, executor=pool, directory=sys.argv[1], max_steps=2)
        assert not solution.failures
    """
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    subprocess.run(command, cwd=ROOT, timeout=60, check=True)


@pytest.mark.usefixtures("forked")
def test_a_chunk_that_kills_every_worker_is_found(
    tmp_path: Path, faults: Path, expected: fe.Solution
) -> None:
    (faults / "always-kill-5").touch()
    solution = solve(tmp_path / "run", faults, fe.clusters.processes(2), retries=0)
    (failure,) = solution.failures
    assert failure.rows == range(5, 10)
    assert "BrokenProcessPool" in failure.error
    rest = torch.tensor([*range(5), *range(10, 24)])
    assert_same(solution.flat(rest), expected.flat(rest))


@pytest.mark.usefixtures("forked")
def test_a_chunk_that_hangs(tmp_path: Path, faults: Path, expected: fe.Solution) -> None:
    os.mkfifo(faults / "wait-5")
    solution = solve(tmp_path / "run", faults, fe.clusters.processes(2), retries=0, timeout=2.0)
    failed = {failure.rows.start: failure.error for failure in solution.failures}
    # On a slow machine, others may take as long.
    assert 5 in failed
    assert {*failed.values()} == {"TimeoutError: no answer within 2 s"}
    kept = [row for row in range(24) if row // 5 * 5 not in failed]
    rows = torch.tensor(kept, dtype=torch.int64)
    assert_same(solution.flat(rows), expected.flat(rows))
    assert not list((tmp_path / "run").rglob("*.started"))


@pytest.mark.usefixtures("forked")
def test_an_exception_that_cannot_be_unpickled(tmp_path: Path, faults: Path) -> None:
    (faults / "strange-5").touch()
    solution = solve(tmp_path / "run", faults, fe.clusters.processes(1), retries=0)
    (failure,) = solution.failures
    assert failure.rows == range(5, 10)
    assert failure.error.startswith("tests.clusters.builds.StrangeError: strange at 5")
    assert builds.solved(faults) == [0, 10, 15, 20]  # no other chunk was affected


@pytest.mark.usefixtures("forked")
def test_a_pool_of_the_caller_that_breaks(
    tmp_path: Path, faults: Path, expected: fe.Solution, caplog: pytest.LogCaptureFixture
) -> None:
    (faults / "kill-5").touch()
    with fe.clusters.processes(1)() as pool:
        solution = solve(tmp_path / "run", faults, pool, in_flight=1)
    assert "give a function that makes one" in caplog.text
    status = torch.as_tensor(solution.status).flatten()
    assert (status[5:] == fe.Status.INTERRUPTED).all()
    assert solution.failures == []
    with fe.clusters.processes(1)() as pool:
        assert_same(solve(tmp_path / "run", faults, pool), expected)
    assert builds.solved(faults) == [0, 5, 10, 15, 20]


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=str)
def test_a_coordinator_that_is_ended_and_started_again(
    tmp_path: Path, faults: Path, expected: fe.Solution, number: int
) -> None:
    os.mkfifo(faults / "wait-5")
    command = [sys.executable, "-m", "tests.clusters.coordinator", str(tmp_path / "run"), str(faults)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as coordinator:
        with (faults / "wait-5").open("w"):  # from here on, the worker holds its second chunk
            worker = int((faults / "worker").read_text())
            coordinator.send_signal(number)
            if number == signal.SIGKILL:
                coordinator.wait(60)
                assert_ended(worker)
        output, log = coordinator.communicate(timeout=60)
    assert_ended(worker)
    if number == signal.SIGINT:
        assert coordinator.returncode == 0
        assert "INTERRUPTED" in output
        assert "interrupted: running chunks are finished" in log
    (faults / "wait-5").unlink()
    begun = fe.clusters.open(tmp_path / "run")
    first = torch.arange(5)
    assert_same(begun.flat(first), expected.flat(first))
    done = builds.solved(faults)
    assert 20 not in done
    assert_same(solve(tmp_path / "run", faults, fe.clusters.processes(1)), expected)
    assert builds.solved(faults) == [0, 5, 10, 15, 20]
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.usefixtures("forked")
def test_a_build_that_differs_in_every_process(tmp_path: Path) -> None:
    solution = fe.clusters.solve(
        builds.drawn, executor=fe.clusters.processes(1), directory=tmp_path, retries=0, max_steps=1
    )
    assert "build must make the same problem in every process" in solution.failures[0].error
    assert "args.x0 (" in solution.failures[0].error


@pytest.fixture(scope="module")
def dask() -> Iterator[Executor]:
    """Two workers of one thread each."""
    distributed = pytest.importorskip("distributed")
    os.environ["PYTHONPATH"] = str(ROOT)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


@pytest.mark.filterwarnings("ignore")  # of distributed's own parts
def test_dask_workers_and_one_that_is_killed(
    dask: Executor, tmp_path: Path, faults: Path, expected: fe.Solution
) -> None:
    (faults / "kill-5").touch()
    (faults / "raise-15").touch()
    solution = solve(tmp_path / "run", faults, dask, retries=0)
    assert not (faults / "kill-5").exists()
    assert [failure.rows for failure in solution.failures] == [range(15, 20)]
    (faults / "raise-15").unlink()
    assert_same(solve(tmp_path / "run", faults, dask), expected)
    assert builds.solved(faults).count(15) == 1
