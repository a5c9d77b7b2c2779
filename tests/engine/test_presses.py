"""Ctrl-C at random moments is raised, or the answer says so and the next search raises."""

import random

import pytest

from tests.engine.presses import OPERATIONS, assert_honored, count_events

PRESSES = 8


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_press_is_lost(name: str) -> None:
    draw, events = random.Random(name), count_events(name)
    for _ in range(PRESSES):
        assert_honored(name, draw.randint(1, events))
    for _ in range(PRESSES // 2):  # where the search is over and its answer is not yet returned
        assert_honored(name, events - draw.randint(0, min(events, 2000) - 1))
