"""Lengths of time, and stopping before one is over."""

import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils.errors import Stopped
from utils.run.stopping import STARTED, Stopping, seconds_of


@pytest.mark.parametrize(("text", "seconds"), [
    ("45s", 45), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("1d", 86400), ("2", None), ("", None), ("2 h", None),
    ("-1h", None), ("h", None), ("1.h", None), ("0s", None),
])  # fmt: skip
def test_a_length_of_time_is_read_or_refused(text, seconds):
    assert seconds_of(text) == seconds


def test_a_run_stops_while_there_is_time_for_another_pause_as_long_as_the_longest_and_for_storing(monkeypatch):
    clock = SimpleNamespace(now=STARTED + 10.0)
    monkeypatch.setattr("utils.run.stopping.time", SimpleNamespace(monotonic=lambda: clock.now))
    limited, asked = Stopping(100.0), []
    for pause in (0, 1, 20, 1, 1, 20, 6, 0, 1.5):  # at 10, 11, 31, 32, 33, 53, 59, 59 of 100; 60.5 + 2 · 20
        clock.now += pause
        asked.append(limited.asked)
    assert asked == [0] * 8 + [75]
    with pytest.raises(Stopped, match=r"^stopped before 100 seconds were over; go on with") as raised:
        limited.raise_stopped(Path("here"), 75)
    assert raised.value.exit_code == 75


def test_a_rank_stops_with_another_whose_time_is_over_though_its_own_has_no_limit():
    with pytest.raises(Stopped, match=r"^stopped before the max_time of another process was over; go on") as raised:
        Stopping().raise_stopped(Path("here"), 75)
    assert raised.value.exit_code == 75


def test_a_signal_that_comes_by_two_ways_is_one(monkeypatch):
    clock = SimpleNamespace(now=10.0)
    monkeypatch.setattr("utils.run.stopping.time", SimpleNamespace(monotonic=lambda: clock.now))
    echoed = Stopping(echo=0.2)
    with echoed.installed(), pytest.raises(KeyboardInterrupt):
        for clock.now in (10.0, 10.1, 10.3):
            assert echoed.asked == (0 if clock.now == 10.0 else 143)
            signal.raise_signal(signal.SIGTERM)
    assert clock.now == 10.3


def test_a_thread_that_may_take_no_signals_runs_all_the_same():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def inside():
        with Stopping().installed():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
