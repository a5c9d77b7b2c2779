"""Hands chunks to an executor, tries again what fails, and finds the one that kills its workers.

It knows nothing of problems or files. A chunk that raises is tried again at once. One that was in flight
when a worker was killed may be innocent: a process pool ends all its chunks then. Such chunks are tried
again together, and those that were there too often one by one: what breaks a pool alone has broken it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from contextlib import suppress
from traceback import format_exception_only
from typing import Any, NamedTuple

from funcexplain.clusters.pools import Held

_LONGEST_ERROR = 4000  # characters
# Without one chunk that ends between them, it is not a chunk that breaks executors.
_MOST_BREAKS = 20
# Without one that succeeds, it is not the chunks that fail.
_MOST_FAILURES = 100
# Seconds in which nothing ends, after which it is asked whether anybody is left.
_PATIENCE = 5.0
Submit = Callable[[Executor, int], "Future[Any]"]


class WorkerError(Exception):
    """What went wrong in a worker, told as text, which travels where an exception may not."""


class Outcome(NamedTuple):
    """The end of a chunk: its result, or the error that it failed with every time."""

    number: int
    result: Any
    error: str | None


class Scheduler:
    """One run over chunks.

    Args:
        held: the executor.
        submit: hands a chunk to an executor.
        check: called where a worker says that a chunk is done; raises OSError or ValueError if not.
        retries: times that a chunk is tried again.
        in_flight: most chunks that are submitted and have not ended.
    """

    def __init__(
        self,
        held: Held,
        submit: Submit,
        check: Callable[[int], None],
        retries: int,
        in_flight: int | None,
    ) -> None:
        self._held, self._submit, self._check, self._retries = held, submit, check, retries
        self._in_flight = in_flight or held.in_flight
        self._flying: dict[Future[Any], int] = {}
        self._again, self._suspects = deque[int](), deque[int]()
        self._errors, self._breaks = Counter[int](), Counter[int]()
        self._alone: int | None = None
        self._breaks_in_a_row, self._failures_in_all = 0, 0
        self._succeeded = False
        self.given_up: str | None = None
        """Why chunks were left: the executor broke and cannot be remade, or every chunk fails."""

    def run(self, numbers: Iterable[int]) -> Iterator[Outcome]:
        """Yield the end of every chunk, in the order in which they end."""
        coming = iter(numbers)
        while self.given_up is None:
            broken = self._fill(coming)
            if not self._flying and not broken:
                return
            if self._flying:
                ended = wait(self._flying, timeout=_PATIENCE, return_when=FIRST_COMPLETED)[0]
                if not ended and self._held.is_lost:
                    # Nobody is left to end what is in flight; its chunks may still arrive.
                    self._again.extend(self._flying.values())
                    self._flying.clear()
                    broken = "the connection to its scheduler is closed"
                # A broken pool ends all that is in flight: nothing of it is waited for in vain.
                outcomes, breaks = self._collect(ended)
                yield from outcomes
                if breaks is not None:
                    outcomes, others = self._collect(wait(self._flying)[0])
                    yield from outcomes
                    broken = others or breaks
            if broken:
                self._alone = None
                self._breaks_in_a_row += 1
                if self._breaks_in_a_row > _MOST_BREAKS or not self._held.remake():
                    self.given_up = self._why(broken)
            elif self._failures_in_all >= _MOST_FAILURES and not self._succeeded:
                self.given_up = f"the first {self._failures_in_all} chunks failed, all of them"

    def _why(self, broken: str) -> str:
        """Why the run ends with an executor that broke, and what helps."""
        told = [f"the executor broke ({broken.splitlines()[0]})"]
        if not self._held.is_lost:
            told.append("give a function that makes one, such as fe.clusters.processes(2)")
        if not self._succeeded:
            told.append("in a script, call below the line if __name__ == '__main__':")
        return "; ".join(told)

    def cancel(self) -> None:
        """Take back what has not begun."""
        for future in self._flying:
            with suppress(Exception):  # of an engine that is gone
                future.cancel()

    def _fill(self, coming: Iterator[int]) -> str | None:
        """Submit chunks while there is room; returns the error of an executor that is broken."""
        while len(self._flying) < self._in_flight and self._alone is None:
            if self._suspects and not self._again:
                if self._flying:
                    return None
                number = self._alone = self._suspects.popleft()
            else:
                found = self._again.popleft() if self._again else next(coming, None)
                if found is None:
                    return None
                number = found
            try:
                self._flying[self._submit(self._held.executor, number)] = number
            except Exception as error:  # broken, shut down or closed: every engine has its own
                self._again.appendleft(number)
                return _told(error)
        return None

    def _collect(self, ended: Iterable[Future[Any]]) -> tuple[list[Outcome], str | None]:
        """Sort out what has ended: results and failures, and whether the executor broke."""
        outcomes, broken = [], None
        for future in ended:
            number = self._flying.pop(future)
            alone = self._alone == number
            error = self._error_of(future, number)
            if error is None:
                self._breaks_in_a_row, self._succeeded = 0, True
                outcomes.append(Outcome(number, future.result(), None))
            elif isinstance(error, KeyboardInterrupt):
                raise error  # Ctrl-C reaches all processes of a terminal
            elif isinstance(error, BrokenExecutor):
                broken = _told(error)
                self._breaks[number] += 1
                if alone:
                    outcomes.append(Outcome(number, None, broken))
                elif self._breaks[number] > self._retries:
                    self._suspects.append(number)
                else:
                    self._again.append(number)
            else:
                self._errors[number] += 1
                if self._errors[number] > self._retries:
                    self._failures_in_all += 1
                    outcomes.append(Outcome(number, None, _told(error)))
                else:
                    self._again.append(number)
            if alone and broken is None:
                self._alone = None
        return outcomes, broken

    def _error_of(self, future: Future[Any], number: int) -> BaseException | None:
        if future.cancelled():
            return CancelledError("the engine cancelled it")
        error = future.exception()
        if error is None:
            try:
                self._check(number)
            except (OSError, ValueError) as trouble:
                return trouble
        return error


def _told(error: BaseException) -> str:
    """An error as it is kept: what was raised, and where in the worker."""
    alone = str(error) if isinstance(error, WorkerError) else "".join(format_exception_only(error))
    return alone.strip()[:_LONGEST_ERROR]
