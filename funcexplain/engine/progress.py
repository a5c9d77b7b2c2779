"""Progress of a running search: the callback protocol, and a progress bar."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TextIO, runtime_checkable

import optree

from funcexplain.problems.checks import check_number
from funcexplain.solvers.state import Info, State


class Progress(NamedTuple):
    """How far a search is.

    Attributes:
        rows: total number of rows; one for one question.
        done: rows that have ended.
        hits: rows that hit their target.
        chunk_size: maximum number of rows at a time.
        seconds: time since the search began.
        workers: number of processes at work on the rows; zero if this process solves all of them.
        known: rows that were answered before the search began, for example in a resumed run.
        over: whether the search is over; after Ctrl-C, before all rows have ended.
    """

    rows: int
    done: int
    hits: int
    chunk_size: int
    seconds: float
    workers: int = 0
    known: int = 0
    over: bool = False

    @property
    def hit_rate(self) -> float:
        """Hits among the rows that have ended; zero if there are none."""
        return self.hits / self.done if self.done else 0.0

    @property
    def rate(self) -> float:
        """Rows per second; zero if none has ended."""
        return (self.done - self.known) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float:
        """Time that the remaining rows take at this rate; infinite if none has ended."""
        left = self.rows - self.done
        return left / self.rate if left and self.rate else math.inf if left else 0.0


Callback = Callable[[State, Info], object]


@runtime_checkable
class Reporter(Protocol):
    """A callback that also follows the progress.

    ``callback(state, info)`` is called after every step; of a grid, both lead with
    the rows of the batch.
    If it has a method ``report``, that is called with a `Progress` when the search begins, whenever
    rows have ended, and at the end.
    """

    def report(self, progress: Progress) -> object:
        """Handle a progress report."""
        ...


class AsBatch:
    """Shows a callback one row as a batch of one, as it sees a grid."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def __call__(self, state: State, info: Info) -> None:
        """Call the callback with a batch of one."""
        both: Any = (state, info)
        batch: Any = optree.tree_map(lambda leaf: leaf[None], both)
        self._callback(*batch)


class FirstRow:
    """Shows a callback the first row of a batch, for one question that is solved as a grid of one."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def __call__(self, state: State, info: Info) -> None:
        """Call the callback with the first row."""
        both: Any = (state, info)
        first: Any = optree.tree_map(lambda leaf: leaf[0], both)
        self._callback(*first)

    def report(self, progress: Progress) -> None:
        """Forward progress to a callback that follows it."""
        if isinstance(self._callback, Reporter):
            self._callback.report(progress)


class CallbackError(BaseException):
    """Wraps an exception of a callback, to distinguish it from the network's."""


