"""Lengths of time, and stopping before one is over."""

import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils.errors import Stopped
from utils.run import stopping
from utils.run.stopping import Stopping, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("1d", 86400), ("2", None), ("", None),
     ("2 h", None), ("-1h", None), ("h", None), ("1.h", None), ("0s", None)],
)  # fmt: skip
def test_a_length_of_time_is_read_or_refused(text, seconds):
    assert seconds_of(text) == seconds


def test_a_run_stops_while_there_is_time_for_another_pause_as_long_as_the_longest_and_for_storing(monkeypatch):
    clock = SimpleNamespace(now=stopping.STARTED + 10.0)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: clock.now))
    limited = Stopping(100.0)
    asked = []
    for pause in (0, 1, 20, 1, 1, 20, 6, 0):  # at 10, 11, 31, 32, 33, 53, 59, 59 of 100
        clock.now += pause
        asked.append(limited.asked)
    assert asked == [False] * 6 + [False, False]
    clock.now += 1.5
    assert limited.asked  # 60.5 + 2 · 20
    with pytest.raises(Stopped) as raised:
        limited.raise_stopped(Path("here"), limited.asked)
    assert raised.value.exit_code == 75
    assert str(raised.value).startswith("stopped before 100 seconds were over; go on with")


def test_without_a_limit_nothing_but_a_signal_stops():
    unlimited = Stopping()
    with unlimited.installed():
        assert not unlimited.asked
        signal.raise_signal(signal.SIGUSR1)
        assert unlimited.asked


def test_a_thread_that_may_take_no_signals_runs_all_the_same():
    seen = []

    def inside():
        with Stopping().installed():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
