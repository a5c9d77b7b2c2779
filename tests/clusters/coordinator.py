"""A coordinator of its own, for tests that kill it; its arguments are RUN and FAULTS."""

from __future__ import annotations

import os
import sys

import funcexplain as fe
from tests.clusters.builds import METHOD, SETTINGS, faulty

if __name__ == "__main__":
    run, faults = sys.argv[1:]
    solution = fe.clusters.solve(
        (faulty, {"faults": faults, "coordinator": os.getpid()}),
        METHOD,
        executor=fe.clusters.processes(1),
        directory=run,
        chunk_size=5,
        **SETTINGS,
    )
    print(solution)
