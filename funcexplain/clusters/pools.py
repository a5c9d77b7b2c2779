"""Executors, replaced when a killed worker breaks them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import connection
from threading import Thread
from typing import Any

import torch

from funcexplain.problems.checks import check_positive

ExecutorSource = Executor | Callable[[], Executor]


def processes(workers: int) -> Callable[[], Executor]:
    """Make process pools on this machine, with one torch thread per worker.

    Small networks are slower with more threads. Workers are spawned, not forked: a fork of a process
    that has used torch can hang.

    Args:
        workers: number of processes, at least one.

    Returns:
        A function for ``solve(..., executor=...)`` that makes a pool, and a new one if a killed worker
        breaks it.

    Raises:
        TypeError, ValueError: if ``workers`` is not a positive integer.

    Example:
        >>> make = processes(2)
        >>> with make() as pool:
        ...     pool.submit(sum, [1, 2]).result()
        3
    """
    return partial(_make_pool, check_positive("processes", "workers", workers))


def _make_pool(workers: int) -> Executor:
    context = multiprocessing.get_context("spawn")
    return WorkerPool(workers, context, initializer=_set_up_worker)


class WorkerPool(ProcessPoolExecutor):
    """A process pool that finishes running chunks even if a terminal sends Ctrl-C to its workers."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call; workers that start here inherit the blocked signal."""
        if not hasattr(signal, "pthread_sigmask"):  # Windows, where Ctrl-C ends them
            return super().submit(fn, *args, **kwargs)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _set_up_worker() -> None:
    """Use one thread, and exit when the parent process has ended."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr  # keeps the output of networks apart from the coordinator's
    parent = multiprocessing.parent_process()
    if parent is not None:  # otherwise it would outlive a killed coordinator
        Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def check_executor(where: str, executor: Any) -> ExecutorSource:
    """Raise unless the value is an executor or makes one."""
    if isinstance(executor, type) or not (isinstance(executor, Executor) or callable(executor)):
        raise TypeError(
            f"{where}: executor must be a concurrent.futures.Executor or a function that makes one, got "
            f"{getattr(executor, '__name__', type(executor).__name__)}; fe.clusters.processes(2) and "
            "dask.distributed.Client(...).get_executor() are examples"
        )
    return executor


class ManagedExecutor:
    """The executor in use: the caller's own, or one made here, and replaced if it breaks."""

    def __init__(self, source: ExecutorSource) -> None:
        self._make = None if isinstance(source, Executor) else source
        self.executor = source if isinstance(source, Executor) else self._make_executor()

    @property
    def workers(self) -> int:
        """Number of chunks solved at a time; zero if unknown."""
        if self._client is None:
            return getattr(self.executor, "_max_workers", 0)  # in the standard library
        if self._client.status != "running":
            return 0
        try:
            return sum(self._client.nthreads().values())  # workers come and go
        except OSError:  # the connection was just lost
            return 0

    @property
    def is_lost(self) -> bool:
        """Whether chunks in flight will never finish, because Dask's scheduler is gone."""
        return self._client is not None and self._client.status == "closed"

    @property
    def _client(self) -> Any:
        """The client of Dask's executor; None for others."""
        return getattr(self.executor, "_client", None)

    @property
    def in_flight(self) -> int:
        """Number of chunks that keep it busy: two per process, more for a cluster, which may grow."""
        own = getattr(self.executor, "_max_workers", None)
        return 2 * own if isinstance(own, int) else 1024

    @property
    def has_no_workers(self) -> bool:
        """Whether chunks wait because Dask's scheduler has no worker."""
        if self._client is None or self._client.status != "running":
            return False
        try:
            return not self._client.nthreads()
        except OSError:  # the connection was just lost
            return False

    def remake(self, *, kill: bool = False) -> bool:
        """Replace an executor that is broken, or kill it first; False if it is the caller's own."""
        if self._make is None:
            return False
        if kill:
            self.kill()
        else:
            self.close()
        self.executor = self._make_executor()
        return True

    def close(self) -> None:
        """Shut down an executor made here, once its running chunks have finished."""
        if self._make is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)

    def kill(self) -> None:
        """Kill the processes of an executor made here."""
        if self._make is not None:
            for process in [*(getattr(self.executor, "_processes", None) or {}).values()]:
                process.kill()
            self.executor.shutdown(wait=False, cancel_futures=True)

    def _make_executor(self) -> Executor:
        assert self._make is not None
        executor = self._make()
        if not isinstance(executor, Executor):
            raise TypeError(
                "clusters.solve: the function given as executor must return a "
                f"concurrent.futures.Executor, got {type(executor).__name__}"
            )
        return executor
