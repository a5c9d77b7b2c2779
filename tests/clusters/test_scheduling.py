"""The scheduler alone, with an executor whose every step the test controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
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


class Hanging(Engine):
    """Never finishes some chunks; the others take no time."""

    _max_workers = 2

    def __init__(self, hanging: set[int]) -> None:
        super().__init__(set(), Counter())
        self.hanging = hanging

    def submit(self, number: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        future.set_running_or_notify_cancel()
        return future if number in self.hanging else super().submit(number)


def run_hanging(source: Any, **more: Any) -> tuple[list[int], dict[int, str], Scheduler]:
    scheduler = Scheduler(
        ManagedExecutor(source), lambda pool, number: pool.submit(number),  # type: ignore[arg-type]
        lambda number: None, 0, 4, **more,
    )  # fmt: skip
    ended = list(scheduler.run(range(10)))
    errors = {number: error for number, _, error in ended if error is not None}
    return sorted(number for number, _, error in ended if error is None), errors, scheduler


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(scheduling, "_SLOW_SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
def test_chunks_that_take_too_long_fail_and_their_executor_is_replaced() -> None:
    makes = 0

    def make() -> Executor:
        nonlocal makes
        makes += 1
        return Hanging({1, 3})

    results, errors, scheduler = run_hanging(make, timeout=0.05)
    assert results == [0, 2, *range(4, 10)]
    assert errors == dict.fromkeys((1, 3), "TimeoutError: no answer within 0.05 s")
    assert scheduler.given_up is None
    assert makes > 1


@pytest.mark.usefixtures("quick")
def test_an_executor_of_the_caller_goes_on_until_all_workers_are_busy() -> None:
    results, errors, scheduler = run_hanging(Hanging({1}), timeout=0.05)
    assert (len(results), [*errors], scheduler.given_up) == (9, [1], None)
    _, errors, scheduler = run_hanging(Hanging({1, 2}), timeout=0.05)
    assert [*errors] == [1, 2]
    assert scheduler.given_up is not None
    assert scheduler.given_up.startswith("every worker is busy with a chunk that exceeded timeout")


@pytest.mark.usefixtures("quick")
def test_chunks_that_wait_in_a_queue_are_not_late() -> None:
    begun: set[int] = set()

    def phase(number: int) -> bool | None:
        known = number in begun or None
        begun.add(5)
        return known

    results, errors, _ = run_hanging(lambda: Hanging({5} - begun), timeout=0.02, begun=phase)
    assert (len(results), [*errors]) == (9, [5])
    assert begun == {5}


@pytest.mark.usefixtures("quick")
def test_every_phase_of_a_chunk_may_take_as_long() -> None:
    phases = iter(range(4))
    results, errors, _ = run_hanging(
        lambda: Hanging({5}), timeout=0.02, begun=lambda number: next(phases, 3)
    )
    assert (len(results), [*errors]) == (9, [5])
    assert next(phases, None) is None


@pytest.mark.usefixtures("quick")
def test_a_chunk_that_is_much_slower_than_others_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Late(Hanging):
        """Finishes the slow chunk once it was logged."""

        slow: Future[Any] | None = None

        def submit(self, number: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = super().submit(number)
            self.slow = future if number in self.hanging else self.slow
            return future

    engine = Late({2})

    def begun(number: int) -> bool:
        logged = "chunk 2 has been running for" in caplog.text
        if logged and engine.slow is not None and not engine.slow.done():
            engine.slow.set_result(-2)
        return True

    class Log(dict[Future[Any], float]):
        def items(self) -> Any:  # looked through after every wait
            begun(2)
            return super().items()

    scheduler = Scheduler(
        ManagedExecutor(engine), lambda pool, number: pool.submit(number),  # type: ignore[arg-type]
        lambda number: None, 0, 4, begun=begun,
    )  # fmt: skip
    scheduler._in_flight = Log()  # type: ignore[assignment]
    assert len(list(scheduler.run(range(10)))) == 10
    assert caplog.text.count("30 times as long as the median") == 1


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.usefixtures("quick")
def test_a_chunk_that_was_published_before_its_worker_died_is_answered(lost: bool) -> None:
    engine = Lost(set(), Counter()) if lost else Engine({3}, Counter())
    scheduler = Scheduler(
        ManagedExecutor(engine), lambda pool, number: pool.submit(number),  # type: ignore[arg-type]
        lambda number: None, 0, 2, answered=lambda number: "published" if number == 3 else None,
    )  # fmt: skip
    ended = list(scheduler.run([3, 4]))
    assert [(number, result) for number, result, error in ended if error is None] == [(3, "published")]


@pytest.mark.usefixtures("quick")
def test_the_advice_fits_the_reason() -> None:
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    for engine, text in (
        (Lost(set(), Counter()), "start another, and give an executor of a new client"),
        (closed, "give a function that makes one"),
    ):
        *_, scheduler = run_hanging(engine)
        assert scheduler.given_up is not None
        assert text in scheduler.given_up
        assert "__main__" not in scheduler.given_up
    *_, scheduler = run({*range(30)}, {})
    assert scheduler.given_up is not None
    assert "in a script, call below the line" in scheduler.given_up


@pytest.mark.usefixtures("quick")
def test_dask_without_workers_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Client:
        status, looks = "running", 0

        def nthreads(self) -> dict[str, int]:
            self.looks += 1
            self.status = "running" if self.looks < 20 else "closed"
            return {}

    engine = Lost(set(), Counter())
    engine._client = Client()  # type: ignore[assignment]
    run_hanging(engine)
    assert caplog.text.count("no workers: Dask's scheduler has none, and chunks wait") == 1
