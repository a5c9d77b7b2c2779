"""The scheduler alone, with an executor whose every step the test controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

import pytest

from funcexplain.clusters import scheduling
from funcexplain.clusters.pools import ManagedExecutor
from funcexplain.clusters.scheduling import Scheduler


class Engine(Executor):
    """Finishes every call at once; stays broken after a killer."""

    def __init__(self, killers: set[int], raising: Counter[int]) -> None:
        self.killers, self.raising, self.broken = killers, raising, False

    def submit(self, number: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        self.broken |= number in self.killers
        if self.broken:
            future.set_exception(BrokenExecutor("killed"))
        elif self.raising[number]:
            self.raising[number] -= 1
            future.set_exception(ArithmeticError("no"))
        else:
            future.set_result(-number)
        return future


def run(
    killers: set[int], raising: dict[int, int], make: Callable[[], Executor] | None = None
) -> tuple[dict[int, Any], dict[int, str], Scheduler]:
    counts = Counter(raising)
    executor = ManagedExecutor(make or (lambda: Engine(killers, counts)))
    scheduler = Scheduler(
        executor, lambda pool, number: pool.submit(number), lambda number: None, 2, 4  # type: ignore[arg-type]
    )  # fmt: skip
    ended = list(scheduler.run(range(30)))
    assert len({result.number for result in ended}) == len(ended)
    results = {number: result for number, result, error in ended if error is None}
    return results, {number: error for number, _, error in ended if error is not None}, scheduler


def test_every_chunk_ends_once() -> None:
    results, errors, _ = run(set(), {})
    assert results == {number: -number for number in range(30)}
    assert errors == {}


def test_chunks_that_raise_are_retried() -> None:
    results, errors, _ = run(set(), {3: 2, 7: 3})
    assert sorted(results) == [number for number in range(30) if number != 7]
    assert errors == {7: "ArithmeticError: no"}


@pytest.mark.parametrize("killers", [{0}, {29}, {4, 5}, {1, 2, 3, 4, 20}])
def test_only_chunks_that_break_the_executor_alone_fail(killers: set[int]) -> None:
    results, errors, _ = run(killers, {3: 1})
    assert sorted(errors) == sorted(killers)
    assert sorted(results) == [number for number in range(30) if number not in killers]


def test_an_executor_that_always_breaks_is_given_up() -> None:
    _, errors, scheduler = run({*range(30)}, {})
    assert scheduler.given_up is not None
    assert len(errors) < 30


def test_cancelled_chunks_are_retried() -> None:
    class Cancelling(Engine):
        cancelled = 0

        def submit(self, number: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if self.cancelled < 2:
                self.cancelled += 1
                future = Future[Any]()
                future.cancel()
                future.set_running_or_notify_cancel()
                return future
            return super().submit(number)

    results, _, _ = run(set(), {}, lambda: Cancelling(set(), Counter()))
    assert len(results) == 30


class Lost(Engine):
    """Accepts chunks that never finish, for a client whose scheduler is gone."""

    class _client:  # noqa: N801  (as Dask's executor has it)
        status = "closed"

    def submit(self, number: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


def test_chunks_in_flight_when_a_scheduler_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "_POLL_SECONDS", 0.01)
    makes: list[Callable[[], Executor]] = [
        lambda: Lost(set(), Counter()),
        lambda: Engine(set(), Counter()),
    ]
    results, errors, scheduler = run(set(), {}, lambda: makes.pop(0)())
    assert (len(results), errors, scheduler.given_up) == (30, {}, None)
    *_, scheduler = run(set(), {}, lambda: Lost(set(), Counter()))
    assert scheduler.given_up is not None
    assert "the connection to its scheduler is closed" in scheduler.given_up


def test_an_executor_that_is_closed_while_chunks_are_in_flight() -> None:
    class Closed(Engine):
        def submit(self, number: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if number == 3:
                raise LookupError("closed")  # an exception of its own
            return super().submit(number)

    results, errors, scheduler = run(set(), {}, lambda: Closed(set(), Counter()))
    assert (len(results), errors) == (3, {})
    assert scheduler.given_up is not None
    assert "LookupError: closed" in scheduler.given_up


def test_how_many_chunks_keep_an_executor_busy() -> None:
    assert ManagedExecutor(Engine(set(), Counter())).in_flight == 1024
