"""Ctrl-C: held back while a network runs, and never lost.

A KeyboardInterrupt in the middle of a step would leave torch.func's levels out of balance; in a
`finally` it would keep the caller's module from being put back; in a finalizer, Python would ignore it.
So `deferred_interrupts` holds a press back until `raise_pending`, between two steps, or until its end.
Every search around it then stops, too: the outermost one raises, or its answer says INTERRUPTED.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds after an interrupted answer in which the next search raises, so that a loop of searches ends.
_GRACE = 1.0
_raise_until = 0.0


class Hold:
    """A SIGINT handler that passes a press on to the caller's when it is asked; a second one at once.

    Attributes:
        answered: whether what the section returns says INTERRUPTED.
        raised: whether the section raises a KeyboardInterrupt.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self.answered = self.raised = self.over = False
        self._handler, self._pressed = handler, False
        self._error: BaseException | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a press."""
        if self._pressed or self.over:  # over: the caller has kept and installed this handler
            self._handler(number, frame)
        self._pressed = True

    def stops(self) -> bool:
        """Whether a press ends what is running: whether the caller's handler has raised."""
        if self._pressed and self._error is None:
            try:
                self._handler(signal.SIGINT, None)
                self._pressed = False
            except BaseException as error:  # raised at the end of the section
                self._error = error
        return self._error is not None

    def end(self) -> None:
        """Raise what the caller's handler raised, unless the section honors it."""
        global _raise_until
        stops, error, self._error, self.over = self.stops(), self._error, None, True
        if not stops or error is None:
            return
        if not isinstance(error, KeyboardInterrupt) or not (self.answered or self.raised):
            raise error
        if self.answered:
            _raise_until = time.monotonic() + _GRACE


@contextmanager
def deferred_interrupts() -> Iterator[Hold]:
    """Hold back a Ctrl-C until `raise_pending`, or the end of the outermost such section.

    Does nothing outside the main thread, or where the caller's SIGINT handler is not a Python function.
    """
    before = signal.getsignal(signal.SIGINT)
    if not _in_main_thread() or not callable(before):
        yield Hold(signal.default_int_handler)
    elif isinstance(before, Hold) and not before.over:
        try:
            yield before
        finally:
            before.answered = False  # only the outermost answer counts
    else:
        hold = Hold(before)
        try:
            signal.signal(signal.SIGINT, hold)
            yield hold
        except KeyboardInterrupt:
            hold.answered, hold.raised = False, True
            raise
        finally:
            if signal.getsignal(signal.SIGINT) is hold:  # otherwise the caller has replaced it
                signal.signal(signal.SIGINT, before)
            hold.end()


def raise_pending() -> None:
    """Raise a KeyboardInterrupt if a press was held back; in the main thread only."""
    hold = signal.getsignal(signal.SIGINT)
    if isinstance(hold, Hold) and not hold.over and _in_main_thread() and hold.stops():
        raise KeyboardInterrupt


def raise_repeated() -> None:
    """Raise a KeyboardInterrupt if an interrupted answer was returned within the last second."""
    global _raise_until
    if _raise_until and _in_main_thread():
        until, _raise_until = _raise_until, 0.0
        if time.monotonic() < until:
            raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
