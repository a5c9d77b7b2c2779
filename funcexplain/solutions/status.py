"""How a search ended."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """How a search ended; `sentence` explains it.

    Example:
        >>> Status.HIT.sentence
        'The target is hit: nothing misses it by more than atol.'
    """

    HIT = 0
    STALLED = 1
    MAX_STEPS = 2
    NONFINITE = 3
    INTERRUPTED = 4
    FAILED = 5
    CLOSEST = 6

    def __str__(self) -> str:
        return self.name

    @property
    def is_hit(self) -> bool:
        """Whether the target is hit."""
        return self in HITS

    @property
    def sentence(self) -> str:
        """The meaning of the status."""
        return _SENTENCES[self]


HITS = (Status.HIT, Status.CLOSEST)
_SENTENCES = {
    Status.HIT: "The target is hit: nothing misses it by more than atol.",
    Status.STALLED: "The search stalled: no step moves the input, or patience ran out without progress.",
    Status.MAX_STEPS: "The search reached max_steps before the target was hit.",
    Status.NONFINITE: (
        "A value or gradient was not finite, or a factorization failed; this is the last finite input."
    ),
    Status.INTERRUPTED: "The search was interrupted; this is what it had found so far, NaN if nothing.",
    Status.FAILED: "The network raised an error; this is what was found before, NaN if nothing.",
    Status.CLOSEST: "The target is hit, and no small change that keeps it is closer to the reference.",
}
