"""Every framework on every network: ``python -m tests.benchmarks``, see ``--help``.

Each framework lives in a process of its own, all on one core with one thread, and takes its turn in
every repetition. A timing is that of one whole solve, divided by its steps and problems. A row is void
where the losses at the end are not those of the other frameworks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.catalogue import DEEPDOW, NETWORKS, Case
from tests.benchmarks.frameworks import FRAMEWORKS
from tests.benchmarks.report import Row, judge, make_header, to_csv, to_markdown
from tests.benchmarks.worker import Worker

ALL_FRAMEWORKS = (*FRAMEWORKS, "jax")
PROBLEMS = (1, 64, 256, 1024, 16384)
STEPS, FEW_STEPS, MANY_PROBLEMS = 100, 20, 4096


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Times per step and problem of every framework. All of it takes hours: choose.",
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--problems", nargs="+", type=int, default=PROBLEMS)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), default=("float32",))
    parser.add_argument("--frameworks", nargs="+", choices=ALL_FRAMEWORKS, default=ALL_FRAMEWORKS)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--steps",
        type=int,
        help=f"of a solve; default {STEPS}, and {FEW_STEPS} from {MANY_PROBLEMS} problems on",
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=120.0,
        help="seconds; a framework whose solve would take longer, by its time with fewer problems, "
        "is left out (default %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="folder for benchmarks.md and benchmarks.csv")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.networks, arguments.problems = ("mlp",), (1, 3)
        arguments.steps, arguments.repetitions = 3, 1
    return arguments


def measure(case: Case, workers: Sequence[Worker], repetitions: int) -> list[Row]:
    """The rows of a case: every framework is prepared, and then all take turns."""
    rows = [Row.of(case, worker.framework, worker.ask(case=case)) for worker in workers]
    times: list[list[float]] = [[] for _ in rows]
    for _ in range(repetitions):
        for worker, row, column in zip(workers, rows, times, strict=True):
            if not row.note:
                column.append(worker.ask().get("seconds", float("nan")))
    return judge([row.with_times(column) for row, column in zip(rows, times, strict=True)])


def measure_network(network: str, dtype: str, arguments: argparse.Namespace) -> list[Row]:
    """The rows of a network, from few problems to many, in fresh processes."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    names = [name for name in arguments.frameworks if name != "jax" or network not in DEEPDOW]
    paces: dict[str, float] = {}
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        workers = [stack.enter_context(Worker(name, dtype, max(cores), cache)) for name in names]
        for problems in sorted(arguments.problems):
            steps = arguments.steps or (STEPS if problems < MANY_PROBLEMS else FEW_STEPS)
            case = Case(network, dtype, problems, steps)
            print(f"{network} {dtype} {problems}", file=sys.stderr, flush=True)
            able = []
            for worker in workers:
                seconds = paces.get(worker.framework, 0.0) * problems * steps
                # The original is timed on a few problems, however many there are.
                if worker.framework == "original" or seconds <= arguments.longest:
                    able.append(worker)
                else:
                    reply = {"error": f"left out: about {seconds:.0f} s a solve"}
                    rows.append(Row.of(case, worker.framework, reply))
            rows += measure(case, able, arguments.repetitions)
            if problems >= 64:  # a few problems do not tell what many take
                paces |= {row.framework: row.median / 1e6 for row in rows if row.times}
    return rows


def main(words: Sequence[str] | None = None) -> list[Row]:
    """Measure, print the tables, and write them to files."""
    arguments = parse(words)
    rows: list[Row] = []
    for network in arguments.networks:
        for dtype in arguments.dtypes:
            rows += measure_network(network, dtype, arguments)
            if arguments.out:  # after every network, since all of them take long
                arguments.out.mkdir(parents=True, exist_ok=True)
                text = to_markdown(make_header(arguments.repetitions), rows)
                (arguments.out / "benchmarks.md").write_text(text)
                (arguments.out / "benchmarks.csv").write_text(to_csv(rows))
    print(to_markdown(make_header(arguments.repetitions), rows))
    return rows


if __name__ == "__main__":
    main()
