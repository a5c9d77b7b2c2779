"""Runs in chunks: two workers against one, what chunks and files cost, resuming, and memory.

Run with ``python -m tests.benchmarks.clusters [PART ...]``, parts ``speed``, ``resume``, ``memory``.
Every worker has one thread. Prints Markdown tables.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import funcexplain as fe
from funcexplain.commands.demo import train_on
from funcexplain.markets.prices import load

ROWS, CHUNK, STEPS = 20_000, 512, 50
METHOD = fe.adam(lr=0.2, betas=(0.5, 0.999), eps=0.03)
SETTINGS: dict[str, Any] = {"max_steps": STEPS, "history": False}


def train(path: Path) -> None:
    """Train the network of the demo once; workers load it."""
    network, history = train_on(load("ecb"), 0, 100, lambda line: None)
    torch.save((network, history.windows[-1].clone()), path)


def build(path: str, rows: int) -> fe.Problem:
    """The demo's question from ``rows`` jittered starts; seeds are all that varies."""
    network, x0 = torch.load(path, weights_only=False)
    with torch.no_grad():
        target = 0.6 * network(x0[None])[0] + 0.4 / x0.shape[-1]
    problem = fe.pipe(
        fe.problem(network, target, x0, loss=fe.losses.kl),
        fe.standardize(network.mean, network.std),
        fe.jitter(0.05),
    )
    return fe.vmap(problem, seed=torch.arange(rows))


def product(outer: int, inner: int) -> fe.Problem:
    """A grid whose data are few, and whose rows are many; each has a window of 64 numbers."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.Softmax(-1))
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    targets: Tensor = torch.softmax(torch.linspace(-1, 1, 4 * outer).view(outer, 4), -1)
    p = fe.problem(network, targets[0], torch.zeros(1, 16, 4))
    return fe.vmap(fe.vmap(p, seed=torch.arange(inner)), target=targets)


def warm(make: Callable[[], Executor], workers: int) -> Executor:
    """A pool whose workers have imported everything."""
    pool = make()
    wait([pool.submit(time.sleep, 1.0) for _ in range(workers)])
    wait([pool.submit(_import) for _ in range(4 * workers)])
    return pool


def _import() -> None:
    import torch._dynamo  # noqa: F401  (torch loads it with the first mapped function)

    import funcexplain.clusters.chunk  # noqa: F401


def speed() -> None:
    from tests.benchmarks import clusters

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.pt")
        train(path)
        recipe = (clusters.build, {"path": str(path), "rows": ROWS})
        pools = {n: warm(fe.clusters.processes(n), n) for n in (1, 2)}
        alone = f"fe.solve, chunk_size={CHUNK}"
        times: dict[str, list[float]] = {alone: [], "one worker": [], "two workers": []}
        for repetition in range(2):
            problem = build(str(path), ROWS)
            began = time.perf_counter()
            fe.solve(problem, METHOD, rows="samples", compile=False, chunk_size=CHUNK, **SETTINGS)
            times[alone].append(time.perf_counter() - began)
            for workers, name in ((1, "one worker"), (2, "two workers")):
                began = time.perf_counter()
                fe.clusters.solve(
                    recipe, METHOD, executor=pools[workers], chunk_size=CHUNK,
                    directory=Path(folder, f"run-{workers}-{repetition}"), **SETTINGS,
                )  # fmt: skip
                times[name].append(time.perf_counter() - began)
        files = [*Path(folder, "run-1-0").rglob("*.safetensors")]
        size = sum(file.stat().st_size for file in files)
        for pool in pools.values():
            pool.shutdown()
    print(f"\n{ROWS} rows, {STEPS} steps, chunks of {CHUNK}, {size / ROWS:.0f} bytes per row on disk\n")
    print("| | seconds (median; all) | rows/s | against one worker |\n|---|---|---|---|")
    one = statistics.median(times["one worker"])
    for name, taken in times.items():
        middle = statistics.median(taken)
        told = ", ".join(f"{t:.1f}" for t in taken)
        print(f"| {name} | {middle:.1f} ({told}) | {ROWS / middle:.0f} | {one / middle:.2f}x |")


def resume() -> None:
    from tests.benchmarks import clusters

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        path = Path(folder, "network.pt")
        train(path)
        recipe = (clusters.build, {"path": str(path), "rows": ROWS})
        call = {"executor": pool, "directory": Path(folder, "run"), "chunk_size": 20}
        settings: dict[str, Any] = {**call, **SETTINGS, "max_steps": 0}
        times = []
        for _ in range(6):
            began = time.perf_counter()
            fe.clusters.solve(recipe, METHOD, **settings)
            times.append(time.perf_counter() - began)
    print(f"\nfirst run {times[0]:.1f} s, again {', '.join(f'{t:.2f}' for t in times[1:])} s")


def memory() -> None:
    print("\n| rows | seconds | MiB after the imports | most while solving | with best() |")
    print("|---|---|---|---|---|")
    for size in (32, 100, 316, 1000):
        command = [sys.executable, "-m", "tests.benchmarks.clusters", "coordinate", str(size)]
        subprocess.run(command, check=True)


def coordinate(size: int) -> None:
    from tests.benchmarks import clusters

    def peak() -> int:
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s)
        return int(line.split()[1]) >> 10

    with tempfile.TemporaryDirectory() as folder:
        fe.solve(product(4, 8), max_steps=1)
        before, began = peak(), time.perf_counter()
        solution = fe.clusters.solve(
            (clusters.product, {"outer": size, "inner": size}), executor=fe.clusters.processes(1),
            directory=folder, history=False, max_steps=2,
        )  # fmt: skip
        seconds, solving = time.perf_counter() - began, peak()
        solution.best()
        print(f"| {size * size} | {seconds:.0f} | {before} | {solving} | {peak()} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, torch {torch.__version__}", flush=True
    )
    if sys.argv[1:2] == ["coordinate"]:
        coordinate(int(sys.argv[2]))
    else:
        for part in sys.argv[1:] or ("speed", "resume", "memory"):
            {"speed": speed, "resume": resume, "memory": memory}[part]()
