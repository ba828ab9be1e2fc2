"""The time a run has taken, over its starts."""

import time

import pytest

from training.clock import Stopwatch


@pytest.fixture
def tick(monkeypatch):
    """Let seconds pass."""
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def tick(seconds: float) -> None:
        nonlocal now
        now += seconds

    return tick


def test_seconds_and_laps(tick):
    clock = Stopwatch()
    tick(2)
    assert clock.lap() == 2
    tick(3)
    assert clock.seconds == 5
    assert clock.lap() == 3


def test_a_resumed_run_adds_its_time_but_not_to_the_lap(tick):
    clock = Stopwatch()
    tick(2)
    clock.lap()
    tick(3)
    state = clock.state_dict()
    tick(1000)
    resumed = Stopwatch()
    tick(7)  # to start the program
    resumed.load_state_dict(state)
    tick(1)
    assert resumed.seconds == 5 + 7 + 1
    assert resumed.lap() == 3 + 1


def test_a_complete_run_is_not_made_longer_by_starting_again(tick):
    clock = Stopwatch()
    tick(5)
    state = clock.state_dict()
    again = Stopwatch()
    tick(7)
    again.load_state_dict(state)
    again.leave_out_start()
    tick(1)
    assert again.seconds == 5 + 1
