"""Decides when a process has to stop: on a signal, or shortly before its time limit."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

from utils.errors import Stopped

STARTED = time.monotonic()
"""Approximate start of the process: reading the options, its first action, imports this module."""

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Slurm can send SIGUSR1 some time before it ends a job (`--signal`)
OUT_OF_TIME = 75
"""Exit code of a run that reached `max_time` (EX_TEMPFAIL: try again later)."""

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_TIME = re.compile(r"(\d+(\.\d+)?[dhms])+")


def seconds_of(text: str) -> float | None:
    """Convert a duration such as `2h`, `90m` or `1h30m` to seconds; return None for zero or any other text."""
    if not _TIME.fullmatch(text):
        return None
    return sum(float(part) * _UNITS[unit] for part, unit in re.findall(r"([\d.]+)([dhms])", text)) or None


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call a handler for every signal of `SIGNALS` that comes in the block; outside the main thread it does nothing."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    previous = {name: signal.signal(name, handler) for name in SIGNALS}
    try:
        yield
    finally:
        for name, before in previous.items():
            signal.signal(name, signal.SIG_DFL if before is None else before)


class Stopping:
    """Tells a run between its steps whether to stop.

    A run works inside `installed()`, reads `asked` between steps, saves once it is not 0, and calls `raise_stopped`.

    Args:
        limit: seconds the process may take from its start; None for no limit.
        echo: seconds within which a second signal counts as a duplicate of the first, delivered by another route.
    """

    def __init__(self, limit: float | None = None, echo: float = 0.0) -> None:
        self._limit, self._echo = limit, echo
        self._deadline = None if limit is None else STARTED + limit
        self._signum: int | None = None
        self._came = 0.0
        self._asked_last: float | None = None
        self._longest_pause = 0.0

    def installed(self) -> AbstractContextManager[None]:
        """Handle signals for the block: the first signal asks to stop, a second one interrupts at once."""
        return handled_by(self._take)

    def _take(self, signum: int, _frame: FrameType | None) -> None:
        """Note the first signal and no more, because a step may be half done; interrupt at a later one."""
        if self._signum is None:
            self._signum, self._came = signum, time.monotonic()
        elif time.monotonic() - self._came >= self._echo:
            raise KeyboardInterrupt

    @property
    def asked(self) -> int:
        """The exit code to stop with: after a signal, or if time may run out before the next check; 0: go on."""
        if self._signum is not None:
            return 128 + self._signum
        return OUT_OF_TIME if self._is_nearly_over() else 0

    def _is_nearly_over(self) -> bool:
        if self._deadline is None:
            return False
        now = time.monotonic()
        # The longest time between two checks so far (evaluation, pruning, checkpoint), and as much again for saving.
        self._longest_pause = max(self._longest_pause, now - (self._asked_last or now))
        self._asked_last = now
        return now + 2 * self._longest_pause >= self._deadline

    def raise_stopped(self, folder: Path, code: int) -> None:
        """Stop the run in `folder`, once all is saved, with the code that `asked` returned here or on another rank.

        Raises:
            Stopped: always.
        """
        if code != OUT_OF_TIME:
            raise Stopped(f"stopped by {signal.Signals(code - 128).name}", code, folder)
        over = "the max_time of another process was" if self._limit is None else f"{self._limit:g} seconds were"
        raise Stopped(f"stopped before {over} over", code, folder)
