"""Past one process: chunks of rows on any ``concurrent.futures`` executor, and nothing lost.

A grid of rows is cut into chunks. Each is an idempotent task: build the problem, solve these rows, write
one file. `solve` hands chunks to an executor that exists already (a process pool, Dask's
``client.get_executor()``), tries again what fails, and takes up a directory where another run left it.
`open` reads a directory, finished or not, without holding it in memory.
"""

from funcexplain.clusters.answers import ChunkedSolution as ChunkedSolution
from funcexplain.clusters.answers import Failure as Failure
from funcexplain.clusters.answers import open as open  # noqa: A004  (never without its module)
from funcexplain.clusters.pools import processes as processes
from funcexplain.clusters.solving import solve as solve
