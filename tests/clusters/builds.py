"""Grids that workers build, and faults that tests inject through files in a folder.

A fault is a file named after the kind of fault and the first row of its chunk. The file exists before
the worker looks, and named pipes synchronize both, so that no test sleeps.
"""

from __future__ import annotations

import errno
import os
import secrets
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.clusters import chunk
from funcexplain.solutions import archive

METHOD = fe.adam(lr=0.1)
SETTINGS: dict[str, Any] = {"max_steps": 12, "atol": 0.02}
F64 = torch.float64
RELEASED = threading.Event()
_solve = chunk.solve_rows_alone
_replaced = archive.replaced


def network(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = torch.nn.Linear(24, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)
        return torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Softmax(-1)).to(F64)


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def grid(targets: int = 4, starts: int = 6) -> fe.Problem:
    """Rows ``(targets, starts)``."""
    goals = torch.softmax(0.5 * _noise(1, targets, 4), -1)
    p = fe.problem(network(), goals[0], _noise(2, 2, 3, 4))
    return fe.vmap(fe.vmap(p, x0=_noise(3, starts, 2, 3, 4), name="start"), target=goals)


def named_like_a_column() -> fe.Problem:
    p = fe.problem(network(), torch.full((4,), 0.25, dtype=F64), _noise(2, 2, 3, 4))
    return fe.vmap(p, x0=_noise(3, 3, 2, 3, 4), name="loss")


class StrangeError(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def wide() -> fe.Problem:
    """Rows whose windows are large enough to be shared among threads."""
    linear = torch.nn.Linear(400, 4)
    torch.nn.init.constant_(linear.weight, 0.01)
    torch.nn.init.zeros_(linear.bias)
    network = torch.nn.Sequential(torch.nn.Flatten(), linear, torch.nn.Softmax(-1))
    p = fe.problem(network, torch.full((4,), 0.25), torch.zeros(1, 100, 4))
    return fe.vmap(p, x0=_noise(3, 300, 1, 100, 4).float())


def ensemble(models: int, starts: int, *, models_inside: bool = False) -> fe.Problem:
    """Rows ``(models, starts)``, or the other way round."""
    networks = [network(seed) for seed in range(models)]
    p = fe.problem(networks[0], torch.full((4,), 0.25, dtype=F64), _noise(2, 2, 3, 4))
    stacks: list[dict[str, Any]] = [
        {"params": fe.stack(networks)[1]},
        {"x0": _noise(3, starts, 2, 3, 4)},
    ]
    for stack in stacks if models_inside else reversed(stacks):
        p = fe.vmap(p, **stack)
    return p


def faulty(faults: str, coordinator: int, targets: int = 4, starts: int = 6) -> fe.Problem:
    """The same as `grid`; workers, but not the coordinator, run into the faults of a folder."""
    if os.getpid() != coordinator:
        arrange(Path(faults))
    return grid(targets, starts)


def arrange(folder: Path) -> None:
    """Let this process run into the faults of a folder from now on."""

    def solve_rows(
        problem: fe.Problem, rows: Tensor, method: Any, settings: dict[str, Any]
    ) -> fe.Solution:
        first = int(rows[0]) if len(rows) else -1
        if len(rows):
            meet(folder, first)
            (folder / f"solved-{first}-{secrets.token_hex(4)}").touch()
        return _solve(problem, rows, method, settings)

    chunk.solve_rows_alone = solve_rows


def meet(folder: Path, first: int) -> None:
    """Run into the faults of the chunk that starts with a row."""
    if (folder / f"wait-{first}").exists():
        (folder / "worker").write_text(str(os.getpid()))
        (folder / f"wait-{first}").read_text()  # a pipe: until the test writes to it
    if (folder / f"kill-{first}").exists():
        (folder / f"kill-{first}").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (folder / f"always-kill-{first}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (folder / f"raise-{first}").exists():
        raise ArithmeticError(f"poisoned at {first}")
    if (folder / f"strange-{first}").exists():
        raise StrangeError("strange at", str(first))
    if (folder / f"memory-{first}").exists():
        (folder / f"memory-{first}").unlink()
        raise MemoryError("no memory for the chunk")
    full = (folder / f"full-{first}").exists()

    def no_room(where: str, path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    archive.replaced = no_room if full else _replaced  # type: ignore[assignment]


def solved(folder: Path) -> list[int]:
    """First rows of the chunks that were started after their faults, one entry per attempt."""
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("solved-*"))


def held() -> fe.Problem:
    """The same as `grid`; in a worker's thread, waits until the test ends it."""
    if threading.current_thread() is not threading.main_thread():
        RELEASED.wait()
    return grid()


def drawn() -> fe.Problem:
    """Another problem in every process."""
    shift = os.getpid() % 1000 / 1000.0
    p = fe.problem(network(), torch.full((4,), 0.25, dtype=F64), _noise(2, 2, 3, 4))
    return fe.vmap(p, x0=_noise(3, 3, 2, 3, 4) + shift)


def question() -> fe.Problem:
    """A single question, not a grid."""
    return grid()[0, 0]


def nothing() -> None:
    """Not a problem."""
