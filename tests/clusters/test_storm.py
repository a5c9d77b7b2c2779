"""Runs that are killed, stopped and interrupted at random moments end with all rows right."""

import sys

import pytest

from tests.clusters.storm import storm


@pytest.mark.cluster
@pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")
def test_all_rows_are_right_after_a_storm() -> None:
    assert storm(seconds=5, seed=0)
