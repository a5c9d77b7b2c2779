"""What an answer says of the network holds, for as many random questions as a fixed time allows."""

import time

import pytest

from tests.laws.random_questions import assert_answered

BLOCKS, QUESTIONS, SECONDS = 8, 200, 2.5


@pytest.mark.filterwarnings("ignore")  # a search that stalls at its start
@pytest.mark.parametrize("block", range(BLOCKS))
def test_answers_hold(block: int) -> None:
    end = time.monotonic() + SECONDS
    for seed in range(block * QUESTIONS, (block + 1) * QUESTIONS):
        assert_answered(seed)
        if time.monotonic() > end:
            break
