"""Objects of functions, which can be copied and explain why they cannot be pickled."""

from __future__ import annotations

from typing import Any, NoReturn, Self, SupportsIndex


class Unpicklable:
    """Base of immutable objects that hold functions, which pickle cannot store."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: cannot be pickled, since it holds functions; pass `build`, a "
            "function that makes the problem in the other process, as in fe.clusters.solve(build, ...)"
        )
