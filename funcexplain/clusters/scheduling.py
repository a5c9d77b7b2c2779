"""Submit chunks to an executor, retry failures, and isolate chunks that kill their workers.

The scheduler does not depend on problems or files. A chunk that raises is retried at once. If a worker
is killed, a process pool loses all chunks in flight, although most are innocent. They are retried
together, and those that were in flight too often are retried one at a time: one that breaks the pool
alone fails.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import suppress
from traceback import format_exception_only
from typing import Any, NamedTuple

from funcexplain.clusters.pools import ManagedExecutor

_MAX_ERROR_LENGTH = 4000  # characters
_MAX_BREAKS = 20  # in a row without a finished chunk, after which chunks are not to blame
_MAX_FAILURES = 100  # without one success, after which the run is given up
_POLL_SECONDS = 5.0  # without a finished chunk, after which the connection is checked
Submit = Callable[[Executor, int], "Future[Any]"]


class WorkerError(Exception):
    """An error in a worker as text, since the original exception may not be picklable."""


class ChunkResult(NamedTuple):
    """The result of a chunk, or the error of its last attempt."""

    number: int
    result: Any
    error: str | None


class Scheduler:
    """Runs chunks on an executor.

    Args:
        executor: the executor.
        submit: submits a chunk to an executor.
        check: called when a worker reports that a chunk is done; raises OSError or ValueError if not.
        retries: maximum number of retries per chunk.
        in_flight: maximum number of chunks that are submitted and not finished.
    """

    def __init__(
        self,
        executor: ManagedExecutor,
        submit: Submit,
        check: Callable[[int], None],
        retries: int,
        in_flight: int | None,
    ) -> None:
        self._executor, self._submit, self._check, self._retries = executor, submit, check, retries
        self._max_in_flight = in_flight or executor.in_flight
        self._in_flight: dict[Future[Any], int] = {}
        self._retry, self._suspects = deque[int](), deque[int]()
        self._errors, self._breaks = Counter[int](), Counter[int]()
        self._isolated: int | None = None
        self._breaks_in_a_row, self._failures_in_all = 0, 0
        self._succeeded = False
        self.given_up: str | None = None
        """Why the run was given up: the executor broke and cannot be remade, or every chunk fails."""

    def run(self, numbers: Iterable[int]) -> Iterator[ChunkResult]:
        """Yield the result of every chunk, in the order in which they finish."""
        pending = iter(numbers)
        while self.given_up is None:
            broken = self._fill(pending)
            if not self._in_flight and not broken:
                return
            if self._in_flight:
                finished = wait(self._in_flight, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)[0]
                if not finished and self._executor.is_lost:
                    # No worker is left to finish the chunks in flight.
                    self._retry.extend(self._in_flight.values())
                    self._in_flight.clear()
                    broken = "the connection to its scheduler is closed"
                # A broken pool ends all chunks in flight, so that waiting for them is safe.
                results, breaks = self._collect(finished)
                yield from results
                if breaks is not None:
                    results, another = self._collect(wait(self._in_flight)[0])
                    yield from results
                    broken = another or breaks
            if broken:
                self._isolated = None
                self._breaks_in_a_row += 1
                if self._breaks_in_a_row > _MAX_BREAKS or not self._executor.remake():
                    self.given_up = self._why(broken)
            elif self._failures_in_all >= _MAX_FAILURES and not self._succeeded:
                self.given_up = f"the first {self._failures_in_all} chunks failed, all of them"

    def _why(self, broken: str) -> str:
        """Why the run ends with a broken executor, and the remedy."""
        parts = [f"the executor broke ({broken.splitlines()[0]})"]
        if not self._executor.is_lost:
            parts.append("give a function that makes one, such as fe.clusters.processes(2)")
        if not self._succeeded:
            parts.append("in a script, call below the line if __name__ == '__main__':")
        return "; ".join(parts)

    def cancel(self) -> None:
        """Cancel chunks that have not started."""
        for future in self._in_flight:
            with suppress(Exception):  # the executor may be gone
                future.cancel()

    def _fill(self, pending: Iterator[int]) -> str | None:
        """Submit chunks up to the maximum in flight; returns the error if the executor is broken."""
        while len(self._in_flight) < self._max_in_flight and self._isolated is None:
            if self._suspects and not self._retry:
                if self._in_flight:
                    return None
                number = self._isolated = self._suspects.popleft()
            else:
                found = self._retry.popleft() if self._retry else next(pending, None)
                if found is None:
                    return None
                number = found
            try:
                self._in_flight[self._submit(self._executor.executor, number)] = number
            except Exception as error:  # broken, shut down or closed: the type depends on the executor
                self._retry.appendleft(number)
                return _error_text(error)
        return None

    def _collect(self, finished: Iterable[Future[Any]]) -> tuple[list[ChunkResult], str | None]:
        """Process finished chunks: results and failures, and the error if the executor broke."""
        results, broken = [], None
        for future in finished:
            number = self._in_flight.pop(future)
            isolated = self._isolated == number
            error = self._error_of(future, number)
            if error is None:
                self._breaks_in_a_row, self._succeeded = 0, True
                results.append(ChunkResult(number, future.result(), None))
            elif isinstance(error, KeyboardInterrupt):
                raise error  # a terminal sends Ctrl-C to all its processes
            elif isinstance(error, BrokenExecutor):
                broken = _error_text(error)
                self._breaks[number] += 1
                if isolated:
                    results.append(ChunkResult(number, None, broken))
                elif self._breaks[number] > self._retries:
                    self._suspects.append(number)
                else:
                    self._retry.append(number)
            else:
                self._errors[number] += 1
                if self._errors[number] > self._retries:
                    self._failures_in_all += 1
                    results.append(ChunkResult(number, None, _error_text(error)))
                else:
                    self._retry.append(number)
            if isolated and broken is None:
                self._isolated = None
        return results, broken

    def _error_of(self, future: Future[Any], number: int) -> BaseException | None:
        if future.cancelled():
            return CancelledError("the executor cancelled it")
        error = future.exception()
        if error is None:
            try:
                self._check(number)
            except (OSError, ValueError) as failure:
                return failure
        return error


def _error_text(error: BaseException) -> str:
    """An error as stored: the exception, and its traceback in the worker."""
    text = str(error) if isinstance(error, WorkerError) else "".join(format_exception_only(error))
    return text.strip()[:_MAX_ERROR_LENGTH]