class Guarded:
    """A callback whose exceptions end the search."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def __call__(self, state: State, info: Info) -> None:
        """Call the callback."""
        try:
            self._callback(state, info)
        except Exception as error:
            raise CallbackError from error

    def report(self, progress: Progress) -> None:
        """Forward progress to a callback that follows it."""
        if isinstance(self._callback, Reporter):
            try:
                self._callback.report(progress)
            except Exception as error:
                raise CallbackError from error


class Meter:
    """Counts ended rows, and reports them to the callback.

    Args:
        callback: the search's, with a method ``report``.
        rows: total number of rows.
        workers: called for the number of processes that share the rows.
    """

    def __init__(self, callback: Any, rows: int, workers: Callable[[], int] = int) -> None:
        self._listener = callback if isinstance(callback, Reporter) else None
        self._workers, self._known = workers, 0
        self._began, self._begun = time.monotonic(), False
        self._rows, self._done, self._hits, self.chunk_size = rows, 0, 0, 0

    def begin(self, chunk_size: int, known: int = 0, hits: int = 0) -> None:
        """Report that the search begins, once; later calls only change the chunk size."""
        self.chunk_size = chunk_size
        if not self._begun:
            self._begun = True
            self._known, self._done, self._hits = known, known, hits
            self._report(over=0 < self._rows == known)

    def add(self, done: int, hits: int) -> None:
        """Count rows that have ended, and report."""
        self._done, self._hits = self._done + done, self._hits + hits
        self._report(over=self._done == self._rows)

    def end(self) -> None:
        """Report that the search is over if it ends before all rows have."""
        if self._begun and self._done < self._rows:
            self._report(over=True)

    def _report(self, *, over: bool = False) -> None:
        if self._listener is not None:
            seconds = time.monotonic() - self._began
            counts = (self._rows, self._done, self._hits, self.chunk_size)
            self._listener.report(Progress(*counts, seconds, self._workers(), self._known, over))


def progress(*, stream: TextIO | None = None, every: float = 5.0, unit: str = "rows") -> ProgressBar:
    """Show rows done, hit rate, workers, rows per second and the time left while a search runs.

    A bar of tqdm (extra ``progress``) on a terminal; elsewhere, or where tqdm is not installed, an
    occasional plain line, for log files.

    Args:
        stream: where to write. Default: standard error.
        every: minimum number of seconds between two plain lines; the last one is always written.
        unit: what rows are called.

    Returns:
        A callback for `solve`. It may be reused, for one search after another.

    Raises:
        TypeError: if ``stream`` cannot be written to, or ``every`` is not a number.
        ValueError: if ``every`` is negative.

    Example:
        >>> import io, torch, funcexplain as fe
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(-1))
        >>> p = fe.problem(network, torch.tensor([0.9, 0.1]), torch.zeros(1, 1, 2))
        >>> grid = fe.vmap(p, target=torch.tensor([[0.9, 0.1], [0.5, 0.5]]))
        >>> lines = io.StringIO()
        >>> solution = fe.solve(grid, atol=1e-2, callback=fe.progress(stream=lines))
        >>> lines.getvalue().splitlines()[-1].split(",")[0]
        '2 of 2 rows done'
    """
    if stream is not None and not callable(getattr(stream, "write", None)):
        raise TypeError(f"progress: stream must be a text stream, got {type(stream).__name__}")
    return ProgressBar(stream, check_number("progress", "every", every, minimum=0.0), unit)


class ProgressBar:
    """The callback that `progress` returns."""

    def __init__(self, stream: TextIO | None, every: float, unit: str) -> None:
        self._stream, self._every, self._unit = stream, every, unit
        self._bar: Any = None
        self._running, self._next_line = False, 0.0

    def __call__(self, state: State, info: Info) -> None:
        """Do nothing: rows are counted, not steps."""

    def report(self, progress: Progress) -> None:
        """Redraw the bar, or write a line if one is due."""
        stream = self._stream or sys.stderr
        if not self._running:
            bar = _notebook_bar if self._stream is None and _in_notebook() else _bar
            self._bar, self._next_line = bar(stream, progress, self._unit), self._every
        self._running = not progress.over
        workers = f", {progress.workers} workers" if progress.workers else ""
        if self._bar is not None:
            self._bar.set_postfix_str(f"hit {progress.hit_rate:.0%}{workers}", refresh=False)
            self._bar.update(progress.done - self._bar.n)
            if progress.over:
                self._bar.close()
        elif progress.over or progress.seconds >= self._next_line:
            self._next_line = progress.seconds + self._every
            left = "" if progress.over else f", {_clock(progress.seconds_left)} left"
            print(
                f"{progress.done} of {progress.rows} {self._unit} done, hit {progress.hit_rate:.0%}"
                f"{workers}, {progress.rate:.3g} {self._unit}/s, {_clock(progress.seconds)}{left}",
                file=stream,
                flush=True,
            )


def _clock(seconds: float) -> str:
    """Format a duration.

    Example:
        >>> [_clock(seconds) for seconds in (7.4, 125.0, 7505.0, math.inf)]
        ['7 s', '2:05', '2:05:05', '?']
    """
    if not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _in_notebook() -> bool:
    """Whether a kernel of a notebook runs this."""
    interactive = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(interactive).__name__ == "ZMQInteractiveShell"


def _notebook_bar(stream: TextIO, progress: Progress, unit: str) -> Any:
    """A bar of tqdm for notebooks, or None."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=progress.rows, initial=progress.known, unit=f" {unit}")


def _bar(stream: TextIO, progress: Progress, unit: str) -> Any:
    """A bar of tqdm on a terminal, or None."""
    if not stream.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    rows, known = progress.rows, progress.known
    return tqdm(total=rows, initial=known, file=stream, unit=f" {unit}", dynamic_ncols=True)
