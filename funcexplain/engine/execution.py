"""How a search runs; see `solve`."""

from __future__ import annotations

from typing import Literal, NamedTuple

from funcexplain.engine.compiled import Compile
from funcexplain.engine.progress import Callback

Rows = Literal["auto", "vmap", "samples"]


class Execution(NamedTuple):
    """The settings of `solve` that do not change answers."""

    max_steps: int
    history_every: int = 0
    chunk_size: int | None = None
    rows: Rows = "auto"
    compile: Compile = False
    callback: Callback | None = None
