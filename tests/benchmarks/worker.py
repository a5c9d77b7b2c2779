"""One framework in a process of its own, and `Worker`, the other end of its pipes.

``python -m tests.benchmarks.worker FRAMEWORK CORE`` takes commands as lines of JSON on stdin and replies
on stdout. It stays alive between commands, so that the repetitions of all frameworks can be interleaved.
The module itself imports the standard library only: the core must be chosen before torch or JAX count
the cores.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.benchmarks.catalogue import Case
    from tests.benchmarks.frameworks import Way

Reply = dict[str, Any]

SHORT = 0.1  # seconds

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


class Worker:
    """A framework in a process of its own."""

    def __init__(self, framework: str, dtype: str, core: int, cache: str) -> None:
        self.framework = framework
        wide = {"JAX_ENABLE_X64": "1"} if dtype == "float64" else {}
        # A fresh cache, or else the first call would not compile when the benchmark is run again.
        fresh = {"TORCHINDUCTOR_CACHE_DIR": cache}
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.worker", framework, str(core)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **ONE_THREAD, **wide, **fresh},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def ask(self, **command: Any) -> Reply:
        """Send a command and wait for the reply."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": f"the process ended ({self.process.poll()})"}


def main(framework: str, core: int) -> None:
    """Answer commands until stdin ends."""
    # Whatever else is printed in this process must not be taken for a reply.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    import torch

    from tests.benchmarks.catalogue import Case

    torch.set_num_threads(1)
    way: Way | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if "case" in command:
                way = None  # frees the last case before the memory of this one is measured
                way, reply = prepare(framework, Case(*command["case"]))
            else:
                assert way is not None, "no case is prepared"
                # The others have used the cache meanwhile, which a short solve would pay for.
                warm = timed(way)[0]
                reply = {"seconds": timed(way)[0] if warm < SHORT else warm}
        except Exception as error:  # the row is marked, and the other frameworks go on
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
        print(json.dumps(reply), file=replies, flush=True)


def choices(framework: str, case: Case) -> list[Way]:
    """The ways of a framework to answer the case; of several, the fastest counts."""
    if framework == "jax":
        from tests.benchmarks.in_jax import in_jax

        return in_jax(case)
    from tests.benchmarks.frameworks import FRAMEWORKS

    return FRAMEWORKS[framework](case)


def prepare(framework: str, case: Case) -> tuple[Way, Reply]:
    """Make a framework ready for a case: first call, quality of the answer, memory."""
    ways = choices(framework, case)
    firsts = [timed(way)[0] for way in ways]
    # A second call tells which is fastest; with only one way, the memory is all that it is for.
    again = [timed(way)[0] if len(ways) > 1 else 0.0 for way in ways]
    best = again.index(min(again))
    way = ways[best]
    before = reset_peak()
    seconds, out = timed(way)
    peak = peak_memory()
    answer = way.read(out)
    return way, {
        "problems": way.problems,
        "first": firsts[best],
        "seconds": seconds,
        "losses": [float(loss) for loss in answer.losses],
        "num_steps": answer.num_steps,
        "memory": None if before is None or peak is None else peak - before,
    }


def timed(way: Way) -> tuple[float, Any]:
    """Seconds of one whole solve, and what it returned. Garbage of earlier ones is not its fault."""
    gc.collect()
    start = time.perf_counter()
    out = way.run()
    return time.perf_counter() - start, out


def reset_peak() -> int | None:
    """Give free memory back and let the peak of the resident set start anew; its bytes, on Linux.

    Otherwise a solve would be given memory that the compiler had used before, and seem to need none.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_memory()


def peak_memory() -> int | None:
    """Bytes of the largest resident set since the last `reset_peak`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
