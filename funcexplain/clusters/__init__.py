"""Solve grids on many processes: chunks of rows on any ``concurrent.futures`` executor, resumable.

A grid of rows is split into chunks. Each chunk is an idempotent task: build the problem, solve these
rows, write one file. `solve` submits chunks to an executor (a process pool, or Dask's
``client.get_executor()``), retries failures, and resumes a directory of an earlier run. `open` reads a
directory, finished or not, without loading all of it into memory.
"""

from funcexplain.clusters.answers import ChunkedSolution as ChunkedSolution
from funcexplain.clusters.answers import Failure as Failure
from funcexplain.clusters.answers import open as open  # noqa: A004  (used as clusters.open)
from funcexplain.clusters.pools import processes as processes
from funcexplain.clusters.solving import solve as solve

__all__ = ["ChunkedSolution", "Failure", "open", "processes", "solve"]
