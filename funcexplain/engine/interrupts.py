"""Ctrl-C between steps: an exception in the middle of one leaves torch.func's levels out of balance."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_asked = False


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Hold back a Ctrl-C until `raise_pending`; a second one interrupts at once.

    Does nothing outside the main thread, or where the caller has a SIGINT handler of their own.
    """
    global _asked
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def hold(number: int, frame: Any) -> None:
        global _asked
        if _asked:
            signal.default_int_handler(number, frame)
        _asked = True

    _asked = False
    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _asked = False


def raise_pending() -> None:
    """Raise the KeyboardInterrupt that was held back, if there is one; in the main thread only."""
    global _asked
    if _asked and threading.current_thread() is threading.main_thread():
        _asked = False
        raise KeyboardInterrupt
