"""Executors that are made, and made anew when one of their workers is killed."""

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

Source = Executor | Callable[[], Executor]


def processes(workers: int) -> Callable[[], Executor]:
    """Make process pools of this machine, each worker with one torch thread.

    Small networks lose by more threads. Workers are spawned, not forked: a fork of a process that has
    used torch can hang.

    Args:
        workers: processes, at least one.

    Returns:
        A function for ``solve(..., executor=...)`` that makes a pool, and a new one where a killed
        worker broke it.

    Raises:
        TypeError, ValueError: if ``workers`` is no whole number above zero.

    Example:
        >>> make = processes(2)
        >>> with make() as pool:
        ...     pool.submit(sum, [1, 2]).result()
        3
    """
    return partial(_pool, check_positive("processes", "workers", workers))


def _pool(workers: int) -> Executor:
    context = multiprocessing.get_context("spawn")
    return Pool(workers, context, initializer=_begin)


class Pool(ProcessPoolExecutor):
    """Processes that end the chunks they have begun, though Ctrl-C reaches all that a terminal runs."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand a call to a process; those that are missing begin here, and inherit what is blocked."""
        if not hasattr(signal, "pthread_sigmask"):  # Windows, where Ctrl-C ends them
            return super().submit(fn, *args, **kwargs)
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _begin() -> None:
    """Set a worker up: one thread, and an end when the process that it works for has ended."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr  # what networks print is not what the coordinator says
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed coordinator would leave it waiting for ever
        Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def checked_source(where: str, executor: Any) -> Source:
    """Refuse what neither is an executor nor makes one."""
    if isinstance(executor, type) or not (isinstance(executor, Executor) or callable(executor)):
        raise TypeError(
            f"{where}: executor must be a concurrent.futures.Executor or a function that makes one, got "
            f"{getattr(executor, '__name__', type(executor).__name__)}; fe.clusters.processes(2) and "
            "dask.distributed.Client(...).get_executor() are such"
        )
    return executor


class Held:
    """The executor in use: the caller's own, or one that is made here, again where it breaks."""

    def __init__(self, source: Source) -> None:
        self._make = None if isinstance(source, Executor) else source
        self.executor = source if isinstance(source, Executor) else self._made()

    @property
    def workers(self) -> int:
        """Chunks that it works on at once; zero where that is not known."""
        if self._client is None:
            return getattr(self.executor, "_max_workers", 0)  # of the standard library
        if self._client.status != "running":
            return 0
        try:
            return sum(self._client.nthreads().values())  # they come and go
        except OSError:  # lost just now
            return 0

    @property
    def is_lost(self) -> bool:
        """Whether nothing that is in flight will ever end, as where Dask's scheduler was killed."""
        return self._client is not None and self._client.status == "closed"

    @property
    def _client(self) -> Any:
        """Dask's client, of its executors."""
        return getattr(self.executor, "_client", None)

    @property
    def in_flight(self) -> int:
        """Chunks that keep it busy: two per process; of a cluster more, as it may grow."""
        own = getattr(self.executor, "_max_workers", None)
        return 2 * own if isinstance(own, int) else 1024

    def remake(self) -> bool:
        """Make a new one in place of a broken one; False where the caller's own cannot be."""
        if self._make is None:
            return False
        self.close()
        self.executor = self._made()
        return True

    def close(self) -> None:
        """End an executor that was made here, once its running chunks have ended."""
        if self._make is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)

    def kill(self) -> None:
        """End the processes of an executor that was made here, whatever they are at."""
        if self._make is not None:
            for process in [*(getattr(self.executor, "_processes", None) or {}).values()]:
                process.kill()
            self.executor.shutdown(wait=False, cancel_futures=True)

    def _made(self) -> Executor:
        assert self._make is not None
        executor = self._make()
        if not isinstance(executor, Executor):
            raise TypeError(
                "clusters.solve: the function given as executor must return a "
                f"concurrent.futures.Executor, got {type(executor).__name__}"
            )
        return executor
