"""What the workers of a sweep share: who is at work on which run, and which runs have failed."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from args_helper import Config
from trainers.results.run_folder import decided, folder_of
from trainers.sweeping.config_files import stated
from utils.errors import UserError
from utils.files import read_json, write_atomic, write_json
from utils.run.lock import Claim, is_locked

DIVERGED = 3
"""The exit code of a run whose loss became NaN or infinite."""
WORKER = f"{socket.gethostname()}-{os.getpid()}"


class Unit(NamedTuple):
    """One trial of one run: what a worker takes, and a process runs.

    Attributes:
        name: unique in the sweep.
        asked: its options, `auto` where that was asked for.
        config: its options as they are on this machine.
    """

    name: str
    asked: Config
    config: Config

    @classmethod
    def of(cls, name: str, config: Config) -> Unit:
        return cls(name, config, decided(config))

    @property
    def folder(self) -> Path:
        return folder_of(self.asked)


@dataclass
class Task:
    """A unit that this worker has claimed, and what is to be done about it while it runs and when it has run.

    Attributes:
        heading: what it is, for the screen.
        should_stop_early: called every now and then while it runs; true asks for its early end.
        done: called when it has ended well, or early as it was asked to; with whether it was.
        diverged: called when its loss became NaN or infinite; returns whether that was a failure.
    """

    unit: Unit
    claim: Claim
    heading: str
    should_stop_early: Callable[[], bool] = lambda: False
    done: Callable[[bool], None] = lambda ended_early: None
    diverged: Callable[[], bool] = lambda: True


class Job(Protocol):
    """What hands out units."""

    over: bool
    """Whether all its units are finished, or have failed."""

    def take(self) -> Task | None:
        """Claim what is to be run next; None: there is nothing now."""
        ...


class Claims:
    """The place by which the workers of a sweep know of one another.

    Args:
        folder: of the sweep, among the results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shared = folder / ".sweep"
        self.problems: dict[str, str] = {}
        """Unit -> what kept it from being run, as far as this worker knows."""
        self._shared.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._shared) as mark:
            # By the clock of the file system, which all workers share.
            self._began = os.fstat(mark.fileno()).st_mtime_ns

    def claim(self, unit: Unit) -> Claim | None:
        """The claim to a unit, or None: another process is at work on it, or has failed at it."""
        claim = Claim.of(self._place("claims", unit.name, ".lock"))
        if claim is None:
            return None
        if self._has_failed(unit) or (unit.folder.is_dir() and is_locked(unit.folder)):
            claim.release()
            return None
        return claim

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Within, no other worker is in the same part; for moments."""
        path = self._place("parts", name, ".lock")
        while (claim := Claim.of(path)) is None:
            time.sleep(0.05)
        try:
            yield
        finally:
            claim.release()

    def options_file(self, unit: Unit, seconds: float | None = None) -> Path:
        """A file with the unit's options, for the process that runs it in so many seconds; this worker's own."""
        path = self._place("options", f"{unit.name}@{WORKER}", ".yml")
        limit = {} if seconds is None else {"max_time": f"{int(seconds)}s"}
        write_atomic(path, stated(unit.asked.model_copy(update=limit)))
        return path

    def failed(self, unit: Unit, code: int) -> None:
        """Write down that the unit's process ended in this way, for all workers that are there now."""
        record = {"exit_code": code, "config_hash": unit.config.config_hash, "worker": WORKER}
        write_json(self._place("failed", unit.name, ".json"), record)
        self.problems[unit.name] = self._problem(unit, code)

    def _has_failed(self, unit: Unit) -> bool:
        """Whether it failed in the lifetime of this worker; one that diverged would do so again, whoever runs it."""
        path = self._place("failed", unit.name, ".json")
        try:
            record, written = read_json(path), path.stat().st_mtime_ns
        except (UserError, OSError):
            return False
        if record["config_hash"] != unit.config.config_hash:
            return False
        if written < self._began and record["exit_code"] != DIVERGED:
            return False
        self.problems[unit.name] = self._problem(unit, record["exit_code"])
        return True

    def _problem(self, unit: Unit, code: int) -> str:
        if code == DIVERGED:
            record = self._place("failed", unit.name, ".json")
            return f"{unit.name} diverged: its loss became NaN or infinite; to run it once more, remove {record}"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{unit.name} {how}; what it said stands above, or in the output of another worker"

    def _place(self, kind: str, name: str, ending: str) -> Path:
        return self._shared / kind / (re.sub(r"[^\w.@=+-]", "_", name) + ending)
