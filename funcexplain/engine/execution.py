"""How a search runs; see `solve`."""

from __future__ import annotations

from typing import Literal, NamedTuple

from funcexplain.engine.compiled import Compile
from funcexplain.engine.progress import Callback

Rows = Literal["auto", "vmap", "samples"]


class Execution(NamedTuple):
    """The settings of `solve` that do not change answers.

    Attributes:
        checks_starts: whether an error of the network is raised at any start; otherwise only at the
            first, and other rows end as FAILED.
    """

    max_steps: int
    history_every: int = 0
    chunk_size: int | None = None
    rows: Rows = "auto"
    compile: Compile = False
    checks_starts: bool = True
    callback: Callback | None = None
