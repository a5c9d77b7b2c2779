"""Submit chunks to an executor, retry failures, and isolate chunks that kill their workers.

The scheduler does not depend on problems or files. A chunk that raises is retried at once. If a worker
is killed, a process pool loses all chunks in flight, although most are innocent. They are retried
together; those lost repeatedly are retried one at a time, and fail if they break the pool alone. An
attempt that takes too long counts as one that raises.
"""

from __future__ import annotations

import itertools
import logging
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import suppress
from traceback import format_exception_only
from typing import Any, NamedTuple

from funcexplain.clusters.pools import ManagedExecutor
from funcexplain.networks.network import raise_pending

_MAX_ERROR_LENGTH = 4000  # characters
_MAX_BREAKS = 20  # in a row without a finished chunk, after which chunks are not to blame
_MAX_FAILURES = 100  # without one success, after which the run is given up
_POLL_SECONDS = 1.0  # without a finished chunk, after which the connection is checked
# A chunk is slow if it exceeds a multiple of the median of enough finished ones, and a minimum time.
_SLOW, _FINISHED, _SLOW_SECONDS = 30.0, 3, 5.0
Submit = Callable[[Executor, int], "Future[Any]"]

_logger = logging.getLogger("funcexplain")


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
        timeout: maximum number of seconds per phase of an attempt; None for no limit.
        begun: identifies the phase of the last attempt at a chunk; None before its worker begins.
        answered: the result of a chunk that was finished although its attempt failed, or None.
    """

    def __init__(
        self,
        executor: ManagedExecutor,
        submit: Submit,
        check: Callable[[int], None],
        retries: int,
        in_flight: int | None,
        timeout: float | None = None,
        *,
        begun: Callable[[int], Any] = lambda number: True,
        answered: Callable[[int], Any] = lambda number: None,
    ) -> None:
        self._executor, self._submit, self._check, self._retries = executor, submit, check, retries
        self._max_in_flight = in_flight or executor.in_flight
        self._timeout, self._phase, self._answered = timeout, begun, answered
        # When phases of chunks in flight were seen to begin, and how long finished chunks took.
        self._began: dict[Future[Any], tuple[float, Any]] = {}
        self._durations, self._looked = deque[float](maxlen=1000), time.monotonic()
        self._logged, self._stuck, self._waits = set[int](), list[Future[Any]](), False
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
            raise_pending()
            broken = self._fill(pending)
            if not self._in_flight and not broken:
                return
            if self._in_flight:
                seconds = min(_POLL_SECONDS, (self._timeout or math.inf) / 4)
                finished = wait(self._in_flight, timeout=seconds, return_when=FIRST_COMPLETED)[0]
                if not finished and self._executor.is_lost:
                    # No worker is left to finish the chunks in flight.
                    yield from self._abandon()
                    broken = "the connection to its scheduler is closed"
                elif not finished:
                    self._report_missing_workers()
                # A broken pool ends all chunks in flight, so that waiting for them is safe.
                results, breaks = self._collect(finished)
                yield from results
                if breaks is not None:
                    results, another = self._collect(wait(self._in_flight)[0])
                    yield from results
                    broken = another or breaks
                if not broken:
                    yield from self._end_slow()
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
        if self._executor.is_lost:
            parts.append("check its scheduler, or start another, and give an executor of a new client")
        else:
            parts.append("give a function that makes one, such as fe.clusters.processes(2)")
            if not self._succeeded and "Broken" in broken:
                parts.append("in a script, call below the line if __name__ == '__main__':")
        return "; ".join(parts)

    def _report_missing_workers(self) -> None:
        """Log once that chunks wait for workers."""
        waits = self._executor.has_no_workers
        if waits and not self._waits:
            _logger.warning("no workers: Dask's scheduler has none, and chunks wait until one joins")
        self._waits = waits

    def _abandon(self) -> Iterator[ChunkResult]:
        """Forget the chunks in flight, whose futures will not end, and retry those without an answer."""
        for number in self._in_flight.values():
            if (result := self._answered(number)) is not None:
                yield ChunkResult(number, result, None)
            else:
                self._retry.append(number)
        self._in_flight.clear()
        self._began.clear()
        self._isolated = None

    def _end_slow(self) -> Iterator[ChunkResult]:
        """Log chunks that take much longer than others, and fail those that take too long."""
        now = time.monotonic()
        if now < self._looked + min(0.2, (self._timeout or math.inf) / 4):
            return
        waiting = (item for item in self._in_flight.items() if item[0] not in self._began)
        for future, number in itertools.islice(waiting, 2 * (self._executor.workers or 64)):
            if (phase := self._phase(number)) is not None:
                self._began[future] = now, phase
        self._looked = now
        limit = math.inf if self._timeout is None else self._timeout
        if self._timeout is None and len(self._durations) >= _FINISHED:
            limit = max(_SLOW_SECONDS, _SLOW * statistics.median(self._durations))
        late = []
        for future, (began, phase) in self._began.items():
            if now - began <= limit:
                continue
            number = self._in_flight[future]
            if (present := self._phase(number)) != phase:
                self._began[future] = now, present
            elif self._timeout is not None:
                late.append(future)
            elif number not in self._logged:
                self._logged.add(number)
                _logger.warning(
                    f"chunk {number} has been running for {now - began:.0f} s, {_SLOW:.0f} times as "
                    "long as the median; timeout= ends such chunks"
                )
        if not late:
            return
        for future in late:
            number = self._in_flight.pop(future)
            del self._began[future]
            future.cancel()
            if (result := self._answered(number)) is not None:
                yield ChunkResult(number, result, None)
            else:
                yield from self._fail(number, f"TimeoutError: no answer within {self._timeout:g} s")
        if self._executor.remake(kill=True):  # no other way ends the worker of a chunk
            yield from self._abandon()
            return
        self._stuck = [future for future in (*self._stuck, *late) if not future.done()]
        if len(self._stuck) >= (self._executor.workers or math.inf):
            self.given_up = (
                "every worker is busy with a chunk that exceeded timeout; give a function that makes an "
                "executor, whose workers can then be killed"
            )

    def _fail(self, number: int, error: str) -> Iterator[ChunkResult]:
        """Count a failed attempt: the chunk is retried, or has failed."""
        self._isolated = None if self._isolated == number else self._isolated
        self._errors[number] += 1
        if self._errors[number] > self._retries:
            self._failures_in_all += 1
            yield ChunkResult(number, None, error)
        else:
            self._retry.append(number)

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
        results, broken = list[ChunkResult](), None
        for future in finished:
            number, now = self._in_flight.pop(future), time.monotonic()
            # One that was never seen began after the last look.
            self._durations.append(now - self._began.pop(future, (self._looked, None))[0])
            isolated = self._isolated == number
            error = self._error_of(future, number)
            if isinstance(error, BrokenExecutor):
                broken = _error_text(error)
            if isinstance(error, KeyboardInterrupt):
                raise error  # a terminal sends Ctrl-C to all its processes
            if error is None or (result := self._answered(number)) is not None:
                self._breaks_in_a_row, self._succeeded = 0, True
                result = future.result() if error is None else result
                results.append(ChunkResult(number, result, None))
            elif isinstance(error, BrokenExecutor):
                self._breaks[number] += 1
                if isolated:
                    results.append(ChunkResult(number, None, broken))
                elif self._breaks[number] > self._retries:
                    self._suspects.append(number)
                else:
                    self._retry.append(number)
            else:
                results += self._fail(number, _error_text(error))
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
