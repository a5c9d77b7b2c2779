"""A storm: coordinators and workers are killed, stopped and interrupted at random, and start again.

By hand, for any number of seconds: ``python -m tests.clusters.storm 600``; a second number is the seed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from tests.clusters import builds
from tests.clusters.conftest import ROOT, assert_same

CHUNK, STARTS, PATIENCE = 2, 4, 120
COORDINATOR = "from tests.clusters.storm import coordinate; coordinate({run!r})"
# Exit codes of Python for a KeyboardInterrupt, and of a process that was killed.
INTERRUPTED, KILLED = -signal.SIGINT, -signal.SIGKILL


def slow() -> fe.Problem:
    """The grid of `builds`, on a network that takes a while."""
    inner, params = fe.functionalize(builds.network())

    def apply(params: Any, x: Tensor) -> Tensor:
        time.sleep(0.002)
        return inner(params, x)

    problem = builds.grid()[0, 0]
    own = fe.problem((apply, params), problem.args["target"], problem.args["x0"])
    grid = builds.grid()
    return fe.vmap(fe.vmap(own, x0=grid.args["x0"], name="start"), target=grid.args["target"])


def coordinate(run: str) -> None:
    """Solve in two workers; prints when it begins, and the answer."""
    print("begins", flush=True)
    solution = fe.clusters.solve(
        slow,
        builds.METHOD,
        executor=fe.clusters.processes(2),
        directory=run,
        chunk_size=CHUNK,
        **builds.SETTINGS,
    )
    print(solution, flush=True)
    os._exit(0)  # from here on, Ctrl-C has nothing to end


def workers_of(pid: int) -> list[int]:
    with suppress(OSError):
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return []


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def has_ended(pid: int) -> bool:
    """Whether a process ends within half a minute."""
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


class Storm:
    """One after another, runs that must end with all rows right.

    Args:
        seed: decides what happens, though not when it does by the clock.
    """

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.expected = fe.solve(slow(), builds.METHOD, **builds.SETTINGS)
        self.log: list[str] = []

    def strike(self, coordinator: int) -> str:
        """Do something to the coordinator or one of its workers."""
        kinds = ["kill a worker", "stop a worker", "interrupt", "stop", "kill"]
        kind = self.draw.choices(kinds, [4, 2, 2, 1, 1])[0]
        victims = workers_of(coordinator) if kind.endswith("a worker") else [coordinator]
        if not victims:
            return "nothing"
        victim = self.draw.choice(victims)
        if kind.startswith("stop"):
            send(victim, signal.SIGSTOP)
            time.sleep(self.draw.uniform(0.0, 0.5))
            send(victim, signal.SIGCONT)
        else:
            send(victim, signal.SIGINT if kind == "interrupt" else signal.SIGKILL)
        return kind

    def start(self, run: Path, *, calm: bool) -> str:
        """Start a coordinator and wait for its end; returns what it printed if it was not ended."""
        command = [sys.executable, "-c", COORDINATOR.format(run=str(run))]
        end, happened, workers = time.monotonic() + PATIENCE, list[str](), set[int]()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begins\n"
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.draw.uniform(0.0, 3.0))
                workers.update(workers_of(process.pid))
                assert time.monotonic() < end, f"it hangs after {happened}"
                # One press, so that a return without a word on it is a fault.
                if not calm and not {"interrupt", "kill"} & {*happened} and process.poll() is None:
                    happened.append(self.strike(process.pid))
            output, errors = process.communicate()
        self.log.append(f"{', '.join(happened) or 'calm'} -> {process.returncode}")
        allowed = {0}
        allowed |= {INTERRUPTED} if "interrupt" in happened else set()
        allowed |= {KILLED} if "kill" in happened else set()
        assert process.returncode in allowed, f"{self.log[-1]}\n{errors}"
        if process.returncode == 0 and "interrupt" in happened:
            assert "INTERRUPTED" in output, f"a press was lost\n{output}{errors}"
        left = [worker for worker in workers if not has_ended(worker)]
        assert not left, f"workers {left} outlived their coordinator"
        return output if process.returncode == 0 else ""

    def run(self, run: Path, until: float) -> None:
        """Start coordinators until one has answered everything; the last one is left in peace."""
        for number in range(STARTS):
            calm = number == STARTS - 1 or time.monotonic() > until
            output = self.start(run, calm=calm)
            if run.joinpath("manifest.json").exists():
                self.check(fe.clusters.open(run))
            if output and "INTERRUPTED" not in output and "FAILED" not in output:
                break
            assert not calm, f"a start in peace left rows\n{output}"
        assert_same(fe.clusters.open(run), self.expected)

    def check(self, found: fe.Solution) -> None:
        """Rows are right, or their status says why not."""
        status = torch.as_tensor(found.status)
        unanswered = (status == fe.Status.INTERRUPTED) | (status == fe.Status.FAILED)
        rows = (~unanswered).flatten().nonzero()[:, 0]
        if len(rows):
            assert_same(found.flat(rows), self.expected.flat(rows))
        assert found.flat(unanswered.flatten().nonzero()[:, 0]).x.isnan().all()


def storm(seconds: float, seed: int) -> list[str]:
    """Let it storm for a while; returns what happened."""
    print(f"storm of seed {seed}", flush=True)
    weather, until = Storm(seed), time.monotonic() + seconds
    while time.monotonic() < until:
        with tempfile.TemporaryDirectory() as folder:
            weather.run(Path(folder, "run"), until)
        print(f"{len(weather.log)} starts: {weather.log[-STARTS:]}", flush=True)
    return weather.log


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["PYTHONPATH"] = str(ROOT)
    storm(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6))
